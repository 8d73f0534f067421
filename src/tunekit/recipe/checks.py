"""Rules between keys of a recipe. All are checked and reported at once; each says what to change."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

from pydantic import ConfigDict, TypeAdapter, ValidationError

from tunekit.core.errors import Problem
from tunekit.core.registry import ADAPTERS, FORMATS, METRICS, did_you_mean
from tunekit.recipe.document import Document, Path_
from tunekit.recipe.kinds import material_of
from tunekit.recipe.peft_fields import HIDDEN, peft_fields
from tunekit.recipe.schema import EvalSplit, Recipe, SourceBlock


def recipe_problems(recipe: Recipe, document: Document) -> list[Problem]:
    """Every broken rule of ``recipe``, with its place in ``document``."""

    def at(*path: str | int) -> str:
        return document.place(path)

    rules = (_length, _batch, _grouping, _compiling, _evaluation, _streaming, _groups, _names, _adapter_extra)
    return [Problem(what, at(*path), fix) for rule in rules for path, what, fix in rule(recipe)]


Found = Iterator[tuple[Path_, str, str]]


def _length(recipe: Recipe) -> Found:
    if recipe.train.epochs is not None and recipe.train.max_steps is not None:
        yield (
            ("train", "max_steps"),
            "both 'train.epochs' and 'train.max_steps' are given",
            "keep one of them: take the other line out, or add --set train.epochs=null (or train.max_steps=null)",
        )
    if recipe.train.precision == "fp16" and recipe.model.dtype == "float16":
        yield (
            ("model", "dtype"),
            "float16 weights cannot be trained in fp16",
            "use `dtype: auto` with `precision: fp16`",
        )


def _batch(recipe: Recipe) -> Found:
    processes, train = recipe.launch.processes, recipe.train
    if not isinstance(processes, int):
        return
    if processes < 1:
        yield ("launch", "processes"), f"'launch.processes' must be >= 1; it is {processes}", "1, 2, ... or auto"
    elif train.batch_size % processes:
        yield (
            ("train", "batch_size"),
            f"'train.batch_size' ({train.batch_size}) cannot be shared by {processes} processes",
            f"use a multiple of {processes}",
        )
    elif isinstance(train.micro_batch_size, int) and (train.batch_size // processes) % train.micro_batch_size:
        yield (
            ("train", "micro_batch_size"),
            f"'train.micro_batch_size' ({train.micro_batch_size}) does not divide the {train.batch_size // processes} "
            "examples that each process sees a step",
            "use a divisor, or leave it out",
        )


def _grouping(recipe: Recipe) -> Found:
    data = recipe.data
    if not recipe.train.group_by_length:
        return
    others = {"packing": data.packing, "streaming": data.streaming, "shuffle: false": not data.shuffle}
    for name in (name for name, there in others.items() if there):
        yield (
            ("train", "group_by_length"),
            f"'train.group_by_length' has nothing to group with `data.{name}`",
            "leave one of them out",
        )


def _compiling(recipe: Recipe) -> Found:
    if recipe.train.compile == "on":
        return
    for name in ("torch_compile_backend", "torch_compile_mode"):
        if recipe.train.extra.get(name) is not None:  # Trainer would compile for its sake
            yield (
                ("train", "extra", name),
                f"'train.extra.{name}' needs `train.compile: on`",
                "set it, or leave this out",
            )


def _adapter_extra(recipe: Recipe) -> Found:
    """Other fields of PEFT's configuration: of that name and type, and without a key of their own."""
    block = recipe.adapter_block
    plugin = ADAPTERS.load(block.kind) if block is not None else None
    extra = getattr(block, "extra", {})
    if not extra:
        return
    fields = peft_fields(getattr(plugin, "PEFT", block.kind))
    for name, value in extra.items():
        path = ("adapter", "extra", name)
        if name in HIDDEN or name in type(block).model_fields or name in _passed(plugin):
            yield path, f"'adapter.extra.{name}' is set by a key of its own, or by tunekit", "leave it out"
        elif name not in fields:
            what = f"'adapter.extra.{name}' is not a field of PEFT's configuration of {block.kind}"
            yield path, what, did_you_mean(name, fields)
        else:
            try:
                TypeAdapter(fields[name].type, config=ConfigDict(strict=True)).validate_python(value)
            except ValidationError:
                yield path, f"'adapter.extra.{name}' must be of the type {fields[name].annotation}", ""


@cache
def _passed(plugin: ModuleType) -> frozenset[str]:
    """The fields that a kind's `peft_config` gives to PEFT itself, read from its source text."""
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(plugin))) if isinstance(node, ast.Call)]
    made = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id.endswith("Config")]
    return frozenset(keyword.arg for call in made for keyword in call.keywords if keyword.arg)


