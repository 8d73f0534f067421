"""Model FLOPs against counts by hand and against torch's own counter; the shares and rates that a run tells."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

LLAMA = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100,
}  # fmt: skip
GPT2 = {"n_embd": 32, "n_head": 4, "n_layer": 2, "vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2}
IGNORED = -100


def model_of(kind, **changes):
    from transformers import AutoConfig, AutoModelForCausalLM

    options = {"attn_implementation": "eager"} | ({"experts_implementation": "eager"} if kind == "mixtral" else {})
    sizes = (GPT2 if kind == "gpt2" else LLAMA) | changes
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes), **options)


def with_lora(model, *targets):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=4, target_modules=list(targets)))


def batch_of(*documents, width=8, labelled=True):
    """Rows of documents, each row a list of lengths; its last position is labelled, or none."""
    import torch

    tokens = torch.tensor([sum(row) for row in documents])
    positions = torch.arange(width).repeat(len(documents), 1)
    labels = torch.full((len(documents), width), IGNORED)
    for at, row in enumerate(documents):
        own = [position for length in row for position in range(length)]
        positions[at, : len(own)] = torch.tensor(own, dtype=torch.long)
        positions[at, len(own) :] = torch.arange(width - len(own)) + (own[-1] + 1 if own else 0)
        if labelled and own:
            labels[at, len(own) - 1] = 7
    return {"tokens": tokens, "labels": labels, "position_ids": positions}


# by hand, for one layer: q 32x32, k and v 32x16, o 32x32, gate, up and down 32x64 = 9,216 weights; the head 32x100
# a pair: a product of 8 values for its score and one for its value, in 4 heads, with two gradients each: 384 a layer


def test_a_llama_by_hand():
    from tunekit.train.flops import StepFlops, step_flops

    found = step_flops(model_of("llama"))
    assert found == StepFlops(per_token=6 * 2 * 9216, per_label=6 * 3200, per_pair=((None, 2 * 384),))
    assert step_flops(model_of("llama", tie_word_embeddings=True)) == found  # the head is a product, the embedding none


def test_a_gpt2_by_hand():
    from tunekit.train.flops import StepFlops, step_flops

    layer = 32 * 96 + 32 * 32 + 2 * 32 * 128  # its weights are no nn.Linear, and positions are looked up
    assert step_flops(model_of("gpt2")) == StepFlops(6 * 2 * layer, 6 * 3200, ((None, 768),))


def test_a_lora_by_hand():
    """A frozen weight has no gradient of its own: 4 FLOPs in the place of 6."""
    from tunekit.train.flops import StepFlops, step_flops

    model = with_lora(model_of("llama"), "q_proj", "v_proj")
    adapter = 4 * (32 + 32) + 4 * (32 + 16)
    assert step_flops(model) == StepFlops(2 * (4 * 9216 + 6 * adapter), 4 * 3200, ((None, 768),))


def test_a_lora_on_the_head_is_counted_at_labels():
    from tunekit.train.flops import step_flops

    assert step_flops(with_lora(model_of("llama"), "lm_head")).per_label == 4 * 3200 + 6 * 4 * (32 + 100)


def test_experts_that_a_token_does_not_go_to_are_not_counted():
    from tunekit.train.flops import step_flops

    found = step_flops(model_of("mixtral", num_local_experts=4, num_experts_per_tok=2))
    assert found.per_token == 6 * 2 * (3072 + 4 * 32 + 2 * 6144)  # attention, router, two of four experts


def test_packed_weights_are_counted_by_their_features():
    import torch

    from tunekit.train.flops import step_flops

    class Packed(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.in_features, self.out_features = linear.in_features, linear.out_features
            self.register_buffer("qweight", torch.zeros(linear.weight.numel() // 8, 1, dtype=torch.int32))

    model = model_of("llama")
    for layer in model.model.layers:
        layer.mlp.up_proj = Packed(layer.mlp.up_proj)
    assert step_flops(model).per_token == 2 * (6 * 9216 - 2 * 2048)


def test_layers_with_a_window_see_no_further():
    from tunekit.train.flops import StepFlops, pairs, step_flops

    assert step_flops(model_of("mistral", sliding_window=3)).per_pair == ((3, 768),)
    mixed = model_of("gemma3_text", sliding_window=3, head_dim=8, layer_types=["sliding_attention", "full_attention"])
    assert step_flops(mixed).per_pair == ((3, 384), (None, 384))
    batch = batch_of([5], [2])
    assert pairs(batch) == 15 + 3 and pairs(batch, 3) == 1 + 2 + 3 + 3 + 3 + 3
    assert StepFlops(0, 0, ((3, 10), (None, 1))).of(batch) == 15 * 10 + 18


def test_layers_that_differ_are_counted_one_by_one():
    """Gemma 4's layers with the whole context have larger heads; such a configuration refuses a common head_dim."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tunekit.train.flops import step_flops

    kinds = ["sliding_attention", "full_attention"]
    sizes = LLAMA | {"layer_types": kinds, "head_dim": 8, "global_head_dim": 16, "sliding_window": 3}
    sizes |= {"vocab_size_per_layer_input": 100, "hidden_size_per_layer_input": 8}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma4_text", **sizes))
    assert step_flops(model).per_pair == ((3, 12 * 4 * 8), (None, 12 * 4 * 16))


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_a_model_without_attention_has_no_pairs(kind):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tunekit.train.flops import step_flops

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 100, "num_heads": 8, "head_dim": 8, "n_groups": 1}
    with torch.device("meta"):
        found = step_flops(AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)))
    assert found.per_pair == () and found.per_token > 0 and found.per_label == 6 * 3200


