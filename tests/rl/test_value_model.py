"""A value model beside the policy: its steps against plain torch, its checkpoints, its ranks, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import policy_for_tests as policies
import pytest
import test_policy_ranks as on_ranks
import test_policy_resume as resume
import test_policy_steps as steps

from tunekit.core.errors import Stopped, UserError

ask_at = resume.ask_at
LORA = {"kind": "lora", "r": 4, "alpha": 8}
BLOCK = {"rollout_steps": 2, "passes": 2, "beta": 0.3, "clip_low": 0.1, "clip_high": 0.15, "value_coef": 0.7,
         "value_clip": 0.05, "gamma": 0.98, "generations": 2}  # fmt: skip


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return policies.write_prompts(tmp_path_factory.mktemp("prompts"), 7)


@pytest.fixture(scope="module")
def sharp(tmp_path_factory):
    return policies.write_model(tmp_path_factory.mktemp("sharp"))


def of_weights(folder, kind, start):
    """Plain transformers models: the policy, the layers of values, and the weight and bias of the head."""
    import torch
    from transformers import AutoModel, AutoModelForSequenceClassification

    policy = kind.from_pretrained(folder, dtype=torch.float32).eval()
    if start == "separate":
        layers, weight = AutoModel.from_pretrained(folder, dtype=torch.float32), torch.zeros(1, 32)
    else:
        scorer = AutoModelForSequenceClassification.from_pretrained(start, dtype=torch.float32)
        layers, weight = scorer.model, scorer.score.weight.detach().clone()
    return policy, layers.eval(), weight


def both(policy, layers):
    """As a model whose logits are the policy's, and whose last states are those of the values."""

    def run(input_ids, output_hidden_states):
        states = layers(input_ids=input_ids).last_hidden_state
        return SimpleNamespace(logits=policy(input_ids=input_ids).logits, hidden_states=[states])

    return run


@pytest.mark.parametrize("start", ["separate", "reward model"])
def test_loss_and_gradients_are_those_of_plain_torch(start, plan_of, prompts, sharp, scorer, ready_of, note):
    """Four steps on one window, of the policy and of the values; the second pass is clipped."""
    import torch
    from transformers import AutoModelForCausalLM

    start = start if start == "separate" else str(scorer())
    plan = policies.policy_plan(
        plan_of, prompts, "ppo", block=BLOCK | {"value_model": start}, model__name=sharp, train__max_steps=4,
        train__max_grad_norm=1e6, train__learning_rate=2e-3,
    )  # fmt: skip
    _, trainer = ready_of(plan)
    head = trainer.model.value_head
    policy, layers, weight = of_weights(sharp, AutoModelForCausalLM, start)
    torch.testing.assert_close(head.weight.detach(), weight, rtol=1e-6, atol=1e-6)
    if start == "separate":  # values that say something
        torch.manual_seed(1)
        torch.nn.init.normal_(head.weight, std=0.1)
    seen = steps.Seen(trainer)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    own = [name for name in seen.weights[0] if name.startswith("value_model.")]
    assert len(own) == len(list(layers.named_parameters()))
    block, rollouts = policies.BLOCK | BLOCK, seen.rollouts[0]

    def as_before(step):
        weights = seen.weights[step]
        policy.load_state_dict({n: w for n, w in weights.items() if "value_" not in n})
        with torch.no_grad():
            for name, parameter in zip(own, layers.parameters(), strict=True):
                parameter.copy_(weights[name])
        return [weights[f"value_head.{name}"].clone().requires_grad_() for name in ("weight", "bias")]

    window = steps.learnt_from("ppo", block, rollouts, both(policy, layers), as_before(0))
    means = [sum(drawn.reward for r in rollouts.values() for drawn in r.answers) / 14]
    means += [float(torch.cat([window[i][3][steps_of(rollouts[i])] for i in rollouts]).mean())]
    assert means[1] == pytest.approx(means[0], abs=1e-5)  # they begin at the mean reward
    clipped_at_all = 0
    for step, indices in enumerate(seen.indices):
        heads = as_before(step)
        now = steps.by_hand(both(policy, layers), heads, rollouts, indices, block["temperature"])
        loss, clipped = steps.loss_of("ppo", block, window, indices, now, 0)
        policy.zero_grad()
        layers.zero_grad()
        loss.backward()
        assert lines[step]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5, abs=1e-6)
        wanted = {n: p.grad for n, p in policy.named_parameters()}
        wanted |= {n: p.grad for n, p in zip(own, layers.parameters(), strict=True)}
        wanted |= {"value_head.weight": heads[0].grad, "value_head.bias": heads[1].grad}
        assert wanted.keys() == seen.grads[step].keys()
        for part in ("value_", ""):
            norm = torch.cat([g.flatten() for n, g in wanted.items() if ("value_" in n) == bool(part)]).norm()
            assert float(norm) > 0
            for name, grad in wanted.items():
                if ("value_" in name) == bool(part):
                    assert float((seen.grads[step][name] - grad).norm()) <= 1e-5 * float(norm), (step, name)
        clipped_at_all += int(clipped.sum())
    assert clipped_at_all > 0
    note(f"{Path(start).name}: losses {[line['loss'] for line in lines]}")


