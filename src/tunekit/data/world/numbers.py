"""Problems with numbers: sums and differences, comparisons, units, dates and weekdays."""

from __future__ import annotations

from dataclasses import dataclass

from tunekit.data.world.dice import Dice, Key, draw_on_side, is_held_out
from tunekit.data.world.facts import Problem
from tunekit.data.world.words import MONTHS, PEOPLE, UNITS, WEEKDAYS, Language, Unit, Word

LARGEST_SUM = 50
LAST_DAY = 28  # every month has it, so no year is needed


def sum_key(a: int, b: int) -> Key:
    """The family of a + b, b + a, (a + b) - a and (a + b) - b, which is held out as a whole."""
    return ("sum", str(min(a, b)), str(max(a, b)))


def is_on_side(a: int, b: int, held_out: bool) -> bool:
    """Whether the family of a + b lies on the wanted side of the split."""
    return is_held_out(*sum_key(a, b)) == held_out


def draw_addends(dice: Dice, held_out: bool, largest: int = LARGEST_SUM) -> tuple[int, int]:
    """Two whole numbers from 1 whose sum is at most ``largest``."""

    def make() -> tuple[int, int]:
        total = dice.between(2, largest)
        first = dice.between(1, total - 1)
        return first, total - first

    return draw_on_side(held_out, make, lambda pair: sum_key(*pair))


def add(a: int, b: int, language: Language) -> Problem:
    """The sum of two numbers."""
    keys, total = (sum_key(a, b),), a + b
    if language == "zh":
        asked = (f"{a} + {b}等于多少？", f"{a}加{b}是多少？", f"计算{a}加{b}。")
        told = (f"{a} + {b} = {total}。", f"{a}加{b}等于{total}。", f"把{a}和{b}加起来得到{total}。")
        return Problem("add", "zh", keys, asked, f"{a}加{b}的结果", str(total), told)
    asked = (f"What is {a} + {b}?", f"Calculate {a} plus {b}.", f"Add {a} and {b}.")
    told = (f"{a} + {b} = {total}.", f"{a} plus {b} is {total}.", f"Adding {a} and {b} gives {total}.")
    return Problem("add", "en", keys, asked, f"the sum {a} + {b}", str(total), told)


def subtract(a: int, b: int, language: Language) -> Problem:
    """The difference a - b, for a > b."""
    keys, rest = (sum_key(b, a - b),), a - b
    if language == "zh":
        asked = (f"{a} - {b}等于多少？", f"{a}减{b}是多少？", f"计算{a}减{b}。")
        told = (f"{a} - {b} = {rest}。", f"{a}减{b}等于{rest}。", f"从{a}里去掉{b}还有{rest}。")
        return Problem("subtract", "zh", keys, asked, f"{a}减{b}的结果", str(rest), told)
    asked = (f"What is {a} - {b}?", f"Calculate {a} minus {b}.", f"Take {b} from {a}.")
    told = (f"{a} - {b} = {rest}.", f"{a} minus {b} is {rest}.", f"Taking {b} from {a} leaves {rest}.")
    return Problem("subtract", "en", keys, asked, f"the difference {a} - {b}", str(rest), told)


def compare(a: int, b: int, larger: bool, language: Language) -> Problem:
    """Which of two different numbers is the larger, or the smaller."""
    keys = (("compare", str(min(a, b)), str(max(a, b))),)
    answer, other = (max(a, b), min(a, b)) if larger else (min(a, b), max(a, b))
    if language == "zh":
        word, size = ("大", "较大") if larger else ("小", "较小")
        asked = (f"{a}和{b}哪个{word}？", f"哪个数{word}，{a}还是{b}？")
        told = (f"{answer}比{other}{word}。", f"{a}和{b}中{size}的数是{answer}。")
        return Problem("compare", "zh", keys, asked, f"{a}和{b}中{size}的数", str(answer), told)
    word = "larger" if larger else "smaller"
    asked = (f"Which is {word}, {a} or {b}?", f"Which number is {word}: {a} or {b}?")
    told = (f"{answer} is {word} than {other}.", f"Of {a} and {b}, the {word} is {answer}.")
    return Problem("compare", "en", keys, asked, f"the {word} of {a} and {b}", str(answer), told)


def convert(unit: Unit, count: int, to_small: bool, language: Language) -> Problem:
    """``count`` large units in the small unit, or the other way round."""
    keys = (("unit", unit.large.en, unit.small.en, str(count)),)
    numbers = (count, count * unit.factor)
    (start, goal), (source, target) = (
        (numbers, (unit.large, unit.small)) if to_small else (numbers[::-1], (unit.small, unit.large))
    )
    if language == "zh":
        asked = (f"{start}{source.zh}是多少{target.zh}？", f"把{start}{source.zh}换成{target.zh}。")
        told = (f"{start}{source.zh}是{goal}{target.zh}。", f"{start}{source.zh}等于{goal}{target.zh}。")
        return Problem("units", "zh", keys, asked, f"{start}{source.zh}的{target.zh}数", str(goal), told)
    asked = (f"How many {target.en} are {start} {source.en}?", f"Convert {start} {source.en} to {target.en}.")
    told = (f"{start} {source.en} are {goal} {target.en}.", f"{start} {source.en} make {goal} {target.en}.")
    return Problem("units", "en", keys, asked, f"{start} {source.en} in {target.en}", str(goal), told)


