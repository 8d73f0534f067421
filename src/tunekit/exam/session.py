"""One model going through the tasks of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tunekit.core.errors import DataError, TunekitError, UserError, raise_all
from tunekit.core.progress import Screen
from tunekit.core.registry import METRICS
from tunekit.data import sources
from tunekit.data.readers import builtin
from tunekit.evaluate import scoring
from tunekit.evaluate.contract import Engine, TaskResult
from tunekit.evaluate.measured import Wish, wished
from tunekit.evaluate.pairs import PairItem
from tunekit.evaluate.run import rows_of
from tunekit.exam import pairs, rows
from tunekit.exam.tasks import Task
from tunekit.model import restore
from tunekit.model.artefact import template_hash
from tunekit.model.tokenizer import tokenizer_hash
from tunekit.recipe.schema import SourceBlock
from tunekit.runs.layout import RunFolder

EVEN = 0.5
"""Share of comparisons that two models of one quality win."""
WRITES = "max_new_tokens"
"""The option of tasks that have the model write."""


@dataclass(frozen=True)
class Reader:
    """Reads each task's rows for a tokenizer, once a pair of source and way of reading.

    Args:
        base: folder where relative paths start.
        run: whose held-out rows stand for the data that is not named.
        max_drop_rate: rows that may be lost.
        screen: is told of lost rows.
    """

    base: Path
    run: RunFolder | None
    max_drop_rate: float
    screen: Screen

    def items(self, task: Task, tokenizer: Any) -> Sequence[Any]:
        """The rows of a task.

        Raises:
            DataError: there are none, or too many of them cannot be used.
            UserError: no data is named, and none is known.
        """
        reads = task.module.READS
        if reads == "none":
            return ()
        named = reads == pairs.READS and {*task.module.COLUMNS, "chat", "separator"} & task.config.model_fields_set
        if task.sources is None:
            if reads == "rows" or named or self.run is None:
                why = "reads columns, which a run's held-out rows no longer have" if self.run else "has no rows"
                fix = "name data: --data FILE, or `data` in the recipe"
                raise UserError(f"task '{task.label}' {why}", where="data", fix=fix)
            return rows_of(self._held_out(task, tokenizer), task.limit)
        tally = rows.Tally()
        found: Sequence[Any]
        if reads == pairs.READS and task.config.by == "reward":
            columns = task.module.columns(task.config, task.label)
            found = list(pairs.judged(task.sources, self.base, tokenizer, columns, tally))
        elif reads in ("rows", pairs.READS):
            found = list(rows.plain(task.sources, self.base, tally))
        elif tokenizer is None:
            fix = "name it: engine: {kind: ..., tokenizer: ...}; for a .gguf file --baseline SOURCE does it too; or "
            fix += "take a task that reads columns, such as questions"
            raise UserError(f"task '{task.label}' writes prompts with the model's tokenizer", where="engine", fix=fix)
        else:
            fitter = rows.fitter_of(tokenizer)
            found = list(rows.examples(task.sources, self.base, fitter, tally, answers=_answers(task)))
        tally.settle(self.max_drop_rate, self.screen)
        return rows_of(found, task.limit)

    @cached_property
    def _held(self) -> tuple[Sequence[Any], tuple[str, str | None]]:
        """The run's rows, and what wrote them."""
        assert self.run is not None
        own = restore.load_tokenizer(restore.Artefact(self.run.model, None, None, None))
        return rows.held_out(self.run, self.screen), _reading(own)

    def _held_out(self, task: Task, tokenizer: Any) -> Sequence[Any]:
        """The run's rows in its own tokens, or in those of another model's tokenizer and template."""
        held, own = self._held
        asks = task.module.READS == pairs.READS
        if asks and not all(isinstance(item, PairItem) for item in held):
            what = f"task '{task.label}' compares two answers, and the run's held-out rows have one"
            raise UserError(what, where="data", fix="name data: --data FILE, or `data` in the recipe")
        if tokenizer is None or _reading(tokenizer) == own:
            return held
        if asks:
            what = (
                f"task '{task.label}': the run's held-out pairs are in its own tokens, which this model does not read"
            )
            raise UserError(what, where="data", fix="name data: --data FILE, or `data` in the recipe")
        assert self.run is not None
        tally = rows.Tally()
        found = rows.held_out_for(self.run, held, rows.fitter_of(tokenizer), tally, answers=_answers(task))
        tally.settle(self.max_drop_rate, self.screen)
        return found


def _reading(tokenizer: Any) -> tuple[str, str | None]:
    """What makes two tokenizers write the same conversation in the same tokens."""
    return tokenizer_hash(tokenizer), template_hash(tokenizer)


def _answers(task: Task) -> bool:
    """Whether the task has the model write what its rows answer."""
    return WRITES in type(task.config).model_fields


def check(tasks: Sequence[Task], items: Sequence[Sequence[Any]]) -> None:
    """Finds what would make a task fail, before any model is loaded; all of it at once.

    Raises:
        TunekitError: of the kind of the first fault, with all of them.
    """
    errors: list[TunekitError] = []
    for task, found in zip(tasks, items, strict=True):
        if task.module.READS != "none" and not found:
            errors.append(DataError("the evaluation set is empty", where=task.label, fix="check its data"))
            continue
        try:
            if hasattr(task.module, "check"):
                task.module.check(found, task.config)
        except TunekitError as error:
            errors.append(error)
    _raise_together(errors)


