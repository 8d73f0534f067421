"""PPO as TRL last had it: one run of its PPOTrainer on prompts and models given in a file, as the oracle for tunekit's.

TRL 1.12.0 is the last release with a PPOTrainer (trl.experimental.ppo); 1.13 has none. It needs an environment of its
own, with Python 3.11:

    python3.11 -m venv ppo_venv
    ppo_venv/bin/pip install -r benchmarks/ppo_reference.txt

    ppo_venv/bin/python benchmarks/ppo_reference.py CONFIG.json RESULT.json

Prompts come as token ids, so that both sides train on the same ones. The keys of CONFIG, with the defaults of those
that may be left out (they are PPOConfig's own, where it has them):

- policy, reward: folders; the reward model is an AutoModelForSequenceClassification with num_labels=1 over the same
  vocabulary. value: the folder that the value model starts from, the reward model's unless given.
- train, heldout: jsonl files with rows {"ids": [...]}.
- stop_id: ends an answer and is part of it; pad_id: the policy's pad_token_id unless given. Neither may be the other.
- start: the folder that the KL is told from, the policy's unless given.
- lr, episodes (0: measure the policy as it is, and train nothing), batch_size; mini_batches 1, ppo_epochs 4, schedule
  "linear" (the learning rate is stepped once a batch), warmup_steps 0, weight_decay 0, optimizer "adamw_torch".
- response_length 53, temperature 0.7, kl_coef 0.05, kl_estimator "k1", gamma 1, lam 0.95, cliprange 0.2,
  cliprange_value 0.2, vf_coef 0.1, whiten false, missing_eos_penalty null.
- seed 0, threads 1, heldout_samples 4 (answers sampled per held-out prompt).
- record false: the result also holds every batch's prompts and answers, as scored. save null: a folder for the
  policy and the value model after training. One batch with ppo_epochs 1 and mini_batches 1, recorded and saved, is
  one step that another implementation can take on the very same answers.

RESULT holds, before and after training: the mean reward of sampled and of greedy answers to the held-out prompts, its
standard error over the prompts, mean length, share that stopped, and the KL to the policy before training in nats per
answer (the sum over its tokens, at the temperature; of sampled answers it estimates the KL). An answer is cut after
its first stop token and before its first pad token, and scored at its last token; no penalty is in these rewards.
Seconds are those of trainer.train() alone. The log is TRL's own, a row per batch.

What TRL does that its names do not say:

- It clips no gradients: max_grad_norm is not read.
- accumulate() counts micro-batches of the whole batch, so with gradient accumulation there is one optimizer step per
  epoch however many mini-batches are asked for, and one per micro-batch in the last batch of a pass over the prompts.
  Here a batch is one micro-batch: one step per mini-batch.
- The reward, with the missing-stop penalty, lands one place after an answer's last token when there is room, on the
  value after the stop token; on the last token only when the batch's longest answer ends there.
- Advantages are always whitened over the batch's answer tokens; `whiten` is about the rewards.
- The log-probabilities that ratios are taken against are those of generation, at the temperature; the KL too.
- missing_eos_penalty looks for the tokenizer's eos token, not for stop_token_id. Here both are stop_id.
- bf16 and gradient checkpointing are on unless turned off, and dropout is turned off in every model.
- The order of mini-batches comes from numpy's generator, which it does not seed; here it is.
- Fewer prompts than a batch make it wait for ever, since a ragged batch is dropped.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PrinterCallback,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer

DEFAULTS: dict[str, Any] = {
    "value": None, "start": None, "pad_id": None, "mini_batches": 1, "ppo_epochs": 4, "schedule": "linear",
    "warmup_steps": 0, "weight_decay": 0.0, "optimizer": "adamw_torch", "response_length": 53, "temperature": 0.7,
    "kl_coef": 0.05, "kl_estimator": "k1", "gamma": 1.0, "lam": 0.95, "cliprange": 0.2, "cliprange_value": 0.2,
    "vf_coef": 0.1, "whiten": False, "missing_eos_penalty": None, "seed": 0, "threads": 1, "heldout_samples": 4,
    "record": False, "save": None,
}  # fmt: skip
NEEDED = ("policy", "reward", "train", "heldout", "stop_id", "lr", "episodes", "batch_size")
EVAL_BATCH = 64

Ids = list[int]


def asked(path: Path) -> SimpleNamespace:
    """The configuration, complete."""
    given = json.loads(path.read_text(encoding="utf-8"))
    unknown = sorted(set(given) - set(DEFAULTS) - set(NEEDED))
    missing = [key for key in NEEDED if key not in given]
    if unknown or missing:
        sys.exit(f"{path}: unknown keys {unknown}, missing keys {missing}")
    return SimpleNamespace(**{**DEFAULTS, **given})


def prompts(path: str, c: SimpleNamespace) -> list[Ids]:
    """The prompts of a file; without pad or nothing in them."""
    rows = [json.loads(line)["ids"] for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not rows or not all(rows) or any(c.pad_id in row for row in rows):
        sys.exit(f"{path}: empty, or a prompt is empty or holds the pad token {c.pad_id}")
    return rows


def padded(rows: list[Ids], pad: int, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """``rows`` as one tensor with the mask of what is theirs, both of shape (rows, longest)."""
    longest = max(map(len, rows))
    fills = [[pad] * (longest - len(row)) for row in rows]
    ids = [fill + row if left else row + fill for row, fill in zip(rows, fills, strict=True)]
    masks = [[0] * len(f) + [1] * len(r) if left else [1] * len(r) + [0] * len(f) for r, f in zip(rows, fills)]
    return torch.tensor(ids), torch.tensor(masks)


def cut(answer: Ids, c: SimpleNamespace) -> Ids:
    """What counts of an answer: up to its first stop token, with it, and up to its first pad token, without it."""
    if c.stop_id in answer:
        answer = answer[: answer.index(c.stop_id) + 1]
    return answer[: answer.index(c.pad_id)] if c.pad_id in answer else answer


@torch.no_grad()
def answers(policy: Any, asks: list[Ids], c: SimpleNamespace, *, sample: bool) -> list[Ids]:
    """The policy's answer to every prompt."""
    how = {"temperature": c.temperature, "top_k": 0, "top_p": 1.0} if sample else {}
    config = GenerationConfig(
        max_new_tokens=c.response_length, eos_token_id=c.stop_id, pad_token_id=c.pad_id, do_sample=sample, **how
    )
    found: list[Ids] = []
    for start in range(0, len(asks), EVAL_BATCH):
        ids, mask = padded(asks[start : start + EVAL_BATCH], c.pad_id, left=True)
        made = policy.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        found += [cut(row, c) for row in made[:, ids.shape[1] :].tolist()]
    return found


