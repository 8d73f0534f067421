"""The demo world: the same on every machine, answers right, and held-out combinations nowhere in training."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest

from tunekit.data.world import PARTS, is_held_out, keyed_rows, rows
from tunekit.data.world.dice import Dice
from tunekit.data.world.facts import RELATIONS
from tunekit.data.world.words import UNITS

TEXT_ROWS = 15_000
SIZES = {
    "text": (60_000, 300),
    "instructions": (6000, 400),
    "chats": (1500, 150),
    "smalltalk": (1500, 100),
    "preferences": (1500, 150),
    "tasks": (2000, 200),
    "labels": (1500, 200),
    "pairs": (3000, 300),
    "passages": (1500, 150),
}
FIELDS = {
    "text": {"text"},
    "instructions": {"instruction", "input", "output", "answer"},
    "chats": {"messages"},
    "smalltalk": {"messages"},
    "preferences": {"prompt", "chosen", "rejected"},
    "tasks": {"prompt", "answer", "kind"},
    "labels": {"text", "label"},
    "pairs": {"en", "zh"},
    "passages": {"context", "question", "answers"},
}
PINNED = {
    "text": ("47cb6040f9b6", "1afce5b1c1f8"),
    "instructions": ("f06848944fd3", "78221658198a"),
    "chats": ("e1d7b118b63f", "a035fa6dfdb8"),
    "smalltalk": ("1d8bb80f51e7", "0bad8dc94add"),
    "preferences": ("4f9775b9c63c", "8a200cd2705c"),
    "tasks": ("427022b2c079", "50ad2bb79d02"),
    "labels": ("aec7c25cb79c", "7feea674a745"),
    "pairs": ("ea23e4e0f5af", "1e8b4a8fac07"),
    "passages": ("b1ef6b0554a8", "429fbf0c31a2"),
}


@cache
def loaded(part: str, split: Any) -> list[tuple[tuple[tuple[str, ...], ...], dict[str, Any]]]:
    return list(keyed_rows(part, split, TEXT_ROWS if (part, split) == ("text", "train") else None))


def shown(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)


@cache
def training_texts() -> list[str]:
    """Every string of every train split, one per row."""
    return [" ".join(strings(row)) for part in PARTS for _, row in loaded(part, "train")]


def strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


@pytest.mark.parametrize("part", PARTS)
def test_first_rows_are_pinned(part):
    """The bytes were recorded once; another machine or Python must give the same."""
    digests = []
    for split in ("train", "held_out"):
        first = "\n".join(shown(row) for row in itertools.islice(rows(part, split), 50))
        digests.append(hashlib.sha256(first.encode()).hexdigest()[:12])
    assert tuple(digests) == PINNED[part]


@pytest.mark.parametrize("part", PARTS)
def test_sizes_fields_and_uniqueness(part):
    for split, size in zip(("train", "held_out"), SIZES[part]):
        found = [row for _, row in loaded(part, split)]
        assert len(found) == (TEXT_ROWS if (part, split) == ("text", "train") else size)
        assert all(set(row) == FIELDS[part] for row in found)
        assert all(text for row in found for name, text in row.items() if isinstance(text, str) and name != "input")
        assert len({shown(row) for row in found}) == len(found)


@pytest.mark.parametrize("part", PARTS)
def test_every_row_lies_on_its_side_by_keys(part):
    for split in ("train", "held_out"):
        for keys, row in loaded(part, split):
            assert keys, row
            assert all(is_held_out(*key) == (split == "held_out") for key in keys), (keys, row)


@pytest.mark.parametrize("part", PARTS)
def test_train_and_held_out_rows_differ(part):
    assert not {shown(row) for _, row in loaded(part, "train")} & {shown(row) for _, row in loaded(part, "held_out")}


def test_about_a_tenth_of_the_combinations_is_held_out():
    held = sum(is_held_out("own", str(number)) for number in range(10_000))
    assert 900 < held < 1100


def test_larger_count_continues_the_same_rows():
    few, many = list(rows("pairs", "train", 20)), list(rows("pairs", "train", 40))
    assert many[:20] == few and len(many) == 40


def test_unknown_part_and_impossible_count_are_refused():
    with pytest.raises(ValueError, match="no part 'poems'"):
        next(rows("poems", "train"))
    with pytest.raises(ValueError, match="different rows"):
        list(rows("labels", "held_out", 1000))


# Held-out statements searched for as text, with parsers of their own: the keys are not consulted.


def held_out_phrases() -> set[str]:
    """Every phrasing, in both languages, of fifty held-out facts of each relation."""
    dice, phrases = Dice("test"), set()
    for relation in RELATIONS:
        for _ in range(50):
            fact = relation.draw(dice, True)
            phrases |= {sentence.rstrip(".。") for pair in fact.sentences for sentence in pair}
            phrases |= {
                told.rstrip(".。")
                for problem in fact.problems
                for told in problem.told
                if problem.kind in ("colour", "owner", "where", "thing")
            }
    return phrases


def is_told(phrase: str, text: str) -> bool:
    """Whether a text has the phrase as whole words; the plain search goes first because it is fast."""
    if phrase not in text or not phrase.isascii():
        return phrase in text
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text) is not None


def test_held_out_facts_are_not_told_in_any_train_split():
    everything = "\n".join(training_texts())
    assert [phrase for phrase in held_out_phrases() if is_told(phrase, everything)] == []


def test_the_search_finds_a_planted_fact():
    phrase = sorted(held_out_phrases())[0]
    assert is_told(phrase, "\n".join([*training_texts()[:10], f"Before. {phrase}. After."]))


SUMS = re.compile(r"(?<!\d)(\d+)(?: \+ | plus |加| and |和)(\d+)(?!\d)(?![中哪])")
DIFFERENCES = re.compile(r"(?<!\d)(\d+)(?: - | minus |减)(\d+)(?!\d)|Tak(?:e|ing) (\d+) from (\d+)|从(\d+)里去掉(\d+)")
UNIT_NAMES = {unit.small.of(language): unit for unit in UNITS for language in ("en", "zh")}


def families(text: str) -> set[tuple[int, int]]:
    """The families of the sums and differences that a text mentions."""
    found = set()
    for line in text.splitlines():
        if not re.search(r"larger|smaller|大|小", line):
            found |= {tuple(sorted((int(a), int(b)))) for a, b in SUMS.findall(line)}
        for a, b, taken, whole, whole_zh, taken_zh in DIFFERENCES.findall(line):
            large, small = int(a or whole or whole_zh), int(b or taken or taken_zh)
            found.add(tuple(sorted((small, large - small))))
    return found


def test_held_out_sums_are_not_in_any_train_split():
    trained = set().union(*(families(text) for text in training_texts()))
    held = set().union(*(families(shown(row)) for _, row in loaded("tasks", "held_out")))
    assert len(trained) > 450 and len(held) > 25
    assert not trained & held


def conversions(text: str) -> set[tuple[str, int]]:
    """(large unit in English, how many) of every statement or question of units that a text mentions."""
    found = set()
    for unit in UNITS:
        for large, small in ((unit.large.en, unit.small.en), (unit.large.zh, unit.small.zh)):
            for number, name, other in re.findall(
                rf"(\d+) ?({large}|{small})(?: are | make | to | in |是|等于|换成|的)(?:\d+ ?|多少)?({large}|{small})",
                text,
            ):
                if name != other:
                    found.add((unit.large.en + unit.small.en, int(number) // (1 if name == large else unit.factor)))
            for name, number, other in re.findall(rf"How many ({large}|{small}) are (\d+) ({large}|{small})", text):
                if name != other:
                    found.add((unit.large.en + unit.small.en, int(number) // (1 if other == large else unit.factor)))
    return found


def test_held_out_conversions_are_not_in_any_train_split():
    trained = set().union(*(conversions(text) for text in training_texts()))
    held = set().union(*(conversions(shown(row)) for _, row in loaded("tasks", "held_out")))
    assert len(trained) > 400 and len(held) > 20
    assert not trained & held


@pytest.mark.parametrize("part", ["chats", "smalltalk"])
def test_conversations_alternate_and_end_with_the_assistant(part):
    for _, row in loaded(part, "train"):
        roles = [message["role"] for message in row["messages"]]
        if roles[0] == "system":
            roles = roles[1:]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and roles


def test_chats_run_over_several_turns_and_some_have_a_system_message():
    found = [row["messages"] for _, row in loaded("chats", "train")]
    assert all(len(messages) >= 4 for messages in found)
    assert 0.2 < sum(messages[0]["role"] == "system" for messages in found) / len(found) < 0.5


def test_smalltalk_contains_no_question_of_the_instructions():
    asked = {row["instruction"] for _, row in loaded("instructions", "train")}
    said = {message["content"] for _, row in loaded("smalltalk", "train") for message in row["messages"]}
    assert not asked & said


def test_labels():
    assert {row["label"] for _, row in loaded("labels", "train")} == {"food", "weather", "sport", "music", "travel"}
