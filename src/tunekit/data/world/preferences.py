"""Two answers to one question: a whole, lively sentence that is right, and an answer with one fault."""

from __future__ import annotations

from tunekit.data.world.dice import Dice, Key
from tunekit.data.world.facts import RELATIONS, Fact, draw_scene, tell_scene
from tunekit.data.world.parts import KeyedRow
from tunekit.data.world.words import LANGUAGES, Language

RUDE: dict[Language, tuple[str, ...]] = {
    "en": ("Why do you ask me? Look yourself.", "What a silly question.", "I do not care about that."),
    "zh": ("为什么问我？自己看。", "真是个傻问题。", "这我不关心。"),
}
RAMBLING: dict[Language, tuple[str, ...]] = {
    "en": (
        "Well, let me see, that is a long story, and there is much to say, and one could also say more.",
        "There are many things in this world, and some are here, and some are there, and so it goes on.",
    ),
    "zh": (
        "嗯，让我想想，这说来话长，有很多可以说的，也可以再多说一点。",
        "这个世界上有很多东西，有的在这里，有的在那里，就这样说下去。",
    ),
}
MARKS: dict[Language, str] = {"en": "!", "zh": "！"}
"""What a lively sentence ends with; no other answer of the world about a text does."""

FAULTS: dict[str, int] = {
    "other": 6,  # a true sentence about somebody or something else in the text
    "flat": 2,  # right, but without liveliness
    "terse": 2,  # right, but no whole sentence
    "wrong": 3,  # a sentence about what was asked, which is not true
    "language": 3,  # in the language that was not asked in
    "rude": 1,
    "rambling": 2,
}
"""What is wrong with the rejected answers, with shares.

The first three take training. To a model that has only read the world's texts, or was tuned on its instructions, both
facts of a text are about as likely, and flat or terse answers are likelier than lively ones: of all better answers it
finds little more than half the likelier one.
"""

_WEIGHTED = tuple(fault for fault, weight in FAULTS.items() for _ in range(weight))


def preference_row(dice: Dice, held_out: bool) -> KeyedRow:
    """A question with a good answer and one that has a fault of any kind."""
    return faulty_row(dice, held_out, dice.pick(_WEIGHTED))


def faulty_row(dice: Dice, held_out: bool, fault: str) -> KeyedRow:
    """A question with a good answer and one that has the fault, one of ``FAULTS``."""
    language = dice.pick(LANGUAGES)
    facts = draw_scene(dice, held_out, 2)
    index, kind = dice.between(0, 1), dice.between(0, 1)
    problem = facts[index].in_language(language)[kind]
    further, rejected = _rejected(dice, held_out, fault, facts[index], facts[1 - index], kind, language)
    prompt = tell_scene(dice, facts, language) + "\n" + dice.pick(problem.asked)
    row = {"prompt": prompt, "chosen": _lively(problem.told[0], language), "rejected": rejected}
    return (*(fact.key for fact in facts), *further), row


def _rejected(
    dice: Dice, held_out: bool, fault: str, fact: Fact, other: Fact, kind: int, language: Language
) -> tuple[tuple[Key, ...], str]:
    """The combinations that the answer has beyond those of the text, and the answer."""
    problem = fact.in_language(language)[kind]
    if fault == "wrong":
        relation = next(relation for relation in RELATIONS if relation.name == fact.key[0])
        untrue = relation.spoil(dice, held_out, fact, problem.kind)
        return (untrue.key,), _lively(untrue.in_language(language)[kind].told[0], language)
    if fault == "other":
        return (), _lively(other.in_language(language)[kind].told[0], language)
    if fault == "flat":
        return (), problem.told[0]
    if fault == "terse":
        return (), problem.reply or problem.answer
    if fault == "language":
        foreign: Language = "zh" if language == "en" else "en"
        return (), _lively(fact.in_language(foreign)[kind].told[0], foreign)
    if fault == "rude":
        return (), dice.pick(RUDE[language])
    assert fault == "rambling", fault
    return (), _joined(dice.pick(RAMBLING[language]), _lively(problem.told[0], language), language)


def _lively(sentence: str, language: Language) -> str:
    return sentence.rstrip(".。") + MARKS[language]


def _joined(first: str, second: str, language: Language) -> str:
    return f"{first} {second}" if language == "en" else first + second
