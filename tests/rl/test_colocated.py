"""vLLM beside a policy: a stand-in with the names and arguments of vLLM's own; the real one was never run here.

The stand-in computes with the weights that it was handed, so what is handed over is seen in its answers.
"""

from __future__ import annotations

import json
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import policy_for_tests as policies
import pytest

from tunekit.core.errors import MachineError, UserError


@dataclass(kw_only=True)
class SamplingParams:
    """The fields of vLLM's that are used."""

    temperature: float
    seed: int
    max_tokens: int
    stop_token_ids: list[int]
    detokenize: bool


class LLM:
    """A model of transformers, made from the folder's config alone; it takes the likeliest tokens."""

    made = None
    fault = None

    def __init__(self, *, model, load_format, dtype, max_model_len, gpu_memory_utilization, tensor_parallel_size,
                 distributed_executor_backend, enable_sleep_mode, trust_remote_code, seed):  # fmt: skip
        import os

        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        if LLM.fault is not None:
            raise LLM.fault
        assert (load_format, distributed_executor_backend, trust_remote_code) == ("dummy", "external_launcher", False)
        assert all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
        torch.manual_seed(99)
        self.model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model), dtype=getattr(torch, dtype))
        self.length, self.awake, self.did, self.loaded = max_model_len, {"weights", "kv_cache"}, [], set()
        runner = types.SimpleNamespace(model=self)
        driver = types.SimpleNamespace(driver_worker=types.SimpleNamespace(model_runner=runner))
        self.llm_engine = types.SimpleNamespace(model_executor=driver)
        LLM.made.append(self)

    def sleep(self, level):
        assert level == 2
        self.awake, self.loaded = set(), set()

    def wake_up(self, tags):
        self.awake |= set(tags)

    def load_weights(self, named):
        import torch

        assert "weights" in self.awake
        own = dict(self.model.named_parameters(remove_duplicate=False))
        for name, value in named:
            with torch.no_grad():
                own[name].copy_(value)  # a name that the plain model does not have is a KeyError
            self.loaded.add(name)

    def reset_prefix_cache(self):
        self.did.append("reset")

    def generate(self, prompts, sampling, *, use_tqdm):
        import torch

        assert self.awake == {"weights", "kv_cache"} and use_tqdm is False
        assert self.loaded >= {name for name, _ in self.model.named_parameters()}
        found = []
        for prompt, wish in zip(prompts, sampling, strict=True):
            assert not wish.detokenize and wish.stop_token_ids
            ids, answer = list(prompt["prompt_token_ids"]), []
            while len(answer) < wish.max_tokens and len(ids) + len(answer) < self.length:
                with torch.no_grad():
                    answer.append(int(self.model(torch.tensor([ids + answer])).logits[0, -1].argmax()))
                if answer[-1] in wish.stop_token_ids:
                    break
            found.append(types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=tuple(answer))]))
        return found


@pytest.fixture
def fake(monkeypatch):
    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    LLM.made, LLM.fault = [], None
    monkeypatch.setitem(sys.modules, "vllm", module)
    from tunekit.rl import colocated

    monkeypatch.setattr(colocated, "_library", lambda where: module)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # remembered, so that it is as before afterwards
        monkeypatch.delenv(name)
    return LLM


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return policies.write_prompts(tmp_path_factory.mktemp("prompts"), 8)


@pytest.fixture(scope="module")
def sharp(tmp_path_factory):
    return policies.write_model(tmp_path_factory.mktemp("sharp"), end=1.05)  # some greedy answers end, some do not


@pytest.fixture
def planned(plan_of, prompts, sharp):
    def make(method="grpo", *, block=None, **sets):
        sets = {"model__name": sharp, "train__max_steps": 2, "train__learning_rate": 1e-2} | sets
        return policies.policy_plan(plan_of, prompts, method, block={"engine": "vllm"} | (block or {}), **sets)

    return make


