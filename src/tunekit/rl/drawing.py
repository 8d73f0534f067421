"""One window of rollouts: answers are drawn, judged, and measured by the policy that drew them and its reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import DataError, UserError
from tunekit.core.progress import Screen, Silent
from tunekit.evaluate.contract import Prompt
from tunekit.evaluate.decoding import text_of
from tunekit.evaluate.local import TransformersEngine, stop_tokens
from tunekit.evaluate.mode import evaluating, without_adapter
from tunekit.model.starts import changes_base
from tunekit.rl.contract import Answer
from tunekit.rl.policy_losses import explained_variance
from tunekit.rl.rewarding import Rewarder, Scored
from tunekit.rl.rollouts import Drawn, Rollout, asked, group_of
from tunekit.rl.stopping import unless_asked
from tunekit.rl.tables import Table
from tunekit.rl.values import left_out

if TYPE_CHECKING:
    import torch

    from tunekit.rl.policy import PolicyTrainer


LARGEST, SHOWN = 3.4028234663852886e38, 60
"""The largest float32, and characters of an answer in a message."""


def engine_of(trainer: PolicyTrainer, model: Any) -> TransformersEngine:
    """The engine that draws answers; it shares nothing between texts, for training's attention may have no cache."""
    block = trainer.block
    return TransformersEngine(
        model, trainer.tokenizer, batch_size=block.rollout_batch_size, stop_ids=trainer.stop_ids, share=False
    )


def check_prompts(trainer: PolicyTrainer, screen: Screen) -> None:
    """Finds now what would end the run at some later window: prompts that cannot be answered, or not be judged.

    Raises:
        UserError: a reward's file is not there any more: the run may be gone on with long after it began.
        DataError: a right answer that a reward cannot use, or a prompt that fills the model's positions.
    """
    trainer.rewarder.check(f"{trainer.plan.method}.reward")
    positions = engine_of(trainer, trainer.accelerator.unwrap_model(trainer.model)).positions
    for rows in (trainer.train_dataset, trainer.eval_dataset):
        if rows is None:
            continue
        numbers, lengths = [numbers[0] for numbers in rows["rows"]], rows["length"][:]
        trainer.rewarder.check_rows(zip(rows["reference"], map(trainer.where, numbers), strict=True))
        full = [at for at, length in enumerate(lengths) if positions is not None and length >= positions]
        if full:
            size, where = lengths[full[0]], trainer.where(numbers[full[0]])
            raise DataError(
                f"a prompt of {size} tokens leaves no room for an answer in the model's {positions} positions",
                where=where,
                fix="lower data.max_length: longer prompts are left out then",
            )
        short = positions is not None and sum(n + trainer.block.max_new_tokens > positions for n in lengths)
        if short:
            screen.warn(f"{short} of {len(rows)} prompts leave room for shorter answers only ({positions} positions)")


def roll_out(trainer: PolicyTrainer, rows: Mapping[int, Mapping[str, Any]], seed: int) -> dict[int, Rollout]:
    """Answers to prompts, judged and measured; every rank does its share and gets all.

    Args:
        trainer: its policy draws.
        rows: prepared prompts by their index.
        seed: of this window: each answer is drawn with its own generator, made of it.

    Raises:
        Cut: the run was asked to stop.
    """
    indices = sorted(rows)
    own = {index: rows[index] for index in indices[trainer.ranks.rank :: trainer.ranks.world]}
    model = trainer.accelerator.unwrap_model(trainer.model)

    def share() -> dict[int, Rollout]:
        drawn = _drawn(trainer, model, own, seed)
        _judge(trainer, own, drawn)
        _measure(trainer, model, drawn)
        return drawn

    found = unless_asked(trainer, share)
    merged = {index: rollout for part in trainer.ranks.gather(found) for index, rollout in part.items()}
    return {index: merged[index] for index in indices}


def facts_of(rollouts: Sequence[Rollout], price: float) -> dict[str, float]:
    """The KL of an answer from the reference, in nats, its price, and how well values foretell returns."""
    import torch

    answers = [drawn.numbers for rollout in rollouts for drawn in rollout.answers]
    facts: dict[str, float] = {}
    if answers and "reference" in answers[0]:
        apart = [sum(each["old"]) - sum(each["reference"]) for each in answers]
        facts = {"kl": sum(apart) / len(apart), "kl_price": price}
    if answers and "values" in answers[0]:
        told, returns = (
            torch.tensor([value for each in answers for value in each[name]]) for name in ("values", "returns")
        )
        share = explained_variance(told, returns, torch.ones_like(told, dtype=torch.bool))
        if share == share:
            facts["explained_variance"] = share
    return facts


class BoundedRewarder(Rewarder):
    """As `Rewarder`, of rewards that can be computed with: finite, and no larger than a float32 can be."""

    def score(self, answers: Sequence[Answer]) -> Scored:
        """The rewards of answers.

        Raises:
            UserError: as `Rewarder.score`, or a reward cannot be computed with.
            DataError: as `Rewarder.score`.
        """
        scored = super().score(answers)
        weights = {name: block.weight for name, block in self.named.items()}
        for at, answer in enumerate(answers):
            if abs(scored.total[at]) <= LARGEST:
                continue
            name = max(weights, key=lambda name: _size(weights[name] * scored.parts[name][at]))
            value, text = scored.parts[name][at], answer.text[:SHOWN]
            times = "" if weights[name] == 1 else f", times its weight {weights[name]:g},"
            raise UserError(
                f"reward '{name}': {value:g}{times} for the answer {text!r} is no number that can be computed with",
                where=answer.where,
                fix=f"rewards must stay below {LARGEST:.1e}, the largest float32; scale this one, or its weight",
            )
        return scored


