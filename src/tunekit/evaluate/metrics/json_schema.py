"""The answer is JSON that a JSON Schema allows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tunekit.core.errors import UserError
from tunekit.evaluate.extras import need
from tunekit.evaluate.metrics._shared import jsons

HIGHER_IS_BETTER = True
PACKAGE = "jsonschema"
NEEDS_REFERENCE = False


class Config(BaseModel):
    """Options of the metric."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inline: dict[str, Any] | bool | None = Field(default=None, alias="schema", description="the schema itself")
    path: Path | None = Field(default=None, description="or a JSON file that holds it")

    @model_validator(mode="after")
    def _one(self) -> Config:
        if (self.inline is None) == (self.path is None):
            raise ValueError("give either schema or path")
        return self


def check(references: Sequence[Sequence[str]], config: Config) -> None:
    """Reads the schema.

    Raises:
        UserError: jsonschema is not installed, or the schema cannot be read, or is none.
    """
    _validator(config)


def score(predictions: Sequence[str], references: Sequence[Sequence[str]], config: Config) -> list[float]:
    """1.0 for each answer that the schema allows, else 0.0; references are not read.

    Raises:
        UserError: jsonschema is not installed, or the schema cannot be read, is none, or refers to another file.
    """
    validator = _validator(config)
    unresolvable = need("referencing.exceptions", "eval", "metric 'json_schema'").Unresolvable
    try:
        return [_allowed(prediction, validator) for prediction in predictions]
    except unresolvable as error:
        raise UserError(
            f"the JSON Schema refers to what it does not hold: {error}", fix="put it under $defs of the schema itself"
        ) from error


def _validator(config: Config) -> Any:
    what = "metric 'json_schema'"
    library = need("jsonschema", "eval", what)
    schema: Any = config.inline
    if config.path is not None:
        try:
            schema = jsons.read(config.path.read_text(encoding="utf-8"), jsons.plain_number)
        except (OSError, ValueError) as error:
            raise UserError(f"the JSON Schema cannot be read: {error}", where=str(config.path)) from error
    kind = library.validators.validator_for(schema, default=library.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except library.SchemaError as error:
        where = "/".join(map(str, error.absolute_path)) or "top"
        raise UserError(f"no JSON Schema: at {where}: {error.message}", where=str(config.path or "")) from error
    # an empty registry, or jsonschema would fetch what a schema refers to from the network
    return kind(schema, registry=need("referencing", "eval", what).Registry())


def _allowed(text: str, validator: Any) -> float:
    try:
        return float(validator.is_valid(jsons.read(text, jsons.plain_number)))
    except (ValueError, RecursionError):
        return 0.0
