"""The recipes that `tunekit init` writes for preferences and rewards: alike but for the method's own block."""

from __future__ import annotations

_HEAD = """\
# {title}. It works as it is: an embedded model on embedded data, offline, on a CPU.
# Every key: docs/recipe.md, or `tunekit schema`. Any key can be overridden: --set train.learning_rate=1e-4
method: {method}

model:
  name: builtin:tiny              # {model}

adapter:                          # leave this block out for full fine-tuning
  kind: lora
  r: 16
  alpha: 32

data:
  train:
"""
_PAIRS = """\
    - path: builtin:preferences   # {data}
      format: auto
  eval: {{fraction: 0.1}}           # held out, never trained; rows with the same prompt stay together
  max_length: 128                 # prompt and answer, in tokens; 2048 is usual for real models

{method}:
{block}
train:
  epochs: 1
  batch_size: 16                  # GLOBAL, in {unit}
  learning_rate: {rate}
  warmup: 0.1
  seed: 42

eval:
  every: 0.25
"""
_PROMPTS = """\
    - path: builtin:instructions  # prompts, with the right answers where a reward needs them
      format: auto
      limit: 640
  eval: {{count: 100}}              # held out, never trained
  max_length: 128                 # longest prompt in tokens

{method}:
  reward:                         # summed by weight
    - {{kind: regex, pattern: "[.!?。！？]$", name: sentence}}   # 1 for an answer that ends as a sentence does
    - {{kind: length, max: 16, weight: 0.5}}                    # and is short; in tokens
    # - kind: exact_match           # where the data has right answers, and the model finds some of them
    # - {{function: my_rewards.py:score}}, {{model: runs/reward}}, ...
{block}
train:
  epochs: 1
  batch_size: {batch_size:<18}# GLOBAL, in prompts
  learning_rate: 3e-4
  warmup: 0.05
  log_every: 1
  seed: 42

eval:
  every: 0.25
"""


def pairs(
    method: str,
    title: str,
    block: str,
    *,
    rate: str,
    model: str = "the model to be aligned: mostly one that was tuned on instructions",
    data: str = "chosen and rejected answers: yours in any of the forms of docs/data.md",
    unit: str = "pairs",
) -> str:
    """A recipe on pairs of answers.

    Args:
        method: its name.
        title: in words.
        block: the lines of its block, without its name.
        rate: the learning rate.
        model: what the model is, in words.
        data: what the data is.
        unit: what a batch is counted in.
    """
    return (_HEAD + _PAIRS).format(
        method=method, title=title, block=block, rate=rate, model=model, data=data, unit=unit
    )


def prompts(method: str, title: str, block: str, *, batch_size: int = 8) -> str:
    """A recipe on prompts that are answered and rewarded; arguments as of `pairs`, the block's without its rewards."""
    model = "mostly a model that was tuned on instructions"
    return (_HEAD + _PROMPTS).format(method=method, title=title, block=block, batch_size=batch_size, model=model)
