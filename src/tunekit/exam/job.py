"""An evaluation from its recipe to its folder: baseline and model go through the same tasks, and are compared."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunekit.core.errors import MachineError, out_of_memory
from tunekit.core.files import sha256_json
from tunekit.core.progress import Screen
from tunekit.core.registry import ENGINES
from tunekit.data.fit import turn_end
from tunekit.evaluate.contract import TaskResult
from tunekit.exam import facts, forgetting, gguf, models, overlap, pairs, results, rows, session
from tunekit.exam.answers import KeepingEngine, kept_answers, opened
from tunekit.exam.markdown import write_markdown
from tunekit.exam.models import Subject
from tunekit.exam.recipe import GGUF, LOCAL, SERVER, options
from tunekit.exam.report import write_report
from tunekit.exam.tasks import Task, tasks_of
from tunekit.model.save import staged
from tunekit.model.tokenizer import load_tokenizer
from tunekit.recipe.schema import ModelBlock
from tunekit.runs.environment import library_versions


class Warned:
    """A screen that remembers what it warned of."""

    def __init__(self, inner: Screen) -> None:
        self.inner, self.warnings = inner, list[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def warn(self, text: str) -> None:
        """Shows the warning, and keeps it for the record."""
        self.warnings.append(text)
        self.inner.warn(text)


@contextmanager
def _enough_memory() -> Iterator[None]:
    """Says what to do where memory does not suffice."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        fix = "lower engine.batch_size and engine.batch_tokens"
        raise MachineError("memory does not suffice for the evaluation", where="engine", fix=fix) from error