@torch.no_grad()
def rewards(model: Any, asks: list[Ids], replies: list[Ids], c: SimpleNamespace) -> list[float]:
    """The reward model's score at the last token of prompt and answer."""
    found: list[float] = []
    both = [ask + reply for ask, reply in zip(asks, replies, strict=True)]
    for start in range(0, len(both), EVAL_BATCH):
        ids, mask = padded(both[start : start + EVAL_BATCH], c.pad_id, left=False)
        hidden = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        last = hidden[torch.arange(len(ids)), mask.sum(1) - 1]
        found += model.score(last).squeeze(-1).tolist()
    return found


@torch.no_grad()
def likelihoods(model: Any, asks: list[Ids], replies: list[Ids], c: SimpleNamespace) -> list[float]:
    """Log-probability of every answer at the temperature, in nats."""
    found: list[float] = []
    pairs = list(zip(asks, replies, strict=True))
    for start in range(0, len(pairs), EVAL_BATCH):
        some = pairs[start : start + EVAL_BATCH]
        ids, mask = padded([ask + reply for ask, reply in some], c.pad_id, left=False)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float() / c.temperature
        each = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        for row, (ask, reply) in zip(each.tolist(), some, strict=True):
            found.append(sum(row[len(ask) - 1 : len(ask) - 1 + len(reply)]))
    return found


def measured(policy: Any, before: Any, reward: Any, asks: list[Ids], c: SimpleNamespace) -> dict[str, Any]:
    """Reward, length, stops and KL of the policy's answers to ``asks``, sampled and greedy."""
    policy.eval()
    torch.manual_seed(c.seed + 1)
    found: dict[str, Any] = {}
    for kind, times in (("sampled", c.heldout_samples), ("greedy", 1)):
        many = [ask for ask in asks for _ in range(times)]
        replies = answers(policy, many, c, sample=kind == "sampled")
        scores = rewards(reward, many, replies, c)
        per_prompt = [statistics.fmean(scores[at : at + times]) for at in range(0, len(scores), times)]
        now, then = likelihoods(policy, many, replies, c), likelihoods(before, many, replies, c)
        found[kind] = {
            "reward": statistics.fmean(scores),
            "standard_error": statistics.stdev(per_prompt) / math.sqrt(len(per_prompt)) if len(asks) > 1 else None,
            "length": statistics.fmean(map(len, replies)),
            "stopped": statistics.fmean(c.stop_id in reply for reply in replies),
            "kl": statistics.fmean(a - b for a, b in zip(now, then, strict=True)),
        }
    return found


