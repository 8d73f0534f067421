"""Sequence-level distillation: the teacher answers the prompts, and its answers are what is trained on.

They are made once, before the student is loaded, and kept beside the other prepared data under a key of all that
shapes them (arXiv 1606.07947).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache as once
from pathlib import Path
from typing import Any

from tunekit.core.files import sha256_file, sha256_json, write_json
from tunekit.core.progress import Screen
from tunekit.core.types import IGNORED
from tunekit.data import cache
from tunekit.data.gate import Gate
from tunekit.data.ledger import Entry, Ledger
from tunekit.data.prepare import Prepared
from tunekit.data.store import ArrowWriter, final_schema
from tunekit.evaluate import decoding
from tunekit.evaluate.contract import Prompt
from tunekit.evaluate.local import TransformersEngine, stop_tokens
from tunekit.model.fingerprint import weights_fingerprint
from tunekit.rl.drawing import drawn_of
from tunekit.rl.rollouts import Drawn
from tunekit.rl.teachers import find_teacher
from tunekit.runs.environment import library_versions
from tunekit.train.inputs import Inputs

ENDED, CUT = "answered by the teacher", "the teacher's answer is cut at distill.max_new_tokens"


def with_teacher_answers(inputs: Inputs, prepared: Prepared, screen: Screen, folder: Path) -> Prepared:
    """The prepared prompts with the teacher's answers, as texts to be trained on.

    Args:
        inputs: of a recipe whose ``distill.mode`` is ``sequence``.
        prepared: its prompts.
        screen: shows progress.
        folder: where prepared data is kept.

    Raises:
        UserError, MachineError: the teacher cannot be loaded.
        DataError: a prompt leaves no room for an answer.
    """
    import torch

    from tunekit.model.save import stop_ids

    recipe, tokenizer = inputs.recipe, inputs.tokenizer
    block, on_gpu = recipe.options, torch.cuda.is_available()
    dtype = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}.get(
        recipe.train.precision, "bfloat16" if on_gpu else "float32"
    )
    with screen.step(f"loading the teacher ({block.teacher})"):
        model: Any = find_teacher(block.teacher, inputs.base).load(dtype)
        model = model.to("cuda") if on_gpu else model
    stops = tuple(stop_ids(tokenizer, model, inputs.turn_end))
    said = {
        "weights": weights_fingerprint(model, frozen_only=False, whole=True),
        "drawn": [block.max_new_tokens, block.drawn_at, recipe.train.seed if block.drawn_at else None, sorted(stops)],
        "arithmetic": [
            dtype,
            model.device.type,
            {name: library_versions().get(name) for name in ("torch", "transformers")},
        ],
        "code": _code(),
    }
    key = cache.Key({**inputs.key.parts, "teacher": said})
    engine = TransformersEngine(model, tokenizer, batch_size=block.rollout_batch_size, stop_ids=stops)

    def answers(rows: Any, split: str) -> list[Drawn]:
        return _answers(engine, rows, recipe, screen, f"the teacher answers {split} rows")

    if (folder / key.name / "key.json").exists():
        screen.say(f"the teacher's answers: written before (key {key.name[:12]})")
    return Prepared(cache.keep(key, folder, lambda staging: _write(inputs, prepared, answers, staging)))


@once
def _code() -> str:
    """Hash of the code that writes answers."""
    files = [Path(__file__), *sorted(Path(decoding.__file__).parent.glob("*.py"))]
    return sha256_json([(path.name, sha256_file(path)) for path in files])


def _answers(engine: TransformersEngine, rows: Any, recipe: Any, screen: Screen, what: str) -> list[Drawn]:
    """The answer to each row; of rows with the same prompt, the likeliest one is computed once."""
    block, seed = recipe.options, recipe.train.seed * 1_000_003
    greedy = block.drawn_at == 0
    prompts = [tuple(ids) for ids in rows["input_ids"]]
    asked = list(dict.fromkeys(prompts)) if greedy else prompts
    requests = [
        Prompt(ids, block.max_new_tokens, temperature=block.drawn_at, seed=seed + at) for at, ids in enumerate(asked)
    ]
    found = engine.tokens(requests, screen, what)
    stops = stop_tokens(engine.model, engine.tokenizer, engine.stop_ids)
    drawn = [drawn_of(engine.tokenizer, ids, stops) for ids in found]
    if not greedy:
        return drawn
    by_prompt = dict(zip(asked, drawn, strict=True))
    return [by_prompt[ids] for ids in prompts]


def _write(inputs: Inputs, prepared: Prepared, answers: Any, folder: Path) -> None:
    """Writes the files of prepared data."""
    ledger, facts = Ledger.load(prepared.ledger_path), prepared.facts
    content, answered = hashlib.sha256(facts["fingerprint"].encode()), dict[int, Drawn]()
    gate = Gate(inputs.fitter.facts.vocabulary, inputs.fitter.facts.bos_id)
    tokens = 0
    for split in ("train", "eval"):
        rows = prepared.dataset(split)  # type: ignore[arg-type]
        if rows is None:
            continue
        with ArrowWriter(folder / f"{split}.arrow", final_schema()) as writer:
            for row, drawn in zip(rows, answers(rows, split), strict=True):
                made = _row(row, drawn)  # type: ignore[arg-type]
                gate.look(made, lambda numbers=made["rows"]: ", ".join(str(ledger[n].origin) for n in numbers))  # type: ignore[misc]
                writer.add(made)
                content.update(repr((made["prompt_tokens"], made["input_ids"])).encode())
                answered |= dict.fromkeys(made["rows"], drawn)
                tokens += made["length"] if split == "train" else 0
    gate.close()
    told = Ledger()
    for number, entry in enumerate(ledger):
        told.add(_entered(entry, answered.get(number)))
    told.save(folder / "ledger.parquet")
    facts |= {"tokens": tokens, "summary": told.summary(), "fingerprint": content.hexdigest()}
    write_json(folder / "facts.json", facts)


def _row(row: Mapping[str, Any], drawn: Drawn) -> dict[str, Any]:
    """A prompt's row with its answer; what the data itself says is right stays its reference."""
    prompt: Sequence[int] = row["input_ids"]
    ids = [*prompt, *drawn.ids]
    return {
        **row,
        "starts": [0],
        "position_ids": None,
        "length": len(ids),
        "input_ids": ids,
        "labels": [IGNORED] * len(prompt) + drawn.ids,
        "turn_ends": [len(ids) - 1] if drawn.ended else [],
        "truncated": not drawn.ended,
        "prompt_tokens": len(prompt),
        "reference": row["reference"] or drawn.text,
        "branches": None,
        "score": None,
        "columns": None,
    }


def _entered(entry: Entry, drawn: Drawn | None) -> Entry:
    """A row's entry with the tokens of its answer; one that was lost before stays as it is."""
    if drawn is None:
        return entry
    found = replace(entry, tokens=entry.tokens + len(drawn.ids), trained_tokens=len(drawn.ids))
    if drawn.ended:
        return replace(found, reason=entry.reason or ENDED)
    return replace(found, fate="truncated", reason=CUT)
