"""The list of what can be asked in the world, and how a problem is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tunekit.data.world import forms, numbers
from tunekit.data.world.dice import Dice, Key
from tunekit.data.world.facts import Problem, draw_scene, tell_scene
from tunekit.data.world.words import LANGUAGES, Language

Draw = Callable[[Dice, bool, Language], Problem]


def look_up(dice: Dice, held_out: bool, language: Language, facts: int = 1) -> Problem:
    """A question about one of the ``facts`` that are given with it."""
    drawn = draw_scene(dice, held_out, facts)
    problem = dice.pick(dice.pick(drawn).in_language(language))
    return with_scene(problem, tuple(fact.key for fact in drawn), tell_scene(dice, drawn, language))


def with_scene(problem: Problem, keys: tuple[Key, ...], given: str) -> Problem:
    """The problem with the text to look it up in, and the combinations of all facts of that text."""
    return replace(problem, keys=keys, given=given)


DRAWS: tuple[tuple[Draw, int], ...] = (
    (look_up, 10),
    (forms.translate, 6),
    (numbers.draw_units, 3),
    (forms.plural, 1),
)
"""The problems of the instructions with their shares: what a model of two million weights learns within minutes."""

HARD: tuple[Draw, ...] = (
    numbers.draw_sum,
    numbers.draw_compare,
    numbers.draw_date,
    numbers.draw_weekday,
    forms.backwards,
    forms.count,
)
"""Problems that such a model begins to solve only with much more training; they are told in the text as well."""

WEIGHTED: tuple[Draw, ...] = tuple(draw for draw, weight in DRAWS for _ in range(weight))


def draw_problem(dice: Dice, held_out: bool) -> Problem:
    """Any problem in either language, on the wanted side of the split."""
    language = dice.pick(LANGUAGES)
    return dice.pick(WEIGHTED)(dice, held_out, language)


def draw_task(dice: Dice, held_out: bool) -> tuple[str, Problem]:
    """A problem whose answer a program can check, with the group it belongs to."""
    groups: tuple[tuple[str, Draw], ...] = (
        ("arithmetic", numbers.draw_sum),
        ("units", numbers.draw_units),
        ("dates", numbers.draw_date),
        ("dates", numbers.draw_weekday),
    )
    group, draw = dice.pick(groups)
    return group, draw(dice, held_out, dice.pick(LANGUAGES))
