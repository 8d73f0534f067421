"""Sections of the report that need no chart: data, samples, recipe, environment."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tunekit.runs.charts import stacked_bar
from tunekit.runs.environment import environment_words
from tunekit.runs.markup import Child, Html, tag
from tunekit.runs.record import FATES, DataPart, EvaluationPart, Record, SamplePart, SplitPart
from tunekit.runs.wording import count, duration

_GROUPS = {
    "fixed": "base wrong, tuned right",
    "broken": "base right, tuned wrong",
    "both-right": "both right",
    "both-wrong": "both wrong",
}
_YAML_LINE = re.compile(r"^(?P<head>\s*(?:- )*)(?P<key>[\w./\"'-]+)(?P<rest>:(?:\s.*)?)$")
_PHASE_LOOKS = 6


def data_section(data: DataPart | None) -> Html | None:
    """What became of every row, split by split, and why."""
    if data is None or not data.splits:
        return None
    parts = [_split(name, split) for name, split in data.splits.items()]
    return tag("div", parts, tag("p", "Fingerprint of the data: ", tag("code", data.fingerprint), cls="muted small"))


def _split(name: str, split: SplitPart) -> Html:
    fates = [(fate, fate, float(getattr(split, fate))) for fate in FATES]
    lost = split.rows - round(sum(size for _, _, size in fates))
    tokens = f"{count(split.rows)} rows · {count(split.tokens)} tokens, {count(split.trained_tokens)} of them bear loss"
    reasons = sorted(split.reasons.items(), key=lambda item: -item[1])
    table = tag(
        "table",
        tag("thead", tag("tr", tag("th", "Reason"), tag("th", "Rows", cls="num"))),
        tag("tbody", [tag("tr", tag("td", why), tag("td", count(n), cls="num")) for why, n in reasons]),
    )
    return tag(
        "div",
        tag("h3", f"{name}: {tokens}"),
        stacked_bar(fates),
        tag("p", f"{count(lost)} rows are not accounted for; this is a bug in tunekit.", cls="wrong") if lost else None,
        table if reasons else None,
        cls="split",
    )


def samples_section(evaluation: EvaluationPart | None) -> Html | None:
    """Prompts with the reference and both models' answers, and a filter over them."""
    if evaluation is None or not evaluation.samples:
        return None
    groups = [_group(sample) for sample in evaluation.samples]
    options = [tag("option", "all samples", value="")]
    options += [
        tag("option", f"{text} ({groups.count(key)})", value=key) for key, text in _GROUPS.items() if key in groups
    ]
    filters = tag(
        "div",
        tag(
            "input",
            type="search",
            id="filter-words",
            placeholder="Filter by words",
            aria_label="filter samples by words",
        ),
        tag("select", options, id="filter-group", aria_label="filter samples by outcome"),
        tag("span", f"{len(groups)} of {len(groups)} shown", id="filter-count", cls="muted"),
        cls="filters",
    )
    return tag("div", filters, [_sample(s, group) for s, group in zip(evaluation.samples, groups)])


def _group(sample: SamplePart) -> str:
    """The outcome of a sample: fixed, broken, both-right, both-wrong, or empty when it was not marked."""
    before, after = sample.base_correct, sample.tuned_correct
    if before is None or after is None:
        return ""
    return ("both-right" if before else "fixed") if after else ("broken" if before else "both-wrong")


def _sample(sample: SamplePart, group: str) -> Html:
    tone = {"fixed": " good", "broken": " bad"}.get(group, "")
    cells = [_cell("Prompt", sample.prompt)]
    if sample.reference:
        cells.append(_cell("Reference", sample.reference))
    if sample.base is not None:
        cells.append(_cell("Base", sample.base, sample.base_correct))
    cells.append(_cell("Tuned", sample.tuned, sample.tuned_correct))
    return tag(
        "article",
        tag(
            "header",
            tag("span", sample.where, cls="mono"),
            tag("span", _GROUPS[group], cls=f"pill{tone}") if group else None,
        ),
        tag("div", cells, cls="cells"),
        cls="sample",
        data_group=group,
    )


def _cell(title: str, text: str, correct: bool | None = None) -> Html:
    mark = None
    if correct is not None:
        mark = tag("span", "✓ right" if correct else "✗ wrong", cls="right" if correct else "wrong")
    shown = text if text.strip() else tag("span", "(empty)", cls="muted")
    return tag("div", tag("h3", title, mark), tag("div", shown, cls="text"))


def recipe_section(recipe: str, plan: str) -> Html | None:
    """The recipe as given, and the plan with every default behind a fold."""
    if not recipe and not plan:
        return None
    resolved = tag("pre", _highlighted(plan))
    if not recipe:
        return tag("div", resolved)
    fold = tag("details", tag("summary", "Resolved plan: every default and derived number"), resolved) if plan else None
    return tag("div", tag("pre", _highlighted(recipe)), fold)


def _highlighted(yaml: str) -> list[Child]:
    """YAML with its keys and comments marked."""
    lines: list[Child] = []
    for line in yaml.rstrip().split("\n"):
        body, hash_, comment = line.partition(" #") if not line.lstrip().startswith("#") else ("", "", line)
        found = _YAML_LINE.match(body.rstrip())
        spaces = body[len(body.rstrip()) :]
        if found:
            lines += [found["head"], tag("span", found["key"], cls="k"), found["rest"], spaces]
        else:
            lines.append(body)
        if comment:
            lines.append(tag("span", hash_ + comment, cls="c"))
        lines.append("\n")
    return lines


def environment_section(record: Record) -> Html:
    """Time by phase, versions, hardware, commit, seeds."""
    phases = [(f"phase-{i % _PHASE_LOOKS}", name, s) for i, (name, s) in enumerate(record.seconds.items())]
    columns = [tag("div", tag("h3", title), _pairs(rows)) for title, rows in environment_words(record) if rows]
    return tag("div", stacked_bar(phases, duration) if phases else None, tag("div", columns, cls="columns"))


def _pairs(rows: Sequence[tuple[str, str]]) -> Html:
    return tag("dl", [(tag("dt", name), tag("dd", value)) for name, value in rows], cls="pairs")
