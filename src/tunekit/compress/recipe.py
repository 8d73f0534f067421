"""What to make smaller, into what, and how much it may cost: `quantize.yaml` as one typed object."""

from __future__ import annotations

from functools import cache, reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from tunekit.core.errors import Problem, UserError
from tunekit.core.registry import BACKENDS, TASKS, did_you_mean
from tunekit.evaluate.fewshot import FOLDER
from tunekit.exam.recipe import task_type, unknown
from tunekit.recipe import document as documents
from tunekit.recipe import load as loading
from tunekit.recipe.schema import Block, OutputBlock, SourceBlock


class CalibrationBlock(Block):
    """The text that is looked at before weights are rounded, by the kinds that do so."""

    data: tuple[SourceBlock, ...] = Field((), description="its rows; default: the run's training data")
    rows: int = Field(256, ge=1, le=100_000, description="so many, drawn at random, the same each time")
    length: int = Field(512, ge=2, description="tokens of a row, at most")


class ProofBlock(Block):
    """What the artefact is compared with its source on, and how much worse it may be."""

    data: tuple[SourceBlock, ...] = Field(
        (), description="rows of text; default: the run's held-out rows, or the embedded world's"
    )
    rows: int = Field(128, ge=2, le=100_000, description="so many of them, evenly drawn")
    answers: int = Field(20, ge=0, description="of so many prompts the answers are written and compared")
    new_tokens: int = Field(64, ge=1, le=8192, description="length of an answer, at most")
    max_ppl_increase: float | None = Field(
        None, ge=0, le=100, description="refuse where perplexity rises by a larger share; 0.02 is 2 %"
    )
    limit: int | None = Field(
        None, ge=1, description="at most so many rows a task; of the run's own default: its eval.limit, or 512"
    )
    max_score_loss: float | None = Field(
        None, ge=0, le=1, description="refuse where a task's score falls by more; 0.02 is 2 points of 100 %"
    )


@cache
def proof_type() -> type[ProofBlock]:
    """The block with `tasks`, of every kind that an evaluation knows."""
    task: Any = task_type()
    tasks: Any = (
        tuple[task, ...] | None,
        Field(None, description="what both models are asked, as in eval.yaml; default: the run's own tasks; []: none"),
    )
    return create_model("Proof", __base__=ProofBlock, __doc__=ProofBlock.__doc__, tasks=tasks)


def proof_field() -> Any:
    """`proof` as a field of a whole recipe."""
    return (proof_type(), Field(default_factory=proof_type(), description="what it is measured on"))


class ToBlock(Block):
    """One way to fewer bits; its further keys are those of its kind."""

    kind: str = Field(description="such as nf4, gptq4 or q4_k_m")


class QuantizeBase(Block):
    """A quantization; `to` is typed by the backends (see `quantize_type`)."""

    model: str = Field(min_length=1, description="run folder, adapter, model folder, Hub id, or builtin:<name>")
    revision: str | None = Field(None, description="branch, tag or commit of a Hub id")
    calibration: CalibrationBlock = Field(
        default_factory=lambda: CalibrationBlock(), description="text that is looked at"
    )
    proof: ProofBlock = Field(default_factory=lambda: ProofBlock(), description="what it is measured on")
    seed: int = Field(0, ge=0, description="of rows that are drawn")
    output: OutputBlock = Field(
        default_factory=lambda: OutputBlock(), description="the new folder; of several kinds one folder each, in it"
    )


def kinds() -> dict[str, str]:
    """Every kind that can be asked for, with the backend that makes it."""
    return {kind: name for name in BACKENDS.names for kind in BACKENDS.load(name).KINDS}


@cache
def quantize_type() -> type[QuantizeBase]:
    """The type of a whole recipe, with every kind there is."""
    found = []
    for name in BACKENDS.names:
        plugin = BACKENDS.load(name)
        fields: dict[str, Any] = {"kind": (Literal[tuple(plugin.KINDS)], Field(description="one of the backend's"))}
        made = create_model(f"{name}_To", __base__=(ToBlock, plugin.Config), __doc__=plugin.Config.__doc__, **fields)
        found.append(made)
    block: Any = Annotated[reduce(or_, found), Field(discriminator="kind")]
    to: dict[str, Any] = {"to": (tuple[block, ...], Field(min_length=1, description="what it shall become"))}
    return create_model("Quantize", __base__=QuantizeBase, __doc__=QuantizeBase.__doc__, proof=proof_field(), **to)


def load(path: Path, overrides: list[str]) -> Any:
    """Reads and checks `quantize.yaml`.

    Raises:
        UserError: all that is wrong with it, each with ``file:line:column``.
    """
    return check(documents.override(documents.read(path), overrides), path.parent)


def check(document: documents.Document, folder: Path | None = None) -> Any:
    """Turns a document into a quantization recipe; a kind may stand there as a word or with its options.

    Args:
        document: the recipe.
        folder: where paths of tasks start.

    Raises:
        UserError: all problems at once.
    """
    value = dict(document.value)
    wanted = value.get("to")
    blocks = list(wanted) if isinstance(wanted, list) else [wanted]
    blocks = [{"kind": block} if isinstance(block, str) else block for block in blocks]
    if wanted is not None:
        value["to"] = blocks
    known = kinds()
    loading.refuse(
        Problem(f"unknown kind '{block['kind']}'", _place(document, wanted, at), did_you_mean(block["kind"], known))
        for at, block in enumerate(blocks)
        if isinstance(block, dict) and isinstance(block.get("kind"), str) and block["kind"] not in known
    )
    loading.refuse(unknown(document, ("proof", "tasks"), TASKS))
    wanted_type: Any = quantize_type()
    recipe, faults = loading.typed(document, wanted_type, value, {FOLDER: folder or Path()})
    loading.refuse(faults)
    assert recipe is not None
    names = [block.kind for block in recipe.to]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"'{twice}' is asked for twice", where=document.place(("to",)), fix="name it once")
    return recipe


def _place(document: documents.Document, wanted: Any, at: int) -> str:
    path: tuple[str | int, ...] = ("to", at) if isinstance(wanted, list) else ("to",)
    inner = wanted[at] if isinstance(wanted, list) else wanted
    return document.place((*path, "kind") if isinstance(inner, dict) else path, of_value=True)


def options(block: Any) -> Any:
    """The backend's own ``Config`` within a block of `to`."""
    config = BACKENDS.load(kinds()[block.kind]).Config
    return config(**{name: getattr(block, name) for name in config.model_fields if name in block.model_fields_set})
