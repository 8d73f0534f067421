"""What a model can do before and after it was made smaller: the tasks of its run's evaluation, or those that are named.

Source and artefact answer the same rows; the source's answers are kept until the last kind is measured.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tunekit.compress import fresh
from tunekit.compress.contract import TRANSFORMERS
from tunekit.compress.source import Source
from tunekit.core.errors import Problem
from tunekit.core.progress import Screen, Silent
from tunekit.evaluate.contract import Engine, Generated, Likelihood, Prompt, Scored
from tunekit.evaluate.writer import Writer
from tunekit.exam import results, session
from tunekit.exam.answers import KeepingEngine, opened
from tunekit.exam.facts import ExamTask
from tunekit.exam.job import Warned
from tunekit.exam.recipe import check
from tunekit.exam.tasks import Task, tasks_of
from tunekit.model.tokenizer import load_config, load_tokenizer
from tunekit.plan.plan import Plan
from tunekit.recipe.document import parse
from tunekit.recipe.schema import ModelBlock
from tunekit.runs.layout import RunFolder
from tunekit.runs.verdict import in_percent, metric_name, show_value
from tunekit.runs.wording import json_ready, percent

OWN_ROWS = 512
"""Rows of a task of the run's own, where its recipe sets no limit: each kind answers all of them."""
ANSWERS = "answers.sqlite"


@dataclass(frozen=True)
class Exam:
    """What both models are asked.

    Args:
        value: the evaluation as plain values, as in eval.yaml.
        base: folder where its relative paths start.
        run: whose held-out rows stand for data that is not named.
    """

    value: Mapping[str, Any]
    base: Path
    run: RunFolder | None

    @classmethod
    def of(cls, proof: Any, source: Source, base: Path) -> Exam | None:
        """The tasks that a proof names, or those of the run that made the source; None where there are none.

        Args:
            proof: the recipe's block.
            source: the model.
            base: folder where the recipe's paths start.
        """
        value: dict[str, Any] = {"model": source.name, "baseline": None, "limit": proof.limit}
        if proof.tasks:
            value["tasks"] = [block.model_dump(mode="json", exclude_unset=True) for block in proof.tasks]
            if proof.data:
                value["data"] = [block.model_dump(mode="json", exclude_unset=True) for block in proof.data]
        elif proof.tasks is None and source.run is not None:
            own = Plan.load(source.run.plan).recipe.eval
            value |= {"limit": proof.limit or own.limit or OWN_ROWS, "confidence": own.confidence}
        else:
            return None
        return cls(value, base, source.run)

    def read(self, tokenizer: Any, screen: Screen) -> tuple[Any, list[Task], list[Sequence[Any]]]:
        """The checked recipe, its tasks, and the rows of each.

        Raises:
            TunekitError: what is wrong with tasks or rows, before any model is loaded.
        """
        exam = check(parse(json.dumps(dict(self.value)), "proof"), self.base)
        tasks = tasks_of(exam, self.run)
        reader = session.Reader(self.base, self.run, exam.max_drop_rate, screen)
        items = [reader.items(task, tokenizer) for task in tasks]
        session.check(tasks, items)
        return exam, tasks, items

    def ask(
        self, source: Source, kept: Path, threads: int, screen: Screen, made: tuple[str, Path] | None = None
    ) -> list[dict[str, Any]]:
        """Has a fresh process ask the source, and what was made of it.

        Args:
            source: the model.
            kept: a folder for the source's answers.
            threads: of the process.
            screen: is told what the process warns of.
            made: the artefact's runtime and folder; None for the source alone.

        Returns:
            The tasks as plain values, see `exam.facts.ExamTask`; of the source alone without a comparison.

        Raises:
            TunekitError: what the process raised, or that it died.
        """
        job = {"exam": dict(self.value), "base": str(self.base.resolve()), "kept": str(kept), "threads": threads}
        job |= {"run": str(self.run.path.resolve()) if self.run is not None else None}
        job |= {"source": str(source.folder.resolve())}
        job |= {"made": [made[0], str(made[1].resolve())] if made is not None else None}
        answer = fresh.run("tunekit.compress.tasks", job, "asks the tasks")
        for warning in answer["warnings"]:
            screen.warn(warning)
        found: list[dict[str, Any]] = answer["tasks"]
        return found


