"""The demo world's answers, recomputed from the questions' own words by other means than the generator's."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from tunekit.data.world import forms, numbers, rows
from tunekit.data.world.dice import Dice
from tunekit.data.world.words import LANGUAGES, MONTHS, THINGS, WEEKDAYS


@cache
def loaded(part: str, split: Any) -> list[dict[str, Any]]:
    return list(rows(part, split))


def date_of(text: str) -> datetime.date:
    chinese = re.search(r"(\d+)月(\d+)日", text)
    if chinese:
        return datetime.date(2023, int(chinese[1]), int(chinese[2]))
    english = re.search(r"(\d+) ([A-Z][a-z]+)", text)
    assert english, text
    return datetime.date(2023, [month.en for month in MONTHS].index(english[2]) + 1, int(english[1]))


def check_date(prompt: str, answer: str) -> None:
    days = re.search(r"(\d+) days? (?:after|before)|(?:之后|之前|的)(\d+)天", prompt)
    assert days, prompt
    distance = int(days[1] or days[2])
    forwards = "after" in prompt or "之后" in prompt
    assert date_of(answer) == date_of(prompt) + datetime.timedelta(distance if forwards else -distance), prompt


def check_weekday(prompt: str, answer: str) -> None:
    names = [day.en for day in WEEKDAYS] if prompt.isascii() else [day.zh for day in WEEKDAYS]
    start = next(name for name in names if name in prompt)
    days = int(re.search(r"\d+", prompt)[0])
    monday = datetime.date(2024, 1, 1)
    assert answer == names[(monday + datetime.timedelta(names.index(start) + days)).weekday()], prompt


def check_units(prompt: str, answer: str) -> None:
    count = int(re.search(r"\d+", prompt)[0])
    metric = {
        "millimetres": 1,
        "centimetres": 10,
        "metres": 1000,
        "kilometres": 10**6,
        "grams": 1,
        "kilograms": 1000,
        "tonnes": 10**6,
        "millilitres": 1,
        "litres": 1000,
        "cents": 1,
        "euros": 100,
    }
    zh = {
        "毫米": 1,
        "厘米": 10,
        "米": 1000,
        "公里": 10**6,
        "克": 1,
        "公斤": 1000,
        "吨": 10**6,
        "毫升": 1,
        "升": 1000,
        "欧分": 1,
        "欧元": 100,
    }
    names = re.findall("|".join(sorted(metric if prompt.isascii() else zh, key=len, reverse=True)), prompt)
    target, source = names if prompt.startswith("How many") else names[::-1]
    sizes = metric | zh
    assert int(answer) * sizes[target] == count * sizes[source], prompt


def check_arithmetic(prompt: str, answer: str) -> None:
    a, b = map(int, re.findall(r"\d+", prompt))
    if re.search(r"\+|plus|Add|加", prompt):
        assert int(answer) == a + b, prompt
    else:
        assert int(answer) == abs(a - b), prompt


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_tasks_are_answered_right(split):
    for row in loaded("tasks", split):
        prompt, answer = row["prompt"], row["answer"]
        if row["kind"] == "dates":
            weekday = re.search("星期|day", answer)
            (check_weekday if weekday else check_date)(prompt, answer)
        else:
            {"arithmetic": check_arithmetic, "units": check_units}[row["kind"]](prompt, answer)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_instructions_are_answered_right(split):
    plurals = {word.en: word.plural for word in THINGS}
    seen = Counter()
    for row in loaded("instructions", split):
        given, _, asked = row["instruction"].rpartition("\n")
        output, answer = row["output"], row["answer"]
        assert answer in output
        if re.search("plural|复数", asked):
            *head, noun = given.split()[1:]
            assert answer == " ".join([*head, plurals[noun]])
            seen["plural"] += 1
        elif re.search("Chinese|英语", asked):
            assert given.isascii() != output.isascii()
            seen["translate"] += 1
        elif not given:
            check_units(asked, output)
            seen["units"] += 1
        else:
            assert answer in given or answer.capitalize() in given
            seen["look up"] += 1
    assert seen.keys() == {"plural", "translate", "units", "look up"}


def drawn(draw: Any, held_out: bool) -> Iterator[tuple[str, str, str]]:
    """Sixty problems of a kind: question, text that is given with it, answer."""
    dice = Dice(f"test {draw.__name__} {held_out}")
    for index in range(60):
        problem = draw(dice, held_out, LANGUAGES[index % 2])
        yield dice.pick(problem.asked), problem.given, problem.answer


@pytest.mark.parametrize("held_out", [False, True])
def test_hard_problems_are_answered_right(held_out):
    for _, given, answer in drawn(forms.backwards, held_out):
        joint = ", " if ", " in given else "、"
        assert answer == joint.join(given.split(joint)[::-1])
    for _, given, answer in drawn(forms.count, held_out):
        assert int(answer) == len(re.split(", |、", given))
    for asked, _, answer in drawn(numbers.draw_compare, held_out):
        compared = list(map(int, re.findall(r"\d+", asked)))
        assert int(answer) == (max if re.search("larger|大", asked) else min)(compared)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_passages_mark_the_answer(split):
    for row in loaded("passages", split):
        for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
            assert row["context"][start : start + len(text)] == text
