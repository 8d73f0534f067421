"""What an evaluation folder holds: record.json, typed; written scrubbed and whole, read back with clear errors.

A number that is not finite stands in the file as "nan", "inf" or "-inf"; null is something that was not measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tunekit import __version__
from tunekit.core.errors import UserError
from tunekit.core.files import write_json
from tunekit.runs.record import TaskPart
from tunekit.runs.scrub import Scrubber
from tunekit.runs.wording import json_ready

SCHEMA_VERSION = 1
RECORD, RESULTS, REPORT, PAGE = "record.json", "results.parquet", "report.html", "report.md"
OWN = "the base's own text"  # a task that tells how far tuning moved the model
KIND = "evaluation"  # tells this record from a run's, which has the same file name
Statistic = Literal["mean", "perplexity", "corpus"]


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelFacts(_Fact):
    """A model that was asked: ``kind`` is what it is (base model, adapter, server), ``identity`` a hash of it."""

    name: str
    kind: str = ""
    identity: str = ""
    revision: str | None = None


class Models(_Fact):
    """The model in question, and the one it is compared with."""

    tuned: ModelFacts
    baseline: ModelFacts | None = None


class ExamTask(TaskPart):
    """One task under one metric.

    Args:
        statistic: how rows become the number: their mean, the exponential of their weighted mean, or the metric's own
            way with a whole corpus.
        note: how the number was made, such as sacreBLEU's signature.
        options: of the metric; None when they were not kept.
        adjusted: the p-value that accounts for those of all tasks that were compared (Holm); None where it is alone.
        clean: the same over the rows that were not found in the training data; None when that was not looked for.
        seconds: wall time of the task.
    """

    statistic: Statistic = "mean"
    note: str = ""
    options: dict[str, Any] | None = None
    adjusted: float | None = None
    clean: TaskPart | None = None
    seconds: float = 0.0


class Leak(_Fact):
    """An evaluation row that stands in the training data too; ``how`` is "exact" or "ngram"."""

    where: str
    matched: str
    how: str = ""


class Contamination(_Fact):
    """What was looked for in the training data (``against``), and found; ``words`` is the length of the n-grams."""

    checked: int
    exact: int
    ngram: int
    against: str
    words: int | None = None
    rows: tuple[Leak, ...] = ()


class ExamRecord(_Fact):
    """One evaluation. ``seconds`` are by phase; ``forgetting`` is what was measured to see what tuning lost."""

    kind: Literal["evaluation"] = "evaluation"
    schema_version: int = SCHEMA_VERSION
    tunekit: str = __version__
    created: str
    models: Models
    seeds: dict[str, int] = {}
    confidence: float = 0.95
    engine: str = ""
    tasks: tuple[ExamTask, ...] = ()
    contamination: Contamination | None = None
    forgetting: tuple[ExamTask, ...] | None = None
    warnings: tuple[str, ...] = ()
    versions: dict[str, str] = {}
    data_fingerprint: str = ""
    seconds: dict[str, float] = {}

    @property
    def everything(self) -> tuple[ExamTask, ...]:
        """The tasks and those that look for what was forgotten."""
        return (*self.tasks, *(self.forgetting or ()))


class _Peek(BaseModel):
    kind: str = ""
    schema_version: int = 0
    tunekit: str = "?"


def save(folder: Path, record: ExamRecord) -> Path:
    """Writes ``record.json``, atomically and scrubbed of secrets, absolute paths and the host's name.

    Raises:
        OSError: as the file system says.
    """
    scrubber = Scrubber.of_this_machine(folder)
    plain = json_ready(record.model_dump())
    # by itself: below a key "tuned" the scrubber takes a text for a model's answer, in which paths stay
    models = {role: scrubber.value(facts) for role, facts in plain.pop("models").items()}
    write_json(folder / RECORD, {**scrubber.value(plain), "models": models})
    return folder / RECORD


def is_evaluation(folder: Path) -> bool:
    """Whether the folder's record is that of an evaluation, whole or damaged further on."""
    try:
        return _Peek.model_validate_json((folder / RECORD).read_bytes()).kind == KIND
    except (OSError, ValidationError):
        return False


def load(folder: Path) -> ExamRecord:
    """Reads ``record.json``.

    Raises:
        UserError: there is none, it is another kind of record, it is damaged, or a newer tunekit wrote it.
    """
    path = folder / RECORD
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "not an evaluation folder: there is no record.json"
        raise UserError(what, where=str(folder), fix="name the folder that `tunekit eval` wrote") from error
    try:
        seen = _Peek.model_validate_json(raw)
        if seen.kind == KIND and seen.schema_version > SCHEMA_VERSION:
            what = f"this evaluation was written by tunekit {seen.tunekit}, which is newer"
            raise UserError(what, where=str(path), fix="upgrade tunekit")
        if seen.kind != KIND:
            what = "this is not the record of an evaluation"
            raise UserError(what, where=str(path), fix=f"for a run: `tunekit runs show {folder}`")
        return ExamRecord.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole file"
        fix = f"evaluate again; {RESULTS} beside it is untouched by this"
        raise UserError(f"damaged record: {place}: {first['msg'].lower()}", where=str(path), fix=fix) from error
