"""Whether a model keeps documents that run together apart: each is asked before it trains, not trusted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import UserError, out_of_memory
from tunekit.data.collate import Collator
from tunekit.evaluate.mode import evaluating, has_virtual_tokens, plain_model
from tunekit.kernels.segments import flatten
from tunekit.plan.plan import Plan

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LENGTH = 12
"""Tokens of each probed example: more than the convolutions of hybrid models reach."""
SHORTER = 7
"""Tokens of a second document of another length."""
_NOTED = "tunekit_noted"
"""The attention of the probe: tunekit's, with a look at what it is given."""
_AGREES = {"float32": 2e-3, "bfloat16": 0.1, "float16": 0.02}
"""How far the logits of a flat row may be from those of its documents alone, as a share of their norm."""
_REFUSALS = (ValueError, TypeError, RuntimeError, LookupError, AttributeError, AssertionError)
"""What models raise that are given what they do not know."""


def run_flat(
    model: PreTrainedModel, plan: Plan, arithmetic: AbstractContextManager[object], *, compiled: bool = False
) -> str:
    """Makes a model ready for flat rows of documents; or says why it cannot be, and leaves it as it was.

    Three documents run in one row, and each alone; then the first gets other tokens, which the others must not notice.

    Args:
        model: on its device.
        plan: ``model.attention: auto`` takes tunekit's own attention, flash attention its own.
        arithmetic: the context of training's mixed precision.
        compiled: the model is going to be compiled.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    from tunekit.kernels.attention import NAME, attention, register

    wanted = plan.recipe.model.attention
    if settled := _settled(model, wanted, compiled):
        return settled
    plain: Any = plain_model(model)
    before = plain.config._attn_implementation
    ids, others = _documents(plain, 0), _documents(plain, LENGTH)
    windows: set[int | None] = set()

    def noted(*args: Any, **options: Any) -> Any:
        windows.add(options.get("sliding_window"))
        return attention(*args, **options)

    def together(documents: list[list[int]]) -> list[torch.Tensor]:
        """Logits (tokens, V) of each document in one row."""
        return _in_one_row(model, _batch(documents), with_segments=wanted == "auto")

    with evaluating(model), arithmetic, _token_by_token(model):
        try:
            alone = [model(**_alone(plain, document), use_cache=False).logits[0].float() for document in ids]
            if wanted == "auto":
                register()
                AttentionInterface.register(_NOTED, noted)
                AttentionMaskInterface.register(_NOTED, sdpa_mask)
                plain.set_attn_implementation(_NOTED)
            found, perturbed = together(ids), together([others[0], *ids[1:]])
        except _REFUSALS as error:
            if out_of_memory(error):
                raise
            why = f"{plain.config.model_type} does not take it: {str(error).partition(chr(10))[0]}"
        else:
            why = _compare(plain, alone, found, perturbed) or _reach(plain, windows, plan.recipe.data.max_length)
    if wanted == "auto":
        plain.set_attn_implementation(before if why else NAME)
    return why


def shares_prefix(model: PreTrainedModel, arithmetic: AbstractContextManager[object]) -> bool:
    """Whether branches of an example may share its beginning in a flat row of this model.

    Two branches run behind one beginning, and each alone; then the tokens of one and of the other change, which nothing
    else must notice.

    Args:
        model: that `run_flat` has made ready; any other says no.
        arithmetic: the context of training's mixed precision.
    """
    from tunekit.kernels.attention import NAME

    plain: Any = plain_model(model)
    if plain.config._attn_implementation != NAME:
        return False
    (beginning, one, two), (_, *changed) = _documents(plain, 0), _documents(plain, LENGTH)

    def together(*branches: list[int]) -> list[torch.Tensor]:
        """Logits of the beginning with the first branch, and of the second."""
        return _in_one_row(model, _group(beginning, list(branches)), with_segments=True)

    with evaluating(model), arithmetic, _token_by_token(model):
        try:
            alone = [model(**_alone(plain, beginning + own), use_cache=False).logits[0].float() for own in (one, two)]
            (first, second), moved, other = together(one, two), together(changed[0], two), together(one, changed[1])
        except _REFUSALS as error:
            if out_of_memory(error):
                raise
            return False
        apart = len(beginning)
        return not (
            _compare(plain, [alone[0], alone[1][apart:]], [first, second], [moved[0], moved[1]])
            or _compare(plain, [alone[1][apart:], alone[0]], [second, first], [other[1], other[0]])
        )


def _in_one_row(model: PreTrainedModel, batch: dict[str, torch.Tensor], *, with_segments: bool) -> list[torch.Tensor]:
    """Logits (tokens, V) of each document of a batch that runs as a flat row."""
    from tunekit.kernels.attention import mask_of

    laid_out, device = flatten(batch), plain_model(model).device
    segments = laid_out["segments"].to(device)
    inputs: dict[str, Any] = {name: laid_out[name].to(device) for name in ("input_ids", "position_ids")}
    if with_segments:
        inputs |= {"segments": segments, "attention_mask": mask_of(segments)}
    logits = model(**inputs, use_cache=False).logits[0].float()
    return list(logits.split(segments.lengths))


@contextmanager
def _token_by_token(model: PreTrainedModel) -> Iterator[None]:
    """LLM.int8() looks for outliers in all tokens of a batch, whoever's they are: for the probe it looks for none."""
    states = [module.state for module in model.modules() if hasattr(getattr(module, "state", None), "threshold")]
    before = [state.threshold for state in states]
    try:
        for state in states:
            state.threshold = 0.0
        yield
    finally:
        for state, threshold in zip(states, before, strict=True):
            state.threshold = threshold


