"""What tuning lost: how likely the model still finds what its base writes by itself, and general text that is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunekit.core.progress import Screen
from tunekit.core.registry import TASKS
from tunekit.evaluate.contract import Engine, EvalItem, Prompt, TaskResult
from tunekit.exam import rows
from tunekit.exam.facts import OWN
from tunekit.exam.recipe import ForgettingBlock
from tunekit.model.tokenizer import tokenizer_hash

GENERAL = "general text"


class Probe:
    """Measures the base first, then the tuned model on the same texts.

    The base's own text is drawn from it at temperature 1, from the token that texts begin with: where it has not
    changed, its perplexity is that of the base; what tuning displaced becomes less likely.

    Args:
        block: the recipe's.
        base: folder where relative paths start.
        screen: where progress goes.
    """

    def __init__(self, block: ForgettingBlock, base: Path, screen: Screen) -> None:
        self.block, self.base, self.screen = block, base, screen
        self.texts: list[EvalItem] = []
        self.tokens_of = ""
        self.before: list[TaskResult] = []
        self.after: list[TaskResult] = []

    def of_base(self, engine: Engine, tokenizer: Any) -> None:
        """Has the base write, and measures it."""
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if first is None:
            self.screen.warn("the tokenizer has no token that texts begin with: forgetting is not measured")
            return
        self.tokens_of = tokenizer_hash(tokenizer)
        prompts = [Prompt((first,), self.block.tokens, temperature=1.0, seed=n) for n in range(self.block.texts)]
        answers = engine.generate(prompts, self.screen, OWN)
        for number, text in enumerate((answer.text for answer in answers), start=1):
            ids = (first, *tokenizer(text, add_special_tokens=False)["input_ids"])[: self.block.tokens + 1]
            if len(ids) > 1:
                trained = (False,) + (True,) * (len(ids) - 1)
                self.texts.append(EvalItem(ids, trained, (), text, "", f"{OWN}:{number}"))
        self.before = self._measured(engine, tokenizer)

    def of_tuned(self, engine: Engine, tokenizer: Any) -> None:
        """Measures the tuned model, where the base was; the base's own text only where both read the same tokens."""
        if not self.before:
            return
        if tokenizer_hash(tokenizer) != self.tokens_of:
            self.screen.warn(f"{OWN} is not measured: the two models have different tokenizers")
            self.texts = []
            self.before = [result for result in self.before if result.name != OWN]
        if self.before:
            self.after = self._measured(engine, tokenizer)

    def _measured(self, engine: Engine, tokenizer: Any) -> list[TaskResult]:
        sets: list[tuple[str, Sequence[EvalItem]]] = [(OWN, self.texts)] if self.texts else []
        if self.block.data:
            tally = rows.Tally()
            found = list(rows.examples(self.block.data, self.base, rows.fitter_of(tokenizer), tally))
            tally.settle(0.05, self.screen)
            sets.append((GENERAL, found))
        task = TASKS.load("perplexity")
        return [
            replace(result, name=name)
            for name, items in sets
            for result in task.run(engine, items, task.Config(), screen=self.screen)
        ]