class _SourceEngine(Writer):
    """The source, loaded when something is asked that it was not asked before."""

    def __init__(self, load: Callable[[], Engine], tokenizer: Any, positions: int | None) -> None:
        self._load, self.tokenizer, self.positions = load, tokenizer, positions

    @cached_property
    def _engine(self) -> Engine:
        return self._load()

    def likelihoods(
        self,
        requests: Sequence[Likelihood],
        screen: Screen,
        what: str,
        done: Callable[[int, Scored], None] = lambda index, answer: None,
    ) -> list[Scored]:
        return self._engine.likelihoods(requests, screen, what, done)

    def generate(
        self,
        requests: Sequence[Prompt],
        screen: Screen,
        what: str,
        done: Callable[[int, Generated], None] = lambda index, answer: None,
    ) -> list[Generated]:
        return self._engine.generate(requests, screen, what, done)


def work(job: Mapping[str, Any]) -> dict[str, Any]:
    """Asks the source what is not known of it yet, then the artefact, and compares them.

    Args:
        job: ``exam``, ``base``, ``run``, ``source`` (folder), ``kept`` (folder), ``threads``, and ``made``: runtime and
            folder of the artefact, or None.

    Returns:
        ``tasks`` and ``warnings``.

    Raises:
        TunekitError: a model cannot be loaded or asked.
    """
    folder, screen = Path(job["source"]), Warned(Silent())
    run = RunFolder(Path(job["run"])) if job["run"] is not None else None
    tokenizer = load_tokenizer(ModelBlock(name=str(folder)))
    exam, tasks, items = Exam(job["exam"], Path(job["base"]), run).read(tokenizer, Silent())
    text = load_config(ModelBlock(name=str(folder))).get_text_config()

    def load(runtime: str, place: Path) -> Engine:
        module: Any = importlib.import_module(f"tunekit.compress.runtimes.{runtime}")
        engine: Engine = module.load(place, threads=job["threads"]).engine(tokenizer)
        return engine

    positions = getattr(text, "max_position_embeddings", None)
    source = _SourceEngine(lambda: load(TRANSFORMERS, folder), tokenizer, positions)
    with opened(Path(job["kept"]) / ANSWERS) as store:
        before = session.run(KeepingEngine(source, store), tasks, items, exam.seeds, screen)
    if job["made"] is None:
        found = [results.task_of(None, one, exam.confidence, None) for one in before]
    else:
        del source
        after = session.run(load(job["made"][0], Path(job["made"][1])), tasks, items, exam.seeds, screen)
        old, new = session.against_baseline(tasks, items, before, after, screen)
        found = [results.task_of(*pair, exam.confidence, None) for pair in results.pairs(old, new)]
    told = [json_ready(task.model_dump()) for task in results.with_adjusted(found)]
    return {"tasks": told, "warnings": list(dict.fromkeys(screen.warnings))}


def read(tasks: Sequence[Mapping[str, Any]]) -> list[ExamTask]:
    """The tasks of a record."""
    return [ExamTask.model_validate(task) for task in tasks]


def lost(tasks: Sequence[ExamTask], most: float | None, fix: str) -> Iterator[Problem]:
    """Scores that fall by more than is allowed; only those of which more is better.

    Args:
        tasks: source and artefact.
        most: points of a share; of a score that is none, the part of the source's value. None for any.
        fix: what keeps more of it.
    """
    for task in tasks if most is not None else ():
        if not task.higher_is_better or task.base is None or most is None:
            continue
        share, fall = in_percent(task), task.base.value - task.tuned.value
        fall = fall if share else fall / (abs(task.base.value) or 1.0)
        if fall <= most:
            continue
        down = f"{100 * fall:.1f} points" if share else percent(fall)
        allowed = f"{100 * most:g} points are" if share else f"{percent(most)} is"
        values = f"{show_value(task, task.base.value)} to {show_value(task, task.tuned.value)}"
        what = f"task '{task.name}', {metric_name(task)}: from {values}, down {down}; at most {allowed} allowed"
        yield Problem(what, where="--max-score-loss", fix=fix)
