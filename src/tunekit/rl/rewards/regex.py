"""1 where a regular expression matches the answer, else 0."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from tunekit.rl.contract import Answer
from tunekit.rl.rewards._shared.block import RewardBlock, unfit


def _compiled(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        fix = f"for the text itself write {re.escape(pattern)}; in YAML put a pattern between single quotes"
        raise unfit(f"a regular expression ({error})", fix) from None
    return pattern


class Config(RewardBlock):
    """The answer has a form."""

    kind: Literal["regex"]
    pattern: Annotated[str, AfterValidator(_compiled)] = Field(
        min_length=1, description="of Python's `re`; begin with (?s) and `.` is a line end too, with (?i): any case"
    )
    where: Literal["anywhere", "start", "whole"] = Field("anywhere", description="which part of the answer matches it")


def score(answers: Sequence[Answer], config: Config) -> list[float]:
    """1.0 or 0.0 an answer."""
    pattern = re.compile(config.pattern)
    match = {"anywhere": pattern.search, "start": pattern.match, "whole": pattern.fullmatch}[config.where]
    return [float(match(answer.text) is not None) for answer in answers]
