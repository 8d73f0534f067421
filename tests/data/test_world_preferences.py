"""The demo world's preferences: chosen answers are true, and each rejected one has its fault, read off the texts."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from tunekit.data.world import is_held_out, rows
from tunekit.data.world.dice import Dice
from tunekit.data.world.preferences import FAULTS, RAMBLING, RUDE, faulty_row

LITTLE = {
    "the", "a", "is", "in", "has", "s", "there", "one", "who", "was", "place", "where", "belongs", "to", "The", "In",
    *"的是有一在里了人个本支顶件把盏辆只面张",
}  # fmt: skip
PAIRS = 120


def content(text: str) -> set[str]:
    """What a sentence is about: its English words, or its Chinese characters, without those that any one may have."""
    shapes = r"[A-Za-z]+" if text.isascii() else r"[\u4e00-\u9fff]"
    found = re.findall(shapes, text.replace("地方", ""))
    return set(found) - LITTLE


def told_by(answer: str, row: dict[str, Any]) -> list[str]:
    """The sentences of the row's text that say what the answer says."""
    text = row["prompt"].rpartition("\n")[0]
    return [one for one in re.findall(r"[^.。]+", text) if content(answer) <= content(one)]


def drawn(fault: str, held_out: bool) -> list[dict[str, Any]]:
    dice = Dice(f"test {fault} {held_out}")
    found = []
    for _ in range(PAIRS):
        keys, row = faulty_row(dice, held_out, fault)
        assert all(is_held_out(*key) == held_out for key in keys), row
        found.append(row)
    return found


def fault_of(row: dict[str, Any]) -> str:
    """What is wrong with the rejected answer of a row, found out from the texts alone."""
    chosen, rejected = row["chosen"], row["rejected"]
    if any(phrase in rejected for told in RUDE.values() for phrase in told):
        return "rude"
    if any(rejected.startswith(phrase) for told in RAMBLING.values() for phrase in told):
        return "rambling"
    if rejected[:-1] == chosen[:-1]:
        return "flat"
    if rejected[-1] not in "!！":
        return "terse"
    if chosen.isascii() != rejected.isascii():
        return "language"
    return "other" if told_by(rejected, row) else "wrong"


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_rejected_answer_has_its_fault_and_no_other(fault, held_out):
    for row in drawn(fault, held_out):
        chosen, rejected = row["chosen"], row["rejected"]
        assert fault_of(row) == fault, row
        assert chosen != rejected and chosen.isascii() == row["prompt"].isascii()
        assert chosen[-1] == ("!" if chosen.isascii() else "！")
        assert len(told_by(chosen, row)) == 1, row
        if fault == "terse":
            bare = re.sub(r"^(It is|In|The) |\.$", "", rejected)
            assert bare in chosen and len(rejected) < len(chosen), row
        if fault == "other":
            assert told_by(rejected, row) != told_by(chosen, row), row
        if fault == "rambling":
            assert rejected.endswith(chosen), row


def test_a_fault_is_told_from_another():
    """The reading above is not satisfied by anything: an answer of another fault is not taken for this one's."""
    wrong, other = drawn("wrong", False)[0], drawn("other", False)[0]
    assert not told_by(wrong["rejected"], wrong) and told_by(other["rejected"], other)
    assert fault_of(wrong | {"rejected": wrong["chosen"][:-1] + "."}) == "flat"


@pytest.mark.parametrize(("split", "size"), [("train", 1500), ("held_out", 150)])
def test_every_fault_has_its_share(split, size):
    found = Counter(fault_of(row) for row in rows("preferences", split))
    assert sum(found.values()) == size and found.keys() == FAULTS.keys()
    for fault, weight in FAULTS.items():  # within four standard deviations
        share = weight / sum(FAULTS.values())
        assert abs(found[fault] - share * size) < 4 * (size * share * (1 - share)) ** 0.5, found
