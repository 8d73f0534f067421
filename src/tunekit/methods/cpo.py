"""Contrastive preference optimization (CPO): DPO without a reference, and the chosen answer's likelihood."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tunekit.recipe.schema import Block, Recipe
from tunekit.rl import starters
from tunekit.rl.pair_options import unused_by
from tunekit.rl.unused import refuse_unused

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tunekit.plan.plan import Plan
    from tunekit.rl.pairs import PairTrainer

ISOLATED = True
MATERIAL = "pairs"
RATE_SHARE = 0.05

RECIPE = starters.pairs(
    "cpo",
    "Contrastive preference optimization",
    """\
  beta: 0.1
  nll_weight: 1.0                 # of the chosen answer's likelihood
""",
    rate="5e-4",
)
"""What `tunekit init cpo` writes."""


class Config(Block):
    """The `cpo:` block."""

    beta: float = Field(0.1, gt=0, le=100, description="scale of the log-probabilities")
    loss: Literal["sigmoid", "hinge"] = Field("sigmoid", description="of the margin; hinge is SLiC-HF's")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="share of pairs whose order is thought wrong")
    nll_weight: float = Field(1.0, ge=0, description="weight of the chosen answer's likelihood")

    @property
    def name(self) -> str:
        """What the loss is called among those of pairs."""
        return "cpo" if self.loss == "sigmoid" else "cpo_hinge"


def check(recipe: Recipe, folder: Path) -> None:
    """Whether what is set means something to the loss.

    Raises:
        UserError: it does not.
    """
    block: Config = recipe.options
    refuse_unused(recipe, dict.fromkeys(unused_by([block.name]), f"the loss {block.loss}"))


def build(
    plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Any, evaluation: Any, staging: Path
) -> PairTrainer:
    """The trainer: the mean loss of the global batch's pairs (arXiv 2401.08417); there is no reference model."""
    from tunekit.rl.pair_losses import PAIR_LOSSES, implicit_rewards
    from tunekit.rl.pair_options import PairOptions
    from tunekit.rl.pairs import pair_trainer

    block: Config = plan.recipe.options
    options = PairOptions(beta=block.beta, label_smoothing=block.label_smoothing, nll_weight=block.nll_weight)
    loss = PAIR_LOSSES[block.name]
    return pair_trainer(
        plan,
        model,
        tokenizer,
        train,
        evaluation,
        staging,
        loss=lambda pairs: loss(pairs, options),
        rewards=lambda pairs: implicit_rewards(pairs, block.beta),
    )
