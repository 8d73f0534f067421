"""vLLM is a stand-in here, with the names and arguments of vLLM's own: the real one was never run by these tests."""

import math
import sys
import types
from dataclasses import dataclass

import pytest

from tunekit.core.errors import DataError, MachineError, UserError
from tunekit.core.progress import Silent
from tunekit.evaluate.contract import Generated, Likelihood, Prompt, Scored
from tunekit.evaluate.engines import vllm


@dataclass(kw_only=True)
class SamplingParams:
    """The fields of vLLM's that are used, with vLLM's defaults."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: list[str] | None = None
    max_tokens: int | None = 16
    prompt_logprobs: int | None = None
    detokenize: bool = True


def out(text, ids, reason="stop", chances=None):
    answer = types.SimpleNamespace(text=text, token_ids=ids, finish_reason=reason)
    return types.SimpleNamespace(outputs=[answer], prompt_logprobs=chances)


class LLM:
    """A model whose answer is the prompt's last token, and for which a token ``i`` has log-probability ``-i``."""

    made = None
    asked = None
    fault = None

    def __init__(self, model, *, tokenizer, revision, dtype, quantization, max_model_len, gpu_memory_utilization,
                 tensor_parallel_size, enforce_eager, trust_remote_code, seed):  # fmt: skip
        if LLM.fault is not None:
            raise LLM.fault
        LLM.made = {"model": model, "remote": trust_remote_code, "max_model_len": max_model_len}
        config = types.SimpleNamespace(max_model_len=max_model_len or 100)
        self.llm_engine = types.SimpleNamespace(model_config=config)

    def get_tokenizer(self):
        from scripted_engine_for_tests import Letters

        return Letters()

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None):
        assert len(prompts) == len(sampling_params) and use_tqdm is False
        LLM.asked.append((prompts, sampling_params))
        found = []
        for prompt, sampling in zip(prompts, sampling_params, strict=True):
            ids = prompt["prompt_token_ids"]
            chances = None
            if sampling.prompt_logprobs is not None:
                best = {1: types.SimpleNamespace(logprob=-1.0)}
                chances = [None, *(best | {token: types.SimpleNamespace(logprob=-float(token))} for token in ids[1:])]
            found.append(out(f"a{ids[-1]}", [7, 8], "length" if ids[-1] == 9 else "stop", chances))
        return found


@pytest.fixture
def fake(monkeypatch):
    import torch

    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    LLM.made, LLM.asked, LLM.fault = {}, [], None
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return LLM


@pytest.fixture
def engine(fake):
    with vllm.open(vllm.Config(max_length=20), "org/model", Silent()) as opened:
        yield opened


def test_without_the_package_the_line_that_installs_it_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match="needs the package 'vllm'") as error, vllm.open(vllm.Config(), "m", Silent()):
        pass
    assert error.value.fix == "pip install vllm"


def test_a_broken_installation_is_told_from_a_missing_one(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    for text, told in (("import a_package_that_is_not", "lacks the package 'a_pack"), ("from os import no", "loaded")):
        monkeypatch.delitem(sys.modules, "vllm", raising=False)
        (tmp_path / "vllm.py").write_text(text + "\n" + "#" * len(told))  # another size: no stale bytecode
        with pytest.raises(MachineError, match=told), vllm.open(vllm.Config(), "m", Silent()):
            pass


def test_without_cuda_it_does_not_start(fake, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MachineError, match="needs a CUDA device"), vllm.open(vllm.Config(), "m", Silent()):
        pass
    assert fake.made == {}


def test_what_vllm_cannot_load_is_told(fake):
    fake.fault = ValueError("No available memory for the cache blocks.\nmore")
    with (
        pytest.raises(MachineError, match=r"could not load 'm': No available memory for the cache blocks\.$"),
        vllm.open(vllm.Config(), "m", Silent()),
    ):
        pass


def test_the_model_is_loaded_without_foreign_code(engine, fake):
    assert fake.made == {"model": "org/model", "remote": False, "max_model_len": 20}
    assert engine.positions == 20 and engine.tokenizer.eos_token_id == 2


def test_answers_and_how_they_are_asked_for(engine, fake):
    done = []
    prompts = [Prompt((3, 9), 4), Prompt((3, 5), 6, ("\n",), 0.5, 0.8, 11)]
    found = engine.generate(prompts, Silent(), "x", lambda index, answer: done.append(index))
    assert found == [Generated("a9", 2, False), Generated("a5", 2, True)] and done == [0, 1]
    texts, drawn = fake.asked[0]
    assert texts == [{"prompt_token_ids": [3, 9]}, {"prompt_token_ids": [3, 5]}]
    assert drawn[0] == SamplingParams(temperature=0.0, max_tokens=4)
    assert drawn[1] == SamplingParams(temperature=0.5, top_p=0.8, seed=11, stop=["\n"], max_tokens=6)


def test_a_conversation_alone_is_put_into_the_template(engine, fake):
    engine.generate([Prompt((), 4, messages=(("user", "hi"),))], Silent(), "x")
    assert fake.asked[0][0] == [{"prompt_token_ids": [ord(letter) for letter in "<user>hi<assistant>"]}]


def test_likelihoods_are_sums_of_the_prompts_own_chances(engine, fake):
    done = []
    requests = [
        Likelihood((4, 2, 3, 5), (False, False, True, True)),
        Likelihood((4, 1, 1), (False, True, True)),
    ]
    found = engine.likelihoods(requests, Silent(), "x", lambda index, answer: done.append(index))
    assert found == [Scored(-8.0, 2, False), Scored(-2.0, 2, True)] and done == [0, 1]
    assert fake.asked[0][1][0] == SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1, detokenize=False)


def test_many_requests_go_in_lots_and_keep_their_order(engine, fake, monkeypatch):
    monkeypatch.setattr(vllm, "_AT_ONCE", 3)
    found = engine.generate([Prompt((3, n), 4) for n in range(10, 18)], Silent(), "x")
    assert [answer.text for answer in found] == [f"a{n}" for n in range(10, 18)]
    assert [len(prompts) for prompts, _ in fake.asked] == [3, 3, 2]


def test_a_text_as_long_as_the_positions_is_refused_before_anything_is_computed(engine, fake):
    requests = [Likelihood((1, 2), (False, True)), Likelihood((1,) * 20, (False, *(True,) * 19))]
    with pytest.raises(DataError, match="20 tokens fill the model's 20 positions") as error:
        engine.likelihoods(requests, Silent(), "perplexity")
    assert error.value.problems[0].where == "perplexity, request 2" and fake.asked == []
    with pytest.raises(DataError):
        engine.generate([Prompt((1,) * 21, 4)], Silent(), "x")


def test_a_chance_that_is_not_a_number_stays_so():
    known = {5: types.SimpleNamespace(logprob=math.nan)}
    assert math.isnan(vllm._scored(Likelihood((1, 5), (False, True)), [None, known]).value)


def test_the_model_is_let_go(fake):
    with vllm.open(vllm.Config(), "m", Silent()) as opened:
        assert opened._model is not None
    assert opened._model is None
