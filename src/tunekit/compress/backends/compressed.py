"""compressed-tensors, made by llm-compressor: GPTQ, AWQ, SmoothQuant, rounding to nearest; for vLLM, transformers."""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING, Any

from pydantic import Field

from tunekit.compress.backends._shared.given import common_problems, is_quantized, kept_bits, left_alone
from tunekit.compress.contract import TRANSFORMERS, Making, Weight
from tunekit.core.errors import MachineError, Problem, UserError, out_of_memory
from tunekit.evaluate.logits import logits_at
from tunekit.evaluate.mode import evaluating
from tunekit.recipe.schema import Block

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

KINDS: Mapping[str, str] = {
    "gptq4": "4 bits, each rounding made up for by the next (GPTQ, arXiv 2210.17323), one scale a group",
    "gptq8": "8 bits by GPTQ, one scale a group",
    "rtn4": "4 bits, rounded to nearest: what gptq4 and awq4 are measured against",
    "awq4": "4 bits, after scaling what large inputs meet (AWQ, arXiv 2306.00978)",
    "w8a8": "8-bit weights and inputs (SmoothQuant, arXiv 2211.10438, then GPTQ)",
    "fp8": "8-bit floats (e4m3), weights and inputs",
}
CALIBRATED = frozenset({"gptq4", "gptq8", "awq4", "w8a8"})
EXACT: frozenset[str] = frozenset()
PACKAGES: Mapping[str, str] = {"llmcompressor": "pip install 'llmcompressor>=0.14.1a20261020'"}
DEVICES: Mapping[str, tuple[str, ...]] = {"awq4": ("cuda",)}  # its library pins memory of a GPU
RUNTIME = TRANSFORMERS
BITS = {"gptq4": 4, "gptq8": 8, "rtn4": 4, "awq4": 4}
"""Kinds with a scale a group; the others have one a row."""
GROUPS = (128, 64, 32)
"""Weights that share a scale: of each layer the first of these that divides its rows."""
SMOOTH, DAMP = 0.8, 0.01
CHANGED = 0.2
"""SmoothQuant moves numbers from inputs to weights; logits that move by more than this part of their spread show that
the library took two layers for joined that are not."""
_OPTIONS = {
    "gptq4": frozenset({"group_size", "actorder", "damp"}),
    "gptq8": frozenset({"group_size", "actorder", "damp"}),
    "rtn4": frozenset({"group_size"}),
    "awq4": frozenset({"group_size"}),
    "w8a8": frozenset({"actorder", "damp", "smooth"}),
    "fp8": frozenset[str](),
}
_FELL_BACK = "Hessian inversion failed"


class Config(Block):
    """Options of compressed-tensors."""

    group_size: int | None = Field(
        None, ge=8, description="weights of a row that share a scale; default: of each layer 128, 64 or 32"
    )
    actorder: bool | None = Field(None, description="GPTQ: columns of large inputs first; default true")
    damp: float | None = Field(None, gt=0, le=1, description="GPTQ: share added to the inputs' squares; default 0.01")
    smooth: float | None = Field(
        None, ge=0, le=1, description="w8a8: share of the inputs' spread that weights take; default 0.8, 0 for none"
    )
    skip: tuple[str, ...] = Field((), description="modules left as they are; the head always is")


def problems(kind: str, config: Config, model: Mapping[str, Any], weights: Sequence[Weight]) -> list[Problem]:
    """What stands against it: options of other kinds, groups that do not divide a layer, layers it would pass over."""
    found = list(common_problems(kind, config, model, weights, own=_OPTIONS[kind], turned=False))
    if kind not in BITS:
        return found
    odd = [weight for weight in weights if is_quantized(weight, config.skip) and not _group(weight.shape[-1], config)]
    if odd:
        names = sorted({weight.name.removesuffix(".weight").split(".")[-1] for weight in odd})
        sizes = config.group_size or ", ".join(map(str, GROUPS))
        more = f" (nor those of {len(odd) - 1} more layers)" if len(odd) > 1 else ""
        what = f"no group of {sizes} divides the {odd[0].shape[-1]} columns of '{odd[0].name}'{more}"
        found.append(Problem(what, "to.group_size", f"name a size that does, or skip: [{', '.join(names)}]"))
    return found


def _group(columns: int, config: Config) -> int:
    """Weights of a row that share a scale; 0 where no group divides it."""
    sizes = (config.group_size,) if config.group_size else GROUPS
    return next((size for size in sizes if columns % size == 0), 0)


def bits(kind: str, config: Config, weight: Weight) -> float:
    """Bits on the disk for one value, with scales and zero points; scales are of the type of the weights."""
    wide = kept_bits(weight)
    if not is_quantized(weight, config.skip):
        return wide
    rows, columns = weight.shape
    if kind not in BITS:
        return 8 + wide / columns
    groups, shape = columns // _group(columns, config), 2 * 64  # the shape before values were put into 32 bits
    packed = 32 * rows * math.ceil(columns * BITS[kind] / 32)
    zeros = 32 * math.ceil(rows * BITS[kind] / 32) * groups if kind == "awq4" else 0
    return (packed + wide * rows * groups + zeros + shape) / (rows * columns)


