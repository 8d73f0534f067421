"""Distillation: a student learns from a teacher model, on the data's answers, its own, or the teacher's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tunekit.core.errors import Problem, UserError, raise_all
from tunekit.core.types import Material
from tunekit.recipe.schema import Block, Recipe
from tunekit.rl.unused import refuse_unused

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tunekit.core.progress import Screen
    from tunekit.data.prepare import Prepared
    from tunekit.plan.plan import Plan
    from tunekit.rl.teaching import TaughtTrainer
    from tunekit.train.inputs import Inputs

ISOLATED = True

RECIPE = """\
# Distillation: a student learns from a teacher. It works as it is: embedded models on embedded data, offline, on a CPU.
# Every key: docs/recipe.md, or `tunekit schema`. Any key can be overridden: --set train.learning_rate=1e-4
method: distill

model:
  name: builtin:random?layers=2&hidden=96&heads=3   # the student: mostly a smaller model of the teacher's family

distill:
  teacher: builtin:tiny           # a run's folder, an adapter's or a model's, or a Hub id; of the same vocabulary
  mode: offline                   # on the data's answers; onpolicy: the student's own; sequence: the teacher's
  divergence: forward_kl          # forward_kl | reverse_kl | jsd

data:
  train:
    - path: builtin:instructions  # onpolicy and sequence need prompts alone
  eval: {count: 100}              # held out, never trained
  max_length: 128                 # longest example in tokens

train:
  epochs: 1
  batch_size: 32                  # GLOBAL, in examples
  learning_rate: 3e-3             # of a student of random weights; 1e-5 to 1e-4 for one that was pretrained
  warmup: 0.05
  seed: 42

eval:
  every: 0.25                     # divergence from the teacher on the held-out rows
  generate: true                  # teacher, base and tuned student answer the held-out prompts
  metrics: [exact_match]
  max_new_tokens: 32
  limit: 100
"""
"""What `tunekit init distill` writes."""

_ONLY = {
    "divergence": ("offline", "onpolicy"),
    "beta": ("offline", "onpolicy"),
    "temperature": ("offline", "onpolicy"),
    "nll_weight": ("offline",),
    "student_share": ("onpolicy",),
    "max_new_tokens": ("onpolicy", "sequence"),
    "sampling_temperature": ("onpolicy", "sequence"),
    "rollout_batch_size": ("onpolicy", "sequence"),
}
"""The modes that an option is for."""


class Config(Block):
    """The `distill:` block."""

    teacher: str = Field(
        min_length=1,
        description="a run's folder, an adapter's or a model's, a Hub id or builtin:; its tokens the student's",
    )
    mode: Literal["offline", "onpolicy", "sequence"] = Field(
        "offline", description="on the data's answers, the student's own (GKD, arXiv 2306.13649), or the teacher's"
    )
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = Field(
        "forward_kl", description="KL(teacher || student), KL(student || teacher), or what lies between them"
    )
    beta: float = Field(0.5, gt=0, lt=1, description="of jsd: towards 0 forward_kl, towards 1 reverse_kl")
    temperature: float = Field(
        1.0, gt=0, le=100, description="divides both sides' logits; the loss is not multiplied by its square"
    )
    nll_weight: float = Field(0.0, ge=0, le=1000, description="of the data's own cross-entropy beside it (offline)")
    student_share: float = Field(
        1.0, gt=0, le=1, description="share of steps on the student's own answers (onpolicy); the others on the data's"
    )
    max_new_tokens: int = Field(256, ge=1, le=65_536, description="longest answer that is written, in tokens")
    sampling_temperature: float | None = Field(
        None, ge=0, le=10, description="of the answers; 0: the likeliest tokens; default: 1 in onpolicy, 0 in sequence"
    )
    rollout_batch_size: int = Field(64, ge=1, le=65_536, description="answers that are written side by side")

    @property
    def drawn_at(self) -> float:
        """The temperature that answers are drawn with."""
        if self.sampling_temperature is None:
            return 1.0 if self.mode == "onpolicy" else 0.0
        return self.sampling_temperature


def material(options: Config) -> Material:
    """Prompts where no answer of the data is looked at, else texts."""
    alone = options.mode == "sequence" or (options.mode == "onpolicy" and options.student_share == 1)
    return "prompts" if alone else "texts"


def check(recipe: Recipe, folder: Path) -> None:
    """Whether there is such a teacher, of the student's vocabulary, and the other keys suit the mode.

    Raises:
        UserError: all that is wrong.
        MachineError: the teacher's files are not as they were saved, or cannot be reached.
    """
    from tunekit.rl.teachers import check_teacher

    block: Config = recipe.options
    unused = {name: f"mode: {block.mode}" for name, modes in _ONLY.items() if block.mode not in modes}
    if "beta" not in unused and block.divergence != "jsd":
        unused["beta"] = f"divergence: {block.divergence}, only to jsd"
    refuse_unused(recipe, unused)
    problems = []
    if block.mode == "onpolicy" and recipe.data.packing:
        problems.append(Problem("answers that are still to be drawn cannot be packed", "data.packing", "leave it out"))
    if block.mode != "sequence" and recipe.train.extra.get("label_smoothing_factor"):
        where = "train.extra.label_smoothing_factor"
        problems.append(Problem("the teacher's distributions are not smoothed", where, "leave it out"))
    raise_all(UserError, problems)
    check_teacher(recipe, folder)


def prepare(inputs: Inputs, prepared: Prepared, screen: Screen, folder: Path) -> Prepared:
    """The prepared data as the mode trains on it: in ``sequence`` with the teacher's answers.

    Raises:
        UserError, MachineError: the teacher cannot be loaded.
    """
    if inputs.recipe.options.mode != "sequence":
        return prepared
    from tunekit.rl.teacher_answers import with_teacher_answers

    return with_teacher_answers(inputs, prepared, screen, folder)


def build(
    plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Any, evaluation: Any, staging: Path
) -> TaughtTrainer:
    """The trainer: the divergence from the teacher at each trained token, a mean over those of the global batch."""
    from tunekit.rl.teaching import teaching_trainer

    return teaching_trainer(plan, model, tokenizer, train, evaluation, staging)
