"""Examples whose last answer a student may write itself: in batches, out of them, and with another answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunekit.core.types import IGNORED
from tunekit.data.collate import Collator
from tunekit.rl.rollouts import Drawn

if TYPE_CHECKING:
    import torch


class PromptCollator(Collator):
    """As `Collator`, with ``prompt_tokens`` (B,): the tokens before the last answer, 0 where that is not known."""

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """The batch."""
        import torch

        texts = [{name: value for name, value in example.items() if name != "branches"} for example in examples]
        sizes = [int(example.get("prompt_tokens") or 0) for example in examples]
        return super().__call__(texts) | {"prompt_tokens": torch.tensor(sizes)}


def examples_of(batch: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
    """The examples that a batch of `PromptCollator` was made of; a filler stays one."""
    found = []
    for at, size in enumerate(batch["tokens"].tolist()):
        taken = max(1, size)
        values = {name: batch[name][at, :taken].tolist() for name in ("input_ids", "labels")}
        rows = [number for number in batch["rows"][at].tolist() if number >= 0]
        prompt = int(batch["prompt_tokens"][at]) if size else 0
        more = {"position_ids": None, "rows": rows, "prompt_tokens": prompt, "length": taken}
        found.append(values | more | ({} if size else {"empty": True}))
    return found


def with_answer(prompt: Sequence[int], drawn: Drawn) -> dict[str, Any]:
    """A prompt and the answer that was drawn to it as an example, every token of the answer trained."""
    ids = [*prompt, *drawn.ids]
    labels = [IGNORED] * len(prompt) + list(drawn.ids)
    more: dict[str, Any] = {"position_ids": None, "prompt_tokens": len(prompt), "length": len(ids)}
    return {"input_ids": ids, "labels": labels} | more
