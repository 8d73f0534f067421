"""What is shown in the terminal when a run ends: did it help, samples, where everything lies, what to type next."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tunekit.runs.baseline import base_line, with_base
from tunekit.runs.layout import RunFolder
from tunekit.runs.record import EvaluationPart, Record, SamplePart, TrainingPart
from tunekit.runs.verdict import headline, metric_name, show_difference, show_estimate, show_p
from tunekit.runs.wording import amount, compact, duration, number, percent

_TONES = {"good": "bold green", "bad": "bold red", "neutral": "bold"}
_VERDICTS = {"better": "green", "worse": "red"}
_SAMPLES = 3
_SAMPLE_LENGTH = 90  # characters of a text in the table of samples


def console_summary(record: Record, folder: RunFolder, next_commands: Sequence[str] = ()) -> RenderableType:
    """The end of a run for a terminal.

    Args:
        record: the run's record.
        folder: the run folder, shown as it was given.
        next_commands: what the user can type next.
    """
    words = headline(record)
    parts: list[RenderableType] = [Text(words.title, style=_TONES[words.tone])]
    if record.evaluation and record.evaluation.tasks:
        parts += ["", evaluation_table(record.evaluation)]
        if base := base_line(with_base(record, folder)):
            parts.append(Text(base, style="dim"))
    else:
        parts += [Text(detail, style="dim") for detail in words.details]
    if record.evaluation and record.evaluation.samples:
        parts += ["", _samples_table(record.evaluation.samples[:_SAMPLES])]
    facts = _facts(record, folder)
    if next_commands:
        facts.append(("next", next_commands[0]))
        facts += [("", command) for command in next_commands[1:]]
    return Group(*parts, "", pairs(facts))


def plain_summary(record: Record, folder: RunFolder, next_commands: Sequence[str] = (), *, width: int = 80) -> str:
    """The same as plain text, ``width`` columns wide."""
    text = io.StringIO()
    console = Console(file=text, width=width, color_system=None, force_terminal=False, highlight=False)
    console.print(console_summary(record, folder, next_commands))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def evaluation_table(evaluation: EvaluationPart) -> Table:
    """Base beside tuned for every metric, intervals below the values."""
    table = slim_table()
    table.add_column("metric")
    for name in ("base", "tuned", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict")
    for task in evaluation.tasks:
        value, interval = show_difference(task)
        p = show_p(task.difference.p_value if task.difference else None)
        verdict = task.verdict or "not compared"
        table.add_row(
            two_lines(metric_name(task), amount(task.n, "examples")),
            two_lines(*show_estimate(task, task.base)),
            two_lines(*show_estimate(task, task.tuned)),
            two_lines(value, interval),
            two_lines(verdict, p, _VERDICTS.get(verdict, "dim")),
        )
    return table


def slim_table(*, expand: bool = False) -> Table:
    """An empty table with a rule below its head and no frame."""
    return Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        padding=(0, 1),
        header_style="dim",
        expand=expand,
    )


def two_lines(value: str, below: str, style: str = "") -> Text:
    """A cell: a value, and something smaller below it when there is anything."""
    return Text.assemble((value, style), (f"\n{below}" if below else "", "dim"))


def pairs(rows: Sequence[tuple[str, str]]) -> Table:
    """Two columns: what, and its value in full."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    return table


def use_words(training: TrainingPart) -> list[str]:
    """How the device was used, a line each: shares of the tokens, and the model FLOPs utilization."""
    words = []
    if training.trained_share is not None and training.padding_share is not None:
        shares = f"{percent(training.trained_share)} trained tokens, {percent(training.padding_share)} padding"
        words.append(shares)
    if training.mfu is not None:
        measured = f"{number(training.matmul_tflops)} TFLOP/s"
        words.append(f"model FLOPs utilization (MFU) {percent(training.mfu)} of {measured}")
    return words


def _samples_table(samples: Sequence[SamplePart]) -> Table:
    """Prompt, reference, base and tuned in columns of equal width."""
    with_base = any(sample.base is not None for sample in samples)
    table = slim_table(expand=True)
    for name in ("prompt", "reference", *(["base"] if with_base else []), "tuned"):
        table.add_column(name, ratio=1, overflow="fold")
    for sample in samples:
        base = [_answer(sample.base or "", sample.base_correct)] if with_base else []
        tuned = _answer(sample.tuned, sample.tuned_correct)
        table.add_row(Text(_short(sample.prompt)), Text(_short(sample.reference)), *base, tuned)
    return table


def _answer(text: str, correct: bool | None) -> Text:
    mark = ("", "") if correct is None else ("✓ ", "green") if correct else ("✗ ", "red")
    return Text.assemble(mark, _short(text) or ("(empty)", "dim"))


def _short(text: str) -> str:
    """The text on one line, cut at its length limit."""
    line = " ".join(text.split())
    return line if len(line) <= _SAMPLE_LENGTH else line[: _SAMPLE_LENGTH - 1].rstrip() + "…"


def _facts(record: Record, folder: RunFolder) -> list[tuple[str, str]]:
    """What it took, and where everything lies."""
    facts = []
    training = record.training
    if training:
        tokens = f"{compact(training.tokens)} tokens at {compact(training.tokens_per_second)} a second"
        facts.append(("trained", f"{amount(training.steps, 'steps')}, {tokens}"))
        facts += [("", words) for words in use_words(training)]
    if record.seconds:
        facts.append(("time", duration(sum(record.seconds.values()))))
    if record.artefact:
        facts.append(("model", str(folder.path / record.artefact)))
    if folder.report.exists():
        facts.append(("report", str(folder.report)))
    return [*facts, ("record", str(folder.record))]
