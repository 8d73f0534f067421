"""Several LoRA adapters of one base, weighed into one by PEFT's own arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunekit.compress.scratch import scratch
from tunekit.core.errors import Problem, UserError, raise_all
from tunekit.core.registry import did_you_mean
from tunekit.model.artefact import template_hash, write_manifest
from tunekit.model.restore import Artefact, attach, check_tensors, find, load_base, load_tokenizer

METHODS = {
    "cat": "the exact weighted sum; the rank is the sum of the ranks",
    "svd": "the weighted sum, cut to a rank",
    "linear": "A and B are averaged apart: an approximation that can be rough",
    "ties": "of A and B apart, the large values whose signs agree (arXiv 2306.01708)",
    "dare_linear": "of A and B apart, random values, scaled up (arXiv 2311.03099)",
    "dare_ties": "both",
    "magnitude_prune": "of A and B apart, the largest values",
    "ties_svd": "as ties, on the products, cut to a rank",
    "dare_linear_svd": "as dare_linear, on the products, cut to a rank",
    "dare_ties_svd": "as dare_ties, on the products, cut to a rank",
    "magnitude_prune_svd": "as magnitude_prune, on the products, cut to a rank",
}
"""PEFT's ways to combine, by their names there."""
_WHOLE = ("cat", "svd", "linear")  # those that drop nothing
_DRAW = "dare"  # so begin those that drop at random
# each load of such an adapter takes its start out of the base, which all of them share
_CHANGE_BASE = ("pissa", "olora", "lora_ga", "corda", "loftq")
_SAME_RANK = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
NAME = "combined"


@dataclass(frozen=True)
class Combination:
    """Further adapters, and how all of them are weighed.

    Args:
        folders: runs or adapters beside the first.
        weights: one for each adapter, the first one's first; empty for equal parts of 1.
        method: one of `METHODS`.
        density: part of the values that is kept, for the methods that drop some.
        rank: of the result, for the methods that cut; None for the largest of the adapters'.
        seed: of the methods that drop at random; None for 0.
    """

    folders: tuple[Path, ...]
    weights: tuple[float, ...] = ()
    method: str = "cat"
    density: float | None = None
    rank: int | None = None
    seed: int | None = None


@contextmanager
def combined(first: Artefact, combination: Combination | None) -> Iterator[Artefact]:
    """The first adapter alone, or a folder with what comes of all of them, which is there while the block runs.

    Raises:
        UserError: adapters that cannot be combined, each by name.
    """
    if combination is None:
        yield first
        return
    found = [first, *(find(folder) for folder in combination.folders)]
    check(found, combination)
    with scratch("combine") as place:
        yield combine(found, combination, place)


def check(found: Sequence[Artefact], combination: Combination) -> None:
    """Finds what forbids the combination before anything is loaded.

    Raises:
        UserError: all of it at once.
    """
    if combination.method not in METHODS:
        raise UserError(f"unknown method '{combination.method}'", where="--method",
                        fix=did_you_mean(combination.method, METHODS))  # fmt: skip
    problems = [problem for one in found for problem in _unfit(one, found[0])]
    if combination.weights and len(combination.weights) != len(found):
        what = f"{len(combination.weights)} weights for {len(found)} adapters, the run's own among them"
        problems.append(Problem(what, "--weights", "give one for each, the run's own first"))
    if combination.method not in _WHOLE and combination.density is None:
        what = f"{combination.method} keeps a part of the values: which?"
        problems.append(Problem(what, "--density", "for example --density 0.5"))
    problems += _without_meaning(combination)
    ranks = {(one.adapter or {}).get("r") for one in found}
    if combination.method in _SAME_RANK and len(ranks) > 1:
        what = (
            f"{combination.method} needs adapters of one rank; these have {', '.join(map(str, sorted(ranks, key=str)))}"
        )
        problems.append(Problem(what, "--method", "take cat or svd"))
    saved = [one for one in found if (one.adapter or {}).get("modules_to_save")]
    if len(saved) > 1:
        what = "more than one adapter holds modules that were trained in full: they cannot be weighed"
        problems.append(Problem(what, ", ".join(str(one.folder) for one in saved)))
    raise_all(UserError, problems)