def make(making: Making) -> None:
    """Quantizes layer by layer with llm-compressor's `oneshot`, and writes what it holds then.

    Raises:
        UserError: the library refuses the model, or would quantize it otherwise than it was asked to.
        MachineError: a layer's inputs do not suffice for GPTQ.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        making.source, dtype="auto", use_safetensors=True, trust_remote_code=False
    )
    with _silent() as told:
        try:
            if making.kind == "w8a8" and making.config.smooth != 0:
                _smoothed(model, making)
            _oneshot(model, _recipe(model, making), making)
            model.save_pretrained(making.target)
        except (ValueError, RuntimeError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
            if out_of_memory(error):
                raise
            cause = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"llm-compressor cannot make {making.kind} of this model: {cause[0][:300]}", where="model",
                            fix="take another kind: nf4 or q4_k_m") from error  # fmt: skip
    fallen = next((text for text in told if _FELL_BACK in text), None)
    if fallen is not None:
        names = fallen.split("Affected modules: ")[-1].strip()
        raise MachineError(f"GPTQ failed for {names}: too few different inputs were seen", where="calibration",
                           fix="name more rows: --calib; or a larger damp")  # fmt: skip
    (making.target / "recipe.yaml").unlink(missing_ok=True)  # no loader reads it; quantize.json says the same


def _recipe(model: torch.nn.Module, making: Making) -> Any:
    """The library's own steps for a kind."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    kind, config = making.kind, making.config
    scheme: dict[str, Any] = {"ignore": left_alone(model, config.skip)}
    if kind in BITS:
        scheme["config_groups"] = _groups(model, making, frozenset(scheme["ignore"]))
    else:
        scheme |= {"targets": ["Linear"], "scheme": "FP8_DYNAMIC" if kind == "fp8" else "W8A8"}
    if kind in ("rtn4", "fp8"):
        return QuantizationModifier(**scheme)
    if kind == "awq4":
        from llmcompressor.modifiers.transform.awq import AWQModifier

        return [AWQModifier(), QuantizationModifier(**scheme)]
    order = None if config.actorder is False else "static"
    return GPTQModifier(**scheme, actorder=order, dampening_frac=config.damp or DAMP)


def _groups(model: torch.nn.Module, making: Making, ignored: frozenset[str]) -> dict[str, Any]:
    """The layers by the size of their groups."""
    import torch

    found: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name not in ignored:
            found.setdefault(_group(module.in_features, making.config), []).append(name)
    weights = {
        "num_bits": BITS[making.kind], "type": "int", "strategy": "group", "symmetric": making.kind != "awq4",
        "dynamic": False,
    }  # fmt: skip
    return {
        f"group_{number}": {
            "targets": names if len(found) > 1 else ["Linear"],
            "weights": weights | {"group_size": size},
        }
        for number, (size, names) in enumerate(sorted(found.items()))
    }


def _oneshot(model: PreTrainedModel, recipe: Any, making: Making) -> None:
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoTokenizer

    options: dict[str, Any] = {}
    if making.kind in CALIBRATED:
        # one row a batch and none cut: the library would cut all rows of a batch to the shortest
        rows = [{"input_ids": list(row), "attention_mask": [1] * len(row)} for row in making.rows]
        options = {"dataset": Dataset.from_list(rows), "num_calibration_samples": len(rows), "batch_size": 1,
                   "shuffle_calibration_samples": False,
                   "processor": AutoTokenizer.from_pretrained(making.source, trust_remote_code=False)}  # fmt: skip
    oneshot(model=model, recipe=recipe, **options)


def _smoothed(model: PreTrainedModel, making: Making) -> None:
    """SmoothQuant alone, and a look at whether the model still computes what it did.

    Raises:
        UserError: it does not.
    """
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    strength = SMOOTH if making.config.smooth is None else making.config.smooth
    before = _last_logits(model, making.rows[0])
    _oneshot(model, SmoothQuantModifier(smoothing_strength=strength), making)
    moved = float((_last_logits(model, making.rows[0]) - before).abs().mean() / before.std())
    if not moved <= CHANGED:
        what = f"SmoothQuant moved the logits of {type(model).__name__} by {moved:.0%} of their spread"
        raise UserError(f"{what}: it takes layers for joined that are not", where="to.smooth",
                        fix="leave inputs as they are: smooth: 0")  # fmt: skip


def _last_logits(model: PreTrainedModel, row: Sequence[int]) -> torch.Tensor:
    import torch

    with evaluating(model):
        columns = torch.arange(max(0, len(row) - 16), len(row), device=model.device)
        ids = torch.tensor([list(row)], device=model.device)
        return logits_at(model, ids, torch.zeros_like(columns), columns).float()


@contextmanager
def _silent() -> Iterator[list[str]]:
    """Keeps the library's bars and lines off the screen; yields its warnings, which tell of what it did instead."""
    import llmcompressor  # noqa: F401 (it sets up the log when it is imported)

    logger: Any = importlib.import_module("loguru").logger  # by name: mypy need not have it
    told: list[str] = []
    logger.remove()
    sink = logger.add(told.append, level="WARNING", format="{message}")
    try:
        with redirect_stderr(io.StringIO()):
            yield told
    finally:
        logger.remove(sink)