def test_padding_and_fillers_cost_nothing_and_documents_do_not_see_each_other():
    from tunekit.train.flops import StepFlops, pairs

    packed = batch_of([3, 4], [6], [])
    assert pairs(packed) == 6 + 10 + 21
    assert StepFlops(1000, 100, ((None, 1),)).of(packed) == 13 * 1000 + 2 * 100 + 37
    one_row = {name: value for name, value in packed.items() if name != "position_ids"}
    assert pairs(one_row) == 28 + 21  # without positions a row is one document


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "mixtral", "lora"])
def test_torch_counts_the_same(kind):
    """Attention computed in full, and logits everywhere, as the plain model does."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from tunekit.train.flops import step_flops

    model = model_of("llama" if kind == "lora" else kind)
    if kind == "lora":
        model = with_lora(model, "q_proj", "v_proj")
        model.enable_input_require_grads()  # the lowest layer's gradients too
    cost = step_flops(model)
    ids = torch.arange(2 * 16).view(2, 16)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    counted = 32 * (cost.per_token + cost.per_label) + 2 * 16 * 16 * sum(flops for _, flops in cost.per_pair)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_a_training_step_multiplies_by_its_weights_as_often_as_is_counted(session_of, plan_of):
    """The real step: a flat row, and the head at labels alone."""
    from torch.utils.flop_counter import FlopCounterMode

    from tunekit.train.flops import step_flops

    _, trainer = session_of(plan_of())
    trainer.model.lm_head.weight.requires_grad_(False)  # torch's counter does not see what is added in place
    batch = next(iter(trainer.get_train_dataloader()))
    with FlopCounterMode(display=False) as counter:
        trainer.local_loss(trainer.model, batch).backward()
    by_weights = {str(op).rsplit(".", 1)[-1]: flops for op, flops in counter.get_flop_counts()["Global"].items()}
    expected = step_flops(trainer.model).of(batch | {"position_ids": batch["position_ids"] * 0 - 1})  # no pairs
    assert by_weights["mm"] + by_weights.get("addmm", 0) == pytest.approx(expected, rel=0.02)


def test_measuring_leaves_random_states_alone():
    import random

    import numpy as np
    import torch

    from tunekit.train.flops import matmul_rate

    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    for dtype in (torch.float32, torch.bfloat16):
        assert matmul_rate(torch.device("cpu"), dtype) > 1e6
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_a_short_run_on_a_cpu_does_not_measure(monkeypatch):
    import torch

    from tunekit.train import flops

    ranks = SimpleNamespace(wait=lambda: None, sum=lambda values: [3 * values[0]])
    plan, cpu = SimpleNamespace(arithmetic="bfloat16"), torch.device("cpu")
    asked = []
    monkeypatch.setattr(flops, "matmul_rate", lambda device, dtype: asked.append((device, dtype)) or 2e9)
    assert flops.measured_rate(plan, ranks, cpu, 19) is None and not asked
    assert flops.measured_rate(plan, ranks, cpu, 20) == 6e9  # of three ranks
    assert asked == [(cpu, torch.bfloat16)]
    assert flops.measured_rate(plan, ranks, torch.device("cuda"), 1) == 6e9
    assert flops.measured_rate(plan, ranks, torch.device("mps"), 99) is None


def test_the_record_counts_all_ranks():
    from tunekit.train.tally import training_facts

    state = SimpleNamespace(log_history=[{"loss": 2.0}], global_step=4, epoch=1.0, best_global_step=None)
    other = [400.0, 150.0, 500.0, 5e9]  # the other rank's
    ranks = SimpleNamespace(world=2, sum=lambda values: [a + b for a, b in zip(values, other, strict=True)])
    trainer = SimpleNamespace(
        state=state, tokens_seen=200, trained_seen=90, positions_seen=300, flops_seen=1_000_000_000,
        ranks=ranks, ceiling=4e9, seconds_before=2.0, padded_because="",
    )  # fmt: skip
    facts = training_facts(trainer, 9.0, 4.0)
    assert (facts["tokens"], facts["trained_tokens"], facts["model_flops"]) == (600, 240, 6e9)
    assert (facts["tokens_per_second"], facts["trained_tokens_per_second"]) == (100.0, 40.0)
    assert (facts["padding_share"], facts["trained_share"]) == (0.25, 0.4)
    assert (facts["matmul_tflops"], facts["mfu"]) == (0.002, 0.25)
    trainer.ceiling = None
    assert not {"matmul_tflops", "mfu"} & training_facts(trainer, 9.0, 4.0).keys()


def test_nothing_seen_has_no_shares():
    from tunekit.train.tally import shares

    assert shares(0, 0, 0) == shares(0, 0, 3) == {}


def test_a_run_tells_its_shares_and_mfu(plan_of, run_plan, logged, monkeypatch):
    from tunekit.train import flops

    monkeypatch.setattr(flops, "FEWEST_STEPS", 1)
    monkeypatch.setattr(flops, "matmul_rate", lambda device, dtype: 1e9)
    plan = plan_of(train__max_steps=3, model__attention="sdpa")  # padded
    training = run_plan(plan).training
    lines = [line for line in logged(plan) if "loss" in line]
    assert all(line["mfu"] > 0 and 0 < line["padding_share"] < 1 and 0 < line["trained_share"] < 1 for line in lines)
    assert training.matmul_tflops == 0.001 and training.mfu > 0
    assert 0 < training.padding_share < 1
    assert training.trained_share == pytest.approx(training.trained_tokens / training.tokens, abs=1e-4)
    flat = plan_of(train__max_steps=3)
    assert run_plan(flat).training.padding_share == 0
    assert run_plan(flat.model_copy(update={"run_dir": flat.run_dir + "-again"})).training.model_flops == (
        training.model_flops  # padding does not count
    )


@pytest.mark.slow
def test_counts_go_on_from_a_checkpoint(plan_of, run_plan, logged):
    """The first line after it covers the steps before it too; the record counts them all."""
    from tunekit.core.progress import Silent
    from tunekit.train.pipeline import Job, run

    sets = {"train__max_steps": 6, "train__log_every": 4, "train__save_every": 2, "train__keep_checkpoints": 9}
    plan = plan_of(model__attention="sdpa", **sets)
    whole = run_plan(plan)
    before = [line for line in logged(plan) if "loss" in line]
    folder = Path(plan.run_dir)
    for step in (4, 6):
        for path in sorted((folder / "checkpoints" / f"step-{step:06d}").rglob("*")):
            path.unlink()
        (folder / "checkpoints" / f"step-{step:06d}").rmdir()
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(record | {"status": "running"}))
    again = run(Job(plan, None, resume=True), Silent())
    after = [line for line in logged(plan) if "loss" in line]
    for name in ("step", "padding_share", "trained_share"):
        assert [line[name] for line in after] == [line[name] for line in before], name
    for name in ("tokens", "trained_tokens", "model_flops", "padding_share", "trained_share"):
        assert getattr(again.training, name) == getattr(whole.training, name), name