def _settled(model: PreTrainedModel, attention: str, compiled: bool) -> str:
    """Why it need not even be tried."""
    if attention in ("sdpa", "eager"):
        return f"model.attention: {attention}"
    if compiled:
        return "compiled code does not take flat rows"
    return "the adapter puts virtual tokens before the text" if has_virtual_tokens(model) else ""


def _reach(plain: Any, windows: set[int | None], longest: int) -> str:
    """Why the reach of attention is lost in a flat row: it stands in the mask alone, and there is none."""
    config = plain.config.get_text_config()
    chunk, window = getattr(config, "attention_chunk_size", None), getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    if chunk and chunk < longest:
        return f"{config.model_type} attends in chunks of {chunk} tokens"
    if window and window < longest and "sliding_attention" in kinds and windows == {None}:
        return f"{config.model_type} has its window of {window} tokens in the mask alone"
    return ""


def _compare(plain: Any, alone: list[torch.Tensor], found: list[torch.Tensor], perturbed: list[torch.Tensor]) -> str:
    kind = plain.config.model_type
    dtype = str(alone[0].dtype if not _mixed() else "bfloat16").removeprefix("torch.")
    weights = str(plain.dtype).removeprefix("torch.")
    most = max(_AGREES.get(dtype, 0.1), _AGREES.get(weights, 0.1))
    if not all(values.isfinite().all() for values in alone):
        return f"{kind} computes values that are not finite"
    for a, b in zip(alone, found, strict=True):
        if not float((a - b).norm()) <= most * float(a.norm()):
            return f"{kind} computes other values for documents in one row"
    moved = float((perturbed[0] - found[0]).abs().max())
    leaked = max(float((a - b).abs().max()) for a, b in zip(found[1:], perturbed[1:], strict=True))
    return f"documents in one row see each other in {kind}" if leaked > 1e-4 * moved else ""


def _mixed() -> bool:
    import torch

    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


def _documents(plain: Any, shift: int) -> list[list[int]]:
    vocabulary = plain.config.get_text_config().vocab_size
    return [[(shift + token) % vocabulary for token in range(length)] for length in (LENGTH, LENGTH, SHORTER)]


def _alone(plain: Any, document: list[int]) -> dict[str, torch.Tensor]:
    import torch

    return {"input_ids": torch.tensor([document], device=plain.device)}


def _batch(documents: list[list[int]]) -> dict[str, torch.Tensor]:
    examples = [{"input_ids": ids, "labels": [-100] * len(ids)} for ids in documents]
    return Collator(0)(examples)


