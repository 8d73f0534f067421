"""An evaluation from its recipe to its folder: baseline and model go through the same tasks, and are compared."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunekit.core.files import sha256_json
from tunekit.core.progress import Screen
from tunekit.data.fit import turn_end
from tunekit.evaluate.contract import TaskResult
from tunekit.exam import facts, forgetting, models, overlap, results, rows, session
from tunekit.exam.answers import KeepingEngine, kept_answers, opened
from tunekit.exam.markdown import write_markdown
from tunekit.exam.models import Asked, Subject
from tunekit.exam.recipe import LOCAL
from tunekit.exam.report import write_report
from tunekit.model.save import staged
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
        tuned = models.subject(exam.model, exam.revision)
        baseline = models.baseline_of(tuned, exam.baseline)
        tasks = session.tasks_of(exam, tuned.run)
        reader = session.Reader(self.base, tuned.run, exam.max_drop_rate, self.screen)
        local = exam.engine.kind == LOCAL
        with self._phase("data"), self.screen.step("reading rows"):
            items = [reader.items(task, tuned.tokenizer if local else None) for task in tasks]
            session.check(tasks, items)
            session.check_baseline(tasks, baseline)
        before: list[TaskResult] | None = None
        lost = forgetting.Probe(exam.forgetting, self.base, self.screen)
        if baseline is not None:
            own = baseline.role != "base" and local
            others = [reader.items(task, baseline.tokenizer) for task in tasks] if own else items
            tokenizer = baseline.tokenizer if own else tuned.tokenizer if local else None
            with self._asked(baseline, tokenizer) as (engine, _):
                before = session.run(engine, tasks, others, exam.seeds, self.screen)
                if exam.forgetting.check and local:
                    lost.of_base(engine, tokenizer)
        with self._asked(tuned, tuned.tokenizer if local else None) as (engine, asked):
            after = session.run(engine, tasks, items, exam.seeds, self.screen)
            lost.of_tuned(engine, tuned.tokenizer if local else None)
        before, after = session.against_baseline(tasks, items, before, after, self.screen)
        with self._phase("contamination"):
            leaks = overlap.check(exam.contamination, tuned, after, self.base, self.screen)
        return self._written(tuned, baseline, asked, before, after, lost, leaks)

    @contextmanager
    def _asked(self, who: Subject, tokenizer: Any) -> Iterator[tuple[Any, Asked]]:
        """The model's engine, behind the kept answers where the recipe has any."""
        end = turn_end(rows.fitter_of(tokenizer)) if tokenizer is not None else None
        with self._phase(who.role), models.asked(who, self.exam.engine, tokenizer, end, self.screen) as asked:
            if not self.exam.cache:
                yield asked.engine, asked
                return
            with opened(kept_answers() / f"{asked.identity[:24]}.sqlite") as store:
                yield KeepingEngine(asked.engine, store, asked.stop_ids), asked

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
        asked: Asked,
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
                tuned=facts.ModelFacts(
                    name=tuned.name, kind=tuned.role, identity=asked.identity, revision=tuned.revision
                ),
                baseline=facts.ModelFacts(name=baseline.name, kind=baseline.role, revision=baseline.revision)
                if baseline
                else None,
            ),
            seeds={f"seed {number}": seed for number, seed in enumerate(exam.seeds, start=1)},
            confidence=exam.confidence,
            engine=exam.engine.kind,
            tasks=tasks,
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
