"""What an adapter needs of the training data before it is trained, and what the finished artefact tells of its base."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import UserError
from tunekit.core.registry import ADAPTERS
from tunekit.data.collate import Collator
from tunekit.data.prepare import Prepared
from tunekit.model.artefact import base_facts
from tunekit.plan.plan import Plan
from tunekit.train.inputs import Inputs

if TYPE_CHECKING:
    import torch

BATCHES, EXAMPLES = 16, 4
"""A start from the data looks at so many batches of so many examples."""


def begin_from_data(model: Any, plan: Plan, inputs: Inputs, prepared: Prepared) -> None:
    """Gives an adapter the values that its kind finds in the data; the same in every process, and when resumed.

    Raises:
        UserError: the data is a stream, which is not read twice.
    """
    block = plan.recipe.adapter_block
    kind = ADAPTERS.load(block.kind)
    if not hasattr(kind, "initialise"):
        return
    if hasattr(kind, "tokenize"):
        block = kind.tokenize(block, inputs.tokenizer)

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        if inputs.stream is not None:
            raise UserError(
                f"'init: {getattr(block, 'init', block.kind)}' starts from the data, and a stream is read once",
                where="adapter.init",
                fix="leave data.streaming out, or take another init",
            )
        rows: Any = prepared.dataset("train")
        order = random.Random(plan.recipe.train.seed).sample(range(len(rows)), min(len(rows), BATCHES * EXAMPLES))
        collate = Collator(inputs.tokenizer.pad_token_id, with_mask=True)
        for start in range(0, len(order), EXAMPLES):
            batch = collate([rows[number] for number in order[start : start + EXAMPLES]])
            yield {name: batch[name] for name in ("input_ids", "labels", "attention_mask")}

    kind.initialise(model, block, batches())


def artefact_facts(plan: Plan) -> dict[str, Any]:
    """What the manifest of the run's model says of the base, and of how it was loaded."""
    quantize = plan.recipe.model.quantize
    return {
        "base": base_facts(plan.recipe.model, seed=plan.recipe.train.seed, dtype=plan.weights_dtype),
        "quantize": quantize.model_dump(mode="json") if quantize is not None else None,
    }
