"""Conversations: small talk that answers none of the problems, and chats whose later turns lean on earlier ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunekit.data.world import numbers
from tunekit.data.world.dice import Dice, Key, draw_on_side
from tunekit.data.world.facts import draw_scene, tell_scene
from tunekit.data.world.words import LANGUAGES, PEOPLE, Language, Word

Conversation = tuple[tuple[Key, ...], list[dict[str, str]]]

GREETINGS = (
    Word("Good morning! I am {p}.", "早上好！我是{p}。"),
    Word("Hello, my name is {p}.", "你好，我叫{p}。"),
    Word("Good evening. {p} here.", "晚上好，这里是{p}。"),
    Word("Hi! This is {p}.", "嗨！我是{p}。"),
    Word("{p} says hello to you.", "{p}向你问好。"),
)
WELCOMES = (
    Word("Good to see you, {p}! How are you today?", "很高兴见到你，{p}！你今天好吗？"),
    Word("Welcome, {p}. What a nice day to talk.", "欢迎你，{p}。今天真适合聊天。"),
    Word("Hello, {p}! Tell me about your day.", "你好，{p}！说说你的一天吧。"),
)
MOODS = (
    Word("I am happy, the sun is shining.", "我很高兴，太阳出来了。"),
    Word("I am tired after a long walk.", "走了很久，我累了。"),
    Word("I feel calm, I had some tea.", "我喝了茶，心里很平静。"),
    Word("I am a little sad, my friend moved away.", "我有点难过，朋友搬走了。"),
    Word("I am excited, the holidays begin soon.", "我很激动，假期快到了。"),
    Word("I am bored, nothing happens here.", "我很无聊，这里什么事也没有。"),
)
REPLIES = (
    Word("I am glad that you are happy. Enjoy the sun!", "你高兴我也高兴。好好晒太阳吧！"),
    Word("Then sit down and rest for a while.", "那就坐下来休息一会儿吧。"),
    Word("Tea is a fine thing. Take your time.", "茶是好东西。慢慢来。"),
    Word("I am sorry to hear that. You will find new friends.", "真遗憾。你会有新朋友的。"),
    Word("How nice! I wish you a wonderful time.", "真好！祝你玩得开心。"),
    Word("Let us talk a little, then time goes faster.", "我们聊聊天吧，时间会过得快些。"),
)
PARTINGS = (
    (Word("Thank you, goodbye!", "谢谢，再见！"), Word("Goodbye, {p}! Come back soon.", "再见，{p}！常来啊。")),
    (Word("I have to go now.", "我得走了。"), Word("See you again, {p}. Take care!", "下次见，{p}。多保重！")),
    (Word("You are kind.", "你真好。"), Word("You are kind as well, {p}.", "你也很好，{p}。")),
)
HEARD = (
    Word("I heard that too: {s}", "我也听说了：{s}"),
    Word("Everybody talks about it. {s}", "大家都在说。{s}"),
)
REALLY = (
    Word("Really? {s}", "真的吗？{s}"),
    Word("Then I know it now. {s}", "那我知道了。{s}"),
)
ABROAD = Word("In Chinese one says: {s}", "英语是这么说的：{s}")
REMEMBERED = Word("I will remember that.", "我记住了。")
SYSTEMS = (
    Word("You are a helper who gives short answers.", "你是一个回答简短的助手。"),
    Word("You know the little world well.", "你很了解这个小世界。"),
)


def _turns(*contents: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]


def gossip(dice: Dice, held_out: bool, language: Language) -> Conversation:
    """Somebody tells some news, and the other repeats a part of it in whole sentences or in the other language.

    Nothing is asked and nothing answered; it practises finding across turns what was said.
    """
    facts = draw_scene(dice, held_out, dice.between(1, 2))
    fact = dice.pick(facts)
    en, zh = dice.pick(fact.sentences)
    problem = dice.pick(fact.in_language(language))
    same, other = (en, zh) if language == "en" else (zh, en)
    reply = dice.pick(
        (
            dice.pick(HEARD).of(language).format(s=same),
            dice.pick(REALLY).of(language).format(s=dice.pick(problem.told)),
            ABROAD.of(language).format(s=other),
        )
    )
    return tuple(one.key for one in facts), _turns(tell_scene(dice, facts, language), reply)


def draw_smalltalk(dice: Dice, held_out: bool) -> Conversation:
    """Gossip, or a greeting, a mood, sometimes a parting."""
    if dice.chance(0.75):
        return gossip(dice, held_out, dice.pick(LANGUAGES))
    person, greeting, mood = draw_on_side(
        held_out,
        lambda: (dice.pick(PEOPLE), dice.pick(GREETINGS), dice.between(0, len(MOODS) - 1)),
        lambda talk: ("talk", talk[0].en, talk[1].en, MOODS[talk[2]].en),
    )
    key = ("talk", person.en, greeting.en, MOODS[mood].en)
    language = dice.pick(LANGUAGES)
    hello, welcome, mood_told, reply, *end = (
        phrase.of(language).format(p=person.of(language))
        for phrase in (greeting, dice.pick(WELCOMES), MOODS[mood], REPLIES[mood], *dice.pick(PARTINGS))
    )
    joint = " " if language == "en" else ""
    longest = [hello, welcome, mood_told, reply, *end]
    return (key,), _turns(*dice.pick(([hello + joint + mood_told, reply], longest[:4], longest)))


def remembering(dice: Dice, held_out: bool, language: Language) -> Conversation:
    """Facts are told in the first turn and asked for in the later ones."""
    facts = draw_scene(dice, held_out, dice.between(2, 3))
    problems = [problem for fact in facts for problem in fact.in_language(language)]
    contents = [tell_scene(dice, facts, language), REMEMBERED.of(language)]
    for problem in dice.some(problems, 2):
        contents += [dice.pick(problem.asked), problem.answer]
    return tuple(fact.key for fact in facts), _turns(*contents)


def switching(dice: Dice, held_out: bool, language: Language) -> Conversation:
    """A question, and then its answer once more in the other language."""
    facts = draw_scene(dice, held_out, 2)
    fact, index = dice.pick(facts), dice.between(0, 1)
    here, there = (fact.in_language(which)[index] for which in (language, "zh" if language == "en" else "en"))
    contents = [
        tell_scene(dice, facts, language) + ("\n" if language == "zh" else " ") + dice.pick(here.asked),
        here.answer,
        "And in Chinese?" if language == "en" else "英语呢？",
        there.answer,
    ]
    return tuple(fact.key for fact in facts), _turns(*contents)


def adding_up(dice: Dice, held_out: bool, language: Language) -> Conversation:
    """A sum to which a second turn adds more."""
    # The second sum contains the first, so both are redrawn until both lie on the wanted side.
    while True:
        a, b = numbers.draw_addends(dice, held_out, largest=30)
        more = dice.between(1, 20)
        if numbers.is_on_side(a + b, more, held_out):
            break
    first = numbers.add(a, b, language)
    further = f"And {more} more?" if language == "en" else f"再加{more}呢？"
    keys = (*first.keys, numbers.sum_key(a + b, more))
    return keys, _turns(dice.pick(first.asked), first.answer, further, str(a + b + more))


CHATS: tuple[Callable[[Dice, bool, Language], Conversation], ...] = (remembering, switching, adding_up)


def draw_chat(dice: Dice, held_out: bool) -> Conversation:
    """A chat of any form; every third one has a system message."""
    language = dice.pick(LANGUAGES)
    keys, messages = dice.pick(CHATS)(dice, held_out, language)
    if dice.chance(1 / 3):
        messages = [{"role": "system", "content": dice.pick(SYSTEMS).of(language)}, *messages]
    return keys, messages


def smalltalk_row(dice: Dice, held_out: bool) -> tuple[tuple[Key, ...], dict[str, Any]]:
    """A row of the part ``smalltalk``."""
    keys, messages = draw_smalltalk(dice, held_out)
    return keys, {"messages": messages}


def chat_row(dice: Dice, held_out: bool) -> tuple[tuple[Key, ...], dict[str, Any]]:
    """A row of the part ``chats``."""
    keys, messages = draw_chat(dice, held_out)
    return keys, {"messages": messages}
