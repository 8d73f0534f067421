"""Loading a tokenizer and a config: what the data needs to know of a model before its weights are loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import MachineError, UserError, first_line
from tunekit.model.names import ModelName, near, resolve_name
from tunekit.recipe.schema import ModelBlock

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@contextmanager
def hub_errors(name: ModelName) -> Iterator[None]:
    """Turns transformers' loading errors into tunekit's, with what to do."""
    try:
        yield
    except OSError as error:
        first = first_line(error)
        if name.kind == "hub":
            fix = "check the id, the network, and `hf auth login` for gated models; or name a local folder"
            place = Path(name.text)
            if place.parent.is_dir() and place.parent != Path():
                fix = f"if a folder is meant, '{place.parent}' has none of that name; {near(place) or fix}"
            what = f"'{name.text}' cannot be loaded from the Hub: {first}"
            raise MachineError(what, where="model.name", fix=fix) from error
        raise UserError(
            f"the model folder cannot be read: {first}", where=name.text, fix="save it again with save_pretrained"
        ) from error
    except (ValueError, KeyError) as error:
        fix = (
            "remote code is never run: use a model that transformers knows" if "trust_remote_code" in str(error) else ""
        )
        raise UserError(
            f"transformers cannot load '{name.text}': {first_line(error)}", where="model.name", fix=fix
        ) from error


def load_tokenizer(block: ModelBlock) -> PreTrainedTokenizerBase:
    """The tokenizer of a model block; a missing pad token becomes the EOS token (padding is ignored by position).

    Raises:
        UserError: no such folder, or no fast tokenizer.
        MachineError: the Hub cannot be reached.
    """
    from transformers import AutoTokenizer

    name = resolve_name(block.tokenizer, "model.tokenizer") if block.tokenizer else resolve_name(block.name)
    revision = block.revision if not block.tokenizer else None
    with hub_errors(name):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name.location, revision=revision, trust_remote_code=False
        )
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer of '{name.text}' gives no character offsets",
            where="model.tokenizer",
            fix="exact label masks need a fast tokenizer (tokenizer.json)",
        )
    if tokenizer.eos_token is None:
        raise UserError(
            f"the tokenizer of '{name.text}' has no EOS token", where="model.tokenizer", fix="name another tokenizer"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    _add(tokenizer, block)
    return tokenizer


def _add(tokenizer: PreTrainedTokenizerBase, block: ModelBlock) -> None:
    """Adds the recipe's new tokens.

    Raises:
        UserError: one of them is a token already, or stands there twice.
    """
    known = tokenizer.get_vocab()
    for number, token in enumerate(block.new_tokens):
        if token in known or token in block.new_tokens[:number]:
            where = f"model.new_tokens.{number}"
            raise UserError(f"'{token}' is a token of this tokenizer already", where=where, fix="leave it out")
    tokenizer.add_tokens(list(block.new_tokens))


def load_config(block: ModelBlock) -> PretrainedConfig:
    """The model's configuration (no weights)."""
    from transformers import AutoConfig

    name = resolve_name(block.name)
    if name.shape or (name.random and name.kind == "builtin" and name.text.startswith("builtin:random")):
        return random_config(name)
    with hub_errors(name):
        return AutoConfig.from_pretrained(name.location, revision=block.revision, trust_remote_code=False)


def random_config(name: ModelName) -> PretrainedConfig:
    """The configuration of a ``builtin:random`` model: a small decoder of the named architecture."""
    from transformers import AutoConfig, AutoTokenizer

    shape = {"layers": 2, "hidden": 64, "length": 2048} | {
        key: int(v) for key, v in name.shape.items() if key != "arch"
    }
    architecture = name.shape.get("arch", "llama")
    tokenizer = AutoTokenizer.from_pretrained(name.location)
    heads = shape.get("heads", max(1, shape["hidden"] // 32))
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    vocabulary = shape.get("vocab", len(tokenizer))
    if architecture == "gpt2":
        return AutoConfig.for_model("gpt2", n_layer=shape["layers"], n_embd=shape["hidden"], n_head=heads,
                                    n_positions=shape["length"], vocab_size=vocabulary, **special)  # fmt: skip
    sizes: dict[str, Any] = {
        "num_hidden_layers": shape["layers"], "hidden_size": shape["hidden"], "num_attention_heads": heads,
        "intermediate_size": 2 * shape["hidden"], "num_key_value_heads": shape.get("kv_heads", max(1, heads // 2)),
        "max_position_embeddings": shape["length"], "vocab_size": vocabulary, "head_dim": shape["hidden"] // heads,
    }  # fmt: skip
    return AutoConfig.for_model(architecture, **sizes, **special)


def embedding_rows(config: PretrainedConfig) -> int:
    """Rows of the model's input embedding."""
    return int(config.get_text_config().vocab_size)


def rows_with_new(block: ModelBlock, tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows of the input embedding once the recipe's new tokens have theirs."""
    rows = embedding_rows(load_config(block))
    return max(rows, len(tokenizer)) if block.new_tokens else rows


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Identifies everything that turns text into ids: the tokenizer's own serialization and its special tokens."""
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode("utf-8"))
    digest.update(repr(sorted(tokenizer.special_tokens_map.items())).encode("utf-8"))
    return digest.hexdigest()
