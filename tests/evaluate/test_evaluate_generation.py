from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from tunekit.core.errors import DataError, UserError
from tunekit.core.progress import Silent
from tunekit.evaluate.contract import Prompt
from tunekit.evaluate.decoding import choose
from tunekit.evaluate.local import TransformersEngine, stop_tokens
from tunekit.evaluate.tasks import generation


class Warned(Silent):
    def __init__(self):
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)


def texts(model, tokenizer, items, batch_size=8, screen=None, stop_ids=(), **options):
    config = generation.Config(**{"max_new_tokens": 6, **options})
    engine = TransformersEngine(model, tokenizer, batch_size=batch_size, stop_ids=stop_ids)
    return list(generation.run(engine, items, config, screen=screen or Silent())[0].texts)


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
    assert stop_tokens(model, tokenizer, [9]) == {tokenizer.eos_token_id, token, 9}


def test_the_model_s_own_generation_defaults_are_not_used_and_stay(llama, tokenizer, rows):
    model = llama().eval()
    wanted = texts(model, tokenizer, rows)
    own = model.generation_config
    own.do_sample, own.temperature, own.repetition_penalty, own.max_length = True, 5.0, 9.0, 11
    assert texts(model, tokenizer, rows) == wanted
    assert model.generation_config is own and own.repetition_penalty == 9.0


def test_a_drawn_answer_does_not_depend_on_the_other_rows(llama, tokenizer, rows):
    model = llama().eval()
    wanted = texts(model, tokenizer, rows, 24, temperature=1.0, top_p=0.9, seed=1)
    assert texts(model, tokenizer, rows, 1, temperature=1.0, top_p=0.9, seed=1) == wanted
    assert texts(model, tokenizer, rows[::-1], 5, temperature=1.0, top_p=0.9, seed=1) == wanted[::-1]


def test_drawn_tokens_follow_their_chances():
    """20,000 draws beside the chances worked by hand: top_p leaves 0.5 and 0.3, which make up 1 then."""
    logits = torch.log(torch.tensor([0.1, 0.5, 0.3, 0.1]))
    settings = Prompt((1,), 1, temperature=1.0, top_p=0.7)
    draws = [random.Random(0)]
    found = Counter(int(choose(logits[None], settings, draws)) for _ in range(20_000))
    assert set(found) == {1, 2} and found[1] / 20_000 == pytest.approx(0.5 / 0.8, abs=0.015)
    warm = Prompt((1,), 1, temperature=2.0)
    found = Counter(int(choose(logits[None], warm, draws)) for _ in range(20_000))
    roots = [math.sqrt(chance) for chance in (0.1, 0.5, 0.3, 0.1)]
    for token, root in enumerate(roots):
        assert found[token] / 20_000 == pytest.approx(root / sum(roots), abs=0.015)


def test_texts_that_end_an_answer_are_no_part_of_it(llama, tokenizer, rows):
    model = llama().eval()
    free = texts(model, tokenizer, rows)
    pairs = (text[i : i + 2] for text in free for i in range(len(text) - 1))
    pair = max(pairs, key=lambda pair: sum(pair in text for text in free))
    cut = [text.split(pair)[0] for text in free]
    assert cut != free
    assert texts(model, tokenizer, rows, stops=(pair,)) == cut == texts(model, tokenizer, rows, 1, stops=(pair,))


def test_a_stop_that_is_a_special_token_is_seen(llama, tokenizer, rows):
    model = llama().eval()
    engine = TransformersEngine(model, tokenizer)
    free = [answer.text for answer in engine.generate([Prompt(r.prompt_ids, 12) for r in rows], Silent(), "free")]
    with torch.no_grad():
        model.lm_head.weight[tokenizer.convert_tokens_to_ids("<unk>")] *= 3  # so that the model writes it
    asked = [Prompt(row.prompt_ids, 12, stops=("<unk>",)) for row in rows]
    found = engine.generate(asked, Silent(), "stopped")
    open_ended = engine.generate([Prompt(row.prompt_ids, 12) for row in rows], Silent(), "open")
    seen = [answer for answer, whole in zip(found, open_ended, strict=True) if answer.tokens < whole.tokens]
    assert seen and all(answer.ended for answer in seen) and free
    assert all(whole.text.startswith(answer.text) for answer, whole in zip(found, open_ended, strict=True))


def test_rows_that_have_ended_leave_the_batch(llama, tokenizer, rows):
    """What the model reads in a step gets less; without that it would be all rows to the last step."""
    model = llama().eval()
    wanted = texts(model, tokenizer, rows, max_new_tokens=30)
    seen = []
    hook = model.model.register_forward_pre_hook(
        lambda _m, _a, given: seen.append(given["input_ids"].shape[0]), with_kwargs=True
    )
    letter = max("0123456789abcdefghij", key=lambda c: sum(c in text for text in wanted))
    stop = tokenizer.convert_tokens_to_ids(letter)
    assert texts(model, tokenizer, rows, 24, max_new_tokens=30, stop_ids=(stop,)) == [
        text.split(letter)[0] for text in wanted
    ]
    hook.remove()
    assert seen[0] == 24 and seen[-1] < 6 and seen == sorted(seen, reverse=True)


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
    assert screen.warnings == ["1 of 2 prompts leave room for shorter answers only"]
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
    results = generation.run(TransformersEngine(llama(), tokenizer), rows, config, screen=Silent())
    assert [result.metric for result in results] == ["exact_match", "contains"]
    assert results[0].texts == results[1].texts and results[0].seconds > 0
