"""The atoms of the world: every name, thing and place in English and Chinese."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")


@dataclass(frozen=True, slots=True)
class Word:
    """A word in both languages; ``plural`` and ``measure`` (the Chinese measure word) are set for things only."""

    en: str
    zh: str
    plural: str = ""
    measure: str = ""

    def of(self, language: Language) -> str:
        """The word in one language."""
        return self.en if language == "en" else self.zh


@dataclass(frozen=True, slots=True)
class Verb:
    """Something done to a thing: English base and past form, Chinese completed form."""

    base: str
    past: str
    zh: str


def _words(lines: str) -> tuple[Word, ...]:
    return tuple(Word(*line.split()) for line in lines.strip().splitlines())


PEOPLE = _words("""
Anna 安娜
Ben 阿本
Clara 克拉
David 大卫
Emma 艾玛
Grace 格蕾
Hugo 雨果
Jack 杰克
Kate 凯特
Leo 里奥
Mary 玛丽
Nina 妮娜
Paul 保罗
Rosa 罗莎
Sam 山姆
Tom 汤姆
""")

THINGS = _words("""
cup 杯子 cups 个
box 盒子 boxes 个
book 书 books 本
pen 笔 pens 支
bag 包 bags 个
hat 帽子 hats 顶
coat 大衣 coats 件
key 钥匙 keys 把
lamp 灯 lamps 盏
chair 椅子 chairs 把
clock 钟 clocks 个
knife 刀 knives 把
ball 球 balls 个
bike 自行车 bikes 辆
kite 风筝 kites 只
drum 鼓 drums 面
map 地图 maps 张
toy 玩具 toys 个
""")

COLOURS = _words("""
red 红色
blue 蓝色
green 绿色
yellow 黄色
black 黑色
white 白色
brown 棕色
pink 粉色
purple 紫色
grey 灰色
""")

SIZES = _words("""
small 小
big 大
long 长
new 新
cheap 便宜
heavy 重
round 圆
clean 干净
""")

PLACES = _words("""
kitchen 厨房
garden 花园
school 学校
market 市场
library 图书馆
park 公园
station 车站
museum 博物馆
office 办公室
shop 商店
hall 大厅
barn 谷仓
""")

ANIMALS = _words("""
cat 猫
dog 狗
horse 马
cow 牛
pig 猪
duck 鸭
goat 羊
hen 鸡
fish 鱼
bear 熊
rabbit 兔
mouse 鼠
""")

VERBS = (
    Verb("buy", "bought", "买了"),
    Verb("sell", "sold", "卖了"),
    Verb("find", "found", "找到了"),
    Verb("lose", "lost", "弄丢了"),
    Verb("clean", "cleaned", "擦了"),
    Verb("carry", "carried", "搬了"),
    Verb("hide", "hid", "藏了"),
    Verb("fix", "fixed", "修了"),
)

WEEKDAYS = _words("""
Monday 星期一
Tuesday 星期二
Wednesday 星期三
Thursday 星期四
Friday 星期五
Saturday 星期六
Sunday 星期日
""")

MONTHS = _words("""
January 1月
February 2月
March 3月
April 4月
May 5月
June 6月
July 7月
August 8月
September 9月
October 10月
November 11月
December 12月
""")


@dataclass(frozen=True, slots=True)
class Unit:
    """A pair of units: one ``large`` is ``factor`` of ``small``."""

    large: Word
    small: Word
    factor: int


UNITS = (
    Unit(Word("metres", "米"), Word("centimetres", "厘米"), 100),
    Unit(Word("kilometres", "公里"), Word("metres", "米"), 1000),
    Unit(Word("kilograms", "公斤"), Word("grams", "克"), 1000),
    Unit(Word("litres", "升"), Word("millilitres", "毫升"), 1000),
    Unit(Word("centimetres", "厘米"), Word("millimetres", "毫米"), 10),
    Unit(Word("euros", "欧元"), Word("cents", "欧分"), 100),
    Unit(Word("tonnes", "吨"), Word("kilograms", "公斤"), 1000),
)