LORA = {"kind": "lora", "r": 4, "targets": "all-linear"}
CASES = {
    "full": ("grpo", None),
    "lora": ("grpo", LORA),
    "dora": ("rloo", LORA | {"dora": True}),
    "values": ("ppo", LORA),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_draws_by_vllm_with_the_weights_that_it_has_at_each_window(case, fake, planned, run_plan, monkeypatch):
    """What vLLM holds computes what the policy computes: at the beginning, and again after a step has changed it."""
    import torch

    from tunekit.evaluate.mode import evaluating
    from tunekit.rl.colocated import Colocated

    drawn, tokens = [], Colocated.tokens

    def seen(self, requests, stops):
        ids = torch.tensor([list(requests[0].ids)])
        before = {name: value.clone() for name, value in self._policy.state_dict().items()}
        answers = tokens(self, requests, stops)
        after = self._policy.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())  # not a bit of it has changed
        with evaluating(self._policy):
            wanted = self._policy(input_ids=ids).logits[0, -1].float()
            found = self._model.model(ids).logits[0, -1].float()
        drawn.append((wanted, found, [len(answer) for answer in answers], len(requests)))
        return answers

    monkeypatch.setattr(Colocated, "tokens", seen)
    method, adapter = CASES[case]
    plan = planned(method, block={"passes": 1}, adapter=adapter)
    run_plan(plan)
    assert len(fake.made) == 1 and len(drawn) == 2
    for wanted, found, lengths, count in drawn:
        assert torch.allclose(found, wanted, atol=1e-4), (found - wanted).abs().max()
        assert len(lengths) == count == 12 and max(lengths) <= 7
    assert not torch.allclose(drawn[0][1], drawn[1][1], atol=1e-3)  # the step between them is in what was handed over
    assert max(drawn[0][2]) > 1 and fake.made[0].awake == set()
    lines = [json.loads(line) for line in (Path(plan.run_dir) / "rollouts.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} == {1, 2}


def test_an_adapter_that_was_merged_and_taken_out_would_leave_rounding_behind(planned, session_of):
    """The fault that copies are made against."""
    import torch

    from tunekit.rl.colocated import whole_weights

    _, trainer = session_of(planned(adapter=LORA))
    policy = trainer.model
    with torch.no_grad():
        for name, value in policy.named_parameters():
            if "lora_B" in name:
                value.normal_()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    with whole_weights(policy) as weights:
        handed = {name: value.clone() for name, value in weights}
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    merged = policy.merge_and_unload().state_dict()
    assert handed.keys() <= merged.keys() and all(torch.equal(handed[name], merged[name]) for name in handed)
    fresh = session_of(planned(adapter=LORA))[1].model
    fresh.load_state_dict(before)
    fresh.merge_adapter()
    fresh.unmerge_adapter()
    assert any(not torch.equal(value, before[name]) for name, value in fresh.state_dict().items())


def test_it_is_refused_where_it_cannot_be_had(planned, monkeypatch):
    import torch

    from tunekit.train.pipeline import claim

    with pytest.raises(MachineError) as caught:
        claim(planned())
    assert "needs the package 'vllm'" in caught.value.problems[0].what
    assert caught.value.problems[0].where == "grpo.engine" and "pip install vllm" in caught.value.problems[0].fix
    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    if not torch.cuda.is_available():
        with pytest.raises(MachineError, match="needs a CUDA device"):
            claim(planned())


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        ({"adapter": {"kind": "prefix"}}, "kind prefix cannot be merged"),
        ({"adapter": LORA, "model__quantize": {"kind": "bnb", "bits": 4}}, "quantized base"),
        ({"block": {"rollout_batch_size": 8}}, "rollout_batch_size means nothing to vLLM"),
        ({"block": {"engine": "transformers", "vllm_memory": 0.2}}, "vllm_memory means nothing to the engine"),
    ],
)
def test_what_cannot_be_handed_over_is_refused(sets, told, fake, planned):
    from tunekit.train.pipeline import claim

    with pytest.raises(UserError, match=told):
        claim(planned(**sets))


def test_a_model_that_vllm_does_not_know(fake, planned, run_plan):
    fake.fault = ValueError("no such architecture\nand a trace")
    with pytest.raises(MachineError) as caught:
        run_plan(planned())
    assert caught.value.problems[0].what == "vLLM could not be started beside the policy: no such architecture"
    assert "vllm_memory" in caught.value.problems[0].fix
