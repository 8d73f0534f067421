"""The rows of every part but conversations and preferences, each with the combinations it contains."""

from __future__ import annotations

from typing import Any

from tunekit.data.world.dice import Dice, Key
from tunekit.data.world.facts import Problem, draw_fact, draw_scene
from tunekit.data.world.problems import draw_problem, draw_task
from tunekit.data.world.text import draw_document
from tunekit.data.world.topics import draw_story
from tunekit.data.world.words import LANGUAGES

KeyedRow = tuple[tuple[Key, ...], dict[str, Any]]


def text_row(dice: Dice, held_out: bool) -> KeyedRow:
    """A document."""
    keys, text = draw_document(dice, held_out)
    return keys, {"text": text}


def instruction_of(dice: Dice, problem: Problem) -> dict[str, Any]:
    """A problem posed as an instruction row; the text to work on comes first, as in prose.

    ``answer`` is the bare answer that the output holds, for scores that look for it.
    """
    asked = dice.pick(problem.asked)
    instruction = f"{problem.given}\n{asked}" if problem.given else asked
    return {
        "instruction": instruction,
        "input": "",
        "output": problem.reply or problem.answer,
        "answer": problem.answer,
    }


def instruction_row(dice: Dice, held_out: bool) -> KeyedRow:
    """A single-turn instruction with a short answer."""
    problem = draw_problem(dice, held_out)
    return problem.keys, instruction_of(dice, problem)


def task_row(dice: Dice, held_out: bool) -> KeyedRow:
    """A question whose answer can be computed."""
    group, problem = draw_task(dice, held_out)
    return problem.keys, {"prompt": dice.pick(problem.asked), "answer": problem.answer, "kind": group}


def label_row(dice: Dice, held_out: bool) -> KeyedRow:
    """A sentence with its topic."""
    story = draw_story(dice, held_out, dice.pick(LANGUAGES))
    return (story.key,), {"text": story.text, "label": story.label}


def pair_row(dice: Dice, held_out: bool) -> KeyedRow:
    """A sentence in both languages."""
    fact = draw_fact(dice, held_out)
    en, zh = dice.pick(fact.sentences)
    return (fact.key,), {"en": en, "zh": zh}


def passage_row(dice: Dice, held_out: bool) -> KeyedRow:
    """A passage, a question about it, and where in the passage the answer stands."""
    language = dice.pick(LANGUAGES)
    facts = draw_scene(dice, held_out, dice.between(3, 5))
    fact = dice.pick(facts)
    problem = dice.pick(fact.in_language(language))
    told = [
        other.sentence(language, 1 if other is fact and problem.answer not in other.sentence(language, 0) else 0)
        for other in facts
    ]
    context = (" " if language == "en" else "").join(told)
    sentence = told[facts.index(fact)]
    start = context.index(sentence) + sentence.index(problem.answer)
    answers = {"text": [problem.answer], "answer_start": [start]}
    row = {"context": context, "question": dice.pick(problem.asked), "answers": answers}
    return tuple(other.key for other in facts), row