def has_eval(recipe: Recipe) -> bool:
    """Whether the recipe holds rows out for evaluation."""
    eval_data = recipe.data.eval
    return not isinstance(eval_data, EvalSplit) or eval_data.fraction is not None or eval_data.count is not None


def _evaluation(recipe: Recipe) -> Found:
    data, train = recipe.data, recipe.train
    if isinstance(data.eval, EvalSplit) and data.eval.fraction is not None and data.eval.count is not None:
        yield ("data", "eval"), "both 'fraction' and 'count' are given", "keep one of them"
    if isinstance(data.eval, tuple) and not data.eval:
        yield ("data", "eval"), "'data.eval' is an empty list", "name a source, or leave it out"
    elif not has_eval(recipe):
        for given, path in (
            (recipe.eval.every, ("eval", "every")),
            (recipe.eval.generate, ("eval", "generate")),
            (train.early_stopping, ("train", "early_stopping")),
            (train.keep_best, ("train", "keep_best")),
        ):
            if given:
                yield (
                    path,
                    f"'{'.'.join(path)}' needs held-out rows",
                    "add `data.eval: {fraction: 0.05}` or a list of sources",
                )
    elif (train.early_stopping or train.keep_best) and recipe.eval.every is None:
        key = "early_stopping" if train.early_stopping else "keep_best"
        yield ("train", key), f"'train.{key}' needs an evaluation loss during training", "add `eval.every: 0.1`"
    if train.keep_best and recipe.eval.every is not None and train.save_every not in (None, recipe.eval.every):
        yield (
            ("train", "save_every"),
            "'train.keep_best' saves at each evaluation",
            "set save_every equal to eval.every, or leave it out",
        )


def _streaming(recipe: Recipe) -> Found:
    data = recipe.data
    if not data.streaming:
        return
    if recipe.train.workers:
        yield ("train", "workers"), "a stream is read in the training process", "leave train.workers out"
    if recipe.train.max_steps is None:
        yield ("data", "streaming"), "a stream has no known length", "set `train.max_steps`"
    if isinstance(data.eval, EvalSplit) and has_eval(recipe):
        yield (
            ("data", "eval"),
            "a part of a stream cannot be held out by fraction or count",
            "name sources: `eval: [{path: ...}]`",
        )
    if data.duplicates == "drop":
        yield ("data", "duplicates"), "duplicates of a stream are not known", "use `duplicates: keep`"
    for index, source in enumerate(data.train):
        if source.weight != 1:
            yield ("data", "train", index, "weight"), "a streamed source cannot be weighted", "leave the weight out"


_BEFORE_THE_TEXT = ("prompt", "p_tuning", "prefix", "multitask_prompt", "cpt", "cartridge")


def _groups(recipe: Recipe) -> Found:
    """A method that learns from answers, not from texts, has a data path of its own."""
    if material_of(recipe) == "texts":
        return
    data, method = recipe.data, recipe.method
    if data.packing:
        yield ("data", "packing"), f"{method} lays its rows out without padding already", "leave data.packing out"
    if data.streaming:
        yield ("data", "streaming"), f"{method} goes over its rows before it trains", "leave data.streaming out"
    if data.loss_on != "assistant":
        yield ("data", "loss_on"), f"{method} learns from last answers alone", "leave data.loss_on out"
    kind = getattr(recipe.adapter_block, "kind", "")
    if method == "reward" and kind in _BEFORE_THE_TEXT:
        what = f"a reward model cannot have an adapter of kind {kind}, which puts learned tokens before the text"
        yield ("adapter", "kind"), what, "take lora, or train the whole model"
    if getattr(recipe.adapter_block, "dropout", 0.0):
        what = f"{method} has no dropout: the policy must not differ from its reference by chance"
        yield ("adapter", "dropout"), what, "leave adapter.dropout out"
    if recipe.train.extra.get("label_smoothing_factor"):
        yield ("train", "extra", "label_smoothing_factor"), f"{method} has no labels to smooth", "leave it out"


def _names(recipe: Recipe) -> Found:
    if recipe.model.revision and (recipe.model.name.startswith("builtin:") or Path(recipe.model.name).exists()):
        yield ("model", "revision"), "'model.revision' is only for Hub ids", "leave it out"
    for index, metric in enumerate(recipe.eval.metrics):
        if not METRICS.knows(metric):
            yield ("eval", "metrics", index), f"unknown metric '{metric}'", did_you_mean(metric, METRICS.names)
    lists: list[tuple[str, tuple[SourceBlock, ...]]] = [("train", recipe.data.train)]
    if isinstance(recipe.data.eval, tuple):
        lists.append(("eval", recipe.data.eval))
    for name, sources in lists:
        for index, source in enumerate(sources):
            if source.format not in ("auto", *FORMATS.names):
                yield (
                    ("data", name, index, "format"),
                    f"unknown format '{source.format}'",
                    did_you_mean(source.format, FORMATS.names),
                )
