"""Makes the work that every contender of `speed.py` does: a model of random weights, a tokenizer, rows, facts.

    python benchmarks/workload.py FOLDER [--rows 400] [--vocabulary 8000] [--long] [--seed 7]

A prompt ends in a line break and a completion begins with a word, so that the ids are the same whether a tool reads
prompt and completion together, apart, or through the chat template (which only joins them): this is checked here.
What is labelled is the completion and the end-of-text token. Rows that are too long are left out, because tools cut
them differently. The tokenizer is always made from the same rows, and so does not depend on how many are trained on.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SOURCES = {
    "math/gsm8k_train.jsonl": ("question", "answer"),
    "sft/huatuo_med_zh.first6000.json": ("instruction", "output"),
}
SIZES = {"hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 6, "num_attention_heads": 8}
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
)
END, PAD = "<|end|>", "<|pad|>"
LEARNED, HELD_OUT, BATCH, TOKENS = 4000, 64, 8, 8000


def pairs(shared: Path = SHARED) -> tuple[list[tuple[str, str]], str]:
    """All rows as (prompt, completion), shuffled the same way each time, and where they come from."""
    if all((shared / name).exists() for name in SOURCES):
        found = [pair for name, fields in SOURCES.items() for pair in _read(shared / name, *fields)]
        source = "GSM8K and Huatuo"
    else:
        found, source = list(_builtin()), "builtin:instructions"
    random.Random(20261122).shuffle(found)
    return [pair for pair in dict.fromkeys(found) if all(pair)], source


def _read(path: Path, prompt: str, completion: str) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            asked = "\n".join(filter(None, [row[prompt].strip(), row.get("input", "").strip()]))
            yield asked + "\n", row[completion].strip()


def _builtin() -> Iterator[tuple[str, str]]:
    from tunekit.data.readers.builtin import read

    for _, row in read("builtin:instructions", None, 9000):
        asked = "\n".join(filter(None, [row["instruction"].strip(), row.get("input", "").strip()]))
        yield asked + "\n", row["output"].strip()


def learned_tokenizer(rows: list[tuple[str, str]]):
    """A byte-level BPE of at most `TOKENS` tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((prompt + completion for prompt, completion in rows), trainer)
    return tokenizer


def measured(tokenizer, rows: list[tuple[str, str]]) -> list[tuple[int, int]]:
    """Tokens and labelled tokens of each row; every way to read a row must give the same ids."""
    end = tokenizer.token_to_id(END)
    apart = [[one.ids for one in tokenizer.encode_batch(list(part))] for part in zip(*rows)]
    whole = tokenizer.encode_batch([prompt + completion + END for prompt, completion in rows])
    for asked, answered, joined in zip(*apart, whole):
        assert asked + answered + [end] == joined.ids, joined.tokens
    return [(len(asked) + len(answered) + 1, len(answered) + 1) for asked, answered in zip(*apart)]


def document(rows: list[tuple[str, str]], tokenizer, length: int) -> tuple[str, str]:
    """One row of nearly ``length`` tokens."""
    text: list[str] = []
    while sum(size for size, _ in measured(tokenizer, [("", one) for one in text])) < length - 400:
        text.append("".join(rows[len(text)]) + "\n")
    return "Questions and their answers:\n", "".join(text).strip()


def save_model(
    folder: Path,
    vocabulary: int,
    tokenizer,
    positions: int,
    seed: int,
    shape: dict | None = None,
    dtype: str = "float32",
) -> int:
    """Writes model and tokenizer; returns the number of parameters. ``shape``: its model_type and sizes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        **({"model_type": "llama"} | SIZES if shape is None else shape),
        vocab_size=vocabulary,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": positions,
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(named, indent=2), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return sum(weights.numel() for weights in model.parameters())


def make(folder: Path, *, rows: int = 400, vocabulary: int = TOKENS, long: bool = False, seed: int = 7) -> dict:
    """Writes the whole folder and returns its facts."""
    folder.mkdir(parents=True, exist_ok=True)
    length = 4096 if long else 512
    found, source = pairs()
    tokenizer = learned_tokenizer(found[:LEARNED])
    found = found[: 2 * (HELD_OUT + rows)]  # enough of them are short enough
    sizes = dict(zip(found, measured(tokenizer, found)))
    usable = [pair for pair, (tokens, _) in sizes.items() if tokens <= length]
    held_out, train = usable[:HELD_OUT], usable[HELD_OUT : HELD_OUT + rows]
    if long:
        train[len(train) // 2] = document(pairs()[0][-200:], tokenizer, length)
    for name, part in (("train", train), ("eval", held_out)):
        lines = [json.dumps({"prompt": asked, "completion": said}, ensure_ascii=False) for asked, said in part]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    parameters = save_model(folder / "model", vocabulary, tokenizer, max(2048, length), seed)
    counts = measured(tokenizer, train)
    assert all(tokens <= length for tokens, _ in counts), max(counts)
    facts = {
        "source": source,
        "rows": len(train),
        "tokens": sum(tokens for tokens, _ in counts),
        "labelled": sum(labelled for _, labelled in counts),
        "longest": max(tokens for tokens, _ in counts),
        "max_length": length,
        "batch_size": BATCH,
        "steps": -(-len(train) // BATCH),
        "learning_rate": 3e-4,
        "seed": seed,
        "vocabulary": vocabulary,
        "parameters": parameters,
    }
    (folder / "facts.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--vocabulary", type=int, default=TOKENS)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--seed", type=int, default=7)
    wanted = vars(parser.parse_args())
    print(json.dumps(make(wanted.pop("folder"), **wanted)))


if __name__ == "__main__":
    main()
