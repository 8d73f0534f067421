"""The trainers of distillation: a student is brought near to its teacher's distributions of the next token."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunekit.core.errors import DataError, UserError
from tunekit.core.progress import Screen, Silent
from tunekit.evaluate.contract import EvalItem, Prompt, TaskResult
from tunekit.evaluate.local import TransformersEngine, stop_tokens
from tunekit.evaluate.mode import plain_model
from tunekit.evaluate.run import entry, evaluate_model
from tunekit.kernels.divergence import Side, divergence
from tunekit.kernels.label_loss import LabelHead, find_tail
from tunekit.kernels.token_logps import logps_of, token_logps
from tunekit.model.fingerprint import weights_fingerprint
from tunekit.plan.plan import Plan
from tunekit.recipe.kinds import material_of
from tunekit.rl.drawing import drawn_of
from tunekit.rl.rollouts import Drawn
from tunekit.rl.stopping import Cut, left_for_later, unless_asked
from tunekit.rl.teach_examples import PromptCollator, examples_of, with_answer
from tunekit.rl.teachers import find_teacher
from tunekit.train.causal import CausalTrainer, causal_trainer
from tunekit.train.inputs import Inputs
from tunekit.train.isolation import check_causal, check_isolated, run_flat
from tunekit.train.trainer import EvaluationCut, Share


class TaughtTrainer(CausalTrainer):
    """Cross-entropy as ever; beside base and tuned model, the teacher is measured once."""

    block: Any
    teacher: Any = None
    _beside: dict[str, Any] | None = None

    def measure(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        items: Sequence[EvalItem],
        screen: Screen,
        stop_ids: Sequence[int],
    ) -> list[TaskResult]:
        """What a model is worth on the held-out rows; before the first one, what the teacher is."""
        if self._beside is None:
            spec, seed = self.plan.recipe.eval, self.plan.recipe.train.seed
            screen.say(f"evaluating the teacher ({self.block.teacher})")
            teacher = self.teacher if self.teacher is not None else load_teacher(self.plan, self.accelerator.device)
            found = evaluate_model(teacher, tokenizer, items, spec, screen, stop_ids=stop_ids)
            del teacher
            tasks = [entry(None, result, spec.confidence, seed) for result in found]
            kept = ("name", "metric", "higher_is_better", "n")
            told = [{name: task[name] for name in kept} | task["tuned"] for task in tasks]
            for task in told:
                screen.say(f"  {task['name']} {task['metric']}: {task['value']:.4g}")
            self._beside = {"name": self.block.teacher, "tasks": told}
        return super().measure(model, tokenizer, items, screen, stop_ids)

    def beside(self) -> dict[str, Any]:
        """The teacher's own numbers."""
        return {"teacher": self._beside}


