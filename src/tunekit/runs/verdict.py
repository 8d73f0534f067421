"""What an evaluation says, in words: the headline of a run, values with their intervals, the paired difference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tunekit.runs.record import Estimate, Record, TaskPart
from tunekit.runs.wording import amount, count, first_line, is_share, number, percent

Tone = Literal["good", "bad", "neutral"]
_LONGEST_TITLE = 200  # characters of an error that stand in the headline


@dataclass(frozen=True)
class Headline:
    """One sentence and its tone, and the sentences that back it."""

    tone: Tone
    title: str
    details: tuple[str, ...] = ()


def in_percent(task: TaskPart) -> bool:
    """Whether the task's values are shown in per cent; a reward has a scale of its own."""
    if task.metric.partition("/")[0] == "reward":
        return False
    known = [n for e in (task.base, task.tuned) if e for n in (e.value, e.low, e.high)]
    return is_share(task.higher_is_better, known)


def show_value(task: TaskPart, value: float) -> str:
    """One value of the task: ``58.4 %`` or ``8.214``."""
    return percent(value) if in_percent(task) else number(value)


def show_estimate(task: TaskPart, estimate: Estimate | None) -> tuple[str, str]:
    """A value and its interval: (``58.4 %``, ``54.0–62.7``); ("–", "") for none, and one row alone has no interval."""
    if estimate is None:
        return "–", ""
    if not has_interval(estimate):
        return show_value(task, estimate.value), ""
    low, high = (show_value(task, n).removesuffix(" %") for n in (estimate.low, estimate.high))
    return show_value(task, estimate.value), f"{low}–{high}"


def show_difference(task: TaskPart) -> tuple[str, str]:
    """The paired difference and its interval: (``+27.2``, ``+22.1 to +32.0``); per cent are points here."""
    found = task.difference
    if found is None:
        return "–", ""
    value, low, high = (_signed(task, n) for n in (found.value, found.low, found.high))
    return value, f"{low} to {high}" if has_interval(found) else ""


def has_interval(estimate: Estimate) -> bool:
    """Whether there is an interval: of one example there is none."""
    return not (math.isnan(estimate.low) or math.isnan(estimate.high))


def show_p(p: float | None) -> str:
    """A p-value: ``p = 0.012``, ``p < 0.001``, empty when it is not known."""
    return "" if p is None or p != p else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def metric_name(task: TaskPart) -> str:
    """The metric as read in a sentence: ``exact match``."""
    return task.metric.replace("_", " ")


def headline(record: Record) -> Headline:
    """What a reader wants to know first: did the run end well, and did it help?"""
    if record.status == "failed":
        what = record.error.problems[0].what if record.error else f"exit code {record.exit_code}"
        title = f"The run failed: {first_line(what, _LONGEST_TITLE)}"
        return Headline("bad", title, (*_error_details(record), *_progress_details(record)))
    if record.status == "stopped":
        return Headline("neutral", "The run was stopped before its end.", _progress_details(record))
    if record.status == "running":
        return Headline("neutral", "The run is not finished.", _progress_details(record))
    tasks = record.evaluation.tasks if record.evaluation else ()
    key = record.evaluation.key if record.evaluation else None
    if key is None:
        return Headline(
            "neutral", "Trained, not evaluated.", ("Nothing says whether it helped: the recipe has no evaluation.",)
        )
    if not key.compared:
        why = "There is no comparison with the base model, so nothing says whether it helped."
        return Headline("neutral", f"Trained: {metric_name(key)} {show_value(key, key.tuned.value)}.", (why,))
    compared = [task for task in tasks if task.compared]
    verdicts = {task.verdict for task in compared}
    details = tuple(_sentence(task) for task in compared)
    if {"better", "worse"} <= verdicts:
        better = ", ".join(metric_name(task) for task in compared if task.verdict == "better")
        worse = ", ".join(metric_name(task) for task in compared if task.verdict == "worse")
        return Headline("neutral", f"A trade: better in {better}, worse in {worse}.", details)
    leader = next((task for task in compared if task.verdict in ("better", "worse")), key)
    tone: Tone = "good" if leader.verdict == "better" else "bad" if leader.verdict == "worse" else "neutral"
    return Headline(tone, _title(leader), details)


def _title(task: TaskPart) -> str:
    assert task.base is not None and task.verdict is not None, task
    base, tuned = show_value(task, task.base.value), show_value(task, task.tuned.value)
    if task.verdict == "no detectable difference":
        return f"No detectable difference: {metric_name(task)} {base} before, {tuned} after."
    moved = "rose" if task.tuned.value > task.base.value else "fell"
    return (
        f"{'It helped' if task.verdict == 'better' else 'It hurt'}: {metric_name(task)} {moved} from {base} to {tuned}."
    )


def _sentence(task: TaskPart) -> str:
    value, interval = show_difference(task)
    if not interval:
        return f"{metric_name(task).capitalize()}: {task.verdict} ({amount(task.n, 'examples')})."
    p = show_p(task.difference.p_value if task.difference else None)
    unit = " points" if in_percent(task) else ""
    sure = f"{task.confidence * 100:g} % CI {interval}" + (f", {p}" if p else "")
    examples = f"paired over {amount(task.n, 'examples')}"
    return f"{metric_name(task).capitalize()}: {task.verdict}, {value}{unit} ({sure}), {examples}."


def _signed(task: TaskPart, value: float) -> str:
    if in_percent(task):
        return percent(value, signed=True)
    return number(value) if value < 0 or value != value else f"+{number(value)}"


def _error_details(record: Record) -> tuple[str, ...]:
    if record.error is None:
        return ()
    first, *others = record.error.problems
    whole = () if first.what == first_line(first.what, _LONGEST_TITLE) else (first.what,)
    places = [f"Where: {first.where}"] if first.where else []
    fixes = [f"What to do: {first.fix}"] if first.fix else []
    return (*whole, *places, *fixes, *(problem.what for problem in others[:5]))


def _progress_details(record: Record) -> tuple[str, ...]:
    """How far a run came that is not done, and how it goes on."""
    progress = record.progress
    if progress is None:
        return ()
    planned = f" of {count(progress.planned_steps)}" if progress.planned_steps is not None else ""
    far = f"It came to step {count(progress.step)}{planned}." if progress.step else "No training step was done."
    if progress.loss_step is not None:
        far += f" The last logged loss is {number(progress.loss)}, of step {count(progress.loss_step)}."
    kept = f"The newest whole checkpoint is {progress.checkpoint}" if progress.checkpoint else "There is no checkpoint"
    if progress.command is None:
        return far, f"{kept}."
    follows = "goes on from there" if progress.checkpoint else "begins the run anew"
    mended = ", with --set KEY=VALUE for what is wrong in its recipe" if record.status == "failed" else ""
    return far, f"{kept}: `{progress.command}` {follows}{'' if progress.checkpoint else mended}."