class Log(TrainerCallback):
    """Keeps the rows that the trainer logs."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        self.rows.append(dict(logs or {}))


class Record:
    """Collates prompts, and keeps what the reward model was asked about each: the rows of every batch as scored."""

    def __init__(self, c: SimpleNamespace) -> None:
        self.c = c
        self.asks: list[list[Ids]] = []
        self.rows: list[list[Ids]] = []

    def collate(self, rows: list[dict[str, Ids]]) -> dict[str, torch.Tensor]:
        self.asks.append([row["input_ids"] for row in rows])
        ids, mask = padded(self.asks[-1], self.c.pad_id, left=True)
        return {"input_ids": ids, "attention_mask": mask}

    def scored(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        # TRL hands over padded places as token 0, hence the mask and not the pad token.
        masks = kwargs["attention_mask"].bool()
        self.rows.append([ids[mask].tolist() for ids, mask in zip(kwargs["input_ids"], masks, strict=True)])

    def batches(self) -> list[list[dict[str, Ids]]]:
        # The loader reads one batch ahead: more prompts than rows.
        return [
            [{"prompt": ask, "answer": row[len(ask) :]} for ask, row in zip(asks, rows, strict=True)]
            for asks, rows in zip(self.asks, self.rows, strict=False)
        ]


def settings(c: SimpleNamespace, folder: str) -> PPOConfig:
    """The configuration in TRL's words; every default that would change the mathematics or write files is off."""
    return PPOConfig(
        output_dir=folder, use_cpu=True, bf16=False, fp16=False, gradient_checkpointing=False,
        report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True, num_sample_generations=0, seed=c.seed,
        per_device_train_batch_size=c.batch_size, gradient_accumulation_steps=1, num_mini_batches=c.mini_batches,
        local_rollout_forward_batch_size=c.batch_size, total_episodes=c.episodes, num_ppo_epochs=c.ppo_epochs,
        learning_rate=c.lr, lr_scheduler_type=c.schedule, warmup_steps=c.warmup_steps, weight_decay=c.weight_decay,
        optim=c.optimizer, response_length=c.response_length, temperature=c.temperature, stop_token_id=c.stop_id,
        kl_coef=c.kl_coef, kl_estimator=c.kl_estimator, gamma=c.gamma, lam=c.lam, cliprange=c.cliprange,
        cliprange_value=c.cliprange_value, vf_coef=c.vf_coef, whiten_rewards=c.whiten,
        missing_eos_penalty=c.missing_eos_penalty,
    )  # fmt: skip


def trained(c: SimpleNamespace, folder: str) -> dict[str, Any]:
    """The run, with the measurements before and after it."""
    policy = AutoModelForCausalLM.from_pretrained(c.policy, dtype=torch.float32)
    c.pad_id = policy.config.pad_token_id if c.pad_id is None else c.pad_id
    train, heldout = prompts(c.train, c), prompts(c.heldout, c)
    if c.pad_id is None or c.pad_id == c.stop_id or len(train) < c.batch_size or c.batch_size % c.mini_batches:
        sys.exit("there must be a pad_id other than stop_id, a batch of prompts, and equal mini-batches")
    before = AutoModelForCausalLM.from_pretrained(c.start or c.policy, dtype=torch.float32).eval()
    scorers = [c.reward, c.value or c.reward]
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(name, num_labels=1, dtype=torch.float32).eval()
        for name in scorers
    )
    # What a folder's generation_config.json asks for (top_k, penalties) would reach the rollouts.
    policy.generation_config = GenerationConfig(pad_token_id=c.pad_id)
    first = measured(policy, before, reward, heldout, c)
    if not c.episodes:
        return {"before": first}
    transformers.set_seed(c.seed)
    log, record = Log(), Record(c)
    trainer = PPOTrainer(
        args=settings(c, folder), processing_class=SimpleNamespace(pad_token_id=c.pad_id, eos_token_id=c.stop_id),
        model=policy, ref_model=before, reward_model=reward, value_model=value, data_collator=record.collate,
        train_dataset=Dataset.from_dict({"input_ids": train}), eval_dataset=Dataset.from_dict({"input_ids": heldout}),
        callbacks=[log],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    hook = reward.base_model.register_forward_pre_hook(record.scored, with_kwargs=True) if c.record else None
    wall, cpu = time.perf_counter(), time.process_time()
    trainer.train()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if hook is not None:
        hook.remove()
    if c.save:
        policy.save_pretrained(Path(c.save, "policy"))
        value.save_pretrained(Path(c.save, "value"))
    episodes = trainer.state.episode
    kl = [row["objective/kl"] for row in log.rows]
    return {
        "before": first, "after": measured(policy, before, reward, heldout, c),
        "episodes": episodes, "batches": len(kl), "seconds": wall, "cpu_seconds": cpu,
        "samples_per_second": episodes / wall, "samples_per_cpu_second": episodes / cpu,
        "kl_last_batch": kl[-1], "kl_mean": statistics.fmean(kl), "log": log.rows, "rollouts": record.batches(),
    }  # fmt: skip


def main() -> None:
    """Reads the configuration, runs, writes the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("result", type=Path)
    given = parser.parse_args()
    c = asked(given.config)
    torch.set_num_threads(c.threads)
    transformers.logging.set_verbosity_error()
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as folder:
        result = trained(c, folder)
    whole = {"versions": versions, "config": vars(c), **result}
    given.result.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    short = {key: value for key, value in result.items() if key not in ("log", "rollouts")}
    print(json.dumps(short, indent=1))


if __name__ == "__main__":
    main()
