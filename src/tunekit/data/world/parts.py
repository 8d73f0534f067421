"""The rows of every part but the conversations, each with the combinations it contains."""

from __future__ import annotations

from typing import Any

from tunekit.data.world.dice import Dice, Key
from tunekit.data.world.facts import RELATIONS, Problem, draw_fact, draw_scene, tell_scene
from tunekit.data.world.problems import draw_problem, draw_task
from tunekit.data.world.text import draw_document
from tunekit.data.world.topics import draw_story
from tunekit.data.world.words import LANGUAGES, Language

KeyedRow = tuple[tuple[Key, ...], dict[str, Any]]

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


def preference_row(dice: Dice, held_out: bool) -> KeyedRow:
    """A question with a good answer and one that is wrong, rude, in the wrong language, or rambling."""
    language = dice.pick(LANGUAGES)
    facts = draw_scene(dice, held_out, 2)
    fact, index = dice.pick(facts), dice.between(0, 1)
    problem = fact.in_language(language)[index]
    keys = [one.key for one in facts]
    fault = dice.pick(("wrong", "rude", "language", "rambling"))
    if fault == "wrong":
        relation = next(relation for relation in RELATIONS if relation.name == fact.key[0])
        untrue = relation.spoil(dice, held_out, fact, problem.kind)
        rejected = untrue.in_language(language)[index].told[0]
        keys.append(untrue.key)
    elif fault == "rude":
        rejected = dice.pick(RUDE[language])
    elif fault == "language":
        rejected = fact.in_language("zh" if language == "en" else "en")[index].told[0]
    else:
        rejected = dice.pick(RAMBLING[language]) + (" " if language == "en" else "") + problem.told[0]
    prompt = tell_scene(dice, facts, language) + "\n" + dice.pick(problem.asked)
    return tuple(keys), {"prompt": prompt, "chosen": problem.told[0], "rejected": rejected}
