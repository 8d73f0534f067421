"""Supervised fine-tuning on conversations, instructions or prompt-completion pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.recipe.schema import Block

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tunekit.plan.plan import Plan
    from tunekit.train.causal import CausalTrainer

ISOLATED = True
"""Packed examples never see each other."""

RECIPE = """\
# Supervised fine-tuning. It works as it is: an embedded model on embedded data, offline, on a CPU.
# Every key: docs/recipe.md, or `tunekit schema`. Any key can be overridden: --set train.learning_rate=1e-4
method: sft

model:
  name: builtin:tiny              # a Hub id such as Qwen/Qwen3-0.6B, a local folder, or builtin:<name>

adapter:                          # leave this block out for full fine-tuning
  kind: lora
  r: 16
  alpha: 32
  targets: all-linear

data:
  train:
    - path: builtin:instructions  # your file, folder, glob, or Hub data set: json, jsonl, csv, tsv, parquet, ...
      format: auto                # or chat, sharegpt, prompt_completion, alpaca, question_answer, text
  eval: {fraction: 0.05}          # held out, never trained; or a list of sources like train
  max_length: 128                 # longest example in tokens; 2048 is usual for real models
  overlong: truncate              # truncate | drop | error
  loss_on: assistant              # assistant | last_turn | all

train:
  epochs: 1                       # or max_steps
  batch_size: 32                  # GLOBAL, in examples; how it is split over devices is derived
  learning_rate: 2e-3             # 2e-4 is usual for LoRA on real models, 1e-5 to 2e-5 for full fine-tuning
  warmup: 0.05                    # steps, or a fraction of the run
  seed: 42

eval:
  every: 0.25                     # evaluation loss each quarter of the run
  generate: true                  # answer the held-out prompts too, before and after, and compare
  metrics: [exact_match]
  max_new_tokens: 32
  limit: 100
"""
"""What `tunekit init sft` writes."""


class Config(Block):
    """The `sft:` block. What sft needs is in the shared blocks."""


def build(
    plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Any, evaluation: Any, staging: Path
) -> CausalTrainer:
    """The trainer: cross-entropy on the trained tokens, a mean over those of the global batch, as TRL's SFTTrainer."""
    from tunekit.train.causal import causal_trainer

    return causal_trainer(plan, model, tokenizer, train, evaluation, staging)