def _size(value: float) -> float:
    """Of a number; what is none is larger than any."""
    return abs(value) if value == value else float("inf")


def _drawn(trainer: PolicyTrainer, model: Any, rows: Mapping[int, Mapping[str, Any]], seed: int) -> dict[int, Rollout]:
    block, engine = trainer.block, engine_of(trainer, model)
    many = block.generations
    requests = [
        Prompt(tuple(row["input_ids"]), block.max_new_tokens, temperature=block.temperature, seed=seed * many + number)
        for row in rows.values()
        for number in range(many)
    ]
    stops = stop_tokens(model, trainer.tokenizer, trainer.stop_ids)
    if block.engine == "vllm":
        trainer.pulse("drawing answers")
        answers = trainer.colocated.tokens(requests, stops)
    else:
        with trainer.compute_loss_context_manager():
            answers = engine.tokens(requests, Silent(), "answers", lambda index, ids: trainer.pulse("drawing answers"))
    drawn = [drawn_of(trainer.tokenizer, ids, stops) for ids in answers]
    return {
        index: Rollout(list(row["input_ids"]), list(row["rows"]), drawn[at * many : (at + 1) * many])
        for at, (index, row) in enumerate(rows.items())
    }


def drawn_of(tokenizer: Any, ids: Sequence[int], stops: frozenset[int]) -> Drawn:
    """An answer of these tokens; what stands behind its end token is left out."""
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    return Drawn(list(ids[: end + 1]), end < len(ids), text_of(tokenizer, ids[:end]))


def _judge(trainer: PolicyTrainer, rows: Mapping[int, Mapping[str, Any]], found: Mapping[int, Rollout]) -> None:
    """Fills in rewards."""
    answers = [(index, drawn) for index, rollout in found.items() for drawn in rollout.answers]
    given = [asked(rows[index], drawn, trainer.where(rows[index]["rows"][0])) for index, drawn in answers]
    trainer.pulse("judging answers")
    scored = trainer.rewarder.score(given)
    for at, (_, drawn) in enumerate(answers):
        drawn.reward = scored.total[at] - (0.0 if drawn.ended else trainer.block.missing_end_penalty)
        drawn.parts = {name: values[at] for name, values in scored.parts.items()}


def _measure(trainer: PolicyTrainer, model: Any, found: Mapping[int, Rollout]) -> None:
    """Fills in the log-probabilities of the tokens drawn, by the policy and by its reference, and their values."""
    size, rollouts = trainer.plan.micro_batch_size, list(found.values())
    for start in range(0, len(rollouts), size):
        part = rollouts[start : start + size]
        trainer.pulse("measuring answers")
        with evaluating(model):
            old, table, hidden = _logps(trainer, model, part)
            _enter(part, "old", old)
            values = trainer.values_of(model, hidden)
            if values is not None:
                _enter(part, "values", table.rows(table.of_tokens(values)))
            if trainer.beta:
                with as_reference(model, trainer.initial_values) as reference, left_out(trainer):
                    _enter(part, "reference", _logps(trainer, reference, part)[0])


def _logps(trainer: PolicyTrainer, model: Any, part: Sequence[Rollout]) -> tuple[list[list[float]], Table, Any]:
    """For each answer, its tokens' log-probabilities; their table, and the states that values are read from."""
    with trainer.compute_loss_context_manager():
        inputs = trainer._prepare_inputs(trainer.data_collator([group_of(rollout) for rollout in part]))
        groups = trainer.groups_of(model, inputs)
    table = Table.of(groups.owner, len(groups.logps))
    return table.rows(table.of_tokens(groups.each)), table, groups.hidden


def _enter(part: Sequence[Rollout], name: str, numbers: Sequence[list[float]]) -> None:
    answers = [drawn for rollout in part for drawn in rollout.answers]
    for drawn, values in zip(answers, numbers, strict=True):
        drawn.numbers[name] = values


@contextmanager
def as_reference(model: Any, initial: Mapping[str, torch.Tensor]) -> Iterator[Any]:
    """The model with the trained weights of `initial_values`; without its adapter where there are none."""
    if not initial:
        with without_adapter(model) as bare:
            yield bare
        return
    named = {name: parameter for name, parameter in model.named_parameters() if name in initial}
    now = {name: parameter.data for name, parameter in named.items()}
    try:
        for name, parameter in named.items():
            parameter.data = initial[name]
        yield model
    finally:
        for name, parameter in named.items():
            parameter.data = now[name]


VALUES = ("value_model.", "value_head.")
"""What the names of PPO's values begin with."""


def initial_values(model: Any, kind: str) -> dict[str, torch.Tensor]:
    """A copy of what is going to be trained; empty where the reference (``kind``) is there without one.

    A model without an adapter is its own base, and one whose adapter was made from the base begins as that base did.
    """
    from peft import PeftModel

    if kind == "base" and isinstance(model, PeftModel) and not changes_base(model):
        return {}
    return {
        name: p.detach().clone()
        for name, p in model.named_parameters()
        if p.requires_grad and not name.startswith(VALUES)  # a reference has no values
    }


Advantages = Callable[[Sequence[Rollout], float], None]
"""Fills ``advantages`` (and ``returns``) of a window's answers; the second argument is the price of the KL."""