def _without_meaning(combination: Combination) -> Iterator[Problem]:
    method = combination.method
    for option, value, means, others in (
        ("--density", combination.density, method not in _WHOLE, "that drop values, such as ties"),
        ("--rank", combination.rank, method.endswith("svd"), "that end in svd"),
        ("--seed", combination.seed, method.startswith(_DRAW), "that begin with dare"),
    ):
        if value is not None and not means:
            yield Problem(f"{method} has no use for {option}", option, f"it is for the methods {others}; leave it out")


def _unfit(one: Artefact, first: Artefact) -> Iterator[Problem]:
    where = str(one.folder)
    if one.kind != "LORA":
        yield Problem(f"{one.kind or 'a whole model'} cannot be combined: only LoRA adapters can", where)
        return
    config = one.adapter or {}
    for key, word in (("use_dora", "DoRA"), ("trainable_token_indices", "trained tokens"), ("lora_bias", "biases"),
                      ("target_parameters", "target_parameters"), ("layer_replication", "replicated layers"),
                      ("alora_invocation_tokens", "invocation tokens")):  # fmt: skip
        if config.get(key):
            yield Problem(f"a LoRA adapter with {word} cannot be combined: PEFT weighs A and B alone", where)
    start = str(config.get("init_lora_weights"))
    if start.lower().startswith(_CHANGE_BASE):
        what = f"a LoRA adapter saved with init_lora_weights={start} cannot be combined: loading it changes the base"
        fix = "save it with path_initial_model_for_weight_conversion, as a plain LoRA of twice the rank"
        yield Problem(what, where, fix)
    if config.get("bias", "none") != "none":
        yield Problem("a LoRA adapter with trained biases cannot be combined: PEFT weighs A and B alone", where)
    if one.base != first.base and not _same_weights(one, first):
        names = [f"'{block.name}'" if block else "none" for block in (one.base, first.base)]
        yield Problem(f"it belongs on the base {names[0]}, the first one on {names[1]}", where)
    elif one.base_facts and first.base_facts and not _same_weights(one, first):
        yield Problem("it was trained on another revision of the base than the first one", where)


def _same_weights(one: Artefact, other: Artefact) -> bool:
    mine, theirs = one.base_facts.get("weights"), other.base_facts.get("weights")
    return mine is not None and mine == theirs


def combine(found: Sequence[Artefact], combination: Combination, folder: Path) -> Artefact:
    """Writes one adapter made of several into ``folder``.

    Raises:
        UserError: PEFT cannot combine them, or their tokenizers differ.
    """
    import torch

    first, weights = found[0], combination.weights or (1.0,) * len(found)
    tokenizers = [load_tokenizer(one) for one in found]
    for one, tokenizer in zip(found, tokenizers, strict=True):
        if (len(tokenizer), template_hash(tokenizer)) != (len(tokenizers[0]), template_hash(tokenizers[0])):
            raise UserError("its tokenizer or chat template is not that of the first one", where=str(one.folder))
    names = [f"adapter{number}" for number in range(len(found))]
    model: Any = attach(load_base(first, dtype="float32"), first, name=names[0])
    for one, name in zip(found[1:], names[1:], strict=True):
        model.load_adapter(str(one.folder), name, torch_device="cpu")
        check_tensors(model, one, name, grown=False)
    options: dict[str, Any] = {} if combination.method in _WHOLE else {"density": combination.density}
    if combination.method.endswith("svd"):
        options["svd_rank"] = combination.rank
    with torch.random.fork_rng():
        torch.manual_seed(combination.seed or 0)
        try:
            model.add_weighted_adapter(names, list(weights), NAME, combination_type=combination.method, **options)
        except (ValueError, TypeError) as error:
            raise UserError(f"PEFT cannot combine them: {error}", where=str(first.folder)) from error
    config = model.peft_config[NAME]
    # the result is scaled by alpha / r = 1; the first one's rslora would make that the root of r
    config.use_rslora = False
    config.base_model_name_or_path, config.revision = first.base.name if first.base else None, None
    model.save_pretrained(str(folder), selected_adapters=[NAME], save_embedding_layers=False)
    inner = folder / NAME
    tokenizers[0].save_pretrained(inner)
    generation = first.folder / "generation_config.json"
    if generation.exists():
        (inner / generation.name).write_bytes(generation.read_bytes())
    if first.manifest is not None:
        write_manifest(inner, {"base": first.base_facts, "rows": first.manifest.get("rows")}, tokenizers[0])
    made = find(inner)
    return Artefact(made.folder, made.manifest, made.adapter, first.base)
