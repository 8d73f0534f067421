"""record.json: everything needed to explain or repeat a run, typed; written scrubbed, read back with clear errors."""

from __future__ import annotations

import json
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from tunekit import __version__
from tunekit.core.errors import TunekitError, UserError
from tunekit.core.files import write_json
from tunekit.runs.layout import RunFolder
from tunekit.runs.merges import MergePart
from tunekit.runs.scrub import scrub
from tunekit.runs.wording import json_ready, now_utc

SCHEMA_VERSION = 1
FATES = ("kept", "truncated", "dropped", "duplicate", "unused")  # of a row; also the fields of SplitPart
Status = Literal["running", "done", "failed", "stopped"]
Verdict = Literal["better", "worse", "no detectable difference"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Open(BaseModel):
    """A part that an evaluation task may extend; what this version does not know is kept as it is."""

    model_config = ConfigDict(frozen=True, extra="allow")


class ProblemPart(_Part):
    """One thing that was wrong."""

    what: str
    where: str = ""
    fix: str = ""


class ErrorPart(_Part):
    """The error block a run ended with."""

    title: str
    problems: tuple[ProblemPart, ...]

    @classmethod
    def of(cls, error: TunekitError) -> ErrorPart:
        """The block for an error."""
        return cls(
            title=error.title,
            problems=tuple(ProblemPart(what=p.what, where=p.where, fix=p.fix) for p in error.problems),
        )


class Git(_Part):
    """The commit of the working folder; ``dirty`` is None when git could not tell."""

    commit: str
    dirty: bool | None


class SplitPart(_Part):
    """The fates of one split's rows (they add up to ``rows``) and what was left to train on, in tokens."""

    rows: int
    kept: int
    truncated: int = 0
    dropped: int = 0
    duplicate: int = 0
    unused: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    lost_tokens: int = 0
    reasons: dict[str, int] = {}


class DataPart(_Part):
    """The data's fingerprint and the ledger's summary for every split."""

    fingerprint: str
    splits: dict[str, SplitPart] = {}


class ModelPart(_Part):
    """The model that was tuned; ``trainable`` of its ``parameters`` were."""

    name: str
    revision: str | None = None
    parameters: int
    trainable: int


class Best(_Part):
    """The best evaluation during training."""

    step: int
    metric: str
    value: float


class RollbackPart(_Part):
    """The loss or a gradient of ``step`` went wrong: training went back to ``to``, and left the batches out."""

    step: int
    to: int
    why: str
    skipped: tuple[int, ...]


class ProgressPart(_Part):
    """How far a run came that is not done; None is not known, or not there.

    ``step`` is the last one done, ``loss`` the last one logged, at ``loss_step``; ``checkpoint`` the newest whole one,
    relative to the run folder; ``command`` goes on with the run, or without a checkpoint begins it anew.
    """

    step: int = 0
    planned_steps: int | None = None
    loss: float | None = None
    loss_step: int | None = None
    checkpoint: str | None = None
    command: str | None = None


class ResumePart(_Part):
    """The run went on from the checkpoint of ``step`` (0: from the beginning); ``changes`` as key: old -> new."""

    at: str
    step: int
    changes: tuple[str, ...] = ()


class TrainingPart(_Part):
    """What training did, counted over all processes. ``tokens`` went through the model, ``trained_tokens`` had a label.

    ``padding_share`` of the positions that were computed held no token. ``model_flops`` is what the tokens ask for;
    ``mfu``, the model FLOPs utilization, is that per second as a share of ``matmul_tflops``, the measured TFLOP/s of
    each process.
    ``padded_because`` is set when batches were padded, and says why.
    """

    steps: int
    epochs: float
    tokens: int
    trained_tokens: int
    tokens_per_second: float
    trained_tokens_per_second: float | None = None
    padding_share: float | None = None
    trained_share: float | None = None
    model_flops: float | None = None
    matmul_tflops: float | None = None
    mfu: float | None = None
    padded_because: str | None = None
    final_loss: float | None = None
    final_eval_loss: float | None = None
    best: Best | None = None
    rollbacks: tuple[RollbackPart, ...] = ()


class Estimate(_Open):
    """A value with its confidence interval."""

    value: float
    low: float
    high: float


class Difference(Estimate):
    """Tuned minus base, paired over the same examples."""

    p_value: float | None = None


class TaskPart(_Open):
    """One metric of one evaluation task, before and after."""

    name: str
    metric: str
    higher_is_better: bool
    n: int
    base: Estimate | None = None
    tuned: Estimate
    difference: Difference | None = None
    verdict: Verdict | None = None
    confidence: float = 0.95

    @property
    def compared(self) -> bool:
        """Whether the base model was measured too and a verdict given."""
        return self.base is not None and self.verdict is not None


class SamplePart(_Open):
    """One prompt answered by the base and the tuned model; ``*_correct`` is None where nothing was marked."""

    prompt: str
    reference: str = ""
    base: str | None = None
    tuned: str
    base_correct: bool | None = None
    tuned_correct: bool | None = None
    where: str = ""


class EvaluationPart(_Open):
    """All tasks and some samples. ``base_is``: what the base is where it is not the model itself, else empty."""

    base_is: str = ""
    tasks: tuple[TaskPart, ...] = ()
    samples: tuple[SamplePart, ...] = ()
    seconds: float = 0.0

    @property
    def key(self) -> TaskPart | None:
        """The task the headline speaks of: the first that was compared with the base, else the first."""
        return next((task for task in self.tasks if task.compared), self.tasks[0] if self.tasks else None)


class Record(_Part):
    """One run. ``exit_code`` and ``finished`` are None while it runs, ``progress`` when it is done.

    ``artefact`` is relative to the run folder.
    """

    schema_version: int = SCHEMA_VERSION
    tunekit: str = __version__
    method: str
    status: Status = "running"
    exit_code: int | None = None
    error: ErrorPart | None = None
    created: str
    finished: str | None = None
    seconds: dict[str, float] = {}
    versions: dict[str, str] = {}
    hardware: dict[str, Any] = {}
    git: Git | None = None
    seeds: dict[str, int] = {}
    data: DataPart | None = None
    model: ModelPart | None = None
    progress: ProgressPart | None = None
    training: TrainingPart | None = None
    evaluation: EvaluationPart | None = None
    artefact: str | None = None
    resumed: tuple[ResumePart, ...] = ()
    merges: tuple[MergePart, ...] = ()
    plan_hash: str = ""

    def updated(self, **changes: Any) -> Self:
        """A copy with some parts replaced; parts may be given as dicts. Checked like any record."""
        return type(self).model_validate({name: getattr(self, name) for name in type(self).model_fields} | changes)

    def ended(self, status: Status, exit_code: int, error: TunekitError | None = None) -> Self:
        """A copy that says how and when the run ended."""
        block = ErrorPart.of(error) if error else None
        return self.updated(status=status, exit_code=exit_code, error=block, finished=now_utc())


def write_record(folder: RunFolder, record: Record) -> None:
    """Writes ``record.json``, atomically and scrubbed of secrets, absolute paths and the host's name.

    Raises:
        OSError: as the file system says.
    """
    write_json(folder.record, scrub(json_ready(record.model_dump()), folder.path))


def read_record(folder: RunFolder) -> Record:
    """Reads ``record.json``.

    Raises:
        UserError: there is none, it is damaged, or a newer tunekit wrote it.
    """
    path = folder.record
    repair = "the run folder cannot be shown; its model/ and metrics.jsonl are untouched by this"
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        what = "not a run folder: there is no record.json"
        raise UserError(what, where=str(folder.path), fix="see `tunekit runs list`") from error
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}:{error.colno}"
        raise UserError(f"damaged record: {error.msg}", where=where, fix=repair) from error
    except UnicodeDecodeError as error:
        raise UserError(f"damaged record: {error}", where=str(path), fix=repair) from error
    version = value.get("schema_version") if isinstance(value, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        what = f"this record was written by tunekit {value.get('tunekit', '?')}, which is newer"
        raise UserError(what, where=str(path), fix="upgrade tunekit")
    try:
        return Record.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise UserError(f"damaged record: {place}: {first['msg'].lower()}", where=str(path), fix=repair) from error
