"""Raw prose for pretraining: the same skills as the instructions, told instead of asked."""

from __future__ import annotations

from collections.abc import Callable

from tunekit.data.world import forms, numbers
from tunekit.data.world.dice import Dice, Key
from tunekit.data.world.facts import Problem, draw_scene, tell_scene
from tunekit.data.world.problems import HARD, Draw, draw_problem, look_up
from tunekit.data.world.topics import draw_story
from tunekit.data.world.words import LANGUAGES, PEOPLE, Language

Keyed = tuple[tuple[Key, ...], str]

# A story names what is sought before it tells the facts, so that pretraining also practises
# "search term first, text after it"; the form is prose and is used nowhere in the instructions.
SEARCHES: dict[Language, tuple[tuple[str, str], ...]] = {
    "en": (
        ("Somebody wanted to know {about}.", "So it was {answer}"),
        ("The pupils talked about {about}.", "In the end they wrote {answer}"),
        ("This page is about {about}.", "The page ends with {answer}"),
    ),
    "zh": (
        ("有人想知道{about}。", "原来就是{answer}"),
        ("学生们谈到{about}。", "最后他们写下{answer}"),
        ("这一页说的是{about}。", "这一页最后是{answer}"),
    ),
}


def search(dice: Dice, held_out: bool, language: Language, draw: Draw = look_up) -> Keyed:
    """A little story in which somebody looks for something and finds it."""
    problem = draw(dice, held_out, language)
    opening, closing = dice.pick(SEARCHES[problem.language])
    given = "" if problem.given in problem.about else problem.given
    parts = (opening.format(about=problem.about), given, closing.format(answer=problem.answer))
    joint = " " if problem.language == "en" else ""
    return problem.keys, joint.join(part for part in parts if part)


def search_anything(dice: Dice, held_out: bool, language: Language) -> Keyed:
    """A search for the answer of any problem."""
    return search(dice, held_out, language, lambda dice, held_out, _: draw_problem(dice, held_out))


def search_among(dice: Dice, held_out: bool, language: Language) -> Keyed:
    """A search among several facts."""

    def among(dice: Dice, held_out: bool, language: Language) -> Problem:
        return look_up(dice, held_out, language, dice.between(2, 3))

    return search(dice, held_out, language, among)


def wondering(dice: Dice, held_out: bool, language: Language) -> Keyed:
    """One to three times: a fact, a question about it, and a whole sentence that answers the question.

    The instructions ask in the same words but want the bare answer, a form that no text has.
    """
    drawn = [look_up(dice, held_out, language) for _ in range(dice.between(1, 3))]
    lines = [(problem.given, dice.pick(problem.asked), dice.pick(problem.told)) for problem in drawn]
    # Half of the documents break the line after each sentence: what was said must be found across line breaks too.
    joint = "\n" if dice.chance(0.5) else " " if language == "en" else ""
    keys = tuple(key for problem in drawn for key in problem.keys)
    return keys, "\n".join(joint.join(line) for line in lines)


def scene(dice: Dice, held_out: bool, language: Language) -> Keyed:
    """Two or three facts, and then the same facts in other words."""
    facts = draw_scene(dice, held_out, dice.between(2, 3))
    problems = [problem for fact in facts for problem in fact.in_language(language)]
    again = [dice.pick(problem.told) for problem in dice.shuffled(problems)]
    parts = [tell_scene(dice, facts, language), *again]
    return tuple(fact.key for fact in facts), (" " if language == "en" else "").join(parts)


def echo(dice: Dice, held_out: bool, language: Language) -> Keyed:
    """Somebody says a few facts, and another repeats them word for word."""
    facts = draw_scene(dice, held_out, dice.between(2, 3))
    told = tell_scene(dice, facts, language)
    first, second = (person.of(language) for person in dice.some(PEOPLE, 2))
    text = f"{first}: {told}\n{second}: {told}" if language == "en" else f"{first}：{told}\n{second}：{told}"
    return tuple(fact.key for fact in facts), text


def telling(*draws: Draw) -> Callable[[Dice, bool, Language], Keyed]:
    """A maker of documents of two to five statements, each from one of ``draws``."""

    def tell(dice: Dice, held_out: bool, language: Language) -> Keyed:
        problems = [dice.pick(draws)(dice, held_out, language) for _ in range(dice.between(2, 5))]
        keys = tuple(key for problem in problems for key in problem.keys)
        return keys, "\n".join(dice.pick(problem.told) for problem in problems)

    return tell


def stories(dice: Dice, held_out: bool, language: Language) -> Keyed:
    """Two to four one-line stories, some of them in both languages."""
    drawn = [draw_story(dice, held_out, language) for _ in range(dice.between(2, 4))]
    return tuple(story.key for story in drawn), "\n".join(story.text for story in drawn)


DOCUMENTS: tuple[tuple[Callable[[Dice, bool, Language], Keyed], int], ...] = (
    (wondering, 12),
    (telling(forms.translate), 10),
    (scene, 2),
    (echo, 3),
    (search, 2),
    (search_among, 2),
    (search_anything, 3),
    (telling(numbers.draw_units), 2),
    (telling(forms.plural), 1),
    (telling(numbers.draw_sum), 3),
    (telling(*HARD), 2),
    (stories, 1),
)
"""The kinds of documents with their shares."""

_WEIGHTED = tuple(make for make, weight in DOCUMENTS for _ in range(weight))


def draw_document(dice: Dice, held_out: bool) -> Keyed:
    """One document in one language (translations: both), with the combinations it tells of."""
    return dice.pick(_WEIGHTED)(dice, held_out, dice.pick(LANGUAGES))
