"""Options of the command line as keys of a recipe, and what is wrong with them in the words that the user typed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tunekit.core.errors import Problem, UserError, raise_all
from tunekit.recipe.document import Document, override, parse

PROOF = {
    "calibration.data": "--calib",
    "proof.data": "--data",
    "proof.max_ppl_increase": "--max-ppl-increase",
    "proof.max_score_loss": "--max-score-loss",
}
"""Keys that all ways of making a model smaller share."""


def document(model: str, named: Mapping[str, Any], overrides: Sequence[str] = ()) -> Document:
    """A recipe of options alone.

    Args:
        model: what is made smaller.
        named: values by the dotted names of their keys.
        overrides: of ``--set``; they go before.

    Raises:
        UserError: an override is wrong.
    """
    text = f"model: {json.dumps(model)}\n"
    return override(parse(text, "options"), [*assigned(named), *overrides])


def assigned(named: Mapping[str, Any]) -> list[str]:
    """Values as assignments that a document is overridden by; those that are not given are left out."""
    return [f"{key}={json.dumps(value)}" for key, value in named.items() if value not in (None, [])]


@contextmanager
def in_words_of(options: Mapping[str, str], overrides: Sequence[str] = ()) -> Iterator[None]:
    """Has errors of the block name options in place of keys, but those keys that an override set.

    Args:
        options: by the dotted names of their keys.
        overrides: of ``--set``.

    Raises:
        UserError: what the block raised.
    """
    keys = [one.partition("=")[0] for one in overrides]
    told = {key: option for key, option in options.items() if not any(_above(each, key) for each in keys)}
    try:
        yield
    except UserError as error:
        raise_all(UserError, [_in_words(problem, told) for problem in error.problems])


def _above(key: str, other: str) -> bool:
    return f"{other}.".startswith(f"{key}.")


def _in_words(problem: Problem, options: Mapping[str, str]) -> Problem:
    where = problem.where.removeprefix("--set ") if problem.where.startswith("--set ") else ""
    for key, option in sorted(options.items(), key=lambda pair: -len(pair[0])):  # the one that says most goes first
        if problem.what == f"unknown key '{key}'":
            return Problem(f"{option} is no option here", option, "leave it out")
        if problem.what == f"missing key '{key}'":
            return Problem(f"{option} is missing", option)
        if where == key or f"'{key}'" in problem.what:
            fix = problem.fix.replace(f"`{key}`", option).replace(", without quotes", "")
            return Problem(problem.what.replace(f"'{key}'", option), option, fix)
    return problem