@dataclass(frozen=True, slots=True)
class Step:
    """``days`` days lead from day ``first`` to day ``first + days`` of a month counted from 0."""

    month: int
    first: int
    days: int

    @property
    def key(self) -> Key:
        """The combination: forwards and backwards are held out together."""
        return ("date", str(self.month + 1), str(self.first), str(self.days))

    def date(self, day: int, language: Language) -> str:
        """A day of the month as a date."""
        month = MONTHS[self.month]
        return f"{day} {month.en}" if language == "en" else f"{month.zh}{day}日"


def shift_date(step: Step, forwards: bool, language: Language) -> Problem:
    """The date some days after, or before, a date of the same month."""
    days = (step.first, step.first + step.days)
    start, goal = (step.date(day, language) for day in (days if forwards else days[::-1]))
    count = step.days
    if language == "zh":
        word = "之后" if forwards else "之前"
        asked = (f"{start}{word}{count}天是几月几日？", f"{start}的{count}天{word}是哪天？")
        told = (f"{start}{word}{count}天是{goal}。", f"{start}的{count}天{word}是{goal}。")
        return Problem("dates", "zh", (step.key,), asked, f"{start}{word}{count}天的日期", goal, told)
    word, unit = "after" if forwards else "before", "day" if count == 1 else "days"
    asked = (f"What date is {count} {unit} {word} {start}?", f"Which date comes {count} {unit} {word} {start}?")
    told = (f"{count} {unit} {word} {start} is {goal}.", f"{count} {unit} {word} {start} comes {goal}.")
    return Problem("dates", "en", (step.key,), asked, f"the date {count} {unit} {word} {start}", goal, told)


def come_back(person: Word, start: int, days: int, language: Language) -> Problem:
    """The weekday on which somebody comes back after some days."""
    leave, back = WEEKDAYS[start], WEEKDAYS[(start + days) % 7]
    keys = (("visit", person.en, leave.en, str(days)),)
    if language == "zh":
        trip = f"{person.zh}{leave.zh}出发，{days}天后回来"
        asked = (f"{trip}。{person.zh}星期几回来？", f"{trip}。那是星期几？")
        told = (f"{trip}，那是{back.zh}。", f"{trip}，也就是{back.zh}回来。")
        return Problem("weekday", "zh", keys, asked, f"{person.zh}{leave.zh}出发{days}天后回来的日子", back.zh, told)
    unit = "day" if days == 1 else "days"
    asked = (
        f"{person.en} leaves on {leave.en} and comes back {days} {unit} later. On which weekday is that?",
        f"If {person.en} leaves on {leave.en} for {days} {unit}, on which weekday does {person.en} come back?",
    )
    told = (
        f"{person.en} left on {leave.en} and came back {days} {unit} later, on {back.en}.",
        f"{person.en} left on {leave.en} for {days} {unit}, so {person.en} came back on {back.en}.",
    )
    about = f"the weekday on which {person.en} comes back, {days} {unit} after {leave.en}"
    return Problem("weekday", "en", keys, asked, about, back.en, told)


def draw_sum(dice: Dice, held_out: bool, language: Language) -> Problem:
    """An addition or a subtraction."""
    a, b = draw_addends(dice, held_out)
    return add(a, b, language) if dice.chance(0.5) else subtract(a + b, a, language)


def draw_compare(dice: Dice, held_out: bool, language: Language) -> Problem:
    """A comparison of two numbers below a hundred."""
    first, second = draw_on_side(
        held_out,
        lambda: tuple(dice.some(range(1, 100), 2)),
        lambda pair: ("compare", str(min(pair)), str(max(pair))),
    )
    return compare(first, second, dice.chance(0.5), language)


def draw_units(dice: Dice, held_out: bool, language: Language) -> Problem:
    """A conversion of 2 to 99 units; round numbers are left out, so that the zeros come from the unit alone."""
    unit, count = draw_on_side(
        held_out,
        lambda: (dice.pick(UNITS), dice.between(0, 9) * 10 + dice.between(2, 9)),
        lambda pair: ("unit", pair[0].large.en, pair[0].small.en, str(pair[1])),
    )
    return convert(unit, count, dice.chance(0.5), language)


def draw_date(dice: Dice, held_out: bool, language: Language) -> Problem:
    """A date a few days after or before another."""

    def make() -> Step:
        days = dice.between(1, 9)
        return Step(dice.between(0, 11), dice.between(1, LAST_DAY - days), days)

    return shift_date(draw_on_side(held_out, make, lambda step: step.key), dice.chance(0.5), language)


def draw_weekday(dice: Dice, held_out: bool, language: Language) -> Problem:
    """A journey of one to six days."""
    person, start, days = draw_on_side(
        held_out,
        lambda: (dice.pick(PEOPLE), dice.between(0, 6), dice.between(1, 6)),
        lambda trip: ("visit", trip[0].en, WEEKDAYS[trip[1]].en, str(trip[2])),
    )
    return come_back(person, start, days, language)
