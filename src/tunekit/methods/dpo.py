"""Direct preference optimization (DPO) and its relatives, on pairs of a chosen and a rejected answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from tunekit.core.registry import did_you_mean
from tunekit.recipe.schema import Block, Recipe
from tunekit.rl import starters
from tunekit.rl.other_reference import check_reference
from tunekit.rl.pair_options import NOT_OF_PAIRS, PairOptions, honoured_by, unused_by
from tunekit.rl.unused import refuse_unused

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tunekit.plan.plan import Plan
    from tunekit.rl.pairs import PairTrainer

ISOLATED = True
MATERIAL = "pairs"
RATE_SHARE = 0.05
LossName = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip

RECIPE = starters.pairs(
    "dpo",
    "Direct preference optimization",
    """\
  beta: 0.1                       # smaller: further from the reference
  loss: sigmoid                   # or hinge, ipo, robust, apo_zero, ...; or a mix: {sigmoid: 1.0, sft: 0.2}
""",
    rate="5e-4",
)
"""What `tunekit init dpo` writes."""


class Config(Block):
    """The `dpo:` block."""

    beta: float = Field(0.1, gt=0, le=100, description="price of leaving the reference; in ipo its inverse margin")
    loss: LossName | dict[str, float] = Field(
        "sigmoid", description="the loss, or several with their weights: {sigmoid: 1.0, sft: 0.2}"
    )
    reference: str = Field(
        "initial",
        min_length=1,
        description="what the policy is held to: initial, itself as it begins; base, the model without its adapter; or "
        "another model: a Hub id, a run, or the folder of a model or adapter",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="share of pairs whose order is thought wrong")
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = Field(
        "reverse_kl", description="what holds the policy to its reference (f-DPO, arXiv 2309.16240)"
    )
    alpha: float = Field(0.5, gt=0, le=10, description="of the alpha divergence")
    margin: float = Field(0.0, ge=0, description="reward margin asked for, times the data's own margin (ODPO)")
    tau: float = Field(0.05, gt=0, description="temperature of discopop")
    ld_alpha: float | None = Field(
        None,
        ge=0,
        le=1,
        description="weight of an answer's tokens beyond the shorter one's length (LD-DPO); default: 1",
    )
    use_weighting: bool = Field(
        False, description="a pair counts the more, the likelier the policy is to give its answers (WPO)"
    )

    @field_validator("loss")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if isinstance(value, dict):
            known = get_args(LossName)
            hints = [f"there is no '{name}': {did_you_mean(name, known)}" for name in value if name not in known]
            if hints or not value or any(weight <= 0 for weight in value.values()):
                raise ValueError("; ".join(["losses, each with a weight above 0", *hints]))
        return value

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if "exo_pair" in self.weights and not self.label_smoothing:
            raise ValueError("a block in which exo_pair has a label_smoothing above 0, 0.001 for example")
        if self.use_weighting and (others := [name for name in NOT_OF_PAIRS if name in self.weights]):
            raise ValueError(f"a block without use_weighting, which weighs pairs, beside a loss of none ({others[0]})")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """The losses with their weights."""
        return self.loss if isinstance(self.loss, dict) else {self.loss: 1.0}

    @property
    def numbers(self) -> PairOptions:
        """What the losses go by."""
        names = ("beta", "label_smoothing", "divergence", "alpha", "margin", "tau")
        return PairOptions(**{name: getattr(self, name) for name in names})


def check(recipe: Recipe, folder: Path) -> None:
    """Whether the reference is there, and what is set means something to the losses.

    Raises:
        UserError: it is not, or does not.
    """
    block: Config = recipe.options
    losses = f"the loss {', '.join(block.weights)}"
    unused = dict.fromkeys(unused_by(block.weights), losses)
    if block.divergence != "alpha":
        unused = {"alpha": f"the divergence {block.divergence}"} | unused
    if "reference" in unused:
        unused["ld_alpha"] = losses
    refuse_unused(recipe, unused)
    check_reference(recipe, folder)


def build(
    plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Any, evaluation: Any, staging: Path
) -> PairTrainer:
    """The trainer: the mean loss of the global batch's pairs, as TRL's DPOTrainer."""
    from tunekit.rl.pair_losses import implicit_rewards, mixed
    from tunekit.rl.pairs import pair_trainer

    block: Config = plan.recipe.options
    options = block.numbers
    return pair_trainer(
        plan,
        model,
        tokenizer,
        train,
        evaluation,
        staging,
        loss=lambda pairs: mixed(pairs, options, block.weights),
        rewards=lambda pairs: implicit_rewards(pairs, block.beta),
        reference=block.reference if "reference" in honoured_by(block.weights) else None,
        tail_weight=block.ld_alpha,
        weighted=block.use_weighting,
    )
