from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from tunekit.core.errors import DataError, UserError
from tunekit.core.progress import Silent
from tunekit.evaluate.tasks import generation

CPU = torch.device("cpu")


class Warned(Silent):
    def __init__(self):
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)


def texts(model, tokenizer, items, batch_size=8, screen=None, **options):
    config = generation.Config(**{"max_new_tokens": 6, **options})
    results = generation.run(
        model, tokenizer, items, config, device=CPU, batch_size=batch_size, screen=screen or Silent()
    )
    return list(results[0].texts)


def greedy_loop(model, tokenizer, items, new_tokens, stops):
    """One row, one token at a time, no cache, no padding."""
    found = []
    for item in items:
        ids = list(item.prompt_ids)
        for _ in range(new_tokens):
            with torch.no_grad():
                token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if token in stops:
                break
            ids.append(token)
        found.append(tokenizer.decode(ids[len(item.prompt_ids) :], skip_special_tokens=True))
    return found


def test_equals_a_plain_loop_at_every_batch_size(llama, tokenizer, rows):
    model = llama().eval()
    wanted = greedy_loop(model, tokenizer, rows, 6, {tokenizer.eos_token_id})
    assert len(set(wanted)) > 5
    for batch_size in (1, 5, 24):
        assert texts(model, tokenizer, rows, batch_size) == wanted
    order = random.Random(0).sample(range(len(rows)), len(rows))
    assert texts(model, tokenizer, [rows[i] for i in order]) == [wanted[i] for i in order]


@pytest.mark.parametrize("kind", ["lora", "prompt_tuning", "prefix_tuning"])
def test_adapters(kind, llama, tokenizer, rows):
    from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

    config = {
        "lora": LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False),
        "prompt_tuning": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
        "prefix_tuning": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    }[kind]
    model = get_peft_model(llama(), config).eval()
    wanted = greedy_loop(model, tokenizer, rows[:8], 6, {tokenizer.eos_token_id})
    assert texts(model, tokenizer, rows[:8], 1) == wanted
    assert texts(model, tokenizer, rows[:8], 8) == wanted


def test_stops_at_every_end_token(llama, tokenizer, rows):
    model = llama().eval()
    free = texts(model, tokenizer, rows)
    letter = max("0123456789abcdefghij", key=lambda c: sum(c in text for text in free))
    token = tokenizer.convert_tokens_to_ids(letter)
    cut = [text.split(letter)[0] for text in free]
    assert cut != free
    assert texts(model, tokenizer, rows, stop_ids=(token,)) == cut
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, token]
    assert texts(model, tokenizer, rows) == cut
    assert generation.stop_tokens(model, tokenizer, [9]) == {tokenizer.eos_token_id, token, 9}


def test_the_model_s_own_generation_defaults_are_not_used_and_stay(llama, tokenizer, rows):
    model = llama().eval()
    wanted = texts(model, tokenizer, rows)
    own = model.generation_config
    own.do_sample, own.temperature, own.repetition_penalty, own.max_length = True, 5.0, 9.0, 11
    assert texts(model, tokenizer, rows) == wanted
    assert model.generation_config is own and own.repetition_penalty == 9.0


def test_drawn_answers_repeat_with_the_seed(llama, tokenizer, rows):
    model = llama().eval()
    first = texts(model, tokenizer, rows, temperature=1.0, top_p=0.9, seed=1)
    torch.manual_seed(99)
    assert texts(model, tokenizer, rows, temperature=1.0, top_p=0.9, seed=1) == first
    assert texts(model, tokenizer, rows, temperature=1.0, top_p=0.9, seed=2) != first
    with pytest.raises(ValidationError, match="top_p below 1 needs a temperature"):
        generation.Config(top_p=0.5)


def test_modes_and_random_state_are_as_before(llama, tokenizer, rows):
    model = llama().train()
    model.gradient_checkpointing_enable()
    model.config.use_cache = False
    torch.manual_seed(3)
    state = torch.get_rng_state()
    texts(model, tokenizer, rows, temperature=1.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert model.is_gradient_checkpointing and model.config.use_cache is False


def test_gradient_checkpointing_does_not_change_the_answers(llama, tokenizer, rows):
    model = llama().eval()
    wanted = texts(model, tokenizer, rows)
    model.train()
    model.gradient_checkpointing_enable()
    assert texts(model, tokenizer, rows) == wanted


def test_prompts_near_the_last_position(llama, tokenizer, rows, row):
    model = llama(max_position_embeddings=20).eval()
    long = row("1" * 15 + "=", "1")  # 17 tokens: room for 3
    screen = Warned()
    found = texts(model, tokenizer, [rows[0], long], screen=screen)
    assert found[1] == greedy_loop(model, tokenizer, [long], 3, {tokenizer.eos_token_id})[0]
    assert found[0] == texts(model, tokenizer, [rows[0]])[0]
    assert screen.warnings == ["1 of 2 prompts leave room for fewer than 6 tokens of answer"]
    with pytest.raises(DataError, match="20 positions") as caught:
        texts(model, tokenizer, [row("1" * 30, "1", "rows.jsonl:7")])
    assert caught.value.problems[0].where == "rows.jsonl:7"


def test_refusals(llama, tokenizer, rows):
    with pytest.raises(DataError, match="prompt is empty"):
        texts(llama(), tokenizer, [replace(rows[0], prompt_ids=())])
    with pytest.raises(UserError, match="unknown metric 'exact_mach'"):
        texts(llama(), tokenizer, rows, metrics=("exact_mach",))


def test_one_result_a_metric(llama, tokenizer, rows):
    config = generation.Config(max_new_tokens=2, metrics=("exact_match", "contains"))
    results = generation.run(llama(), tokenizer, rows, config, device=CPU, batch_size=8, screen=Silent())
    assert [result.metric for result in results] == ["exact_match", "contains"]
    assert results[0].texts == results[1].texts and results[0].seconds > 0
