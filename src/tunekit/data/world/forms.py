"""Problems with words: translation, plurals, lists backwards, and counting what a list names."""

from __future__ import annotations

from tunekit.data.world.dice import Dice, Key, draw_on_side
from tunekit.data.world.facts import Problem, draw_fact
from tunekit.data.world.words import ANIMALS, COLOURS, SIZES, THINGS, Language, Word


def translate(dice: Dice, held_out: bool, language: Language) -> Problem:
    """A fact's sentence from ``language`` into the other one."""
    fact = draw_fact(dice, held_out)
    en, zh = dice.pick(fact.sentences)
    if language == "en":
        asked = ("Translate into Chinese.", "Say this in Chinese.")
        told = (f"{en} In Chinese: {zh}", f"{en} That is: {zh}", f"{en}\n{zh}")
        return Problem("translate", "en", (fact.key,), asked, f'the Chinese for "{en}"', zh, told, en)
    asked = ("翻译成英语。", "用英语说这句话。")
    told = (f"{zh}英语是：{en}", f"{zh}也就是：{en}", f"{zh}\n{en}")
    return Problem("translate", "zh", (fact.key,), asked, f"“{zh}”的英语", en, told, zh)


def plural(dice: Dice, held_out: bool, language: Language) -> Problem:
    """A noun phrase in the plural; Chinese has none, so the phrase is English in both."""
    size, colour, thing = draw_on_side(
        held_out,
        lambda: (dice.pick(SIZES), dice.pick(COLOURS), dice.pick(THINGS)),
        lambda words: ("plural", *(word.en for word in words)),
    )
    one, many = f"a {size.en} {colour.en} {thing.en}", f"{size.en} {colour.en} {thing.plural}"
    keys = (("plural", size.en, colour.en, thing.en),)
    if language == "zh":
        asked = ("写出复数。", "把这个词组变成复数。")
        told = (f"{one}的复数是{many}。", f"一个是{one}，很多是{many}。")
        return Problem("plural", "zh", keys, asked, f"{one}的复数", many, told, one, f"These are {many}.")
    asked = ("Write the plural.", "Put this into the plural.")
    told = (f"The plural of {one} is {many}.", f"There was {one}, and then there were many {many}.")
    return Problem("plural", "en", keys, asked, f"the plural of {one}", many, told, one, f"These are {many}.")


def list_key(name: str, words: list[Word]) -> Key:
    """The key of a list; a list and its reverse are held out together."""
    names = [word.en for word in words]
    return (name, *min(names, names[::-1]))


def backwards(dice: Dice, held_out: bool, language: Language) -> Problem:
    """Three things in the opposite order."""
    things = draw_on_side(held_out, lambda: dice.some(THINGS, 3), lambda words: list_key("reverse", words))
    keys = (list_key("reverse", things),)
    joint = ", " if language == "en" else "、"
    forth = joint.join(word.of(language) for word in things)
    back = joint.join(word.of(language) for word in reversed(things))
    if language == "zh":
        asked = ("把顺序倒过来。", "倒着写这些词。")
        told = (f"{forth}倒过来是{back}。", f"从前往后是{forth}，从后往前是{back}。")
        return Problem("reverse", "zh", keys, asked, f"{forth}倒过来的顺序", back, told, forth)
    asked = ("Reverse the list.", "Write these words in the opposite order.")
    told = (f"The reverse of {forth} is {back}.", f"Forwards it is {forth}, and backwards it is {back}.")
    return Problem("reverse", "en", keys, asked, f"the reverse of {forth}", back, told, forth)


def count(dice: Dice, held_out: bool, language: Language) -> Problem:
    """How many animals a list of two to six names."""
    animals = draw_on_side(
        held_out, lambda: dice.some(ANIMALS, dice.between(2, 6)), lambda words: list_key("count", words)
    )
    keys = (list_key("count", animals),)
    names = (", " if language == "en" else "、").join(word.of(language) for word in animals)
    number = str(len(animals))
    if language == "zh":
        asked = ("有几种动物？", "数一数有多少动物。")
        told = (f"{names}，一共{number}种动物。", f"这里有{number}种动物：{names}。")
        return Problem("count", "zh", keys, asked, f"{names}的数目", number, told, names)
    asked = ("How many animals are there?", "Count the animals.")
    told = (f"{names}: that makes {number} animals.", f"There were {number} animals: {names}.")
    return Problem("count", "en", keys, asked, f"the number of animals in {names}", number, told, names)
