"""A reward model: scores answers, the chosen one of a pair higher (Bradley-Terry); ppo, grpo and rloo take it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from tunekit.recipe.schema import Block
from tunekit.rl import starters

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tunekit.plan.plan import Plan
    from tunekit.rl.scores import ScoreTrainer

ISOLATED = True
MATERIAL = "pairs"
RATE_SHARE = 0.5
HEAD = "score"
"""The model gets one output in the place of its vocabulary."""

RECIPE = starters.pairs(
    "reward",
    "A reward model",
    """\
  centre: 0.01                    # keeps the scores around 0
""",
    rate="1e-3",
    model="the model that learns to judge",
)
"""What `tunekit init reward` writes."""


class Config(Block):
    """The `reward:` block."""

    centre: float = Field(
        0.0, ge=0, description="weight of the squared sum of a pair's scores, which keeps them around 0 (0.01 is usual)"
    )
    margins: bool = Field(True, description="ask for the data's own margin between the scores, where a row has one")


def build(
    plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Any, evaluation: Any, staging: Path
) -> ScoreTrainer:
    """The trainer: the mean loss of the global batch's pairs, as TRL's RewardTrainer."""
    from tunekit.rl.scores import score_trainer

    block: Config = plan.recipe.options
    return score_trainer(plan, model, tokenizer, train, evaluation, staging, centre=block.centre, margins=block.margins)
