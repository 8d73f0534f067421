"""A Python function of yours, called as TRL calls reward functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from tunekit.rl.contract import Answer
from tunekit.rl.rewards._shared.block import RewardBlock, unfit
from tunekit.rl.rewards._shared.places import find
from tunekit.rl.rewards._shared.users import UsersFunction

_FORM = re.compile(r"(?s)(?P<file>.+\.py):(?P<name>[^\W\d]\w*)\Z")


def _formed(text: str) -> str:
    if not _FORM.match(text):
        file = re.split(r"\.py|:", text)[0] or "my_rewards"
        name = text.rpartition(":")[2] if ":" in text else ""
        example = f"{file}.py:{name if name.isidentifier() else 'name_of_the_function'}"
        raise unfit("of the form `path/to/file.py:name`", f"for example `function: {example}`")
    return text


class Config(RewardBlock):
    """A Python function of yours."""

    kind: Literal["function"]
    function: Annotated[str, AfterValidator(_formed)] = Field(
        description="path/to/file.py:name; called with lists: prompts, completions, and the rows' own columns"
    )


def default_name(config: Config) -> str:
    """The function's own."""
    return config.function.rpartition(":")[2]


def open(config: Config, folder: Path) -> Callable[[Sequence[Answer]], list[float | None]]:
    """Runs the file, and takes the function out of it.

    Raises:
        UserError: no such file or function, or a file that cannot be run.
    """
    file, _, name = config.function.rpartition(":")
    fix = f"write it, with `def {name}(completions, **columns):` in it, or give its path from the recipe's folder"
    return UsersFunction(find(file, folder, "file", fix), name)