def steps_of(rollout):
    """Where there are tokens in the table of a prompt's answers."""
    import torch

    most = policies.BLOCK["max_new_tokens"]
    return torch.tensor([[t < len(drawn.ids) for t in range(most)] for drawn in rollout.answers])


def test_beside_an_adapter_frozen_weights_are_shared_and_the_rest_is_apart(plan_of, prompts, sharp, ready_of):
    """The policy's layers get no gradient from the values, and the values none from the policy's loss."""
    plan = policies.policy_plan(
        plan_of, prompts, "ppo", block=BLOCK | {"value_model": "separate"}, model__name=sharp, adapter=LORA,
        train__max_steps=3,
    )  # fmt: skip
    _, trainer = ready_of(plan)
    plain, backbone = trainer.model.get_base_model(), trainer.head.backbone
    ours = dict(plain.base_model.named_parameters())
    assert len(plain.value_model) == sum(value.requires_grad for value in ours.values()) > 0
    for name, value in backbone.named_parameters():
        assert (value is ours[name]) == (not value.requires_grad), name
    assert not any("lora" in name for name, _ in trainer.model.named_parameters() if "value_" in name)
    before = {name: value.detach().clone() for name, value in plain.value_model.items()}
    with trainer.model.disable_adapter():  # the reference is asked so: the value model stays as it is
        assert all(not layer.disable_adapters for layer in backbone.modules() if hasattr(layer, "lora_A"))
    trainer.train()
    assert any(bool((value != before[name]).any()) for name, value in plain.value_model.items())
    trained = {id(value) for group in trainer.optimizer.param_groups for value in group["params"]}
    assert {id(value) for value in plain.value_model.values()} <= trained