def _group(beginning: list[int], branches: list[list[int]]) -> dict[str, torch.Tensor]:
    """A batch of one example: a beginning and branches that go on from it."""
    import torch

    places = [range(len(beginning))] + [range(len(beginning), len(beginning) + len(own)) for own in branches]
    ids = [*beginning, *(token for own in branches for token in own)]
    example = {"input_ids": ids, "labels": [-100] * len(ids), "position_ids": [at for part in places for at in part]}
    return Collator(0)([example]) | {"branches": torch.tensor([[len(own) for own in branches]])}


def check_causal(model: PreTrainedModel, arithmetic: AbstractContextManager[object]) -> None:
    """Runs a document twice, with another last token, and looks whether the tokens before it notice.

    transformers makes a causal model of an encoder too, with attention to both sides: its loss falls to nothing, and
    nothing has been learnt.

    Args:
        model: on its device.
        arithmetic: the context of training's mixed precision.

    Raises:
        UserError: they do; names the kind of model.
    """
    import torch

    plain: Any = plain_model(model)
    ids = _documents(plain, 0)[0]
    other = [*ids[:-1], (ids[-1] + 1) % plain.config.get_text_config().vocab_size]
    with evaluating(model), arithmetic, _token_by_token(model):
        exact = plain.dtype == torch.float32 and not _mixed()
        logits = [model(**_alone(plain, document), use_cache=False).logits[0].float() for document in (ids, other)]
    moved = (logits[0][-len(ids) :] - logits[1][-len(ids) :]).abs()  # (LENGTH, V); virtual tokens stand before
    if float(moved[:-1].max()) > (1e-3 if exact else 0.02) * float(moved[-1].max()):  # 16 bits: a few roundings
        raise UserError(
            f"'{plain.config.model_type}' is not a causal language model here: its tokens see those that come after",
            where="model.name",
            fix="name a decoder model; an encoder has tasks of its own",
        )


def check_isolated(
    model: PreTrainedModel, collator: Collator, rows: int, arithmetic: AbstractContextManager[object]
) -> None:
    """Runs two packed examples twice, with other tokens in the first, and looks whether the second notices.

    Attention keeps packed examples apart by their restarting positions. State-space, convolution and ALiBi layers do
    not, nor does attention that is given a mask, nor flash attention with several rows in a batch.

    Args:
        model: on its device.
        collator: the one that training uses.
        rows: rows of the probed batch, as many as a micro-batch has.
        arithmetic: the context of training's mixed precision.

    Raises:
        UserError: the second example's logits depend on the first; names the kind of model.
    """
    import torch

    with evaluating(model), arithmetic:
        first, other = _logits(model, collator, rows, 0), _logits(model, collator, rows, LENGTH)
    moved = (first.float() - other.float()).abs()  # (rows, 2 x LENGTH, V)
    own, leaked = float(moved[:, :LENGTH].max()), float(moved[:, LENGTH:].max())
    if leaked > max(1e-4, 4 * torch.finfo(first.dtype).eps) * own:
        config = model.config.get_text_config()
        attention = config._attn_implementation
        flash = rows > 1 and "flash" in str(attention)
        more = ", or set train.micro_batch_size: 1, or model.attention: sdpa" if flash else ""
        raise UserError(
            f"packed examples see each other in this model ({config.model_type}, attention {attention})",
            where="data.packing",
            fix=f"set data.packing: false{more}",
        )


def _logits(model: PreTrainedModel, collator: Collator, rows: int, shift: int) -> torch.Tensor:
    """Logits (rows, 2 x LENGTH, V) of two packed examples; ``shift`` changes the tokens of the first."""
    vocabulary = model.config.get_text_config().vocab_size
    ids = [(shift + token) % vocabulary for token in range(LENGTH)] + [token % vocabulary for token in range(LENGTH)]
    example = {"input_ids": ids, "labels": [-100] * len(ids), "position_ids": [*range(LENGTH), *range(LENGTH)]}
    batch = collator([example] * rows)
    inputs = {name: value.to(model.device) for name, value in batch.items() if name not in ("labels", "tokens", "rows")}
    values: torch.Tensor = model(**inputs, use_cache=False).logits[:, : len(ids)]
    return values
