"""Model FLOPs of training, and the rate at which this machine multiplies matrices: MFU is the share that is reached.

Counted as in Kaplan et al. 2020 (arXiv:2001.08361) and appendix B of Chowdhery et al. 2022 (arXiv:2204.02311): what the
model asks for, not what is computed. Neither padding nor what gradient checkpointing computes twice counts.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunekit.evaluate.mode import plain_model
from tunekit.plan.plan import Plan

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tunekit.train.ranks import Ranks

FEWEST_STEPS = 20
"""A shorter run on a CPU does not measure: it would notice the time."""
_CPU_SECONDS = 0.2
_CPU_SIZES = (512, 4096)
_CPU_LONG_ENOUGH = 0.01  # seconds of one product; below, overhead shows, and the size is doubled
_GPU_SIZES = (8192, 4096, 2048)
_REPEATS = 5
_WINDOWS = {
    "": "sliding_window",  # a model that does not tell its layers apart
    "sliding_attention": "sliding_window",
    "chunked_attention": "attention_chunk_size",
}
_LISTED_EXPERT = re.compile(r"(^|\.)experts\.\d+\.")
_NO_PRODUCT = ("lora_embedding_A", "trainable_tokens", "original_module")
"""Names of weights that are looked up, or stand beside the ones that are used."""


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of a forward and a backward pass.

    Args:
        per_token: of the layers, without attention among tokens.
        per_label: of the output head, for a position whose next token is trained.
        per_pair: (window, FLOPs) for a token and one that it looks at, summed over the layers with that window.
    """

    per_token: int
    per_label: int
    per_pair: tuple[tuple[int | None, int], ...]

    def of(self, batch: Mapping[str, Any]) -> int:
        """FLOPs for a batch of the collator, on the CPU: ``tokens`` (B,), ``labels`` (B, T), ``position_ids`` (B, T).

        Documents begin where positions begin anew.
        """
        total = self.per_token * int(batch["tokens"].sum()) + self.per_label * int((batch["labels"] >= 0).sum())
        return total + sum(flops * pairs(batch, window) for window, flops in self.per_pair)


def pairs(batch: Mapping[str, Any], window: int | None = None) -> int:
    """Pairs of a token and one at or before it in its document, of which causal attention makes scores.

    Args:
        batch: as for `StepFlops.of`.
        window: a token sees itself and so many less one before it.
    """
    import torch

    tokens = batch["tokens"]
    width = batch["labels"].shape[1]
    own = batch.get("position_ids")
    positions = torch.arange(width).expand(len(tokens), -1) if own is None else own
    seen = (positions + 1) * (torch.arange(width) < tokens[:, None])
    return int((seen if window is None else seen.clamp(max=window)).sum())


def step_flops(model: nn.Module) -> StepFlops:
    """What a step of a causal language model costs.

    Two FLOPs for each weight of a matrix product forward, two for the gradient of its input, and two for its own where
    it is trained. Of routed experts those that a token goes to are counted.

    Args:
        model: with its adapter, if any.
    """
    plain = plain_model(model)
    config, head = plain.config.get_text_config(), plain.get_output_embeddings()
    in_head = set() if head is None else {id(module) for module in head.modules()}
    body = sum(flops for module, flops in _products(plain.get_decoder(), config) if id(module) not in in_head)
    label = 0 if head is None else sum(flops for _, flops in _products(head, config))
    return StepFlops(round(body), round(label), tuple(_attention(config).items()))


def _products(root: nn.Module, config: Any) -> Iterator[tuple[nn.Module, float]]:
    """The modules that multiply by weights, with the FLOPs of a token."""
    from torch import nn

    experts = _whole(config, "num_local_experts", "num_experts", "n_routed_experts")
    chosen = _whole(config, "num_experts_per_tok", "top_k_experts")
    share = chosen / experts if chosen and experts else 1.0
    for name, module in root.named_modules():
        if isinstance(module, nn.Embedding) or hasattr(module, "base_layer") or any(n in name for n in _NO_PRODUCT):
            continue
        routed = share if _LISTED_EXPERT.search(f"{name}.") else 1.0
        size = _whole(module, "in_features") * _whole(module, "out_features")
        if size:  # the weights may be packed
            trained = getattr(getattr(module, "weight", None), "requires_grad", False)
            yield module, size * routed * (6 if trained else 4)
            continue
        for own in module.parameters(recurse=False):
            if own.dim() >= 2:
                stacked = share if own.dim() == 3 and own.shape[0] == experts else 1.0
                yield module, own.numel() * routed * stacked * (6 if own.requires_grad else 4)


