"""The proof of a merge: a fresh process loads it as users will, and compares it with the adapter on its base."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.compress import fresh
from tunekit.compress.cut import cut_rows
from tunekit.core import errors
from tunekit.core.errors import DivergedError, Problem
from tunekit.data import world
from tunekit.evaluate.contract import EvalItem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPTS, NEW_TOKENS = 20, 64
LENGTH = 1024
"""Tokens of a row that are looked at."""
EXACT = 1e-3
"""float32: the largest difference of a logit, for logits up to 10; above, a ten-thousandth of the largest."""
NOISE = 5e-6
"""A difference below this part of the largest logit is rounding: no effect at all."""
KL_FLOOR = {"bfloat16": 1e-3, "float16": 1e-4}
TOP1_FLOOR, TIMES = 0.02, 5.0
"""16 bits: mean KL and top-1 disagreement up to these, or to so many times what the adapter's own rounding gives: that
of the adapter on its base in this type, unmerged."""
FLIPS = 4
"""16 bits: so many positions may always change their likeliest token: among few, two that are close are many."""
NEARER = 0.5
"""The merge must be nearer to the adapter than the base is: its KL at most this part of the base's."""


class NotProvenError(DivergedError):
    """The merged model is not the adapter on its base. Exit code 5."""

    title = "the merge is not proven"


def world_prompts(tokenizer: PreTrainedTokenizerBase, count: int = PROMPTS) -> list[EvalItem]:
    """Questions of the embedded world, in the tokenizer's chat template if it has one: for folders without own rows."""
    found = []
    for number, row in enumerate(world.rows("instructions", "held_out", count), start=1):
        asked, said = row["instruction"], row["output"]
        if tokenizer.chat_template is None:
            before, after = f"{asked}\n", said
        else:
            turns = [{"role": "user", "content": asked}]
            before = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
            after = said
        ids = tokenizer(before, add_special_tokens=tokenizer.chat_template is None)["input_ids"]
        answer = tokenizer(after, add_special_tokens=False)["input_ids"]
        trained = (False,) * len(ids) + (True,) * len(answer)
        found.append(EvalItem((*ids, *answer), trained, tuple(ids), asked, said, f"builtin:instructions:{number}"))
    return found


def fitted(rows: Sequence[Any], positions: int | None) -> list[EvalItem]:
    """At most `PROMPTS` rows, as `cut_rows` draws and cuts them."""
    sizes = {"most": PROMPTS, "length": LENGTH, "new_tokens": NEW_TOKENS, "least": 1}
    return cut_rows(rows, positions, **sizes, fix="hold rows out: data.eval")


def measure(
    adapter: Path, merged: Path, dtype: str, prompts: Sequence[EvalItem], *, threads: int, quantized: bool = False
) -> dict[str, Any]:
    """What a fresh process finds when it loads both; see `worker`.

    Args:
        adapter: the adapter's folder.
        merged: the merged model's.
        dtype: of the merged weights.
        prompts: the rows.
        threads: of the process.
        quantized: look at the adapter on the quantized base of its training too.

    Raises:
        TunekitError: what the process raised.
        MachineError: it died without a word.
    """
    job: dict[str, Any] = {"adapter": str(adapter.resolve()), "merged": str(merged.resolve()), "dtype": dtype}
    job |= {"threads": threads, "new_tokens": NEW_TOKENS, "quantized": quantized}
    job |= {"prompts": [dataclasses.asdict(prompt) for prompt in prompts]}
    return fresh.run("tunekit.compress.worker", job, "compares the models")


def limits(answer: Mapping[str, Any]) -> dict[str, float]:
    """What the measured figures are held to; ``largest_logit_difference`` in float32, else ``mean_kl`` and ``top1``."""
    if answer["dtype"] == "float32":
        return {"largest_logit_difference": EXACT * max(1.0, answer["effect"]["largest_logit"] / 10)}
    rounding = answer["rounding"]
    disagreement = max(TOP1_FLOOR, TIMES * (1 - rounding["top1_agreement"]), FLIPS / answer["positions"])
    return {
        "mean_kl": max(KL_FLOOR[answer["dtype"]], TIMES * rounding["mean_kl"]),
        "top1_agreement": max(0.0, 1 - disagreement),
    }


def judge(answer: Mapping[str, Any]) -> None:
    """Holds a measurement to its limits.

    Raises:
        NotProvenError: everything that is wrong with the merge.
    """
    problems = list(_faults(answer))
    errors.raise_all(NotProvenError, problems)


def _faults(answer: Mapping[str, Any]) -> Iterator[Problem]:
    merged, effect, changed, dtype = (answer[key] for key in ("merged", "effect", "changed", "dtype"))
    bound = limits(answer)
    least = NOISE * max(1.0, effect["largest_logit"])
    if not answer["tokenizer"]:
        yield Problem("the merged folder's tokenizer or chat template is not the adapter's")
    if not all(math.isfinite(value) for value in (*merged.values(), *effect.values())):
        yield Problem("logits are not finite", fix="was the training sound? for float16, try --dtype bfloat16")
        return
    if effect["largest_logit_difference"] <= least:
        yield Problem("the adapter changes nothing: with it the base gives the same logits as without",
                      fix="was it trained, and with a learning rate above 0?")  # fmt: skip
        return
    if changed["largest_logit_difference"] <= (least if dtype == "float32" else 0.0):
        lost = "" if dtype == "float32" else f": what the adapter adds is lost in {dtype}; try --dtype float32"
        yield Problem(f"the merged model equals the base{lost}")
        return
    if dtype == "float32":
        largest, most = merged["largest_logit_difference"], bound["largest_logit_difference"]
        if largest > most:
            yield Problem(
                f"a logit differs by {largest:.2e} from the adapter on its base; at most {most:.1e} is rounding"
            )
        return
    if merged["mean_kl"] > bound["mean_kl"]:
        yield Problem(f"the mean KL from the adapter on its base is {merged['mean_kl']:.2e}; rounding to {dtype} "
                      f"explains {bound['mean_kl']:.1e}")  # fmt: skip
    if merged["top1_agreement"] < bound["top1_agreement"]:
        yield Problem(f"the likeliest token is another one at {1 - merged['top1_agreement']:.1%} of the positions; "
                      f"rounding to {dtype} explains {1 - bound['top1_agreement']:.1%}")  # fmt: skip
    if merged["mean_kl"] > NEARER * effect["mean_kl"]:
        yield Problem(f"in {dtype} the merged model is hardly nearer to the adapter (mean KL {merged['mean_kl']:.2e}) "
                      f"than the base is ({effect['mean_kl']:.2e})", fix="try --dtype float32")  # fmt: skip
