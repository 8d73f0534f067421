"""The rewards of a recipe: their blocks as a type for a method's options, and the sum of them that an answer gets."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticKnownError

from tunekit.core.errors import DataError, MachineError, Problem, UserError, raise_all
from tunekit.core.registry import REWARDS, nearest
from tunekit.rl.contract import Answer
from tunekit.rl.rewards._shared.block import RewardBlock, unfit

_BY_KEY = ("function", "model")  # a block with one of these keys is of that kind
_EXAMPLE = "`reward: [{kind: exact_match}]`"
SHOWN = 5
"""Rows that a refusal names; the others are counted."""


def _tag(name: str) -> str:
    return f"<{name}>"  # a tag stands in pydantic's locations: no key of a recipe looks like this


def _kind(block: Any) -> str | None:
    """The tag of a block, None for one that has no kind."""
    kind = block.get("kind") if isinstance(block, dict) else getattr(block, "kind", None)
    return _tag(kind) if isinstance(kind, str) else None


def _listed(blocks: Any) -> Any:
    """The list as it is; what is no list of blocks is refused with the line to write."""
    if isinstance(blocks, list | tuple) and blocks:
        return tuple(blocks)  # which alone is one where nothing may be converted
    if isinstance(blocks, dict):
        raise unfit("a list of blocks", "put the block into a list: `reward: [{...}]`, or `- ` before its first key")
    if isinstance(blocks, str):
        raise unfit("a list of blocks", f"write `reward: [{_as_block(blocks)}]`")
    raise unfit("a list of one block or more", f"for example {_EXAMPLE}; a method with rewards needs one")


def _as_block(word: str) -> str:
    """The block that a bare word was meant to be."""
    if _is_function(word):
        return f"{{function: '{word}'}}"
    name = nearest(word, REWARDS.names)
    if name is not None and name not in _BY_KEY:
        needed = [key for key, of in REWARDS.load(name).Config.model_fields.items() if of.is_required()]
        return "{" + ", ".join(f"{key}: {name if key == 'kind' else '...'}" for key in needed) + "}"
    return "{kind: exact_match}"


def _is_function(word: str) -> bool:
    return ".py:" in word


def _with_kind(block: Any) -> Any:
    """A block with the kind that its keys tell; one that says no kind, or says one that there is not, is refused."""
    if isinstance(block, str):
        raise unfit("a block of keys", f"write `{_as_block(block)}`")
    if not isinstance(block, dict):
        return block
    if "kind" not in block:
        told = [key for key in _BY_KEY if key in block]
        if len(told) != 1:
            raise unfit("a block with a `kind`, a `function` or a `model`", _kind_of_keys(block, told))
        return {"kind": told[0]} | block
    if not isinstance(block["kind"], str) or block["kind"] not in REWARDS.names:
        expected = ", ".join(f"'{name}'" for name in REWARDS.names)
        values = {"discriminator": "kind", "tag": str(block["kind"]), "expected_tags": expected}
        raise PydanticKnownError("union_tag_invalid", values)
    return block


def _kind_of_keys(block: dict[str, Any], told: Sequence[str]) -> str:
    """What to write in the place of a block whose keys tell no kind, or two."""
    if told:
        return "make two blocks of it: one with the `function`, one with the `model`"
    kinds = [name for name in REWARDS.names if name in block]
    if kinds:  # as {exact_match: {}}
        return f"write `{{kind: {kinds[0]}}}`, its keys beside it"
    fitting = [name for name in REWARDS.names if set(block) <= set(REWARDS.load(name).Config.model_fields)]
    kind = fitting[0] if len(fitting) == 1 else "exact_match"
    return f"add `kind: {kind}`" if len(fitting) == 1 else f"for example {_EXAMPLE}; kinds: {', '.join(REWARDS.names)}"


def _named(blocks: tuple[RewardBlock, ...]) -> tuple[RewardBlock, ...]:
    twice = [name for name, count in Counter(block.name for block in blocks if block.name).items() if count > 1]
    if twice:
        what = f"a list of blocks whose names differ (two are called '{twice[0]}')"
        raise unfit(what, "give each a `name` of its own")
    return blocks


if TYPE_CHECKING:
    RewardsField = tuple[RewardBlock, ...]
else:
    _BLOCKS = reduce(or_, (Annotated[REWARDS.load(name).Config, Tag(_tag(name))] for name in REWARDS.names))
    RewardsField = Annotated[
        tuple[Annotated[_BLOCKS, Discriminator(_kind), BeforeValidator(_with_kind)], ...],
        Field(min_length=1),
        BeforeValidator(_listed),
        AfterValidator(_named),
    ]
"""The type of a recipe's list of rewards, for a method's ``Config``: ``reward: RewardsField = Field(description=...)``.
A block with the key ``function`` or ``model`` needs no ``kind``."""

Scorer = Callable[[Sequence[Answer]], Sequence[float | None]]


@dataclass(frozen=True, slots=True)
class Scored:
    """The rewards of N answers.

    Args:
        total: N, the weighted sums; a part that does not apply counts 0.
        parts: by the name of the reward, N values before they are weighted; nan where it does not apply.
    """

    total: list[float]
    parts: dict[str, list[float]]


@dataclass
class Rewarder:
    """The rewards of a recipe, opened when they are first needed and kept.

    Args:
        blocks: those of the recipe.
        folder: where relative paths in them begin; after it they are looked for in the working folder, as data is.
    """

    blocks: Sequence[RewardBlock]
    folder: Path = field(default_factory=Path)
    _open: dict[str, Scorer] = field(default_factory=dict, init=False, repr=False)

    @property
    def named(self) -> dict[str, Any]:
        """The blocks by name, in the recipe's order; of two without a name that would be called alike, one is numbered.

        A block is called by its ``name``; else by its kind, its function or its model's folder.
        """
        given = {block.name for block in self.blocks if block.name}
        found: dict[str, Any] = {}
        for block in self.blocks:
            plain = name = block.name or _default_name(block)
            number = 1
            while not block.name and (name in given or name in found):
                number += 1
                name = f"{plain}_{number}"
            found[name] = block
        return found

    def check(self, key: str = "reward") -> None:
        """Finds what would make `score` fail, without a model: files, functions, schemas, reward models' folders.

        Args:
            key: the list's in the recipe, as ``grpo.reward``; what has no place of its own is told with its block's.

        Raises:
            UserError: all that is wrong.
            MachineError: a reward model's files are not as they were saved.
        """
        problems: list[Problem] = []
        for at, (name, block) in enumerate(self.named.items()):
            module = _module(block)
            try:
                if hasattr(module, "check"):
                    module.check(block, self.folder)
                else:
                    self._scorer(name, block)
            except (UserError, MachineError) as error:
                found = [replace(problem, where=problem.where or f"{key}.{at}") for problem in error.problems]
                if isinstance(error, MachineError):
                    raise_all(MachineError, found)
                problems += found
        raise_all(UserError, problems)

    def check_rows(self, rows: Iterable[tuple[str, str]]) -> None:
        """Finds right answers that a reward cannot use; cheap, and to be asked before a model is loaded.

        Args:
            rows: the reference and ``file:line`` of each row.

        Raises:
            DataError: one problem for each reward and fault, with the number of its rows and the first of them.
        """
        modules = [(name, block, _module(block)) for name, block in self.named.items()]
        wanted = [(name, block, module.fault) for name, block, module in modules if hasattr(module, "fault")]
        found: dict[tuple[str, str], list[str]] = {}
        details: dict[tuple[str, str], str] = {}
        for reference, where in rows if wanted else ():
            for name, block, fault in wanted:
                told, _, detail = fault(reference, block).partition(": ")
                if told:
                    found.setdefault((name, told), []).append(where)
                    details.setdefault((name, told), detail)
        problems = [_of_rows(name, told, details[name, told], places) for (name, told), places in found.items()]
        raise_all(DataError, problems)

    def score(self, answers: Sequence[Answer]) -> Scored:
        """The rewards of answers; a reward model is loaded at the first call.

        Raises:
            UserError: a function of the user failed, or its numbers are none.
            DataError: a row's right answer cannot be used.
        """
        self.check_rows((answer.reference, answer.where) for answer in answers)
        parts: dict[str, list[float]] = {}
        total = [0.0] * len(answers)
        for name, block in self.named.items():
            found = self._scorer(name, block)(answers)
            assert len(found) == len(answers), (name, len(found), len(answers))
            parts[name] = [math.nan if value is None else float(value) for value in found]
            for index, value in enumerate(found):
                total[index] += 0.0 if value is None else block.weight * value
        return Scored(total, parts)

    def _scorer(self, name: str, block: Any) -> Scorer:
        if name not in self._open:
            module = _module(block)
            if hasattr(module, "open"):
                self._open[name] = module.open(block, self.folder)
            else:
                self._open[name] = lambda answers: module.score(answers, block)
        return self._open[name]


def _module(block: Any) -> Any:
    return REWARDS.load(block.kind)


def _default_name(block: Any) -> str:
    module = _module(block)
    return str(module.default_name(block)) if hasattr(module, "default_name") else str(block.kind)


def _of_rows(name: str, told: str, detail: str, places: Sequence[str]) -> Problem:
    """One problem of all the rows that have it."""
    if len(places) == 1:
        what = f"reward '{name}': {told}" + (f": {detail}" if detail else "")
    else:
        first = f" (the first: {detail})" if detail else ""
        what = f"reward '{name}': {told}, in {len(places):,} rows{first}"
    named = ", ".join(places[:SHOWN]) + (f" and {len(places) - SHOWN:,} more" if len(places) > SHOWN else "")
    fix = "give each row a right answer (name its column: `columns: {reference: NAME}`), leave the rows out, or choose "
    return Problem(what, named, fix + "another reward")
