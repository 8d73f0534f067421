"""What a policy earns on the held-out prompts, and what is shown of its answers while it trains."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tunekit.core.progress import Screen, Silent
from tunekit.evaluate.choices import results
from tunekit.evaluate.contract import Prompt, TaskResult
from tunekit.evaluate.local import stop_tokens
from tunekit.evaluate.run import rows_of
from tunekit.evaluate.scoring import Scores
from tunekit.rl.drawing import drawn_of, engine_of
from tunekit.rl.rollouts import EACH, Drawn, Rollout, asked, group_of
from tunekit.runs.metrics import MetricsWriter

if TYPE_CHECKING:
    from tunekit.rl.policy import PolicyTrainer

REPORTED = frozenset({
    "reward", "reward_spread", "answer_tokens", "ended_share", "kl", "kl_price", "approx_kl", "clip_share", "entropy",
    "explained_variance", "value_loss", "value_clip_share",
})  # fmt: skip
SHOWN = 4
"""Answers of each window that are written to ``rollouts.jsonl``."""


def answers_to(
    trainer: PolicyTrainer, model: Any, rows: Sequence[Mapping[str, Any]], screen: Screen
) -> tuple[list[Drawn], Any]:
    """The likeliest answer to each prompt, with its rewards (a `rewarding.Scored`)."""
    block, tokenizer = trainer.block, trainer.tokenizer
    requests = [Prompt(tuple(row["input_ids"]), block.max_new_tokens) for row in rows]
    pulse = lambda index, ids: trainer.pulse("answering held-out prompts")  # noqa: E731
    found = engine_of(trainer, model).tokens(requests, screen, "answering", pulse)
    stops = stop_tokens(model, tokenizer, trainer.stop_ids)
    drawn = [drawn_of(tokenizer, ids, stops) for ids in found]
    given = [asked(row, one, trainer.where(row["rows"][0])) for row, one in zip(rows, drawn, strict=True)]
    scored = trainer.rewarder.score(given)
    for at, one in enumerate(drawn):
        one.reward = scored.total[at] - (0.0 if one.ended else block.missing_end_penalty)
    return drawn, scored


def measure(trainer: PolicyTrainer, model: Any, items: Sequence[Any], screen: Screen) -> list[TaskResult]:
    """The reward on the held-out prompts, whole and by part, answered greedily.

    Args:
        trainer: has the rewards.
        model: without the wrapper of training.
        items: the held-out rows, as many as the trainer's held-out data set has.
        screen: shows progress.
    """
    started = time.perf_counter()
    assert len(items) == len(trainer.eval_dataset), (len(items), len(trainer.eval_dataset))
    chosen = rows_of(range(len(items)), trainer.plan.recipe.eval.limit)
    drawn, scored = answers_to(trainer, model, [trainer.eval_dataset[index] for index in chosen], screen)
    scores = [Scores(tuple(one.reward for one in drawn), (), "mean", "", True, "reward")]
    if len(scored.parts) > 1:
        scores += [
            Scores(tuple(values), (), "mean", "", True, f"reward/{name}") for name, values in scored.parts.items()
        ]
    texts = [one.text for one in drawn]
    found = results("answers", scores, [items[index] for index in chosen], texts, started)
    return [_where_it_applies(part) for part in found if any(value == value for value in part.values)]


def _where_it_applies(part: TaskResult) -> TaskResult:
    """Rows to which a reward does not apply do not count."""
    there = [value == value for value in part.values]
    values = tuple(value if known else 0.0 for value, known in zip(part.values, there, strict=True))
    return replace(part, values=values, weights=tuple(map(float, there)))


def evaluation(trainer: PolicyTrainer, rows: Any) -> dict[str, float]:
    """Means over the held-out prompts, each rank its share; ``loss`` is minus the reward.

    In the arithmetic of the table of before and after, whatever the precision of training: the two agree.
    """
    own = [rows[index] for index in range(trainer.ranks.rank, len(rows), trainer.ranks.world)]
    model = trainer.accelerator.unwrap_model(trainer.model)
    sums = trainer.held_out_sums
    sums.values = {}
    if own:
        with without_mixed_precision(model):
            drawn, scored = answers_to(trainer, model, own, Silent())
        for name, values in scored.parts.items():
            known = [value for value in values if value == value]
            sums.add(f"reward/{name}", sum(known), len(known))
        sums.add("reward", sum(one.reward for one in drawn), len(drawn))
        sums.add("answer_tokens", sum(len(one.ids) for one in drawn), len(drawn))
        sums.add("ended_share", sum(one.ended for one in drawn), len(drawn))
    found = sums.means(trainer.ranks)
    return {"loss": -found["reward"]} | found


@contextmanager
def without_mixed_precision(model: Any) -> Iterator[None]:
    """The model computes as its weights are, without the wrapper that accelerate laid around it; then as before.

    Accelerate's own `unwrap_model` takes that wrapper off for good.
    """
    given = vars(model)
    wrapped, original = given.get("forward"), given.get("_original_forward")
    if wrapped is None or original is None:
        yield
        return
    model.forward = original
    try:
        yield
    finally:
        model.forward = wrapped


def write_rollouts(writer: MetricsWriter, step: int, rows: Any, rollouts: Mapping[int, Rollout]) -> None:
    """Writes some answers of a window: prompt, answer, rewards, and how far they are from the reference.

    Args:
        writer: of the run's ``rollouts.jsonl``.
        step: the window's first step, counted from 1.
        rows: the prepared prompts.
        rollouts: the window's, by the index of their prompts.
    """
    for index in sorted(rollouts)[:: max(1, len(rollouts) // SHOWN)][:SHOWN]:
        drawn = rollouts[index].answers[0]
        line: dict[str, Any] = {
            "step": step,
            "prompt": rows[index]["prompt"],
            "reference": rows[index]["reference"],
            "answer": drawn.text,
            "ended": drawn.ended,
            "tokens": len(drawn.ids),
            "reward": drawn.reward,
            "parts": drawn.parts,
        }
        if "reference" in drawn.numbers:
            line["kl"] = sum(drawn.numbers["old"]) - sum(drawn.numbers["reference"])
        writer.write(line)


def trial(example: Mapping[str, Any], block: Any, positions: int | None) -> dict[str, Any]:
    """A prepared prompt with ``block.generations`` answers of the greatest length; their tokens are the prompt's.

    ``positions``: how many tokens the model reads; None without a bound.
    """
    prompt = list(example["input_ids"])
    longest = block.max_new_tokens if positions is None else min(block.max_new_tokens, positions - len(prompt))
    ids = [prompt[place % len(prompt)] for place in range(max(1, longest))]
    numbers = {name: [0.0] * len(ids) for name in EACH}
    drawn = [Drawn(ids, True, "", numbers=numbers) for _ in range(block.generations)]
    return group_of(Rollout(prompt, list(example.get("rows") or ()), drawn)) | {"index": 0}