def test_an_adapter_that_scores_becomes_the_value_model(plan_of, prompts, sharp, scorer, ready_of, tmp_path):
    """What was trained there is trained here; its values are its scores."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForSequenceClassification

    kind = LoraConfig(r=4, task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    made = AutoModelForSequenceClassification.from_pretrained(scorer(), dtype=torch.float32)
    get_peft_model(made, kind).save_pretrained(tmp_path / "adapter")
    plan = policies.policy_plan(
        plan_of, prompts, "ppo", block=BLOCK | {"value_model": str(tmp_path / "adapter")}, model__name=sharp,
        train__max_steps=2,
    )  # fmt: skip
    _, trainer = ready_of(plan)
    backbone, head = trainer.head.backbone, trainer.model.value_head
    base = AutoModelForSequenceClassification.from_pretrained(scorer(), dtype=torch.float32)
    oracle = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids = torch.tensor([[5, 9, 300, 41, 7, 1000]])
    with torch.no_grad():
        found = head(backbone(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state)[0, -1]
        torch.testing.assert_close(found, oracle(input_ids=ids).logits[0], rtol=1e-5, atol=1e-5)
    named = dict(backbone.named_parameters())
    assert {name for name, value in named.items() if value.requires_grad} == {name for name in named if "lora_" in name}
    assert len(trainer.model.value_model) == 8  # two matrices at two places in two layers
    now = list(trainer.model.value_model.values())
    before = [value.detach().clone() for value in now]
    trainer.train()
    assert all(bool((one != other).any()) for one, other in zip(before, now, strict=True))


@pytest.mark.parametrize("value_coef", [0.0, 0.7])
def test_the_values_do_not_move_the_policy(value_coef, plan_of, prompts, sharp, ready_of):
    """On a shared backbone the weight of their loss changes the policy's gradient; beside it, it does not."""
    import torch

    found = {}
    for kind in ("shared", "separate"):
        plan = policies.policy_plan(
            plan_of, prompts, "ppo", block=BLOCK | {"value_model": kind, "value_coef": value_coef}, model__name=sharp,
            train__max_steps=1, train__max_grad_norm=1e6,
        )  # fmt: skip
        _, trainer = ready_of(plan)
        torch.manual_seed(1)
        torch.nn.init.normal_(trainer.model.value_head.weight, std=0.1)
        seen = steps.Seen(trainer)
        trainer.train()
        found[kind] = seen.grads[0]
    norm = torch.cat([g.flatten() for n, g in found["separate"].items() if "value_" not in n]).norm()
    apart = max(
        float((found["shared"][name] - grad).norm() / norm)
        for name, grad in found["separate"].items()
        if "value_" not in name
    )
    assert apart > 1e-2 if value_coef else apart < 1e-5


CASES = [(adapter, at) for adapter in (None, LORA) for at in (3, 4)]
"""Step 3 is in the middle of a window, 4 its border."""


@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "at"), CASES)
def test_stopped_and_gone_on_with_is_as_if_never_stopped(adapter, at, plan_of, sharp, run_plan, ask_at, tmp_path):
    from safetensors.torch import load_file

    from tunekit.core.progress import Silent
    from tunekit.train.pipeline import Job, run

    whole = policies.policy_plan(
        plan_of, policies.write_prompts(tmp_path, 13), "ppo", model__name=sharp, train__max_steps=7, adapter=adapter,
        block={"rollout_steps": 2, "passes": 2, "beta": 0.1, "generations": 2, "value_model": "separate"},
        **resume.EVAL,
    )  # fmt: skip
    run_plan(whole)
    cut = whole.model_copy(update={"run_dir": f"{whole.run_dir}-{at}"})
    ask_at(at)
    with pytest.raises(Stopped):
        run_plan(cut)
    done = run(Job(cut, None, resume=True), Silent())
    assert done.status == "done" and done.resumed[0].step == at
    assert resume.told(cut) == resume.told(whole)
    last = [sorted((Path(plan.run_dir) / "checkpoints").iterdir())[-1] for plan in (cut, whole)]
    kept = [(folder / "values.safetensors").read_bytes() for folder in last]
    assert kept[0] == kept[1]
    names = load_file(last[0] / "values.safetensors").keys()
    assert {"weight", "bias"} < names
    for file in (Path(whole.run_dir) / "model").glob("*model.safetensors"):
        assert not any("value" in name or "layernorm" in name.split(".")[-1] for name in load_file(file))
        if adapter is None:
            assert load_file(file).keys() == load_file(Path(sharp) / "model.safetensors").keys()


def test_a_checkpoint_of_other_values_is_refused(plan_of, prompts, sharp, ready_of, tmp_path):
    from tunekit.rl import values

    models = {}
    for kind in ("shared", "separate"):
        block = BLOCK | {"value_model": kind}
        models[kind] = ready_of(policies.policy_plan(plan_of, prompts, "ppo", block=block, model__name=sharp))[1].model
    values.save(models["shared"], tmp_path)
    values.load(models["shared"], tmp_path)
    with pytest.raises(UserError, match="another model") as caught:
        values.load(models["separate"], tmp_path)
    assert caught.value.fix


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["separate"])
def test_two_ranks_are_as_one(kind, tmp_path, monkeypatch, note):
    """Nine prompts in batches of 4: of the third, which has one, the second rank gets fillers alone."""
    monkeypatch.setitem(on_ranks.BLOCKS, "ppo", on_ranks.BLOCKS["ppo"] | {"value_model": kind})
    on_ranks.test_two_ranks_are_as_one("ppo", tmp_path, note)