def _attention(config: Any) -> dict[int | None, int]:
    """FLOPs of a pair by window: a product for its score and one for its value, each with two gradients."""
    layers = _whole(config, "num_hidden_layers")
    each = config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config] * layers
    kinds = getattr(config, "layer_types", None) or [""] * layers
    found: dict[int | None, int] = {}
    for kind, own in zip(kinds, each, strict=False):
        heads = _whole(own, "num_attention_heads")
        if not heads or (kind not in ("", "hybrid") and ("attention" not in kind or "linear" in kind)):
            continue
        window = _whole(own, _WINDOWS[kind]) or None if kind in _WINDOWS else None
        size = _whole(own, "head_dim") or _whole(own, "hidden_size") // heads
        both = 2 * size
        if _whole(own, "qk_nope_head_dim"):  # latent attention
            both = sum(_whole(own, name) for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
        found[window] = found.get(window, 0) + 6 * heads * both
    return found


def _whole(owner: Any, *names: str) -> int:
    """The first of these attributes that is a whole number, else 0."""
    for name in names:
        try:
            value = getattr(owner, name, None)
        except RuntimeError:  # a configuration whose layers differ in this
            continue
        if isinstance(value, int):
            return value
    return 0


def measured_rate(plan: Plan, ranks: Ranks, device: torch.device, steps: float) -> float | None:
    """FLOP/s of matrix products of all processes together, in the arithmetic of training; they measure side by side.

    Args:
        plan: the resolved plan.
        ranks: every one of them is here.
        device: of this rank.
        steps: that are still to be trained.

    Returns:
        None where a run is too short for it, or a device has no room.
    """
    import torch

    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and steps < FEWEST_STEPS):
        return None
    ranks.wait()
    return ranks.sum([matmul_rate(device, getattr(torch, plan.arithmetic))])[0] or None


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product, the best of a few; random states stay as they are."""
    import torch

    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        return _gpu_rate(device, dtype) if device.type == "cuda" else _cpu_rate(dtype)


def _cpu_rate(dtype: torch.dtype) -> float:
    """The best of all sizes: what else runs here disturbs the short products least, the long ones cost least beside."""
    import torch

    until = time.perf_counter() + _CPU_SECONDS
    size, most = _CPU_SIZES
    multiply = _product(size, torch.device("cpu"), dtype)
    rate = 0.0
    while True:
        shortest = min(_seconds(multiply) for _ in range(_REPEATS))
        rate = max(rate, 2 * size**3 / shortest)
        if time.perf_counter() > until:
            return rate
        if shortest < _CPU_LONG_ENOUGH and size < most:
            size *= 2
            multiply = _product(size, torch.device("cpu"), dtype)


def _gpu_rate(device: torch.device, dtype: torch.dtype) -> float:
    import torch

    rate = 0.0
    for size in _GPU_SIZES:
        try:
            rate = _gpu_rate_at(size, device, dtype)
        except torch.OutOfMemoryError:
            continue
        break
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)  # what is reported is the training's
    return rate


def _gpu_rate_at(size: int, device: torch.device, dtype: torch.dtype) -> float:
    multiply = _product(size, device, dtype)
    return 2 * size**3 / min(_device_seconds(multiply, device) for _ in range(_REPEATS))


def _product(size: int, device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    """Multiplies two matrices that lie ready, of values as if at random: a device is faster with zeros."""
    import torch

    generator = torch.Generator(device).manual_seed(0)
    values = torch.randn(size, generator=generator, device=device)
    matrix = torch.outer(values, values.roll(1)).to(dtype)
    out = torch.empty_like(matrix)
    torch.mm(matrix, matrix, out=out)  # loads the code
    return lambda: torch.mm(matrix, matrix, out=out)


def _seconds(multiply: Callable[[], object]) -> float:
    started = time.perf_counter()
    multiply()
    return time.perf_counter() - started


def _device_seconds(multiply: Callable[[], object], device: torch.device) -> float:
    import torch

    event: Any = torch.cuda.Event
    with torch.cuda.device(device):
        begun, done = event(enable_timing=True), event(enable_timing=True)
        begun.record()
        multiply()
        done.record()
        done.synchronize()
        return float(begun.elapsed_time(done)) / 1e3
