"""What an evaluation says, in words: the verdict sentence, numbers with intervals, contamination; for every medium."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tunekit.exam.facts import OWN, Contamination, ExamRecord, ExamTask
from tunekit.runs.record import Difference, Estimate, TaskPart
from tunekit.runs.verdict import Headline, metric_name, show_difference, show_estimate, show_p, show_value
from tunekit.runs.wording import amount, count, number, percent

NOT_A_NUMBER = "not a number"
_MANY = 5  # comparisons from which chance alone is worth a word


def verdict_of(record: ExamRecord) -> Headline:
    """The first thing a reader wants to know: is the model better than the baseline, and in what?"""
    compared = [task for task in record.tasks if task.compared]
    if not record.tasks:
        return Headline("neutral", "No task was evaluated.")
    if not compared:
        first = record.tasks[0]
        title = f"{task_name(first)}: {metric_name(first)} {estimate_words(first, first.tuned)[0]}."
        why = "There is no baseline, so nothing says whether it is better or worse than another model."
        if record.models.baseline is not None:
            why = "No verdict can be given: the numbers to compare are missing or not finite."
        return Headline("neutral", title, (why,))
    better = [task for task in compared if task.verdict == "better"]
    worse = [task for task in compared if task.verdict == "worse"]
    details = _details(record, compared)
    if better and worse:
        return Headline("neutral", f"A trade: better in {_names(better)}, worse in {_names(worse)}.", details)
    if better or worse:
        moved = (better or worse)[0]
        word = "Better" if better else "Worse"
        others = len(better or worse) - 1
        more = f" {word} in {amount(others, 'further tasks')} too." if others else ""
        rest = len(compared) - others - 1
        same = f" No detectable difference in {amount(rest, 'others')}." if rest else ""
        title = f"{word}: {task_name(moved)}, {metric_name(moved)} {_from_to(moved)}.{more}{same}"
        return Headline("good" if better else "bad", title, details)
    title = f"No detectable difference: {task_name(compared[0])}, {metric_name(compared[0])} {_from_to(compared[0])}."
    if len(compared) > 1:
        title = f"No detectable difference in any of {amount(len(compared), 'comparisons')}."
    return Headline("neutral", title, details)


def task_name(task: TaskPart) -> str:
    """The task as read in a sentence: ``support questions``."""
    return task.name.replace("_", " ")


def verdict_word(task: TaskPart) -> str:
    """The verdict, or why there is none."""
    return task.verdict or ("not compared" if task.base is None else "not known")


def estimate_words(task: TaskPart, estimate: Estimate | None) -> tuple[str, str]:
    """A value and its interval: (``58.4 %``, ``54.0–62.7``); (``not a number``, "") rather than nan."""
    if estimate is not None and math.isnan(estimate.value):
        return NOT_A_NUMBER, ""
    value, interval = show_estimate(task, estimate)
    return value, interval if estimate is not None and _known(estimate) else ""


def change_words(task: TaskPart, found: Difference | None) -> tuple[str, str]:
    """A paired difference and its interval in the task's unit: (``+27.2``, ``+22.1 to +32.0``), points of per cent."""
    if found is not None and math.isnan(found.value):
        return NOT_A_NUMBER, ""
    value, interval = show_difference(task.model_copy(update={"difference": found}))
    return value, interval if found is not None and _known(found) else ""


def p_words(task: TaskPart) -> str:
    """The p-value of the difference: ``p = 0.012``, ``p = 0.012, adjusted p = 0.036``, or nothing."""
    words = (show_p(task.difference.p_value if task.difference else None), adjusted_words(task))
    return ", ".join(filter(None, words))


def adjusted_words(task: TaskPart) -> str:
    """The p-value that accounts for those of the other tasks: ``adjusted p = 0.036``, or nothing."""
    found = show_p(task.adjusted) if isinstance(task, ExamTask) else ""
    return f"adjusted {found}" if found else ""


def score_words(value: float | None) -> str:
    """A row's score: ``1``, ``0.4167``; a dash for one that was not measured."""
    if value is None:
        return "–"
    if math.isnan(value):
        return NOT_A_NUMBER
    return str(int(value)) if value.is_integer() and abs(value) < 1000 else number(value)