def refused(plan_of, prompts, sharp, ready_of, **sets):
    """The problem that building the trainer, or the look before it, ends with."""
    from tunekit.methods import ppo

    block = BLOCK | sets.pop("block")
    plan = policies.policy_plan(plan_of, prompts, "ppo", block=block, model__name=sharp, **sets)

    def begin():
        ppo.check(plan.recipe, Path(plan.recipe_folder))
        ready_of(plan)

    with pytest.raises(UserError) as caught:
        begin()
    assert caught.value.fix
    return str(caught.value)


def test_models_that_cannot_hold_values_are_refused(plan_of, prompts, sharp, scorer, ready_of, tmp_path):
    import shutil

    given = (plan_of, prompts, sharp, ready_of)
    assert "there is no folder 'seperate'" in refused(*given, block={"value_model": "seperate"})
    assert "no head that scores" in refused(*given, block={"value_model": sharp})
    assert "is a gpt2, the policy a llama" in refused(*given, block={"value_model": str(scorer("gpt2"))})
    prompt = {"kind": "prompt", "virtual_tokens": 4}
    assert "nothing to train" in refused(*given, block={"value_model": "separate"}, adapter=prompt)
    other = shutil.copytree(scorer(), tmp_path / "other")
    tokens = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = tokens["model"]["vocab"]
    first, second = list(vocab)[300:302]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (other / "tokenizer.json").write_text(json.dumps(tokens), encoding="utf-8")
    assert "reads other tokens than the policy" in refused(*given, block={"value_model": str(other)})


def test_a_horizon_without_a_target_is_refused(plan_of, prompts, sharp):
    """It would do nothing: the price is fixed."""
    from tunekit.methods import ppo
    from tunekit.train.inputs import Inputs

    for block, fine in (({"horizon": 500}, False), ({"horizon": 500, "target": 1.0}, True), ({"target": 1.0}, True)):
        plan = policies.policy_plan(plan_of, prompts, "ppo", block={"beta": 0.1} | block, model__name=sharp)
        again = type(plan).model_validate_json(plan.model_dump_json())  # as another process reads it
        inputs = Inputs(again.recipe, Path(plan.recipe_folder))
        if fine:
            inputs.look()
            continue
        with pytest.raises(UserError, match="does nothing without a `target`") as caught:
            inputs.look()
        assert caught.value.problems[0].where == "ppo.horizon" and "ppo.target" in caught.value.fix
    assert ppo.Config.model_fields["horizon"].default is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_value_model_runs_for_values_alone_in_the_runs_arithmetic(precision, plan_of, prompts, sharp, ready_of):
    """Not for the reference; and where the policy multiplies in bfloat16, so does it."""
    import torch

    block = BLOCK | {"value_model": "separate", "rollout_steps": 1, "passes": 1}
    plan = policies.policy_plan(
        plan_of, prompts, "ppo", block=block, model__name=sharp, train__max_steps=1, train__batch_size=4,
        train__micro_batch_size=4, train__precision=precision, adapter=LORA,
    )  # fmt: skip
    _, trainer = ready_of(plan)
    seen, asked = {"policy": [], "values": []}, trainer.model.get_base_model().model
    for name, layers in (("policy", asked), ("values", trainer.head.backbone)):
        layer = layers.layers[0].mlp.up_proj
        layer.register_forward_hook(lambda module, args, out, name=name: seen[name].append(out.dtype))
    drawn = trainer.rewarder.score

    def score(answers):
        found = drawn(answers)
        for dtypes in seen.values():
            dtypes.clear()
        return found

    trainer.rewarder.score = score
    trainer.train()
    wanted = torch.bfloat16 if precision == "bf16" else torch.float32
    assert seen == {"policy": [wanted] * 3, "values": [wanted] * 2}  # measured, as a reference, trained
