"""Scoring of choices: tunekit's engine beside lm-evaluation-harness's own HFLM, on the same requests, in one run.

    python benchmarks/likelihood.py [--rows 40] [--rounds 3] [--batch 8] [--only piqa,letters,answers]

Prints the ratio of speeds (tunekit / HFLM, above 1 is faster) on the CPU in fp32, for a Llama of about 30 million
random weights with a vocabulary of 32,000. Both are given the harness's requests as texts, so that tokenizing counts,
and both have the same batch size; each is warmed up first, and then they take turns, first the one and then the other
first. The time is CPU seconds of the process, which a busy machine changes little, and the clock's is shown beside it.
Median of the rounds' ratios, with their range. The answers are compared: their largest difference in nats, and the
questions for which another choice is the likeliest.

- piqa: two whole sentences a question, without examples.
- letters: MMLU as it is asked, five examples and four choices of one letter, which HFLM reads off one pass.
- answers: MMLU with the same examples and the four answers written out.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import logging
import statistics
import time
from pathlib import Path

import torch
from speed import machine, say
from workload import END, PAD, SHARED, learned_tokenizer

BENCHMARKS = SHARED / "benchmarks"
SUBJECTS = ("astronomy", "human_aging", "world_religions", "nutrition")
SHAPE = {
    "vocab_size": 32_000, "hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 8,
    "num_attention_heads": 5, "num_key_value_heads": 5, "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}  # fmt: skip

Question = tuple[str, list[str]]


def piqa(rows: int) -> list[Question]:
    """Questions with their choices."""
    lines = (BENCHMARKS / "piqa_valid.first1200.jsonl").read_text(encoding="utf-8").splitlines()[:rows]
    found = map(json.loads, lines)
    return [(f"Question: {row['goal']}\nAnswer:", [f" {row['sol1']}", f" {row['sol2']}"]) for row in found]


def mmlu(rows: int, *, letters: bool) -> list[Question]:
    """``rows`` questions of all subjects together, each after the five examples of its own subject."""

    def asked(row: dict[str, str]) -> tuple[str, list[str], int]:
        choices = [row[f"choice{number}"] for number in range(4)]
        text = row["question"].strip() + "\n"
        if letters:
            text += "".join(f"{letter}. {choice}\n" for letter, choice in zip("ABCD", choices, strict=True))
        return f"{text}Answer:", [f" {choice}" for choice in ("ABCD" if letters else choices)], int(row["answer"])

    def read(part: str, subject: str) -> list[dict[str, str]]:
        with (BENCHMARKS / "mmlu" / part / f"{subject}_{part}.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    found = []
    for subject in SUBJECTS:
        shots = ""
        for row in read("dev", subject):
            text, choices, right = asked(row)
            shots += f"{text}{choices[right]}\n\n"
        for row in read("test", subject)[: -(-rows // len(SUBJECTS))]:
            text, choices, _ = asked(row)
            found.append((shots + text, choices))
    return found[:rows]


WORKS = {
    "piqa": piqa,
    "letters": lambda rows: mmlu(rows, letters=True),
    "answers": lambda rows: mmlu(rows, letters=False),
}


def contenders(batch: int) -> dict[str, object]:
    """Both as language models of the harness, over the same model."""
    from lm_eval.models.huggingface import HFLM
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from tunekit.core.progress import Silent
    from tunekit.evaluate.engines.transformers import TransformersEngine
    from tunekit.evaluate.harness_lm import language_model

    texts = [(context, "".join(choices)) for work in WORKS.values() for context, choices in work(400)]
    inner = learned_tokenizer(texts)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=END, pad_token=PAD)
    torch.manual_seed(0)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, **ids)).eval()
    say(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million weights, batches of {batch}")
    engine = TransformersEngine(model, tokenizer, batch_size=batch)
    return {
        "HFLM": HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch),
        "tunekit": language_model(engine, Silent()),
    }


def timed(lm, questions: list[Question]) -> tuple[float, float, list[float]]:
    """CPU seconds, seconds of the clock, and the answers."""
    from lm_eval.api.instance import Instance

    pairs = [(context, choice) for context, choices in questions for choice in choices]
    asked = [Instance("loglikelihood", {}, pair, 0, ("bench", number, 1)) for number, pair in enumerate(pairs)]
    spent, started = time.process_time(), time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):  # HFLM's bars
        found = lm.loglikelihood(asked)
    return time.process_time() - spent, time.perf_counter() - started, [value for value, _ in found]


def chosen(questions: list[Question], values: list[float]) -> list[int]:
    """Which choice is the likeliest, question by question."""
    found, start = [], 0
    for _, choices in questions:
        own = values[start : start + len(choices)]
        found.append(own.index(max(own)))
        start += len(choices)
    return found


def compared(lms: dict[str, object], name: str, wanted: argparse.Namespace) -> dict[str, object]:
    questions = WORKS[name](wanted.rows)
    for lm in lms.values():
        timed(lm, questions[:4])
    ratios, clocks, answers, best = [], [], {}, dict.fromkeys(lms, float("inf"))
    for number in range(wanted.rounds):
        spent, clock = {}, {}
        for contender in list(lms) if number % 2 == 0 else list(reversed(lms)):
            spent[contender], clock[contender], answers[contender] = timed(lms[contender], questions)
            best[contender] = min(best[contender], spent[contender])
        ratios.append(spent["HFLM"] / spent["tunekit"])
        clocks.append(clock["HFLM"] / clock["tunekit"])
        say(f"  {name}, round {number + 1}: {ratios[-1]:.2f} (clock {clocks[-1]:.2f})")
    theirs, ours = answers["HFLM"], answers["tunekit"]
    other = sum(a != b for a, b in zip(chosen(questions, theirs), chosen(questions, ours), strict=True))
    apart = max(abs(a - b) for a, b in zip(theirs, ours, strict=True))
    print(
        f"| {name} | {len(theirs)} | {best['HFLM']:.1f} | {best['tunekit']:.1f} | {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}) | {statistics.median(clocks):.2f} | {apart:.1e} | {other} |"
    )
    return {"work": name, "ratio": statistics.median(ratios), "ratios": ratios, "clocks": clocks, "apart": apart}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=40, help="questions of each work")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--only", default=",".join(WORKS), help="works, in order")
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    wanted = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if not BENCHMARKS.is_dir():
        raise SystemExit(f"the real data is not on this machine: {BENCHMARKS}")
    print(machine())
    lms = contenders(wanted.batch)
    print("\n| work | texts | HFLM, CPU s | tunekit, CPU s | ratio (range) | clock | nats apart | other choices |")
    print("|---|---|---|---|---|---|---|---|")
    found = [compared(lms, name, wanted) for name in wanted.only.split(",")]
    if wanted.json:
        wanted.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
