"""What texts have in common at their beginning is computed once, and nothing else changes."""

from __future__ import annotations

import random

import pytest
import torch

from tunekit.core.progress import Silent
from tunekit.evaluate import likelihoods
from tunekit.evaluate.abilities import takes_cache
from tunekit.evaluate.contract import Likelihood, Prompt
from tunekit.evaluate.local import TransformersEngine

SIZE = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0,
}  # fmt: skip


def request(context, target, skipped=()):
    flags = tuple(place not in skipped for place in range(len(target)))
    return Likelihood((*context, *target), (False,) * len(context) + flags)


def questions(start, count, choices, seed=0, shortest=1):
    """Questions that begin alike, of ragged lengths, each with choices of ragged lengths."""
    draw = random.Random(seed)

    def some(least, most):
        return [draw.randrange(1, 60) for _ in range(draw.randint(least, most))]

    shots = some(start, start) if start else []
    found = []
    for _ in range(count):
        context = shots + some(18, 40)
        found += [request(context, some(shortest, 6)) for _ in range(choices)]
    return found


def answers(model, requests, **options):
    return TransformersEngine(model, None, **options).likelihoods(requests, Silent(), "texts")


def build(name):
    import transformers as t

    torch.manual_seed(0)
    config = {
        "llama": lambda: t.LlamaConfig(**SIZE, initializer_range=0.3),
        "qwen3": lambda: t.Qwen3Config(**SIZE, head_dim=8, initializer_range=0.3),
        "mistral": lambda: t.MistralConfig(**SIZE, sliding_window=20, initializer_range=0.3),
        "gemma2": lambda: t.Gemma2Config(**SIZE, head_dim=8, sliding_window=20, initializer_range=0.3),
        "gpt2": lambda: t.GPT2Config(
            vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3
        ),
        "bloom": lambda: t.BloomConfig(vocab_size=60, hidden_size=32, n_layer=2, n_head=4),
        "gpt_neo": lambda: t.GPTNeoConfig(
            vocab_size=60, hidden_size=32, num_layers=2, num_heads=4, window_size=20, max_position_embeddings=256,
            attention_types=[[["global", "local"], 1]], initializer_range=0.3,
        ),
        "lfm2": lambda: t.Lfm2Config(**SIZE, full_attn_idxs=[1], block_auto_adjust_ff_dim=False),
        "rwkv": lambda: t.RwkvConfig(
            vocab_size=60, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32, context_length=256
        ),
        "longrope": lambda: t.Phi3Config(
            **SIZE, original_max_position_embeddings=40, initializer_range=0.3,
            rope_parameters={
                "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
                "original_max_position_embeddings": 40,
            },
        ),
        "mamba": lambda: t.MambaConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2),
    }[name]()
    return t.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("start", [0, 90])
@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "gemma2", "gpt2", "gpt_neo"])
def test_the_likelihoods_are_those_of_whole_texts(name, start):
    model = build(name)
    assert takes_cache(model)
    requests = [*questions(start, 9, 3), request([5], [7, 8]), request([9, 9, 3], [4])]
    random.Random(1).shuffle(requests)
    wanted = answers(model, requests, share=False, batch_size=1)
    for size in (1, 7, 64):
        found = answers(model, requests, batch_size=size)
        assert [a.value for a in found] == pytest.approx([a.value for a in wanted], abs=2e-5)
        assert [(a.tokens, a.greedy) for a in found] == [(a.tokens, a.greedy) for a in wanted]


def test_a_token_that_is_not_scored_is_read_all_the_same():
    model = build("llama")
    requests = [request(range(1, 21), [3, 4, 5, 6], skipped=(1, 2)), request(range(1, 21), [3, 9, 9], skipped=(2,))]
    wanted = answers(model, requests, share=False)
    assert [a.tokens for a in wanted] == [2, 2]
    found = answers(model, requests)
    assert [a.value for a in found] == pytest.approx([a.value for a in wanted], abs=1e-5)


@pytest.mark.parametrize("name", ["bloom", "mamba", "lfm2"])
def test_a_model_without_such_a_cache_reads_whole_texts(name):
    model = build(name)
    requests = questions(90, 5, 2)
    assert not takes_cache(model)
    wanted = answers(model, requests, share=False, batch_size=1)
    assert [a.value for a in answers(model, requests)] == pytest.approx([a.value for a in wanted], abs=2e-5)


def test_what_is_alike_is_read_once():
    model = build("llama")
    requests = questions(90, 8, 4)
    read = []
    hook = model.model.register_forward_pre_hook(
        lambda _m, _a, given: read.append(given["input_ids"].numel()), with_kwargs=True
    )
    answers(model, requests)
    once = sum(read)
    read.clear()
    answers(model, requests, share=False)
    hook.remove()
    # 90 tokens once, 8 questions of 18 to 40 tokens, 32 targets of at most 5; not 32 texts of more than 108
    assert once <= 90 + 8 * 40 + 32 * 5 < 32 * 108 <= sum(read)


def test_the_choice_of_one_token_needs_no_second_pass():
    model = build("llama")
    requests = [request(range(first, first + 20), [choice]) for first in (1, 5, 9, 13) for choice in (40, 41, 42, 43)]
    passes = []
    hook = model.model.register_forward_pre_hook(lambda *_: passes.append(1))
    found = answers(model, requests)
    hook.remove()
    assert len(passes) == 1 and all(a.tokens == 1 for a in found)


def test_questions_that_begin_otherwise_are_clusters_of_their_own():
    two = questions(90, 5, 2, seed=1) + questions(70, 6, 2, seed=2)
    alone, clusters = likelihoods.plan(two, share=True)
    assert alone == [] and sorted((c.start, len(c.groups)) for c in clusters) == [(70, 6), (90, 5)]
    assert likelihoods.plan(two, share=False) == (list(range(len(two))), [])
    singles = questions(0, 6, 1)
    assert likelihoods.plan(singles, share=True) == (list(range(6)), [])


def test_texts_beyond_the_border_of_a_position_scaling_are_alone():
    """Phi-3's long factors hold for a whole batch: one long text changed what its neighbours were."""
    model = build("longrope")
    requests = [request(range(1, 1 + size), [5, 6, 7]) for size in (10, 20, 36, 39, 44, 50)]
    alone = [answers(model, [one])[0].value for one in requests]
    assert [a.value for a in answers(model, requests)] == pytest.approx(alone, abs=2e-5)
    prompts = [Prompt(tuple(range(1, 1 + size)), 8) for size in (10, 30, 36, 44, 50)]
    assert written(model, prompts, 8) == written(model, prompts, 1)


class Numbers:
    """Writes ids as numbers."""

    eos_token_id, pad_token_id, bos_token_id = None, 0, 0

    def decode(self, ids, **_):
        return " ".join(map(str, ids))


def written(model, prompts, size):
    model.generation_config.eos_token_id = None
    engine = TransformersEngine(model, Numbers(), batch_size=size)
    return [answer.text for answer in engine.generate(prompts, Silent(), "texts")]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_neo", "bloom", "mamba", "lfm2", "rwkv"])
def test_what_is_written_does_not_depend_on_the_batch(name, temperature):
    model = build(name)
    draw = random.Random(2)
    sizes = (3, 9, 20, 33, 5, 28, 11, 3)
    prompts = [
        Prompt(tuple(draw.randrange(1, 60) for _ in range(size)), 4 + size % 7, temperature=temperature)
        for size in sizes
    ]
    alone = written(model, prompts, 1)
    assert written(model, prompts, 3) == alone == written(model, prompts, 8)
    assert [len(text.split()) for text in alone] == [4 + size % 7 for size in sizes]
