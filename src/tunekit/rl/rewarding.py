"""The rewards of a recipe: their blocks as a type for a method's options, and the sum of them that an answer gets."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticKnownError

from tunekit.core.errors import DataError, Problem, UserError, raise_all
from tunekit.core.registry import REWARDS
from tunekit.rl.contract import Answer
from tunekit.rl.rewards._shared.block import RewardBlock

_BY_KEY = ("function", "model")  # a block with one of these keys is of that kind


def _tag(name: str) -> str:
    return f"<{name}>"  # a tag stands in pydantic's locations: no key of a recipe looks like this


def _kind(block: Any) -> str | None:
    """The tag of a block, None for one that has no kind."""
    kind = block.get("kind") if isinstance(block, dict) else getattr(block, "kind", None)
    return _tag(kind) if isinstance(kind, str) else None


def _with_kind(block: Any) -> Any:
    """A block with the kind that its keys tell; one that says no kind, or says one that there is not, is refused."""
    if not isinstance(block, dict):
        return block
    if "kind" not in block:
        told = [key for key in _BY_KEY if key in block]
        if len(told) != 1:
            raise ValueError("a block with a `kind`, a `function` or a `model`")
        return {"kind": told[0]} | block
    if not isinstance(block["kind"], str) or block["kind"] not in REWARDS.names:
        expected = ", ".join(f"'{name}'" for name in REWARDS.names)
        values = {"discriminator": "kind", "tag": str(block["kind"]), "expected_tags": expected}
        raise PydanticKnownError("union_tag_invalid", values)
    return block


def _named(blocks: tuple[RewardBlock, ...]) -> tuple[RewardBlock, ...]:
    twice = [name for name, count in Counter(block.name for block in blocks if block.name).items() if count > 1]
    if twice:
        raise ValueError(f"a list of blocks whose names differ (two are called '{twice[0]}')")
    return blocks


if TYPE_CHECKING:
    RewardsField = tuple[RewardBlock, ...]
else:
    _BLOCKS = reduce(or_, (Annotated[REWARDS.load(name).Config, Tag(_tag(name))] for name in REWARDS.names))
    RewardsField = Annotated[
        tuple[Annotated[_BLOCKS, Discriminator(_kind), BeforeValidator(_with_kind)], ...],
        Field(min_length=1),
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

    def means(self) -> dict[str, float]:
        """The mean of each part over the answers that it applies to; parts that apply to none are left out."""
        applied = {name: [value for value in values if not math.isnan(value)] for name, values in self.parts.items()}
        return {name: math.fsum(values) / len(values) for name, values in applied.items() if values}


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

    def check(self) -> None:
        """Finds what would make `score` fail, without a model: files, functions, schemas, reward models' folders.

        Raises:
            UserError: all that is wrong.
            MachineError: a reward model's files are not as they were saved.
        """
        problems: list[Problem] = []
        for name, block in self.named.items():
            module = _module(block)
            try:
                if hasattr(module, "check"):
                    module.check(block, self.folder)
                else:
                    self._scorer(name, block)
            except UserError as error:
                problems += error.problems
        raise_all(UserError, problems)

    def check_rows(self, rows: Iterable[tuple[str, str]]) -> None:
        """Finds right answers that a reward cannot use; cheap, and to be asked before a model is loaded.

        Args:
            rows: the reference and ``file:line`` of each row.

        Raises:
            DataError: all of them, each with its place.
        """
        modules = [(name, block, _module(block)) for name, block in self.named.items()]
        wanted = [(name, block, module.fault) for name, block, module in modules if hasattr(module, "fault")]
        fix = "give the row a right answer, leave the row out, or choose another reward"
        problems = [
            Problem(f"reward '{name}': {told}", where, fix)
            for reference, where in (rows if wanted else ())
            for name, block, fault in wanted
            if (told := fault(reference, block))
        ]
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
