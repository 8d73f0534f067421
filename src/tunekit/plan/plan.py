"""The plan: a frozen value, saved as JSON. It is the only thing that crosses a process boundary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator, model_validator

import tunekit
from tunekit.core.errors import UserError, first_line
from tunekit.core.files import sha256_json, write_json
from tunekit.plan.hardware import Hardware
from tunekit.recipe.kinds import Kinds, material_of, recipe_type
from tunekit.recipe.schema import Block, Recipe


class Plan(Block):
    """A recipe with everything resolved that does not depend on the rows.

    ``examples_per_step`` = ``processes`` x ``micro_batch_size`` x ``accumulation`` is the recipe's global batch.
    """

    tunekit: str = tunekit.__version__
    recipe: SerializeAsAny[Recipe]
    recipe_folder: str = Field(description="where relative data paths start, relative to the working directory")
    run_dir: str
    hardware: Hardware
    precision: Literal["fp32", "bf16", "fp16"]
    weights_dtype: Literal["float32", "bfloat16", "float16"]
    processes: int
    micro_batch_size: int
    accumulation: int
    threads: int
    kernels: Literal["none", "liger"] = "none"
    compiled: bool | None = Field(None, description="whether torch compiles the model; known once it is loaded")

    @field_validator("recipe", mode="before")
    @classmethod
    def _typed_recipe(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, dict):
            wanted = recipe_type(str(value.get("method")), Kinds.of(value))
            return wanted.model_validate_json(json.dumps(value))
        return value

    @property
    def method(self) -> str:
        """The training method."""
        return self.recipe.method

    @property
    def examples_per_step(self) -> int:
        """The global batch in examples."""
        return self.processes * self.micro_batch_size * self.accumulation

    @property
    def arithmetic(self) -> str:
        """The type that forward passes compute in, by torch's name."""
        return {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[self.precision]

    @property
    def base_is(self) -> str:
        """What the base of the evaluation is, in words, where it is not the model itself; else empty.

        A method that goes on from an adapter's answers is compared with what that adapter had learnt.
        """
        start = getattr(self.recipe.adapter_block, "start", None)
        return f"the policy as it began, with the adapter {start}" if start and self._goes_on else ""

    @property
    def _goes_on(self) -> bool:
        return material_of(self.method) != "texts"

    @model_validator(mode="after")
    def _asked_for(self, info: ValidationInfo) -> Plan:
        """A plan says every default of its method; one that is read again does not count as asked for."""
        if info.mode == "json":
            options = self.recipe.options
            fields = type(options).model_fields
            options.model_fields_set.difference_update(
                name for name, field in fields.items() if getattr(options, name) == field.default
            )
        return self

    @property
    def hash(self) -> str:
        """Identifies the plan, whatever machine and folder it runs in."""
        value = self.model_dump(mode="json", exclude={"run_dir", "hardware", "threads", "recipe_folder"})
        value["recipe"].pop("output", None)
        return sha256_json(value)

    def save(self, path: Path) -> None:
        """Writes the plan as JSON, atomically."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Reads a saved plan.

        Raises:
            UserError: the file is missing or no plan of this version.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise UserError(f"no plan to read: {error.strerror}", where=str(path)) from None
        except ValueError as error:
            raise UserError("not a plan of this version of tunekit", where=str(path), fix=first_line(error)) from None
