"""The proof of a merge, done in a fresh process, which `compress.parity` starts.

It knows of the merge only what lies on the disk: the adapter on its base, and the merged folder as any user loads it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.core.progress import Silent
from tunekit.evaluate.contract import EvalItem, Prompt
from tunekit.evaluate.local import TransformersEngine
from tunekit.evaluate.logits import logits_at
from tunekit.evaluate.mode import evaluating
from tunekit.model.artefact import template_hash
from tunekit.model.restore import attach, find, load_base, load_tokenizer

if TYPE_CHECKING:
    import torch

NUMBERS = 1 << 26
"""Logits of one model that are kept for the comparison, which sets how many positions are compared: 0.25 GiB."""


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Loads one model after the other: base and adapter in float32 and in the merge's type, and the merge."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(job["threads"])
    found = find(Path(job["adapter"]))
    tokenizer = load_tokenizer(found)
    prompts = [_prompt(row) for row in job["prompts"]]
    model = load_base(found, dtype="float32")
    places = [_places(prompt, model.config.get_text_config().vocab_size, len(prompts)) for prompt in prompts]
    base = _logits(model, prompts, places)
    model = attach(model, found)
    adapted = _logits(model, prompts, places)
    spoken = _texts(model, tokenizer, prompts, job["new_tokens"])
    quantized = None
    if job["quantized"]:
        del model
        model = attach(load_base(found, dtype="float32", quantized=True), found)
        quantized = _logits(model, prompts, places)
    rounded, narrow = base, adapted
    if job["dtype"] != "float32":
        del model
        model = load_base(found, dtype=job["dtype"])
        rounded = _logits(model, prompts, places)
        model = attach(model, found)
        narrow = _logits(model, prompts, places)
    del model
    model = AutoModelForCausalLM.from_pretrained(job["merged"], dtype="auto").eval()
    merged = _logits(model, prompts, places)
    own = AutoTokenizer.from_pretrained(job["merged"])
    said = _texts(model, own, prompts, job["new_tokens"])
    spread = [("base", base), ("adapter", adapted), ("merged", merged)]
    if quantized is not None:
        spread.append(("as_trained", quantized))
    return {
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "prompts": len(prompts),
        "positions": sum(map(len, places)),
        "merged": difference(adapted, merged),
        "effect": difference(adapted, base),
        "rounding": difference(adapted, narrow),
        "changed": difference(merged, rounded),
        "as_trained": difference(quantized, merged) if quantized is not None else None,
        "perplexity": {name: _perplexity(values, prompts, places) for name, values in spread},
        "tokenizer": len(own) == len(tokenizer) and template_hash(own) == template_hash(tokenizer),
        "same_texts": sum(one == other for one, other in zip(spoken, said, strict=True)),
        "texts": [
            {"prompt": prompt.prompt_text, "adapter": one, "merged": other}
            for prompt, one, other in zip(prompts, spoken, said, strict=True)
        ],
    }


def _prompt(row: dict[str, Any]) -> EvalItem:
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    return EvalItem(**values)


def _places(prompt: EvalItem, vocabulary: int, rows: int) -> list[int]:
    """Positions that are compared, evenly spread: as many as fit in `NUMBERS`, never all."""
    most = max(1, NUMBERS // (vocabulary * rows))
    positions = range(len(prompt.input_ids) - 1)
    step = max(1, math.ceil(len(positions) / most))
    return list(positions)[::-1][::step][::-1]


def _logits(model: Any, prompts: Sequence[EvalItem], places: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """(L, V) float32 logits of every prompt, row by row: nothing is padded."""
    import torch

    found = []
    with evaluating(model):
        for prompt, columns in zip(prompts, places, strict=True):
            ids = torch.tensor([prompt.input_ids])
            at = torch.tensor(columns)
            found.append(logits_at(model, ids, torch.zeros_like(at), at).float())
    return found


def _texts(model: Any, tokenizer: Any, prompts: Sequence[EvalItem], new_tokens: int) -> Sequence[str]:
    """What the model says to the prompts, taking the likeliest token each time."""
    engine = TransformersEngine(model, tokenizer, batch_size=10)
    asked = [Prompt(tuple(prompt.prompt_ids), new_tokens) for prompt in prompts]
    return [answer.text for answer in engine.generate(asked, Silent(), "answers")]


def difference(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> dict[str, float]:
    """Two models' logits at the same positions, (L, V) for each row.

    Returns:
        ``largest_logit_difference``, ``largest_logit`` (of ``one``), ``mean_kl`` (of ``other`` from ``one``, in nats a
        position), ``top1_agreement``. Numbers that are not finite are infinite.
    """
    import torch

    width = min(one[0].shape[1], other[0].shape[1])  # a base may have fewer rows than a model with added tokens
    largest = top = divergence = 0.0
    same = count = 0
    for first, second in zip(one, other, strict=True):
        a, b = first[:, :width], second[:, :width]
        largest = max(largest, float((a - b).abs().max().nan_to_num(nan=math.inf)))
        top = max(top, float(a.abs().max().nan_to_num(nan=math.inf)))
        log_a, log_b = torch.log_softmax(a.double(), -1), torch.log_softmax(b.double(), -1)
        divergence += float((log_a.exp() * (log_a - log_b)).sum().nan_to_num(nan=math.inf, posinf=math.inf))
        same += int((a.argmax(-1) == b.argmax(-1)).sum())
        count += len(a)
    return {
        "largest_logit_difference": largest,
        "largest_logit": top,
        "mean_kl": max(0.0, divergence / count),
        "top1_agreement": same / count,
    }


def _perplexity(values: Sequence[torch.Tensor], prompts: Sequence[EvalItem], places: Sequence[Sequence[int]]) -> float:
    """Over the tokens that follow the compared positions; over the trained ones alone, where any are."""
    import torch
    from torch.nn.functional import cross_entropy

    losses, trained = [], []
    for logits, prompt, columns in zip(values, prompts, places, strict=True):
        labels = torch.tensor([prompt.input_ids[column + 1] for column in columns])
        losses.append(cross_entropy(logits, labels, reduction="none").double())
        trained.append(torch.tensor([bool(prompt.trained[column + 1]) for column in columns]))
    every, counted = torch.cat(losses), torch.cat(trained)
    mean = float((every[counted] if bool(counted.any()) else every).mean())
    return math.exp(mean) if mean < 700 else math.inf  # nan stays nan
