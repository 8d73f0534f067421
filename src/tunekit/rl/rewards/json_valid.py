"""1 where the answer is JSON, and of a schema where one is given, else 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tunekit.core.registry import METRICS
from tunekit.rl.contract import Answer
from tunekit.rl.rewards._shared.block import RewardBlock
from tunekit.rl.rewards._shared.places import find


class Config(RewardBlock):
    """The answer is JSON and nothing else."""

    kind: Literal["json_valid"]
    json_schema: dict[str, Any] | str | None = Field(
        None, description="JSON Schema that it keeps to: the schema itself, or a file that holds it"
    )


def open(config: Config, folder: Path) -> Callable[[Sequence[Answer]], list[float]]:
    """1.0 or 0.0 an answer.

    Raises:
        UserError: the schema cannot be read or is none, or jsonschema is not installed.
    """
    schema = config.json_schema
    metric = METRICS.load("json_valid" if schema is None else "json_schema")
    options: dict[str, Any] = {}
    if isinstance(schema, str):
        options = {"path": find(schema, folder, "JSON Schema", "give its path from the recipe's folder")}
    elif schema is not None:
        options = {"schema": schema}
    wanted = metric.Config(**options)
    if schema is not None:
        metric.check((), wanted)
    return lambda answers: list(metric.score([answer.text for answer in answers], (), wanted))