def interval_note(record: ExamRecord) -> str:
    """What the small figures of the table are, and how much chance alone would show."""
    levels = sorted({task.confidence for task in record.everything}) or [record.confidence]
    words = [f"Small figures are {' and '.join(f'{100 * level:g} %' for level in levels)} confidence intervals."]
    compared = [task for task in record.everything if task.compared]
    if compared:
        words.append("Changes are paired: both models answered the same rows.")
    if any(adjusted_words(task) for task in compared):
        words.append("Adjusted p-values account for one another (Holm); verdicts are of single comparisons.")
    if len(compared) >= _MANY:
        chance = sum(1 - task.confidence for task in compared)
        words.append(
            f"Of {len(compared)} comparisons, {chance:.2g} would show a difference by chance if there were none."
        )
    return " ".join(words)


def contamination_words(found: Contamination) -> str:
    """What was found in the training data, in a sentence."""
    length = f" of {found.words} words" if found.words is not None else ""
    if not found.exact and not found.ngram:
        return f"None of {amount(found.checked, 'rows')} was found in {found.against}."
    share = percent((found.exact + found.ngram) / found.checked) if found.checked else number(math.nan)
    how = [f"{count(found.exact)} whole"] if found.exact else []
    how += [f"{count(found.ngram)} by a run{length}"] if found.ngram else []
    of = f"{count(found.exact + found.ngram)} of {amount(found.checked, 'rows')} ({share})"
    return f"{of} were found in {found.against}: {', '.join(how)}."


def forgetting_words(tasks: Sequence[TaskPart]) -> str:
    """What tuning did to tasks that it was not for, in a sentence.

    A change of what the base itself writes is drift: any training shifts it, and more texts show it more surely. It
    may be wanted; skill is lost only where a text that was named is less likely now.
    """
    drift = [f"Drift: {task_name(task)}, {metric_name(task)} {_from_to(task)}." for task in tasks if task.name == OWN]
    tasks = [task for task in tasks if task.name != OWN]
    if drift and not tasks:
        return drift[0]
    return " ".join([*drift, _forgotten(tasks)])


def _forgotten(tasks: Sequence[TaskPart]) -> str:
    compared = [task for task in tasks if task.compared]
    worse = [task for task in compared if task.verdict == "worse"]
    if not compared:
        return "Forgetting was not compared with a baseline."
    if not worse:
        return f"No forgetting was detected in {amount(len(compared), 'comparisons')}."
    lost = "; ".join(f"{task_name(task)}, {metric_name(task)} {_from_to(task)}" for task in worse)
    return f"Forgotten: {lost}."


def _known(estimate: Estimate) -> bool:
    return not (math.isnan(estimate.low) or math.isnan(estimate.high))


def _names(tasks: Sequence[TaskPart]) -> str:
    """The first three tasks by name, and how many more."""
    names = list(dict.fromkeys(f"{task_name(task)} ({metric_name(task)})" for task in tasks))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _from_to(task: TaskPart) -> str:
    assert task.base is not None, task
    return f"from {show_value(task, task.base.value)} to {show_value(task, task.tuned.value)}"


def _details(record: ExamRecord, compared: Sequence[TaskPart]) -> tuple[str, ...]:
    """The sentences below the verdict: the change of the first task that moved, contamination, forgetting."""
    leader = next((task for task in compared if task.verdict in ("better", "worse")), compared[0])
    value, interval = change_words(leader, leader.difference)
    points = " points" if value.startswith(("+", "-")) and "%" in show_value(leader, leader.tuned.value) else ""
    sure = f" ({leader.confidence * 100:g} % CI {interval}{', ' + p_words(leader) if p_words(leader) else ''})"
    paired = f"paired over {amount(leader.n, 'rows')}"
    words = [f"{metric_name(leader).capitalize()}: {value}{points}{sure if interval else ''}, {paired}."]
    if record.forgetting is not None:
        words.append(forgetting_words(record.forgetting))
    if record.contamination is not None:
        words.append(contamination_words(record.contamination))
    return tuple(words)
