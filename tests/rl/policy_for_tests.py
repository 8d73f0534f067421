"""Prompts, a reward and a model for the tests of the trainers that draw answers."""

import json
from pathlib import Path

TINY = Path(__file__).parents[2] / "src/tunekit/model/builtin/tiny"
WORDS = ("red", "blue", "green", "river", "stone", "apple", "moon", "walks", "sings", "counts")
REWARD = '''
def vowels(completions, answer):
    """A share that differs from answer to answer."""
    return [sum(letter in "aeiou" for letter in text) / (1 + len(text)) for text in completions]
'''
BLOCK = {"generations": 3, "max_new_tokens": 7, "temperature": 1.0}


def question(number):
    """A prompt; the lengths differ from row to row."""
    words = " ".join(WORDS[(number * 3 + at) % len(WORDS)] for at in range(1 + number * 5 % 7))
    return {"question": f"{number} {words}?", "answer": WORDS[number % len(WORDS)]}


def write_prompts(folder, count):
    """A file of ``count`` prompts, and the file of a reward beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.py").write_text(REWARD, encoding="utf-8")
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(question(number)) + "\n" for number in range(count)), encoding="utf-8")
    return path


def write_model(folder, end=1.7):
    """A model of random weights that are far from uniform; at ``end`` 1.7 most answers end within seven tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tunekit.model.names import resolve_name
    from tunekit.model.tokenizer import random_config

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(random_config(resolve_name("builtin:random?layers=2&hidden=32&heads=2")))
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    with torch.no_grad():
        table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        assert table is not head
        head.normal_(std=0.5)
        table[:, 0] = 0.2  # a direction that all states have, and that only the end token looks at
        head[:, 0] = 0.0
        head[tokenizer.eos_token_id] = 0.0
        head[tokenizer.eos_token_id, 0] = end
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def policy_plan(plan_of, prompts, method, *, block=None, **sets):
    """A plan of a method that draws answers: small, at a constant learning rate; ``block``: the method's own keys."""
    reward = {"reward": [{"function": f"{prompts.parent / 'mine.py'}:vowels"}]}
    given = {"data__train": [{"path": str(prompts)}], "data__max_length": 64, "train__schedule": "constant"}
    given |= {method: BLOCK | reward | (block or {}), "train__batch_size": 4}
    return plan_of(method, **(given | sets))
