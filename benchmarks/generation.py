"""Answers to ragged prompts: tunekit's engine beside a plain loop of ``model.generate``, in one run.

    python benchmarks/generation.py [--rows 96] [--rounds 3] [--batch 16]

Prints the ratio of speeds (tunekit / plain loop, above 1 is faster) on the CPU in fp32, for a Llama of about 30 million
random weights with a vocabulary of 32,000, asked with the questions of GSM8K. The plain loop takes the prompts in the
order of the file, pads a batch on the left and calls ``generate``; both have the same batch size. A random model does
not end by itself: each answer ends where the one in the file has its last token, so that answers are as ragged as real
ones. Both are warmed up, and then take turns. The time is CPU seconds of the process, which a busy machine changes
little, with the clock's beside it. The answers are compared text by text.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from likelihood import SHAPE
from speed import machine, say
from workload import END, PAD, SHARED, learned_tokenizer

QUESTIONS = SHARED / "math" / "gsm8k_test.first660.jsonl"


def loaded():
    """The model, its tokenizer, the questions in tokens, and how many tokens each answer has."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    rows = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    inner = learned_tokenizer([(row["question"], row["answer"]) for row in rows])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=END, pad_token=PAD)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, initializer_range=0.1, bos_token_id=None)).eval()
    prompts = [tokenizer(row["question"])["input_ids"] for row in rows]
    return model, tokenizer, prompts, [len(tokenizer(row["answer"])["input_ids"]) for row in rows]


def plain_loop(model, tokenizer, prompts, sizes, batch):
    """What one writes first: batches in order, ``generate``, which goes on until all rows of a batch have ended."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Ended(StoppingCriteria):
        def __init__(self, width, wanted):
            self.width, self.wanted = width, torch.tensor(wanted)

        def __call__(self, input_ids, scores, **_):
            return input_ids.shape[1] - self.width >= self.wanted

    answers = []
    for start in range(0, len(prompts), batch):
        part, wanted = prompts[start : start + batch], sizes[start : start + batch]
        width = max(map(len, part))
        ids = torch.full((len(part), width), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(part):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        with torch.no_grad():
            found = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=max(wanted), do_sample=False, eos_token_id=None,
                pad_token_id=tokenizer.pad_token_id, stopping_criteria=StoppingCriteriaList([Ended(width, wanted)]),
            )  # fmt: skip
        for row, size in zip(found[:, width:].tolist(), wanted):
            answers.append(tokenizer.decode(row[:size], skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return answers


def timed(work):
    """CPU seconds, seconds of the clock, and what came of it."""
    spent, started = time.process_time(), time.perf_counter()
    found = work()
    return time.process_time() - spent, time.perf_counter() - started, found


def main():
    """Runs the comparison and prints one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    if not QUESTIONS.exists():
        raise SystemExit(f"there are no questions in {QUESTIONS}")
    from tunekit.core.progress import Silent
    from tunekit.evaluate.contract import Prompt
    from tunekit.evaluate.local import TransformersEngine

    say(machine())
    model, tokenizer, prompts, sizes = loaded()
    prompts, sizes = prompts[: options.rows], sizes[: options.rows]
    model.generation_config.eos_token_id = None
    tokenizer.eos_token = None
    engine = TransformersEngine(model, tokenizer, batch_size=options.batch)
    asked = [Prompt(tuple(prompt), size) for prompt, size in zip(prompts, sizes)]

    def ours():
        return [answer.text for answer in engine.generate(asked, Silent(), "answers")]

    def lists():
        return plain_loop(model, tokenizer, prompts, sizes, options.batch)

    works = {"plain loop": lists, "tunekit": ours}
    for work in works.values():
        work()
    ratios, clocks, same = [], [], 0
    for number in range(options.rounds):
        order = list(works) if number % 2 == 0 else list(reversed(works))
        found = {name: timed(works[name]) for name in order}
        ratios.append(found["plain loop"][0] / found["tunekit"][0])
        clocks.append(found["plain loop"][1] / found["tunekit"][1])
        same = sum(a == b for a, b in zip(found["plain loop"][2], found["tunekit"][2], strict=True))
        say(f"round {number + 1}: {ratios[-1]:.2f} (clock {clocks[-1]:.2f})")
    say(
        f"generation, {options.rows} prompts of {min(map(len, prompts))} to {max(map(len, prompts))} tokens, answers "
        f"of {min(sizes)} to {max(sizes)} tokens, batches of {options.batch}: "
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), clock "
        f"{statistics.median(clocks):.2f}; {same} of {options.rows} answers are the same"
    )


if __name__ == "__main__":
    main()
