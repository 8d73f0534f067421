"""One-line stories with a topic: the texts that the ``labels`` part classifies."""

from __future__ import annotations

from dataclasses import dataclass

from tunekit.data.world.dice import Dice, Key, draw_on_side
from tunekit.data.world.words import PEOPLE, Language, Word


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic with its nouns and the frames, in both languages, that they go into."""

    label: str
    nouns: tuple[Word, ...]
    frames: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class Story:
    """One sentence of a topic with its combination."""

    key: Key
    text: str
    label: str


def _nouns(line: str) -> tuple[Word, ...]:
    return tuple(Word(*pair.split("/")) for pair in line.split())


TOPICS = (
    Topic(
        "food",
        _nouns("soup/汤 rice/米饭 bread/面包 cheese/奶酪 noodles/面条 cake/蛋糕"),
        (
            Word("{p} ate {n} for dinner.", "{p}晚饭吃了{n}。"),
            Word("{p} cooked {n} with salt.", "{p}加盐煮了{n}。"),
            Word("{p} thought that the {n} tasted good.", "{p}觉得{n}很好吃。"),
        ),
    ),
    Topic(
        "weather",
        _nouns("rain/雨 snow/雪 wind/风 fog/雾 thunder/雷 hail/冰雹"),
        (
            Word("{p} saw {n} in the sky.", "{p}看见天上有{n}。"),
            Word("{p} stayed at home because of the {n}.", "因为{n}，{p}待在家里。"),
            Word("{p} says that tomorrow brings {n}.", "{p}说明天有{n}。"),
        ),
    ),
    Topic(
        "sport",
        _nouns("football/足球 tennis/网球 hockey/曲棍球 basketball/篮球 golf/高尔夫 volleyball/排球"),
        (
            Word("{p} won the {n} match.", "{p}赢了{n}比赛。"),
            Word("{p} trained {n} with the team.", "{p}和球队练了{n}。"),
            Word("{p} scored twice at {n}.", "{p}打{n}得了两分。"),
        ),
    ),
    Topic(
        "music",
        _nouns("piano/钢琴 violin/小提琴 guitar/吉他 flute/长笛 trumpet/小号 cello/大提琴"),
        (
            Word("{p} played a song on the {n}.", "{p}用{n}演奏了一首歌。"),
            Word("{p} listened to the sound of the {n}.", "{p}听了{n}的声音。"),
            Word("{p} gave a concert with the {n}.", "{p}开了{n}音乐会。"),
        ),
    ),
    Topic(
        "travel",
        _nouns("Paris/巴黎 Rome/罗马 Beijing/北京 Tokyo/东京 Cairo/开罗 London/伦敦"),
        (
            Word("{p} took the train to {n}.", "{p}坐火车去了{n}。"),
            Word("{p} booked a flight to {n}.", "{p}订了去{n}的机票。"),
            Word("{p} came home from {n} with a suitcase.", "{p}带着行李从{n}回来了。"),
        ),
    ),
)


def draw_story(dice: Dice, held_out: bool, language: Language) -> Story:
    """A sentence of any topic on the wanted side of the split."""
    topic = dice.pick(TOPICS)
    noun, person, frame = draw_on_side(
        held_out,
        lambda: (dice.pick(topic.nouns), dice.pick(PEOPLE), dice.pick(topic.frames)),
        lambda story: ("topic", story[1].en, story[0].en, story[2].en),
    )
    text = frame.of(language).format(p=person.of(language), n=noun.of(language))
    return Story(("topic", person.en, noun.en, frame.en), text, topic.label)
