"""A source and what is made of it, held to the same rows and tasks: what all ways of making a model smaller share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tunekit
from tunekit.compress import calibration, proof, sizes
from tunekit.compress.contract import TRANSFORMERS, Weight
from tunekit.compress.parity import world_prompts
from tunekit.compress.proof import Measured, NotProvenError
from tunekit.compress.source import Source
from tunekit.compress.tasks import Exam, lost, read
from tunekit.core.errors import DataError, UserError, raise_all
from tunekit.core.progress import Screen
from tunekit.exam import rows as exam_rows
from tunekit.runs.environment import library_versions

LOST = 0.5  # share of named rows that may be unusable


@dataclass
class Trial:
    """One source, measured once, and its artefacts beside it.

    Args:
        wanted: the checked recipe: its ``proof``, ``calibration`` and ``seed``.
        base: folder where its relative paths start.
        source: the model.
        kept: a folder for what is kept of the source.
        screen: where progress goes.
    """

    wanted: Any
    base: Path
    source: Source
    kept: Path
    screen: Screen
    rows: list[Any] = field(default_factory=list, init=False)
    rows_of: str = field(default="", init=False)
    read: calibration.Calibration | None = field(default=None, init=False)
    exam: Exam | None = field(default=None, init=False)
    before: Measured = field(init=False)

    def begin(self, *, calibrated: bool) -> None:
        """Reads all rows, and measures the source.

        Args:
            calibrated: whether rows are looked at while the artefact is made.

        Raises:
            UserError: no rows are named and none are known, or a score is bounded that no task gives.
            DataError: the rows cannot be used.
        """
        with self.screen.step("reading rows"):
            self._read_rows(calibrated=calibrated)
            self.exam = self._exam()
        most = self.wanted.proof.max_score_loss
        fix = "name tasks in proof.tasks, such as {kind: generation, data: [{path: questions.jsonl}]}"
        if most is not None and self.exam is None:
            raise UserError("there are no tasks whose scores could fall", where="--max-score-loss", fix=fix)
        with self.screen.step("measuring the source"):
            self.before = self._measured(self.source.name, TRANSFORMERS, self.source.folder, first=True)
        if self.exam is not None:
            with self.screen.step("asking the source its tasks"):
                found = read(self.exam.ask(self.source, self.kept, _threads(), self.screen))
            if most is not None and not any(task.higher_is_better for task in found):
                names = ", ".join(sorted({task.metric for task in found}))
                what = f"no task has a score of which more is better: {names}"
                raise UserError(what, where="--max-score-loss", fix=fix)

    def figures(
        self, name: str, runtime: str, folder: Path, expected: float, *, exact: bool = False,
        parts: Sequence[tuple[Weight, float]] = (),
    ) -> dict[str, Any]:  # fmt: skip
        """What an artefact costs and saves, if it is sound; see `proof.figures`.

        Args:
            name: what it is called.
            runtime: what loads it.
            folder: of the artefact.
            expected: its bytes by the arithmetic.
            exact: it may equal its source.
            parts: the bytes of each of the source's weights in it, where their names are known there.

        Raises:
            NotProvenError: it is not.
        """
        with self.screen.step(f"proving {name}, in a fresh process"):
            after = self._measured(name, runtime, folder, first=False)
        odd = list(sizes.odd(name, folder, parts)) if parts else []
        proof.judge(self.before, after, expected, exact=exact, odd=odd)
        return proof.figures(self.before, after)

    def held(self, name: str, runtime: str, folder: Path, found: Mapping[str, Any], fix: str) -> dict[str, Any]:
        """Asks an artefact the tasks, and holds it to what is allowed.

        Args:
            name: what it is called.
            runtime: what loads it.
            folder: of the artefact.
            found: of `figures`.
            fix: what makes a better one.

        Returns:
            ``tasks``, for the record.

        Raises:
            NotProvenError: it is worse than allowed; each figure that is.
        """
        spec, asked = self.wanted.proof, list[dict[str, Any]]()
        problems = list(proof.dearer(found["increase"], spec.max_ppl_increase, fix))
        if self.exam is not None:
            with self.screen.step(f"asking {name} the source's tasks"):
                asked = self.exam.ask(self.source, self.kept, _threads(), self.screen, (runtime, folder))
        raise_all(NotProvenError, [*problems, *lost(read(asked), spec.max_score_loss, fix)])
        return {"tasks": asked}

    def facts(self, *, calibrated: bool) -> dict[str, Any]:
        """What a record says of all artefacts alike."""
        return {
            "tunekit": tunekit.__version__,
            "source": self.source.facts | {"model": Path(self.source.name).name},
            "rows": self.rows_of,
            "prompts": [row.prompt_text for row in self.rows[: self.wanted.proof.answers]],
            "calibration": self.read.facts if calibrated and self.read is not None else None,
            "seed": self.wanted.seed,
            "device": _device(),
            "threads": _threads(),
            "libraries": library_versions(),
        }

    def _read_rows(self, *, calibrated: bool) -> None:
        spec, asked = self.wanted.proof, self.wanted.calibration
        found, self.rows_of = self._held_out()
        self.rows = proof.fitted(found, self.source.positions, spec.rows, spec.new_tokens)
        if calibrated:
            self.read = calibration.read(
                self.source, asked.data, self.base, self.screen, held=found, count=asked.rows, length=asked.length,
                seed=self.wanted.seed,
            )  # fmt: skip
            texts = (self.source.tokenizer.decode(row.input_ids, skip_special_tokens=True) for row in self.rows)
            calibration.check_language(self.read, "\n".join(map(str, texts)))

    def _held_out(self) -> tuple[Sequence[Any], str]:
        named, source = self.wanted.proof.data, self.source
        if named:
            tally = exam_rows.Tally()
            found = list(exam_rows.examples(named, self.base, exam_rows.fitter_of(source.tokenizer), tally))
            tally.settle(LOST, self.screen)
            return found, ", ".join(_shown(block.path) for block in named)
        if source.run is not None:
            return exam_rows.held_out(source.run, self.screen), "the run's held-out rows"
        return world_prompts(source.tokenizer, self.wanted.proof.rows), "the embedded world"

    def _exam(self) -> Exam | None:
        """The tasks, whose rows were looked at; a run's own need rows that it held out."""
        spec = self.wanted.proof
        found = Exam.of(spec, self.source, self.base)
        if found is None:
            return None
        try:
            found.read(self.source.tokenizer, self.screen)
        except DataError as error:
            if spec.tasks or spec.max_score_loss is not None:
                raise
            self.screen.warn(f"the run's own tasks are not asked: {error}")
            return None
        return found

    def _measured(self, name: str, runtime: str, folder: Path, *, first: bool) -> Measured:
        spec = self.wanted.proof
        values = proof.measure(runtime, folder, self.rows, self.kept, first=first, threads=_threads(),
                               prompts=spec.answers, new_tokens=spec.new_tokens)  # fmt: skip
        return Measured(name, self.source.size if first else sizes.stored(folder), values)


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _shown(path: str) -> str:
    """A source of rows as the record names it: without the folders of this machine."""
    return Path(path).name if Path(path).is_absolute() else path
