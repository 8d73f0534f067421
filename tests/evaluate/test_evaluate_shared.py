"""What texts have in common at their beginning is computed once, and nothing else changes."""

from __future__ import annotations

import random

import pytest
import torch

from tunekit.core.progress import Silent
from tunekit.evaluate import likelihoods, sharing
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


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "mistral"])
@pytest.mark.parametrize("before", [9, 70])
def test_what_choices_begin_with_is_read_and_scored_once(name, before):
    """Choices that part after 0, 3 and 5 tokens, one that another begins with, equal ones, other flags."""
    model = build(name)
    said, begin = [21, 22, 23, 24, 25, 26], [1 + n % 40 for n in range(before)]
    requests = [
        request([*begin, first], target, skipped)
        for first in (41, 42, 43, 44, 45)
        for target, skipped in ((said, ()), ([*said[:5], 9, 8, 7], ()), ([*said[:3], 5], ()), (said[:4], ()),
                                (said, ()), (said, (2, 4)), ([30, 31], ()), (said, (3,)))
    ]  # fmt: skip
    requests += [request([*begin, first], [*said, first]) for first in (46, 47)]
    wanted = answers(model, requests, share=False)
    for options in ({}, {"batch_size": 3}, {"batch_size": 2, "batch_tokens": 40}):
        found = answers(model, requests, **options)
        assert [one.value for one in found] == pytest.approx([one.value for one in wanted], abs=1e-4)
        assert [(one.tokens, one.greedy) for one in found] == [(one.tokens, one.greedy) for one in wanted]


def test_the_common_beginning_of_choices_is_not_read_again():
    model = build("llama")
    common, ends = [7] * 20, ([1, 2], [3, 4], [5, 6])
    requests = [request([first, *range(10, 19)], [*common, *end]) for first in (1, 2) for end in ends]
    read = []
    hook = model.model.embed_tokens.register_forward_hook(lambda _, args, __: read.append(args[0].numel()))
    found = answers(model, requests)
    hook.remove()
    assert sum(read) == 2 * (10 + 20) + 6 and [one.tokens for one in found] == [22] * 6
    (cluster,) = sharing.plan(requests, share=True)[1]
    assert [(len(group.context), len(group.more)) for group in cluster.groups] == [(10, 20)] * 2


def test_the_first_of_equal_tokens_is_the_likeliest():
    logits = torch.tensor([[1.0, 3.0, 3.0], [1.0, 3.0, 3.0], [2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
    found = likelihoods._is_other(logits, torch.tensor([1, 2, 0, 1]))
    assert found.tolist() == (logits.argmax(-1) != torch.tensor([1, 2, 0, 1])).tolist() == [False, True, False, True]
    assert likelihoods._is_other(logits[:1], torch.tensor([0])).tolist() == [True]


def test_questions_that_begin_otherwise_are_clusters_of_their_own():
    two = questions(90, 5, 2, seed=1) + questions(70, 6, 2, seed=2)
    alone, clusters = sharing.plan(two, share=True)
    assert alone == [] and sorted((c.start, len(c.groups)) for c in clusters) == [(70, 6), (90, 5)]
    assert sharing.plan(two, share=False) == (list(range(len(two))), [])
    singles = questions(0, 6, 1)
    assert sharing.plan(singles, share=True) == (list(range(6)), [])


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


def test_batches_with_the_least_padding_are_found():
    """Against every way to part a few lengths, by brute force."""
    from itertools import combinations, pairwise

    from tunekit.evaluate.batches import cheap_batches

    draw = random.Random(4)
    for _ in range(40):
        lengths = [draw.choice((1, 2, 9, 30)) + draw.randrange(6) for _ in range(draw.randint(1, 8))]
        rows, tokens, overhead = draw.randint(1, 5), draw.choice((20, 60, 1000)), draw.choice((0, 5, 40))
        found = cheap_batches(lengths, rows=rows, tokens=tokens, overhead=overhead)
        assert sorted(place for batch in found for place in batch) == list(range(len(lengths)))

        def cost(batches, overhead=overhead):
            return sum(overhead + max(batch) * len(batch) for batch in batches)

        def fits(batch, rows=rows, tokens=tokens):
            return len(batch) <= rows and (len(batch) == 1 or max(batch) * len(batch) <= tokens)

        longest_first, ways = sorted(lengths, reverse=True), []
        for count in range(len(lengths)):
            for cuts in combinations(range(1, len(lengths)), count):
                parts = [longest_first[a:b] for a, b in pairwise((0, *cuts, len(lengths)))]
                ways += [cost(parts)] if all(map(fits, parts)) else []
        mine = [[lengths[place] for place in batch] for batch in found]
        assert all(map(fits, mine)) and cost(mine) == min(ways)
        alike = cheap_batches(lengths, rows=rows, tokens=tokens, overhead=overhead, padding=False)
        assert all(len({lengths[place] for place in batch}) == 1 for batch in alike)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "mistral", "gemma2"])
def test_places_of_rows_that_ended_are_taken_and_the_cache_grows(name, monkeypatch):
    """Room for three tokens at a time; batches that few tokens bound begin narrower than they become."""
    from tunekit.evaluate import slots

    monkeypatch.setattr(slots, "ROOM", 3)
    model, draw = build(name), random.Random(5)
    model.generation_config.eos_token_id = None

    class Bare:
        eos_token_id = pad_token_id = None

        def decode(self, ids, **_):
            return " ".join(map(str, ids))

    asked = [
        Prompt(tuple(draw.randrange(1, 60) for _ in range(draw.randint(1, 30))), draw.randint(1, 20)) for _ in range(23)
    ]

    def alone(prompt):
        ids = list(prompt.ids)
        for _ in range(prompt.max_new_tokens):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        return ids[len(prompt.ids) :]

    wanted = [alone(prompt) for prompt in asked]
    assert len({tuple(ids) for ids in wanted}) > 15
    for options in ({"batch_size": 4}, {"batch_size": 8, "batch_tokens": 45}, {"batch_size": 64}, {"batch_size": 1}):
        engine = TransformersEngine(model, Bare(), **options)
        assert engine.tokens(asked, Silent(), "answers") == wanted, options
