"""The report's table of answers that a policy gave while it was trained, with filters."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tunekit.runs.markup import Child, Html, tag
from tunekit.runs.rollouts import SampledAnswer
from tunekit.runs.wording import count, number

MOST_ANSWERS = 200
"""Answers in the table."""
_MOST_TEXT = 1500  # characters of a text in the table
_KINDS = (("", "all answers"), ("ended", "ended by themselves"), ("cut", "cut off"))
_ORDERS = (
    ("step", "in the order of steps"), ("-step", "latest first"), ("-reward", "highest reward first"),
    ("reward", "lowest reward first"), ("-kl", "farthest from the reference first"), ("-tokens", "longest first"),
)  # fmt: skip


def rollouts_section(answers: Sequence[SampledAnswer], total: int) -> Html | None:
    """The answers as a table.

    Args:
        answers: at most `MOST_ANSWERS` of them, in the order of steps.
        total: how many the run wrote.
    """
    if not answers:
        return None
    with_kl = any(answer.kl is not None for answer in answers)
    heads: list[tuple[str, str | None]] = [("Step", "num"), ("Prompt", "words"), ("Answer", "words"), ("Reward", "num")]
    heads += [("KL", "num")] * with_kl + [("Tokens", "num"), ("Ended", None)]
    long = any(max(len(a.prompt), len(a.answer), len(a.reference)) > _MOST_TEXT for a in answers)
    notes = ["Answers that were learnt from, as the model gave them at that step. Reward: the sum, then its parts"]
    notes[0] += " before they are weighted." + (" KL: nats from the reference model." if with_kl else "")
    if total > len(answers):
        notes.append(f"{count(len(answers))} of {count(total)} are shown, spread evenly over the run.")
    if long:
        notes.append(f"Texts are cut after {count(_MOST_TEXT)} characters.")
    if total > len(answers) or long:
        notes.append("All of it is in rollouts.jsonl.")
    return tag(
        "div",
        tag("p", " ".join(notes), cls="muted"),
        _filters(len(answers), with_kl),
        tag(
            "table",
            tag("thead", tag("tr", [tag("th", name, cls=look) for name, look in heads])),
            tag("tbody", [_row(answer, with_kl) for answer in answers], id="answers-rows"),
            cls="cards rollouts",
        ),
    )


def _filters(shown: int, with_kl: bool) -> Html:
    orders = [(value, words) for value, words in _ORDERS if with_kl or value != "-kl"]
    search = tag(
        "input", type="search", id="answers-words", placeholder="Filter by words", aria_label="filter answers by words"
    )
    return tag(
        "div",
        search,
        _choice("answers-kind", "filter answers by their end", _KINDS),
        _choice("answers-order", "order of the answers", orders),
        tag("span", f"{shown} of {shown} shown", id="answers-count", cls="muted"),
        cls="filters",
    )


def _choice(name: str, about: str, options: Sequence[tuple[str, str]]) -> Html:
    written = [tag("option", words, value=value) for value, words in options]
    return tag("select", written, id=name, aria_label=about)


def _row(answer: SampledAnswer, with_kl: bool) -> Html:
    parts = [
        tag("small", name, " ", "does not apply" if value is None or math.isnan(value) else number(value))
        for name, value in answer.parts.items()
    ]
    reference = tag("details", tag("summary", "reference"), _text(answer.reference)) if answer.reference else None
    mark: Child = "–"
    if answer.ended is not None:
        mark = tag("span", "✓ yes" if answer.ended else "✗ cut off", cls="right" if answer.ended else "wrong")
    return tag(
        "tr",
        tag("td", count(answer.step), cls="num", data_label="Step"),
        tag("td", _text(answer.prompt), reference, cls="words", data_label="Prompt"),
        tag("td", _text(answer.answer), cls="words", data_label="Answer"),
        tag("td", tag("span", tag("b", number(answer.reward)), parts), cls="num", data_label="Reward"),
        tag("td", number(answer.kl), cls="num", data_label="KL") if with_kl else None,
        tag("td", count(answer.tokens), cls="num", data_label="Tokens"),
        tag("td", mark, data_label="Ended"),
        data_step=_sortable(answer.step),
        data_reward=_sortable(answer.reward),
        data_kl=_sortable(answer.kl),
        data_tokens=_sortable(answer.tokens),
        data_ended={True: "ended", False: "cut", None: ""}[answer.ended],
    )


def _text(text: str) -> Html:
    more = len(text) - _MOST_TEXT
    shown: Child = text if text.strip() else tag("span", "(empty)", cls="muted")
    cut = tag("span", f" … {count(more)} more characters", cls="muted") if more > 0 else None
    return tag("div", text[:_MOST_TEXT] if more > 0 else shown, cut, cls="text")


def _sortable(value: float | None) -> str:
    """A number as JavaScript reads it, empty for none."""
    if value is None or math.isnan(value):
        return ""
    return f"{value:.12g}" if math.isfinite(value) else "Infinity" if value > 0 else "-Infinity"