def check_named(tasks: Sequence[Task], base: Path) -> None:
    """Finds metrics, their options and files that there are not, before anything is read; all of it at once.

    Args:
        tasks: of the recipe.
        base: folder where relative paths start.

    Raises:
        TunekitError: of the kind of the first fault, with all of them.
    """
    errors: list[TunekitError] = []
    for task in tasks:
        wishes = wished(task.config.metrics) if _takes_any_metric(task) else []
        looks = [partial(_check_metric, task, *wish) for wish in wishes]
        looks += [partial(_check_there, source, base) for source in task.sources or ()]
        for look in looks:
            try:
                look()
            except TunekitError as error:
                errors.append(error)
    _raise_together(errors)


def _takes_any_metric(task: Task) -> bool:
    field = type(task.config).model_fields.get("metrics")
    return field is not None and field.annotation == tuple[Wish, ...]


def _check_metric(task: Task, name: str, options: Mapping[str, Any]) -> None:
    """Refuses one that cannot be computed; one that needs an answer's probability where answers are written, too."""
    scoring.check(name, options, ())
    if _answers(task) and getattr(METRICS.load(name), "NEEDS_PROBABILITY", False):
        scoring.score(name, options, (), ())


def _check_there(source: SourceBlock, base: Path) -> None:
    """Refuses files that there are not; what they hold is not looked at, nor is the Hub."""
    if not source.path.startswith(builtin.PREFIX) and not sources.is_hub(source, base):
        sources.input_files(source, base)


def _raise_together(errors: Sequence[TunekitError]) -> None:
    if errors:
        kind = type(min(errors, key=lambda error: error.exit_code))
        problems = dict.fromkeys(problem for error in errors for problem in error.problems)
        raise_all(kind, list(problems))


def run(
    engine: Engine, tasks: Sequence[Task], items: Sequence[Sequence[Any]], seeds: Sequence[int], screen: Screen
) -> list[TaskResult]:
    """The results of one model, in the order of the tasks."""
    found: list[TaskResult] = []
    for task, own in zip(tasks, items, strict=True):
        drawn = "seed" in type(task.config).model_fields and getattr(task.config, "temperature", 0) > 0
        drawn = drawn and "seed" not in task.config.model_fields_set  # a task's own seed comes first
        configs = [task.config.model_copy(update={"seed": seed}) for seed in seeds] if drawn else [task.config]
        by_seed = [task.module.run(engine, own, config, screen=screen) for config in configs]
        together = [_mean(results) for results in zip(*by_seed, strict=True)]
        named = _labelled(task)
        found += [named(result) for result in together]
    return found


def _labelled(task: Task) -> Callable[[TaskResult], TaskResult]:
    """A task that measures one thing goes by its label; one that holds several keeps their names after it."""
    kind = task.module.__name__.rpartition(".")[2]

    def named(result: TaskResult) -> TaskResult:
        if result.name == kind:
            return replace(result, name=task.label)
        return result if task.label == kind else replace(result, name=f"{task.label}: {result.name}")

    return named


def _mean(results: Sequence[TaskResult]) -> TaskResult:
    """One result of several seeds: each row's mean, the first seed's texts."""
    first = results[0]
    if len(results) == 1:
        return first
    from tunekit.evaluate.statistics import over_seeds

    seeds = over_seeds([result.values for result in results])
    note = f"mean of {len(results)} seeds, standard deviation {seeds.spread:.3g}"
    totals = tuple(tuple(map(sum, zip(*rows, strict=True))) for rows in zip(*(r.totals for r in results), strict=True))
    return replace(
        first,
        values=seeds.rows,
        weights=over_seeds([result.weights for result in results]).rows,
        totals=totals,
        note=f"{first.note}; {note}" if first.note else note,
        seconds=sum(result.seconds for result in results),
    )


def against_baseline(
    tasks: Sequence[Task],
    items: Sequence[Sequence[Any]],
    before: list[TaskResult] | None,
    after: list[TaskResult],
    screen: Screen,
) -> tuple[list[TaskResult] | None, list[TaskResult]]:
    """Settles the tasks that need both models' answers: a judge that compares the two."""
    for task, own in zip(tasks, items, strict=True):
        if not _needs_both(task):
            continue
        assert before is not None, task.label
        base, tuned = (next(result for result in results if result.name == task.label) for results in (before, after))
        found = [
            _labelled(task)(one)
            for one in task.module.against_baseline(own, task.config, base.texts, tuned.texts, screen=screen)
        ]
        after = [result for result in after if result.name != task.label] + found
        # neither better nor worse than itself: what the baseline would have won against its own answers
        even = [replace(one, values=tuple(EVEN * weight for weight in one.weights), texts=base.texts) for one in found]
        before = [result for result in before if result.name != task.label] + even
    return before, after


def _needs_both(task: Task) -> bool:
    return hasattr(task.module, "against_baseline") and task.config.against == task.module.BASELINE


def check_baseline(tasks: Sequence[Task], baseline: object) -> None:
    """Refuses a comparison with the baseline's answers where there is no baseline.

    Raises:
        UserError: the task is named.
    """
    for task in tasks:
        if _needs_both(task) and baseline is None:
            fix = "name a baseline, or a column of other answers"
            raise UserError(f"task '{task.label}' compares with a baseline, and there is none", where="tasks", fix=fix)