class TeachingTrainer(TaughtTrainer):
    """The divergence of the student from the teacher, a mean over the trained tokens of the global batch.

    Both run over the same batch in the same layout; the teacher without gradients, and no part of any checkpoint.
    """

    reported = frozenset({"divergence", "nll"})

    def take(self, teacher: PreTrainedModel, plan: Plan) -> None:
        """Sets the teacher beside the student: on its device, in its layout, or both in one that both can run.

        Args:
            teacher: loaded, on the CPU.
            plan: the resolved plan.

        Raises:
            UserError: the teacher is no causal language model, or sees other examples of a packed row.
        """
        device = self.accelerator.device
        self.teacher = teacher if teacher.device.type == device.type else teacher.to(device)  # type: ignore[arg-type]
        plain, arithmetic = plain_model(teacher), self.accelerator.autocast
        if plan.recipe.model.attention.startswith("flash"):
            plain.set_attn_implementation(plan.recipe.model.attention)
        check_causal(teacher, arithmetic())
        why = self.padded_because or run_flat(teacher, plan, arithmetic())
        if why and not self.padded_because:
            self.padded_because, self.with_segments = f"the teacher: {why}", False
        if self.padded_because and plan.recipe.data.packing:
            for model in (self.accelerator.unwrap_model(self.model), teacher):
                check_isolated(model, self.data_collator, min(plan.micro_batch_size, 2), arithmetic())
        head = plain.get_output_embeddings()
        self.teacher_head = LabelHead(head, find_tail(plain, head))
        self.teacher_is = weights_fingerprint(teacher, frozen_only=False)

    def share_of(self, model: nn.Module, inputs: dict[str, Any]) -> Share:
        """The divergence at the trained tokens of a batch that was laid out, and the data's cross-entropy beside it."""
        keep, given = inputs["keep"], self.for_model(inputs)
        with torch.no_grad():  # first, so that what it needs is gone before the student's activations are there
            theirs, _ = self.teacher_head.states(self.teacher, given, keep)
        ours, outputs = self.head.states(model, given, keep)
        options = {"beta": self.block.beta, "temperature": self.block.temperature}
        found = divergence(side(self.head, ours), side(self.teacher_head, theirs), self.block.divergence, **options)  # type: ignore[arg-type]
        total, count = found.total, len(keep)
        if self.block.nll_weight:
            nll = -self._logps(ours, inputs["targets"]).sum()
            total = total + self.block.nll_weight * nll
            sums = self.sums if model.training else self.held_out_sums
            sums.add("divergence", found.each.sum(), count)
            sums.add("nll", nll.detach(), count)
        return Share(total, count, outputs)

    def _logps(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        tail = self.head.tail
        found = logps_of(states, targets) if tail is None else token_logps(states, self.head.head, targets, tail)
        return found[0]

    def method_state(self) -> dict[str, Any]:
        """With the teacher's fingerprint."""
        return super().method_state() | {"teacher": self.teacher_is}

    def restore_method_state(self, values: dict[str, Any]) -> None:
        """Takes back what `method_state` gave.

        Raises:
            UserError: the teacher is another one now.
        """
        super().restore_method_state(values)
        if values["teacher"] != self.teacher_is:
            fix = "put the old teacher back, or start a new run"
            raise UserError(
                "the teacher's weights are not those that the run began with", where="distill.teacher", fix=fix
            )


class StudentTrainer(TeachingTrainer):
    """On-policy: in a share of the steps the student answers the prompts itself, and learns where it went.

    Answers do not depend on where a run was stopped: those of a step are drawn with seeds of their own.
    """

    reported = frozenset({"answer_tokens", "ended_share"})
    tokenizer: PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]
    only_prompts: bool

    def own(self, step: int) -> bool:
        """Whether the student answers in this step (counted from 0); the same on every rank."""
        return bool(random.Random(f"{self.args.seed} {step}").random() < self.block.student_share)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The batches of a step; with the student's own answers where it is its turn."""
        samples, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        step = self.state.global_step
        if not self.own(step) or step + 1 in self.skipped:
            return samples, count
        examples = [example for batch in samples for example in examples_of(batch)]
        seed = (self.args.seed + 1) * 1_000_003 + step
        answered = iter(unless_asked(self, lambda: self._answered(examples, seed, told=True)))
        batches = [self.data_collator([next(answered) for _ in batch["tokens"]]) for batch in samples]
        return batches, self._get_num_items_in_batch(batches, device)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's; a step that a wish to stop cuts short is left for the run that goes on."""
        with left_for_later(self):
            super()._run_epoch(*args, **kwargs)

    def _answered(self, examples: Sequence[dict[str, Any]], seed: int | None, *, told: bool) -> list[dict[str, Any]]:
        """The examples with the student's answers in the place of the data's; those without a prompt stay as they are.

        Args:
            seed: of the draws; None takes the likeliest tokens.
            told: whether lengths and ends are counted for the next logged line.
        """
        asked = [at for at, example in enumerate(examples) if 0 < example["prompt_tokens"] <= len(example["input_ids"])]
        temperature = 0.0 if seed is None else self.block.drawn_at
        prompts = [examples[at]["input_ids"][: examples[at]["prompt_tokens"]] for at in asked]
        requests = [
            Prompt(tuple(ids), self.block.max_new_tokens, temperature=temperature, seed=seed or 0) for ids in prompts
        ]
        model = self.accelerator.unwrap_model(self.model)
        engine = TransformersEngine(
            model, self.tokenizer, batch_size=self.block.rollout_batch_size, stop_ids=self.stop_ids, share=False
        )
        with self.compute_loss_context_manager():
            found = engine.tokens(requests, Silent(), "answers", lambda index, ids: self.pulse("drawing answers"))
        stops, answered = stop_tokens(model, self.tokenizer, self.stop_ids), list(examples)
        for at, prompt, ids in zip(asked, prompts, found, strict=True):
            drawn = drawn_of(self.tokenizer, ids, stops)
            answered[at] = with_answer(prompt, drawn) | {"rows": examples[at]["rows"]}
            if told:
                self.sums.add("answer_tokens", len(drawn.ids), 1)
                self.sums.add("ended_share", float(drawn.ended), 1)
        return answered

    def evaluation(self, rows: Any) -> dict[str, float]:
        """Of rows without answers, on the student's likeliest ones."""
        if not self.only_prompts:
            return super().evaluation(rows)
        from datasets import Dataset

        rank, world = self.ranks.rank, self.ranks.world
        mine = [rows[at] for at in range(rank, len(rows), world)]
        try:
            parts = self.ranks.gather(unless_asked(self, lambda: self._answered(mine, None, told=False)))
        except Cut:
            raise EvaluationCut from None
        return super().evaluation(Dataset.from_list([parts[at % world][at // world] for at in range(len(rows))]))

    def trial(self, example: dict[str, Any]) -> dict[str, Any]:
        """An example with an answer of the greatest length, to try whether it fits into memory."""
        size = example.get("prompt_tokens") or 0
        ids = list(example["input_ids"])
        if not 0 < size <= len(ids):
            return example
        config = plain_model(self.model).config.get_text_config()
        room = getattr(config, "max_position_embeddings", None) or size + self.block.max_new_tokens
        answer = [ids[at % size] for at in range(max(1, min(self.block.max_new_tokens, room - size)))]
        longest = with_answer(ids[:size], Drawn(answer, True, ""))
        return longest if self.only_prompts or len(longest["input_ids"]) >= len(ids) else example


def side(head: LabelHead, states: torch.Tensor) -> Side:
    """One model's side of a divergence, of what `LabelHead.states` gave."""
    if head.tail is None:
        return Side.of_logits(states)
    return Side(states, head.head.weight, head.head.bias, head.tail)  # type: ignore[arg-type]


def load_teacher(plan: Plan, device: torch.device) -> Any:
    """The plan's teacher on a device, in the arithmetic of training.

    Raises:
        UserError, MachineError: as `teachers.find_teacher`, or it cannot be loaded.
    """
    found = find_teacher(plan.recipe.options.teacher, Path(plan.recipe_folder)).load(plan.arithmetic)
    return found if found.device.type == device.type else found.to(device)  # type: ignore[arg-type]


def teaching_trainer(
    plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Any, evaluation: Any, staging: Path
) -> TaughtTrainer:
    """Builds the trainer of the plan's mode; arguments as `causal_trainer`'s.

    Raises:
        UserError: the teacher cannot be used.
        DataError: on-policy, no row has a prompt.
    """
    from tunekit.model.save import stop_ids

    block, given = plan.recipe.options, (plan, model, tokenizer, train, evaluation, staging)
    if block.mode == "sequence":
        taught = causal_trainer(*given, kind=TaughtTrainer)
        assert isinstance(taught, TaughtTrainer)
        taught.block = block
        return taught
    teacher = load_teacher(plan, torch.device("cpu"))  # before there is a trainer: that seeds everything anew
    if block.mode == "offline":
        trainer = causal_trainer(*given, kind=TeachingTrainer)
    else:
        trainer = causal_trainer(*given, kind=StudentTrainer, collator=PromptCollator)
    assert isinstance(trainer, TeachingTrainer)
    trainer.block = block
    if isinstance(trainer, StudentTrainer):
        trainer.tokenizer, trainer.only_prompts = tokenizer, material_of(plan.recipe) == "prompts"
        end = Inputs(plan.recipe, Path(plan.recipe_folder)).turn_end
        trainer.stop_ids = tuple(stop_ids(tokenizer, model, end))
        if hasattr(train, "__len__") and not any(
            _has_prompt(row) for row in train.select_columns(["prompt_tokens", "length"])
        ):
            raise DataError(
                "no row has a prompt that the student could answer", fix="use conversations, or mode: offline"
            )
    trainer.take(teacher, plan)
    return trainer


def _has_prompt(row: Mapping[str, Any]) -> bool:
    return 0 < int(row["prompt_tokens"]) <= int(row["length"])
