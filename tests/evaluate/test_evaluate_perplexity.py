from __future__ import annotations

import math
import random

import pytest
import torch

from tunekit.core.progress import Silent
from tunekit.evaluate.batches import batches
from tunekit.evaluate.local import TransformersEngine
from tunekit.evaluate.tasks import perplexity


def evaluate(model, items, batch_size=8, batch_tokens=4096, share=False, **options):
    engine = TransformersEngine(model, None, batch_size=batch_size, batch_tokens=batch_tokens, share=share)
    (result,) = perplexity.run(engine, items, perplexity.Config(**options), screen=Silent())
    return result


def test_batches_keep_the_budget_and_every_row():
    lengths = [5, 1, 9, 9, 3, 20, 4]
    found = batches(lengths, rows=3, tokens=18)
    assert found == [[5], [2, 3], [0, 6, 4], [1]]
    assert batches(lengths, rows=100) == [[5, 2, 3, 0, 6, 4, 1]]
    assert batches([], rows=1) == []


def test_equals_a_plain_loop(llama, rows, loop_likelihoods):
    model = llama().eval()
    result = evaluate(model, rows)
    assert result.values == pytest.approx(loop_likelihoods(model, rows), abs=1e-5)
    assert result.weights == tuple(float(sum(row.trained)) for row in rows)
    assert not result.higher_is_better and result.statistic == "perplexity"


def test_does_not_depend_on_batches_or_order(llama, rows):
    model = llama().eval()
    reference = evaluate(model, rows, batch_size=1).values
    assert evaluate(model, rows, batch_size=24).values == pytest.approx(reference, abs=1e-5)
    assert evaluate(model, rows, batch_size=24, batch_tokens=20).values == pytest.approx(reference, abs=1e-5)
    order = random.Random(0).sample(range(len(rows)), len(rows))
    shuffled = evaluate(model, [rows[index] for index in order]).values
    assert shuffled == pytest.approx([reference[index] for index in order], abs=1e-5)


def gemma2(size):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(Gemma2Config(**size, head_dim=8, final_logit_softcapping=2.0, initializer_range=0.5))


def cohere(size):
    from transformers import CohereConfig, CohereForCausalLM

    return CohereForCausalLM(CohereConfig(**size, logit_scale=0.0625, initializer_range=0.5))


def granite(size):
    from transformers import GraniteConfig, GraniteForCausalLM

    return GraniteForCausalLM(GraniteConfig(**size, logits_scaling=8.0, initializer_range=0.5))


def gpt2(size):
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=size["vocab_size"], n_embd=32, n_layer=2, n_head=4, n_positions=64))


def bloom(size):
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(BloomConfig(vocab_size=size["vocab_size"], hidden_size=32, n_layer=2, n_head=4))


@pytest.mark.parametrize("build", [gemma2, cohere, granite, gpt2, bloom])
def test_whatever_a_model_does_to_its_logits_is_done(build, rows, tokenizer, loop_likelihoods):
    torch.manual_seed(0)
    size = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
    }
    model = build(size).eval()
    assert evaluate(model, rows).values == pytest.approx(loop_likelihoods(model, rows), abs=1e-5)


def adapters():
    from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig

    return {
        "lora": (LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "lm_head"], init_lora_weights=False), 0),
        "modules_to_save": (
            LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"]),
            0,
        ),
        "prompt_tuning": (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5), 5),
        "prefix_tuning": (PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5), 0),
    }


@pytest.mark.parametrize("kind", ["lora", "modules_to_save", "prompt_tuning", "prefix_tuning"])
def test_adapters(kind, llama, rows, loop_likelihoods):
    from peft import get_peft_model

    config, virtual = adapters()[kind]
    plain = llama().eval()
    before = loop_likelihoods(plain, rows)
    model = get_peft_model(plain, config).eval()
    found = evaluate(model, rows).values
    assert found == pytest.approx(loop_likelihoods(model, rows, virtual), abs=1e-5)
    if kind != "modules_to_save":
        assert found != pytest.approx(before, abs=1e-3)


def test_the_head_sees_the_counted_positions_only(llama, rows):
    model = llama().eval()
    seen = []
    hook = model.lm_head.register_forward_hook(lambda _m, inputs, _o: seen.append(tuple(inputs[0].shape)))
    evaluate(model, rows, batch_size=len(rows))
    hook.remove()
    assert seen == [(1, sum(sum(row.trained) for row in rows), 32)]
    assert not model.lm_head._forward_pre_hooks


def test_a_model_without_a_head_to_hook_is_computed_in_full(llama, rows, loop_likelihoods):
    model = llama().eval()
    model.get_output_embeddings = lambda: None
    assert evaluate(model, rows).values == pytest.approx(loop_likelihoods(model, rows), abs=1e-5)


def test_rows_without_a_counted_token_weigh_nothing(llama, rows):
    from dataclasses import replace

    empty = replace(rows[0], trained=(True,) + (False,) * (len(rows[0].trained) - 1))
    result = evaluate(llama(), [empty, rows[1]])
    assert result.weights[0] == 0.0 and result.weights[1] > 0


def test_nan_stays_nan(llama, rows):
    model = llama()
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    assert all(map(math.isnan, evaluate(model, rows).values))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_goes_on_as_if_nothing_had_been(checkpointing, llama, rows):
    def losses(evaluating):
        model = llama(attention_dropout=0.3).train()
        model.config.use_cache = False
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.lm_head.eval()  # a module held in evaluation mode on purpose
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        found = []
        torch.manual_seed(1)
        for item in rows[:4]:
            if evaluating:
                evaluate(model, rows[:6])
                assert model.training and model.model.layers[0].self_attn.training and not model.lm_head.training
                assert model.config.use_cache is False and model.is_gradient_checkpointing == checkpointing
            ids = torch.tensor([item.input_ids])
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        return found

    assert losses(evaluating=True) == losses(evaluating=False)


def test_a_text_longer_than_the_positions_is_read_in_windows(llama, row):
    """Every token is scored once, after at most so many tokens as the model can read; worked with a plain loop."""
    model = llama(max_position_embeddings=16).eval()
    item = row("1+2=", "0123456789abcdefghij0123456789abcdefghij")  # 46 tokens, 41 of them counted
    size, stride = 16, 6
    total = 0.0
    for place in range(1, len(item.input_ids)):
        if not item.trained[place]:
            continue
        # the first window that reaches the token: windows begin at 0, 6, 12, ... and end 16 tokens later
        begin = next(at for at in range(0, 1000, stride) if place < at + size)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([item.input_ids[begin:place]])).logits[0, -1].double()
        total -= float(torch.log_softmax(logits, -1)[item.input_ids[place]])
    result = evaluate(model, [item], stride=stride)
    assert result.values[0] == pytest.approx(total, abs=1e-4) and result.weights == (41.0,)
    assert evaluate(model, [item]).values[0] != pytest.approx(total, abs=1e-3)  # half the positions


def test_units_are_of_the_same_likelihood(llama, rows, tokenizer):
    engine = TransformersEngine(llama().eval(), tokenizer)
    config = perplexity.Config(units=("token", "word", "byte"))
    token, word, byte = perplexity.run(engine, rows, config, screen=Silent())
    assert [found.metric for found in (token, word, byte)] == ["perplexity", "word_perplexity", "bits_per_byte"]
    assert word.values == token.values and set(word.weights) == {1.0}  # an answer is one number
    assert byte.values == pytest.approx([nats / math.log(2) for nats in token.values])
    assert byte.weights == tuple(float(len(row.reference)) for row in rows) and byte.statistic == "mean"