@dataclass
class Job:
    """One evaluation.

    Args:
        exam: the checked recipe.
        base: folder where its relative paths start.
        target: the new folder that it is written to.
        screen: where progress goes.
    """

    exam: Any
    base: Path
    target: Path
    screen: Screen
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> facts.ExamRecord:
        """Evaluates, and writes the folder: all of it, or nothing.

        Raises:
            TunekitError: of the kind that fits the cause; answers that were computed are kept for the next time.
        """
        self.screen = Warned(self.screen)
        exam = self.exam
        served = exam.engine.kind == SERVER
        tuned = models.subject(exam.model, exam.revision, served=served)
        baseline = models.baseline_of(tuned, exam.baseline, served=served)
        tuned, baseline = gguf.with_words(tuned, baseline, exam.engine)
        tasks = tasks_of(exam, tuned.run, scores=tuned.scores)
        session.check_named(tasks, self.base)
        sides = [(one.name, one.scores) for one in (tuned, baseline) if one is not None]
        kinds = [(task.label, task.module.READS) for task in tasks]
        pairs.check_heads(kinds, sides[0], sides[1] if baseline else None)
        reader = session.Reader(self.base, tuned.run, exam.max_drop_rate, self.screen)
        with self._phase("data"), self.screen.step("reading rows"):
            items = [reader.items(task, self._tokenizer(tuned)) for task in tasks]
            session.check(tasks, items)
            session.check_baseline(tasks, baseline)
        lost = forgetting.Probe(exam.forgetting, self.base, self.screen)
        before = None
        if baseline is not None:
            before = self._baseline(baseline, tuned, tasks, items, reader, lost)
        after, identity = self._tuned(tuned, tasks, items, lost)
        before, after = session.against_baseline(tasks, items, before, after, self.screen)
        with self._phase("contamination"):
            leaks = overlap.check(exam.contamination, tuned, items, after, self.base, self.screen)
        return self._written(tuned, baseline, identity, before, after, lost, leaks)

    def _baseline(
        self,
        baseline: Subject,
        tuned: Subject,
        tasks: Sequence[Task],
        items: Sequence[Sequence[Any]],
        reader: session.Reader,
        lost: forgetting.Probe,
    ) -> list[TaskResult]:
        """The baseline's results; it is gone from memory afterwards."""
        exam = self.exam
        own = baseline.role != "base" and exam.engine.kind in (LOCAL, GGUF)
        others = [reader.items(task, baseline.tokenizer) for task in tasks] if own else items
        tokenizer = baseline.tokenizer if own else self._tokenizer(tuned)
        with self._asked(baseline, tokenizer) as (engine, _):
            found = session.run(engine, tasks, others, exam.seeds, self.screen)
            if exam.forgetting.check and baseline.role == "base":
                lost.of_base(engine, tokenizer)
        return found

    def _tuned(
        self, tuned: Subject, tasks: Sequence[Task], items: Sequence[Sequence[Any]], lost: forgetting.Probe
    ) -> tuple[list[TaskResult], str]:
        """The model's results, and what identifies its answers."""
        tokenizer = self._tokenizer(tuned)
        with self._asked(tuned, tokenizer) as (engine, identity):
            found = session.run(engine, tasks, items, self.exam.seeds, self.screen)
            lost.of_tuned(engine, tokenizer)
        return found, identity

    def _tokenizer(self, tuned: Subject) -> Any:
        """What prompts are written with: the model's, or that which the engine of a server names."""
        engine = self.exam.engine
        if engine.kind in (LOCAL, GGUF):
            return tuned.tokenizer
        name = getattr(options(engine, ENGINES.load(engine.kind)), "tokenizer", None)
        return load_tokenizer(ModelBlock(name=name)) if name is not None else None

    @contextmanager
    def _asked(self, who: Subject, tokenizer: Any) -> Iterator[tuple[Any, str]]:
        """The model's engine, behind the kept answers where the recipe has any, and what identifies it."""
        end = turn_end(rows.fitter_of(tokenizer)) if tokenizer is not None else None
        with (
            self._phase(who.role),
            _enough_memory(),
            models.asked(who, self.exam.engine, tokenizer, end, self.screen, kept=self.exam.cache) as asked,
        ):
            if not self.exam.cache:
                yield asked.engine, asked.identity
                return
            with opened(kept_answers() / f"{asked.identity[:24]}.sqlite") as store:
                yield KeepingEngine(asked.engine, store, asked.stop_ids), asked.identity

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 3)

    def _written(
        self,
        tuned: Subject,
        baseline: Subject | None,
        identity: str,
        before: Sequence[TaskResult] | None,
        after: Sequence[TaskResult],
        lost: forgetting.Probe,
        leaks: overlap.Overlap | None,
    ) -> facts.ExamRecord:
        """The record, with all that stands in the folder beside it."""
        exam = self.exam
        with self._phase("statistics"), self.screen.step("comparing"):
            tasks = tuple(
                results.task_of(old, new, exam.confidence, leaks.rows if leaks else None)
                for old, new in results.pairs(before, after)
            )
            forgotten = tuple(
                results.task_of(old, new, exam.confidence, None) for old, new in results.pairs(lost.before, lost.after)
            )
        assert isinstance(self.screen, Warned)
        record = facts.ExamRecord(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            models=facts.Models(
                tuned=facts.ModelFacts(name=tuned.name, kind=tuned.role, identity=identity, revision=tuned.revision),
                baseline=facts.ModelFacts(name=baseline.name, kind=baseline.role, revision=baseline.revision)
                if baseline
                else None,
            ),
            seeds={f"seed {number}": seed for number, seed in enumerate(exam.seeds, start=1)},
            confidence=exam.confidence,
            engine=exam.engine.kind,
            tasks=results.with_adjusted(tasks),
            contamination=leaks.facts if leaks else None,
            forgetting=forgotten or None,
            warnings=tuple(self.screen.warnings),
            versions=library_versions(),
            data_fingerprint=sha256_json(
                [[item.where, item.prompt_text, item.reference] for result in after for item in result.items]
            ),
            seconds=self.seconds,
        )
        with staged(self.target) as folder:
            results.write(folder, before, after, leaks.rows if leaks else None)
            facts.save(folder, record)
            write_report(folder)
            write_markdown(folder)
        return record
