"""Run folders of methods that learn from preferences and rewards, with numbers made up by hand."""

import json

from runs_for_tests import make_run

RL = {
    "reward": 0.5, "reward/exact_match": 0.25, "reward/format": 1.0, "reward_spread": 0.2, "answer_tokens": 87.0,
    "ended_share": 0.9375, "kl": 2.5, "kl_price": 0.05, "approx_kl": 0.01, "clip_share": 0.125, "entropy": 0.75,
    "explained_variance": -0.25, "value_loss": 0.375, "value_clip_share": 0.0,
}  # fmt: skip
RL_HELD_OUT = {
    "reward": 0.625, "reward/exact_match": 0.5, "reward/format": 0.875, "answer_tokens": 64.0, "ended_share": 1.0,
}  # fmt: skip
PAIRS = {
    "reward_accuracy": 0.75, "reward_margin": 1.5, "reward_chosen": 0.5, "reward_rejected": -1.0,
    "logps_chosen": -11.0, "logps_rejected": -60.0,
}  # fmt: skip
JUDGED = {"reward_good": 0.5, "reward_bad": -1.25, "reward_margin": 1.75, "kl": -4.0}


def lines_of(values, held_out=None, steps=4):
    """Training lines, and after the last the held-out one: each value grows by a thousandth a step."""
    lines = []
    for step in range(1, steps + 1):
        grown = {key: value + (step - steps) / 1000 for key, value in values.items()}
        lines.append({"step": step, "loss": 1.0 / step, "learning_rate": 1e-4, "tokens_per_second": 1200.0, **grown})
    held_out = values if held_out is None else held_out
    return [*lines, {"step": steps, "eval_loss": 0.25, **{f"eval_{key}": value for key, value in held_out.items()}}]


def answer(step, text="Paris", **changes):
    """A line of rollouts.jsonl."""
    line = {
        "step": step, "prompt": f"Capital of France? ({step})", "reference": "Paris.", "answer": text, "ended": True,
        "tokens": 3, "reward": 0.5, "parts": {"exact_match": 0.25, "format": 1.0}, "kl": 1.5,
    }  # fmt: skip
    return line | changes


def reward_run(path, metrics, rollouts=None, **changes):
    """A run folder with these lines of metrics and of rollouts; lines that are text are written as they are."""
    folder = make_run(path, **({"method": "grpo"} | changes))
    for place, lines in ((folder.metrics, metrics), (folder.rollouts, rollouts)):
        if lines is not None:
            place.write_text(
                "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines), encoding="utf-8"
            )
    return folder
