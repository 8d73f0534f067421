"""The ceiling: a plain torch loop over transformers' model that does nothing a training does not need.

Rows of like length share a batch, padded on the right without an attention mask (a causal model needs none), and the
LM head runs at labelled positions only. ``--option budget=true`` cuts batches by tokens, not by rows.
"""

from __future__ import annotations

import json
import random
from contextlib import nullcontext
from pathlib import Path

import common


def examples(job: common.Job) -> list[tuple[list[int], int]]:
    """The ids of each row, and where its completion begins."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(job.model) / "tokenizer.json"))
    rows = [json.loads(line) for line in Path(job.train).read_text(encoding="utf-8").splitlines()]
    asked = tokenizer.encode_batch([row["prompt"] for row in rows])
    said = tokenizer.encode_batch([row["completion"] + "<|end|>" for row in rows])
    return [(prompt.ids + answer.ids, len(prompt.ids)) for prompt, answer in zip(asked, said)]


def batches(rows: list[tuple[list[int], int]], job: common.Job) -> list[list[tuple[list[int], int]]]:
    """Rows of like length together, in random order."""
    size, budget = job.facts["batch_size"], None
    if job.on("budget"):
        budget = size * job.facts["tokens"] // job.facts["rows"]
    made: list[list[tuple[list[int], int]]] = []
    for row in sorted(rows, key=lambda row: len(row[0])):
        full = not made or (len(made[-1]) == size if budget is None else (len(made[-1]) + 1) * len(row[0]) > budget)
        if full:
            made.append([])
        made[-1].append(row)
    random.Random(job.facts["seed"]).shuffle(made)
    return made


def main() -> None:
    job = common.job()
    import torch
    from torch.nn import functional as F
    from transformers import LlamaForCausalLM

    torch.manual_seed(job.facts["seed"])
    work = batches(examples(job), job)
    model = LlamaForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    causal = model
    if job.adapter:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(**common.LORA))
        causal = model.base_model.model
    model.train()
    weights = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=job.facts["learning_rate"], weight_decay=0.0, fused=True)
    clock = common.Clock()
    clock.start()
    for batch in work:
        width = max(len(ids) for ids, _ in batch)
        inputs = torch.zeros(len(batch), width, dtype=torch.long)
        labels = torch.full((len(batch), width), -100)
        for at, (ids, begin) in enumerate(batch):
            inputs[at, : len(ids)] = torch.tensor(ids)
            labels[at, begin - 1 : len(ids) - 1] = torch.tensor(ids[begin:])  # each position names its next token
        with torch.autocast("cpu", torch.bfloat16) if job.precision == "bf16" else nullcontext():
            hidden = causal.model(input_ids=inputs, use_cache=False).last_hidden_state
            wanted = labels >= 0
            loss = F.cross_entropy(causal.lm_head(hidden[wanted]).float(), labels[wanted])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.labelled += int(wanted.sum())
        clock.step(sum(len(ids) for ids, _ in batch))
    model.save_pretrained(job.out / "model")
    common.write(job, clock.result())


if __name__ == "__main__":
    main()
