"""Tokens that a recipe adds: rows of the embeddings, which begin as the mean of the pieces that wrote them before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunekit.core.errors import UserError
from tunekit.model.tokenizer import load_tokenizer
from tunekit.recipe.schema import ModelBlock

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def make_room(model: PreTrainedModel, block: ModelBlock) -> dict[str, list[int]]:
    """Gives the new tokens their rows.

    Args:
        model: as loaded; its embeddings grow where they have no rows to spare.
        block: the recipe's model block.

    Returns:
        The ids of the new tokens by the name of the module whose rows stand for them: the embedding, and the head
        where it has weights of its own.

    Raises:
        UserError: a token that the tokenizer reads as nothing.
    """
    import torch

    tokenizer = load_tokenizer(block)
    before = load_tokenizer(block.model_copy(update={"new_tokens": ()}))
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tables: list[Any] = [model.get_input_embeddings()]
    head = model.get_output_embeddings()
    if head is not None and head.weight is not tables[0].weight:
        tables.append(head)
    ids = [int(tokenizer.convert_tokens_to_ids(token)) for token in block.new_tokens]
    with torch.no_grad():
        for token, number in zip(block.new_tokens, ids, strict=True):
            pieces = before(token, add_special_tokens=False)["input_ids"]
            if not pieces:
                what = f"'{token}' has no pieces in this tokenizer from which its embedding could begin"
                raise UserError(what, where="model.new_tokens", fix="name a token of visible characters")
            for table in tables:
                table.weight[number] = table.weight[pieces].float().mean(dim=0).to(table.weight.dtype)
    names = {id(module): name for name, module in model.named_modules()}
    return {names[id(table)]: ids for table in tables}


def train_with(config: Any, tables: dict[str, list[int]], kind: str) -> None:
    """Has an adapter train the new rows, and store them.

    Raises:
        UserError: the kind cannot.
    """
    short = {name.rsplit(".", 1)[-1]: ids for name, ids in tables.items()}
    fields = type(config).__dataclass_fields__
    if "trainable_token_indices" in fields and not config.trainable_token_indices:
        config.trainable_token_indices = short
    elif {"target_modules", "modules_to_save"} <= fields.keys() and len(short) == 2 and kind != "trainable_tokens":
        config.modules_to_save = [*(config.modules_to_save or []), *short]
    else:
        raise UserError(
            f"an adapter of kind {kind} does not train new tokens in this model",
            where="model.new_tokens",
            fix="take `kind: lora`, or train in full",
        )
