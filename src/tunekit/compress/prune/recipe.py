"""What to prune, how, and how much it may cost, as one typed object."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, create_model

from tunekit.compress.recipe import CalibrationBlock, ProofBlock, proof_field
from tunekit.core.errors import Problem, UserError, raise_all
from tunekit.core.registry import PRUNERS, TASKS
from tunekit.evaluate.fewshot import FOLDER
from tunekit.exam.recipe import unknown
from tunekit.recipe import document as documents
from tunekit.recipe import load as loading
from tunekit.recipe.schema import Block


class PruneBase(Block):
    """A pruning; the options of its way stand beside these keys."""

    model: str = Field(min_length=1, description="run folder, adapter, model folder, Hub id, or builtin:<name>")
    revision: str | None = Field(None, description="branch, tag or commit of a Hub id")
    way: str = Field(description="magnitude, wanda, channels or depth")
    calibration: CalibrationBlock = Field(
        default_factory=lambda: CalibrationBlock(), description="text that is looked at"
    )
    proof: ProofBlock = Field(default_factory=lambda: ProofBlock(), description="what it is measured on")
    seed: int = Field(0, ge=0, description="of rows that are drawn")


def check(document: documents.Document) -> Any:
    """Turns a document into a pruning.

    Raises:
        UserError: all that is wrong with it; options of another way are named with those of this one.
    """
    way = str(document.value.get("way"))
    config = PRUNERS.load(way).Config
    refuse_foreign(way, document.value)
    loading.refuse(unknown(document, ("proof", "tasks"), TASKS))
    bases = (PruneBase, config)
    wanted_type: Any = create_model("Prune", __base__=bases, __doc__=PruneBase.__doc__, proof=proof_field())
    recipe, faults = loading.typed(document, wanted_type, dict(document.value), {FOLDER: Path()})
    loading.refuse(faults)
    assert recipe is not None
    return recipe


def refuse_foreign(way: str, given: Sequence[str] | dict[str, Any]) -> None:
    """Refuses options of other ways.

    Raises:
        UserError: each, with those that this way takes.
    """
    own = PRUNERS.load(way).Config.model_fields
    foreign = {name for other in PRUNERS.names for name in PRUNERS.load(other).Config.model_fields} - set(own)
    fix = f"it takes {' and '.join(f'--{name}' for name in own)}"
    raise_all(UserError, [Problem(f"--{name} is no option of {way}", f"--{name}", fix)
                          for name in sorted(foreign & set(given))])  # fmt: skip


def options(recipe: Any) -> Any:
    """The way's own ``Config`` within a pruning."""
    config = PRUNERS.load(recipe.way).Config
    return config(**{name: getattr(recipe, name) for name in config.model_fields if name in recipe.model_fields_set})
