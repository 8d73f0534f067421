"""What a finished model has on top: a head that writes text, or one that scores it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import MachineError, UserError
from tunekit.core.registry import QUANTIZERS
from tunekit.model import kbit
from tunekit.model.artefact import check_base, fresh_base
from tunekit.model.names import resolve_name
from tunekit.model.restore import ADAPTER_WEIGHTS, Artefact, attach
from tunekit.model.tokenizer import embedding_rows, hub_errors, load_config
from tunekit.recipe.schema import ModelBlock

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEAD = "score"
"""What transformers calls the head of a decoder that scores."""
_KIND = "ForSequenceClassification"
_TRAIN = "train one with `tunekit reward`, and name its run"


def scores(found: Artefact) -> bool:
    """Whether a model, or the adapter of one, gives scores (a reward model) and writes nothing."""
    if found.adapter is not None:
        return found.adapter.get("task_type") == "SEQ_CLS"
    if found.base is not None:
        return _kind_of(load_config(found.base)).endswith(_KIND)
    path = found.folder / "config.json"
    if not path.is_file():
        return False
    named = json.loads(path.read_text(encoding="utf-8")).get("architectures") or []
    return any(str(name).endswith(_KIND) for name in named)


def refuse_scores(found: Artefact, fix: str) -> None:
    """Refuses a reward model where a model that writes is needed.

    Raises:
        UserError: it is one; ``fix`` says what to do.
    """
    if scores(found):
        raise UserError("this is a reward model: it scores answers, and writes none", where=str(found.folder), fix=fix)


def check_scores(found: Artefact) -> None:
    """Refuses what cannot score a conversation with one number at its last token, before any weights are loaded.

    Raises:
        UserError: a model or an adapter that writes, another number of outputs, an adapter that brings no head, or one
            with tokens before the text.
        MachineError: the adapter's file cannot be read.
    """
    if found.adapter is None:
        block = found.base or ModelBlock(name=str(found.folder))
        config = load_config(block)
        if not _kind_of(config).endswith(_KIND):
            raise _headless(f"the model ({_kind_of(config)})", block.name)
        if config.num_labels != 1:
            what = f"the model ({_kind_of(config)}) gives {config.num_labels} numbers, and a reward is one"
            raise UserError(what, where=block.name, fix=_TRAIN)
        return
    task = found.adapter.get("task_type")
    if task != "SEQ_CLS":
        raise _headless(f"the {found.kind_word} adapter (task {task})", str(found.folder))
    if found.adapter.get("num_virtual_tokens"):
        what = f"the {found.kind_word} adapter puts tokens before a conversation, which no reward model here does"
        raise UserError(what, where=str(found.folder), fix="train with another adapter, such as lora")
    if not any(f".{HEAD}." in f".{name}" for name in _tensors(found.folder / ADAPTER_WEIGHTS)):
        raise _headless(f"the {found.kind_word} adapter", str(found.folder))


def load_scorer(found: Artefact, *, dtype: str = "auto", quantized: bool = False) -> PreTrainedModel:
    """Loads a reward model on the CPU, in evaluation mode.

    Args:
        found: a run's, a folder's, or a whole model by its name in ``base``.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto``: as the weights lie on the disk.
        quantized: load the base of an adapter in the 4 or 8 bits that it was trained on.

    Raises:
        UserError: no such head, or the base is not that of the training.
        MachineError: weights are missing.
    """
    if found.adapter is not None:
        return attach(_base(found, dtype, quantized), found)
    name = resolve_name(found.base.name if found.base else str(found.folder))
    with hub_errors(name):
        return _load(name.location, found.base.revision if found.base else None, dtype).eval()


def _base(found: Artefact, dtype: str, quantized: bool) -> PreTrainedModel:
    """What an adapter belongs on, with as many rows of embeddings as it was trained with; its head is the adapter's."""
    import torch

    assert found.base is not None, found.folder
    check_base(found.base_facts, found.base)
    name = resolve_name(found.base.name)
    if name.random:
        model = _fresh(found)
        model = model if dtype == "auto" else model.to(getattr(torch, dtype))
    else:
        options = _in_fewer_bits(found, dtype) if quantized else {}
        with hub_errors(name):
            model = _load(name.location, found.base.revision, dtype, new_head=True, **options)
    rows, before = (found.manifest or {}).get("rows"), embedding_rows(model.config)
    if rows is not None and rows != before:  # the adapter's file brings what the new ones are
        model.resize_token_embeddings(rows, mean_resizing=False)
        with torch.no_grad():
            model.get_input_embeddings().weight[before:] = 0
    if kbit.is_quantized(model):
        kbit.prepare(model, checkpointing=False)
    return model


def _in_fewer_bits(found: Artefact, dtype: str) -> dict[str, Any]:
    """Options of loading the base as the training had it."""
    import torch

    if not found.quantize or found.base is None:
        return {}
    block = QUANTIZERS.load(str(found.quantize["kind"])).Config.model_validate_json(json.dumps(found.quantize))
    compute = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    return kbit.load_options(block, compute, "cpu", load_config(found.base))


def _fresh(found: Artefact) -> PreTrainedModel:
    """A base of random weights: those of the language model of the same seed, without its head."""
    from transformers import AutoModelForSequenceClassification

    assert found.base is not None, found.folder
    facts = found.base_facts
    made = fresh_base(found.base, seed=facts.get("seed") or 0, dtype=facts.get("dtype") or "float32")
    config = load_config(found.base)
    config.num_labels = 1
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config, dtype=made.dtype)
    _check_decoder(model, found.base.name)
    getattr(model, model.base_model_prefix).load_state_dict(made.base_model.state_dict())
    return model


def _load(
    location: str, revision: str | None, dtype: str, *, new_head: bool = False, **options: Any
) -> PreTrainedModel:
    """A model with a head of one number; ``new_head``: it may have none yet, because an adapter brings it."""
    from transformers import AutoModelForSequenceClassification

    model: PreTrainedModel
    model, info = AutoModelForSequenceClassification.from_pretrained(
        location, revision=revision, dtype=dtype, use_safetensors=True, trust_remote_code=False, num_labels=1,
        output_loading_info=True, **options,
    )  # fmt: skip
    _check_decoder(model, location)
    missing = {name for name in info["missing_keys"] if not (new_head and name.startswith(f"{HEAD}."))}
    if any(name.startswith(f"{HEAD}.") for name in missing):
        raise _headless(f"the model ({type(model).__name__})", location)
    if missing:
        fix = "save the model again, or fetch it again"
        raise MachineError(f"the weights lack the tensor '{min(missing)}'", where=location, fix=fix)
    return model


def _check_decoder(model: PreTrainedModel, place: str) -> None:
    if not hasattr(model, HEAD) or not hasattr(model, model.base_model_prefix):
        what = f"a {type(model).__name__} does not score at the last token of a conversation, as decoders do"
        raise UserError(what, where=place, fix=_TRAIN)


def _kind_of(config: Any) -> str:
    return str((config.architectures or [type(config).__name__.removesuffix("Config")])[0])


def _tensors(path: Path) -> list[str]:
    """The names in a file of weights; none where there is no such file."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return []
    try:
        with safe_open(str(path), "pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise MachineError(f"the weights cannot be read: {error}", where=str(path), fix="save them again") from error


def _headless(whose: str, place: str) -> UserError:
    return UserError(f"{whose} has no head that scores: it is no reward model", where=place, fix=_TRAIN)
