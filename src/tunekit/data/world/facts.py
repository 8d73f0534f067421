"""Facts that a text states and a reader can look up: who owns what, what lies where, who did what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tunekit.data.world.dice import Dice, Key, draw_on_side, is_held_out
from tunekit.data.world.words import COLOURS, PEOPLE, PLACES, THINGS, VERBS, Language, Verb, Word

Atom = Word | Verb


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that can be told in prose, asked about, and answered.

    ``given`` is the text the answer is looked up in ("" when the question holds everything); ``about`` names what is
    asked as a noun phrase; ``told`` are sentences that state the answer in prose; ``reply`` is how somebody who is
    asked puts it shortly ("" for the bare answer).
    """

    kind: str
    language: Language
    keys: tuple[Key, ...]
    asked: tuple[str, ...]
    about: str
    answer: str
    told: tuple[str, ...]
    given: str = ""
    reply: str = ""


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact: its combination, parallel sentences ``(en, zh)`` that state it, and the problems it answers.

    ``words`` are what it was built from; ``names`` are those that must not recur in another fact of the same scene,
    or questions would have two answers.
    """

    key: Key
    words: tuple[Atom, ...]
    names: frozenset[str]
    sentences: tuple[tuple[str, str], ...]
    problems: tuple[Problem, ...]

    def sentence(self, language: Language, variant: int) -> str:
        """The fact in one language; ``variant`` counts through the phrasings."""
        return self.sentences[variant % len(self.sentences)][0 if language == "en" else 1]

    def in_language(self, language: Language) -> tuple[Problem, ...]:
        """The problems posed in one language; the two languages list them in the same order."""
        return tuple(problem for problem in self.problems if problem.language == language)


def own(person: Word, thing: Word, colour: Word) -> Fact:
    """A person has a thing of some colour."""
    key = ("own", person.en, thing.en, colour.en)
    en, zh = f"{colour.en} {thing.en}", f"{colour.zh}的{thing.zh}"
    has = (f"{person.en} has a {en}.", f"{person.zh}有一{thing.measure}{zh}。")
    looks = (f"{person.en}'s {thing.en} is {colour.en}.", f"{person.zh}的{thing.zh}是{colour.zh}的。")
    problems = (
        Problem(
            "colour",
            "en",
            (key,),
            (f"What colour is {person.en}'s {thing.en}?", f"Which colour does {person.en}'s {thing.en} have?"),
            f"the colour of {person.en}'s {thing.en}",
            colour.en,
            (looks[0],),
            reply=f"It is {colour.en}.",
        ),
        Problem(
            "owner",
            "en",
            (key,),
            (f"Who has the {en}?", f"Whose is the {en}?"),
            f"the owner of the {en}",
            person.en,
            (f"The {en} belongs to {person.en}.", f"The owner of the {en} is {person.en}."),
        ),
        Problem(
            "colour",
            "zh",
            (key,),
            (f"{person.zh}的{thing.zh}是什么颜色？", f"{person.zh}的{thing.zh}什么颜色？"),
            f"{person.zh}的{thing.zh}的颜色",
            colour.zh,
            (looks[1],),
        ),
        Problem(
            "owner",
            "zh",
            (key,),
            (f"谁有{zh}？", f"{zh}是谁的？"),
            f"{zh}的主人",
            person.zh,
            (f"{zh}是{person.zh}的。", f"{zh}的主人是{person.zh}。"),
        ),
    )
    return Fact(key, (person, thing, colour), frozenset((person.en, thing.en)), (has, looks), problems)


def lie(thing: Word, colour: Word, place: Word) -> Fact:
    """A thing of some colour is in a place."""
    key = ("lie", thing.en, colour.en, place.en)
    en, zh = f"{colour.en} {thing.en}", f"{colour.zh}的{thing.zh}"
    where = (f"The {en} is in the {place.en}.", f"{zh}在{place.zh}里。")
    holds = (f"In the {place.en} there is a {en}.", f"{place.zh}里有一{thing.measure}{zh}。")
    problems = (
        Problem(
            "where",
            "en",
            (key,),
            (f"Where is the {en}?", f"In which place is the {en}?"),
            f"the place of the {en}",
            f"the {place.en}",
            (where[0], f"The place of the {en} is the {place.en}."),
            reply=f"In the {place.en}.",
        ),
        Problem(
            "thing",
            "en",
            (key,),
            (f"What is in the {place.en}?", f"Which thing is in the {place.en}?"),
            f"the thing in the {place.en}",
            en,
            (holds[0], f"The thing in the {place.en} is the {en}."),
            reply=f"The {en}.",
        ),
        Problem(
            "where",
            "zh",
            (key,),
            (f"{zh}在哪里？", f"{zh}在什么地方？"),
            f"{zh}的地方",
            place.zh,
            (where[1], f"{zh}的地方是{place.zh}。"),
        ),
        Problem(
            "thing",
            "zh",
            (key,),
            (f"{place.zh}里有什么？", f"什么在{place.zh}里？"),
            f"{place.zh}里的东西",
            zh,
            (holds[1], f"{place.zh}里的东西是{zh}。"),
        ),
    )
    return Fact(key, (thing, colour, place), frozenset((thing.en, place.en)), (where, holds), problems)


def act(person: Word, verb: Verb, thing: Word, place: Word) -> Fact:
    """A person did something to a thing in a place."""
    key = ("act", person.en, verb.base, thing.en, place.en)
    did = (
        f"{person.en} {verb.past} a {thing.en} in the {place.en}.",
        f"{person.zh}在{place.zh}{verb.zh}一{thing.measure}{thing.zh}。",
    )
    there = (
        f"In the {place.en}, {person.en} {verb.past} a {thing.en}.",
        f"在{place.zh}，{person.zh}{verb.zh}一{thing.measure}{thing.zh}。",
    )
    problems = (
        Problem(
            "doer",
            "en",
            (key,),
            (f"Who {verb.past} the {thing.en}?", f"Which person {verb.past} the {thing.en}?"),
            f"the one who {verb.past} the {thing.en}",
            person.en,
            (f"The one who {verb.past} the {thing.en} was {person.en}.",),
        ),
        Problem(
            "scene",
            "en",
            (key,),
            (
                f"Where did {person.en} {verb.base} the {thing.en}?",
                f"In which place did {person.en} {verb.base} the {thing.en}?",
            ),
            f"the place where {person.en} {verb.past} the {thing.en}",
            f"the {place.en}",
            (f"The place where {person.en} {verb.past} the {thing.en} was the {place.en}.",),
            reply=f"In the {place.en}.",
        ),
        Problem(
            "doer",
            "zh",
            (key,),
            (f"谁{verb.zh}{thing.zh}？", f"是谁{verb.zh}{thing.zh}？"),
            f"{verb.zh}{thing.zh}的人",
            person.zh,
            (f"{verb.zh}{thing.zh}的人是{person.zh}。",),
        ),
        Problem(
            "scene",
            "zh",
            (key,),
            (f"{person.zh}在哪里{verb.zh}{thing.zh}？", f"{person.zh}在什么地方{verb.zh}{thing.zh}？"),
            f"{person.zh}{verb.zh}{thing.zh}的地方",
            place.zh,
            (f"{person.zh}{verb.zh}{thing.zh}的地方是{place.zh}。",),
        ),
    )
    names = frozenset((person.en, thing.en, place.en))
    return Fact(key, (person, verb, thing, place), names, (did, there), problems)


@dataclass(frozen=True, slots=True)
class Relation:
    """A kind of fact: the pools its atoms come from, and how the fact is built from one atom of each pool.

    ``answers`` says for each kind of problem which of the pools the answer is from.
    """

    name: str
    pools: tuple[tuple[Atom, ...], ...]
    build: Callable[..., Fact]
    answers: dict[str, int]

    def draw(self, dice: Dice, held_out: bool) -> Fact:
        """One fact on the wanted side of the split."""
        return self.build(*draw_on_side(held_out, lambda: self._atoms(dice), self._key))

    def spoil(self, dice: Dice, held_out: bool, fact: Fact, kind: str) -> Fact:
        """The same fact but for another answer to the problem of this kind, on the wanted side of the split.

        Of a held-out fact all such variants may be trained ones; then it is another fact altogether.
        """
        place = self.answers[kind]
        before, after = fact.words[:place], fact.words[place + 1 :]
        others = [(*before, atom, *after) for atom in self.pools[place] if atom != fact.words[place]]
        fitting = [words for words in others if is_held_out(*self._key(words)) == held_out]
        if fitting:
            return self.build(*dice.pick(fitting))
        other = fact
        while other.names & fact.names:
            other = self.draw(dice, held_out)
        return other

    def _atoms(self, dice: Dice) -> tuple[Atom, ...]:
        return tuple(dice.pick(pool) for pool in self.pools)

    def _key(self, atoms: tuple[Atom, ...]) -> Key:
        return (self.name, *(atom.base if isinstance(atom, Verb) else atom.en for atom in atoms))


RELATIONS = (
    Relation("own", (PEOPLE, THINGS, COLOURS), own, {"colour": 2, "owner": 0}),
    Relation("lie", (THINGS, COLOURS, PLACES), lie, {"where": 2, "thing": 0}),
    Relation("act", (PEOPLE, VERBS, THINGS, PLACES), act, {"doer": 0, "scene": 3}),
)


def draw_fact(dice: Dice, held_out: bool) -> Fact:
    """One fact of any relation on the wanted side of the split."""
    return dice.pick(RELATIONS).draw(dice, held_out)


def draw_scene(dice: Dice, held_out: bool, count: int) -> list[Fact]:
    """``count`` facts of one relation, all on one side of the split, that share no atom."""
    relation = dice.pick(RELATIONS)
    facts: list[Fact] = []
    while len(facts) < count:
        fact = relation.draw(dice, held_out)
        if all(not fact.names & other.names for other in facts):
            facts.append(fact)
    return facts


def tell_scene(dice: Dice, facts: list[Fact], language: Language) -> str:
    """The facts of a scene as running text, in random order and phrasing."""
    joint = " " if language == "en" else ""
    return joint.join(fact.sentence(language, dice.between(0, 1)) for fact in dice.shuffled(facts))
