"""What to evaluate, on what, and how: `eval.yaml` as one typed object, its tasks and engines from their folders."""

from __future__ import annotations

import types
from functools import cache, reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from tunekit.core.errors import Problem
from tunekit.core.registry import ENGINES, TASKS, Registry, did_you_mean
from tunekit.evaluate.fewshot import FOLDER
from tunekit.recipe import document as documents
from tunekit.recipe import load as loading
from tunekit.recipe.schema import Block, OutputBlock, SourceBlock

LOCAL, SERVER, GGUF = "transformers", "openai", "llama_cpp"


class TaskBlock(Block):
    """One task; its further keys are those of its kind."""

    kind: str = Field(description="what is measured")
    name: str | None = Field(None, min_length=1, description="what it is called in tables; default: its kind")
    data: tuple[SourceBlock, ...] | None = Field(
        None, min_length=1, description="its rows; default: the recipe's `data`, or the run's held-out rows"
    )
    limit: int | None = Field(None, ge=1, description="at most so many rows, drawn at random, the same each time")


class EngineBlock(Block):
    """What computes the answers; its further keys are those of its kind."""

    kind: str = Field(LOCAL, description="transformers, or what serves the model")


class OverlapBlock(Block):
    """Whether evaluation rows stand in the training data too."""

    check: bool = Field(True, description="look for them, where the training data is known")
    ngram: int = Field(
        13, ge=3, le=64, description="words in a row that tell a copy; characters in Chinese and its kin"
    )
    train: tuple[SourceBlock, ...] = Field((), description="training data of a model that is not a run")


class ForgettingBlock(Block):
    """What the model could before, and may have lost."""

    check: bool = Field(True, description="measure how likely the text that the base itself writes still is")
    texts: int = Field(16, ge=1, le=10_000, description="texts that the base writes")
    tokens: int = Field(64, ge=8, le=8192, description="length of each")
    data: tuple[SourceBlock, ...] = Field((), description="general text or conversations, measured as well")


class ExamBase(Block):
    """An evaluation; `tasks` and `engine` are typed by the plug-ins (see `exam_type`)."""

    model: str = Field(min_length=1, description="run folder, adapter, model folder, Hub id, or builtin:<name>")
    revision: str | None = Field(None, description="branch, tag or commit of a Hub id")
    baseline: str | None = Field(
        "auto", description="compared with: base (what it was trained from), another model, or null; auto: base if any"
    )
    data: tuple[SourceBlock, ...] | None = Field(
        None, min_length=1, description="rows of the tasks that name none; default: the run's held-out rows"
    )
    limit: int | None = Field(
        None, ge=1, description="at most so many rows a task, drawn at random, the same each time"
    )
    max_drop_rate: float = Field(0.05, ge=0, le=1, description="refuse when more rows than this cannot be used")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="of answers that are drawn; scores are their mean")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of the intervals and verdicts")
    cache: bool = Field(True, description="keep every answer, so that nothing is computed twice")
    contamination: OverlapBlock = Field(default_factory=lambda: OverlapBlock(), description="rows seen in training")
    forgetting: ForgettingBlock = Field(default_factory=lambda: ForgettingBlock(), description="what tuning lost")
    output: OutputBlock = Field(default_factory=lambda: OutputBlock(), description="where the evaluation is written")


def _kinds(registry: Registry, base: type[Block]) -> Any:
    """The union of a registry's blocks: the common keys with those of each plug-in's ``Config``."""
    found = []
    for name in registry.names:
        config = registry.load(name).Config
        fields: dict[str, Any] = {"kind": (Literal[name], Field(name, description="the kind"))}
        found.append(create_model(f"{name}_{base.__name__}", __base__=(base, config), __doc__=config.__doc__, **fields))
    return Annotated[reduce(or_, found), Field(discriminator="kind")]


@cache
def task_type() -> Any:
    """The type of one task: the union of all kinds that there are."""
    return _kinds(TASKS, TaskBlock)


@cache
def exam_type() -> type[ExamBase]:
    """The type of a whole evaluation recipe, with every task and engine there is."""
    task: Any = task_type()
    engines = _kinds(ENGINES, EngineBlock)
    usual = {"kind": LOCAL}
    fields: dict[str, Any] = {
        "tasks": (tuple[task, ...] | None, Field(None, min_length=1, description="what is measured")),
        "engine": (engines, Field(default=usual, validate_default=True, description="what computes the answers")),
    }
    return create_model("Exam", __base__=ExamBase, __doc__=ExamBase.__doc__, **fields)


def load(path: Path, overrides: list[str]) -> Any:
    """Reads and checks `eval.yaml`.

    Raises:
        UserError: all that is wrong with it, each with ``file:line:column``.
    """
    return check(documents.override(documents.read(path), overrides), path.parent)


def check(document: documents.Document, folder: Path | None = None) -> Any:
    """Turns a document into an evaluation recipe; raises UserError with all problems at once.

    Args:
        document: the recipe.
        folder: where paths of tasks start.
    """
    value = dict(document.value)
    problems = [*unknown(document, ("tasks",), TASKS), *unknown(document, ("engine",), ENGINES)]
    loading.refuse(problems)
    if isinstance(value.get("engine"), dict):
        value["engine"] = {"kind": LOCAL} | value["engine"]
    exam, faults = loading.typed(document, exam_type(), value, {FOLDER: folder or Path()})
    loading.refuse(faults)
    assert exam is not None
    return exam


def unknown(document: documents.Document, path: tuple[str, ...], registry: Registry) -> list[Problem]:
    """Blocks whose kind there is not, named with the nearest one; pydantic would list every kind.

    Args:
        document: the recipe.
        path: where the block, or the list of blocks, stands in it.
        registry: of the kinds.
    """
    blocks: Any = document.value
    for key in path:
        blocks = blocks.get(key) if isinstance(blocks, dict) else None
    found = []
    for at, block in enumerate(blocks if isinstance(blocks, list) else [blocks]):
        kind = block.get("kind") if isinstance(block, dict) else None
        if isinstance(kind, str) and kind not in registry.names:
            place = document.place((*path, at, "kind") if isinstance(blocks, list) else (*path, "kind"), of_value=True)
            found.append(Problem(f"unknown {registry.kind} '{kind}'", place, did_you_mean(kind, registry.names)))
    return found


def options(block: Block, module: types.ModuleType) -> Any:
    """The plug-in's own ``Config`` within a task's or an engine's block."""
    given = {name: getattr(block, name) for name in module.Config.model_fields if name in block.model_fields_set}
    return module.Config(**given)
