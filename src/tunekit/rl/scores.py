"""The trainer of reward models: a score for each answer, higher for the better one of a pair."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunekit.core.progress import Screen
from tunekit.evaluate.choices import results
from tunekit.evaluate.contract import EvalItem, TaskResult
from tunekit.evaluate.mode import evaluating, plain_model
from tunekit.evaluate.pairs import PairItem, log_loss, margin_scores
from tunekit.evaluate.run import rows_of
from tunekit.kernels.attention import NAME
from tunekit.kernels.segments import sequences
from tunekit.plan.plan import Plan
from tunekit.rl.groups import GroupCollator, GroupTrainer, without_dropout, won
from tunekit.rl.pair_losses import bradley_terry
from tunekit.train.causal import causal_trainer
from tunekit.train.isolation import shares_prefix
from tunekit.train.sums import Sums
from tunekit.train.trainer import Share


class ScoreTrainer(GroupTrainer):
    """Bradley-Terry on pairs (arXiv 2203.02155): an answer's score is read at its last token."""

    reported = frozenset({"reward_accuracy", "reward_margin", "reward_chosen", "reward_rejected"})
    centre = 0.0
    margins = True

    def look_at_model(self, padded_because: str) -> None:
        """Finds how the model runs; there is no head over the vocabulary."""
        self.padded_because = padded_because
        plain = plain_model(self.model)
        self.with_segments = not padded_because and plain.config._attn_implementation == NAME
        self.few_shapes = self.accelerator.device.type == "cpu" and self.args.bf16
        self.shares = not padded_because and shares_prefix(self.model, self.accelerator.autocast())
        self.model_accepts_loss_kwargs = True
        self.sums, self.held_out_sums = Sums(), Sums()

    def share_of(self, model: nn.Module, inputs: dict[str, Any]) -> Share:
        """The losses of a batch that was laid out; its items are the pairs."""
        outputs = model(**self.for_model(inputs), use_cache=False)
        scores = outputs.logits.float().flatten()[inputs["ends"]]  # (S,)
        counts, real = sequences(inputs), inputs["tokens"] > 0
        first = (counts.cumsum(0) - counts)[real]
        chosen, rejected = scores[first], scores[first + 1]
        margin = inputs["score"][real].nan_to_num(0.0) if self.margins else None
        losses = bradley_terry(chosen, rejected, margin, self.centre)
        self.noted(
            model,
            len(losses),
            reward_accuracy=won(chosen, rejected),
            reward_margin=(chosen - rejected).sum(),
            reward_chosen=chosen.sum(),
            reward_rejected=rejected.sum(),
        )
        return Share(losses.sum() + scores.sum() * 0, len(losses), outputs)

    def measure(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        items: Sequence[EvalItem],
        screen: Screen,
        stop_ids: Sequence[int],
    ) -> list[TaskResult]:
        """Accuracy, margin and calibration of the scores on the held-out pairs."""
        started = time.perf_counter()
        pairs = [item for item in rows_of(items, self.plan.recipe.eval.limit) if isinstance(item, PairItem)]
        texts = [ids for item in pairs for ids in (item.input_ids, item.rejected_ids)]
        found = self._scores(model, texts, tokenizer.pad_token_id, screen)
        margins = [chosen - rejected for chosen, rejected in zip(found[::2], found[1::2], strict=True)]
        scores = [*margin_scores(margins, "score"), log_loss(margins)]
        return results("preference", scores, pairs, (), started)

    def _scores(self, model: Any, texts: Sequence[Sequence[int]], pad: int, screen: Screen) -> list[float]:
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        size, found = self.plan.recipe.eval.batch_size, [0.0] * len(texts)
        with evaluating(model), screen.step("scoring", len(texts), "answers") as step:
            for start in range(0, len(order), size):
                chosen = order[start : start + size]
                width = max(len(texts[index]) for index in chosen)
                ids = torch.full((len(chosen), width), pad, dtype=torch.long)
                mask = torch.zeros_like(ids)
                for row, index in enumerate(chosen):
                    ids[row, : len(texts[index])] = torch.tensor(texts[index])
                    mask[row, : len(texts[index])] = 1
                device = self.accelerator.device
                logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
                ends = torch.tensor([len(texts[index]) - 1 for index in chosen], device=device)
                rows = torch.arange(len(chosen), device=device)
                for index, value in zip(chosen, logits[rows, ends, 0].float().tolist(), strict=True):
                    found[index] = value
                step.advance(len(chosen))
        return found


def score_trainer(
    plan: Plan,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Any,
    evaluation: Any,
    staging: Path,
    *,
    centre: float,
    margins: bool,
) -> ScoreTrainer:
    """Builds the trainer; arguments as `causal_trainer`'s.

    Args:
        centre: weight of the squared mean of a pair's scores, which keeps them around 0 (arXiv 2312.09244).
        margins: whether a pair's margin is asked for.
    """
    without_dropout(model)
    see_every_position(model)
    plain_model(model).config.pad_token_id = tokenizer.pad_token_id
    trainer = causal_trainer(
        plan, model, tokenizer, train, evaluation, staging, kind=ScoreTrainer, collator=GroupCollator
    )
    assert isinstance(trainer, ScoreTrainer)
    trainer.centre, trainer.margins = centre, margins
    return trainer


def see_every_position(model: Any) -> None:
    """Makes a model with a score head give the score at every position, (B, T, 1), in the place of one a row.

    transformers reads each row's last token; a flat row has many answers.
    """
    plain = plain_model(model)
    seen: list[torch.Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: torch.Tensor) -> None:
        seen.append(output)

    def hand_out(_module: nn.Module, _args: Any, output: Any) -> Any:
        output.logits = seen.pop()
        seen.clear()
        return output

    plain.score.register_forward_hook(keep)
    plain.register_forward_hook(hand_out)
