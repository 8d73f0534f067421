"""Bottleneck adapters as a kind of PEFT: where they stand, what they compute, what is saved and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from bottleneck_for_tests import (
    FAMILIES,
    LAYERS,
    SIZE,
    STYLES,
    WIDTH,
    adapted,
    base,
    config_of,
    ids,
    llama_by_hand,
    logits,
    scatter,
)

from tunekit.core.errors import UserError

PER_LAYER = {"pfeiffer": 1, "houlsby": 2, "parallel": 1}


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", FAMILIES)
def test_count_identity_and_disabling_in_every_family(kind, style):
    """The count is that of the paper: 2 m d + d + m each (arXiv 1902.00751, section 2.1)."""
    import torch

    before = logits(base(kind))
    model = adapted(kind, style=style, trained=False)
    each = 2 * SIZE * WIDTH + WIDTH + SIZE
    assert model.get_nb_trainable_parameters()[0] == each * LAYERS * PER_LAYER[style]
    assert torch.equal(logits(model), before)
    scatter(model)
    after = logits(model)
    assert (after - before).abs().max() > 0.05
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model), after)
    assert torch.equal(logits(model.unload()), before)


@pytest.mark.parametrize("scale", [1.0, 4.0, "learned"])
@pytest.mark.parametrize(("style", "act"), zip(STYLES, ("relu", "tanh", "silu"), strict=True))
def test_the_forward_pass_is_that_of_a_llama_written_out(style, act, scale, tmp_path):
    import torch
    from safetensors.torch import load_file

    weights = {name: value.clone() for name, value in base().state_dict().items()}
    acts = {"relu": lambda x: x.clamp(min=0), "tanh": torch.tanh, "silu": lambda x: x * x.sigmoid()}
    model = adapted(style=style, nonlinearity=act, scale=scale)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    factor = None if scale == "learned" else scale
    for tokens, found in zip(ids(), logits(model), strict=True):
        expected = llama_by_hand(weights, saved, tokens, style, acts[act], factor)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    without = {name: torch.zeros_like(value) for name, value in saved.items()}  # and the check can fail
    assert (llama_by_hand(weights, without, ids()[0], style, acts[act], factor) - logits(model)[0]).abs().max() > 0.1


def test_gelu_is_the_exact_one():
    import torch

    from tunekit.model.bottleneck.layer import NONLINEARITIES

    x = torch.linspace(-3, 3, 13)
    torch.testing.assert_close(NONLINEARITIES["gelu"](x), x * 0.5 * (1 + torch.erf(x / 2**0.5)))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_the_adapters_get_gradients_and_the_loss_falls(style, checkpointing):
    import torch

    model = adapted(style=style, scale="learned", dropout=0.1, trained=False).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    frozen = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    losses = []
    for _ in range(30):
        loss = model(input_ids=ids(), labels=ids(), use_cache=False).loss
        loss.backward()
        losses.append(loss.item())
        if len(losses) > 2:  # the first step moves only the zero projection, the second what stands before it
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.5
    assert all(".bottleneck_" in name for name in trained_names(model))
    for name, parameter in model.named_parameters():
        if name in frozen:
            assert parameter.grad is None and torch.equal(parameter, frozen[name])


def test_dropout_falls_on_the_bottleneck_while_training_only():
    import torch

    model = adapted(dropout=0.5)
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


FRESH = """
import sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
place, *styles = sys.argv[1:]
base = lambda: AutoModelForCausalLM.from_pretrained(f"{place}/base")
try:
    PeftModel.from_pretrained(base(), f"{place}/{styles[0]}")
except KeyError as error:
    print("alone:", error)
from tunekit.model.bottleneck import register
for style in styles:
    register()
    model = PeftModel.from_pretrained(base(), f"{place}/{style}").eval()
    found = model(input_ids=torch.load(f"{place}/tokens"), use_cache=False).logits
    trained = [p.requires_grad for p in model.parameters()].count(True)
    print(style, torch.equal(found, torch.load(f"{place}/{style}.logits")), trained)
"""


@pytest.mark.slow
def test_a_fresh_process_loads_what_was_saved(tmp_path):
    """PEFT alone does not know the kind, and names it; with the kind registered, the logits are the same bits."""
    import torch

    base().save_pretrained(tmp_path / "base")
    torch.save(ids(), tmp_path / "tokens")
    for style in STYLES:
        whole = adapted(style=style, scale="learned", train_modules=("lm_head",))
        whole.save_pretrained(tmp_path / style)
        torch.save(logits(whole), tmp_path / f"{style}.logits")
        settings = json.loads((tmp_path / style / "adapter_config.json").read_text())
        assert settings["style"] == style and settings["size"] == SIZE and settings["modules_to_save"] == ["lm_head"]
        assert settings["target_modules"] == sorted(settings["target_modules"])
    given = [sys.executable, "-W", "ignore", "-c", FRESH, str(tmp_path), *STYLES]
    done = subprocess.run(given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = ["alone: 'TUNEKIT_BOTTLENECK'", *(f"{style} True 0" for style in STYLES)]
    assert done.stdout.splitlines() == expected


def test_training_goes_on_from_a_saved_adapter(tmp_path):
    import torch
    from peft import PeftModel

    whole = adapted()
    whole.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base(), tmp_path, is_trainable=True).eval()
    assert trained_names(again) == trained_names(whole) and torch.equal(logits(again), logits(whole))


def test_two_adapters_switch_add_up_and_are_deleted(tmp_path):
    import torch
    from peft import PeftModel

    plain, first = logits(base()), logits(adapted(style="pfeiffer"))
    second = logits(scatter(adapted(style="houlsby", size=3, trained=False), seed=9))
    model = adapted(style="pfeiffer")
    model.add_adapter("other", config_of(base(), style="houlsby", size=3))
    assert torch.equal(logits(model), first)  # the new one is not active
    model.set_adapter("other")
    assert all(".other" in name for name in trained_names(model))
    assert torch.equal(logits(model), plain)
    scatter(model, seed=9)
    assert torch.equal(logits(model), second)
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    model.base_model.set_adapter(["default", "other"])
    both, update = logits(model), model.get_submodule("base_model.model.model.layers.0.mlp.down_proj")
    x = torch.randn(4, 48)
    with torch.no_grad():
        alone = update.base_layer(x)
        added = alone + update._update("default", alone) + update._update("other", alone)
        torch.testing.assert_close(update(x), added)
    assert not torch.equal(both, first) and not torch.equal(both, second)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), tmp_path)
    loaded.load_adapter(tmp_path / "other", "named_anew")
    assert torch.equal(logits(loaded), first)
    loaded.set_adapter("named_anew")
    assert torch.equal(logits(loaded), second)
    loaded.delete_adapter("default")
    assert torch.equal(logits(loaded), second)


def test_parallel_and_serial_adapters_are_not_mixed():
    import torch

    for first, second in (("parallel", "houlsby"), ("pfeiffer", "parallel")):
        model = adapted(style=first)
        before = logits(model)
        with pytest.raises(UserError, match="parallel bottleneck adapters do not go together"):
            model.add_adapter("other", config_of(base(), style=second))
        assert list(model.peft_config) == ["default"] and torch.equal(logits(model), before)


def test_merging_is_refused_and_leaves_everything_as_it_was():
    import torch

    model = adapted()
    before = logits(model)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(UserError, match="cannot be merged"):
            merge()
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(
    ("kind", "style", "why"),
    [
        ("opt", "pfeiffer", "has no MLP"),
        ("mamba", "pfeiffer", "no list of layers"),
        ("bloom", "parallel", "more than the hidden states"),
        ("lfm2", "houlsby", "layers.0 has no attention"),
    ],
)
def test_a_model_without_such_places_is_refused_by_name(kind, style, why):
    changes = {"bloom": {"n_head": 4, "n_layer": 2}, "lfm2": {"layer_types": ["conv", "full_attention"]}}
    more = {"ffn_dim": 48, "word_embed_proj_dim": WIDTH} if kind == "opt" else {}
    model = base(kind, **changes.get(kind, more))
    with pytest.raises(UserError, match=f"'{kind}'.*{why}"):
        config_of(model, style=style)


@pytest.mark.parametrize("keys", [{"style": "x"}, {"size": 0}, {"nonlinearity": "elu"}, {"dropout": 1}, {"scale": -1}])
def test_a_configuration_edited_by_hand_is_refused(keys):
    from tunekit.model.bottleneck.config import BottleneckConfig

    with pytest.raises(UserError, match=f"no {next(iter(keys))} {next(iter(keys.values()))!r}"):
        BottleneckConfig(**keys)


def test_the_adapter_stays_in_float32_on_a_bfloat16_base():
    import torch

    model = base().to(torch.bfloat16)
    before = logits(model)
    whole = adapted(model=model, style="houlsby", trained=False)
    assert {p.dtype for p in whole.parameters() if p.requires_grad} == {torch.float32}
    assert before.dtype == torch.bfloat16 and torch.equal(logits(whole), before)
    with torch.autocast("cpu", torch.bfloat16):
        loss = whole(input_ids=ids(), labels=ids(), use_cache=False).loss
    loss.backward()
    grads = [p.grad for p in whole.parameters() if p.requires_grad]
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_base_is_not_touched(bits, style, tmp_path):
    import torch

    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    base().save_pretrained(tmp_path)
    options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} if bits == 4 else {"load_in_8bit": True}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(**options), dtype=torch.float32
    )
    stored = {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    model.train()
    before = logits(model)
    whole = adapted(model=model, style=style, trained=False).train()
    assert {p.dtype for p in whole.parameters() if p.requires_grad} == {torch.float32}
    assert torch.equal(logits(whole), before)
    optimizer = torch.optim.AdamW([p for p in whole.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        whole(input_ids=ids(), labels=ids(), use_cache=False).loss.backward()
        optimizer.step()
    assert not torch.equal(logits(whole), before)
    found = whole.unload().state_dict()
    assert all(torch.equal(found[name], value) for name, value in stored.items())


@pytest.mark.parametrize("style", STYLES)
def test_documents_in_one_flat_row_are_adapted_as_alone(style):
    import torch

    from tunekit.data.collate import Collator
    from tunekit.kernels.attention import NAME, mask_of, register
    from tunekit.kernels.segments import flatten

    model = adapted(style=style)
    rows = [ids(1, length, seed=length)[0].tolist() for length in (13, 9, 4)]
    alone = [logits(model, torch.tensor([row]))[0] for row in rows]
    batch = flatten(Collator(0)([{"input_ids": row, "labels": row} for row in rows]))
    register()
    model.get_base_model().set_attn_implementation(NAME)
    names = ("input_ids", "position_ids", "segments")
    inputs = {name: batch[name] for name in names} | {"attention_mask": mask_of(batch["segments"])}
    assert inputs["input_ids"].shape == (1, 26)
    with torch.no_grad():
        flat = model(**inputs, use_cache=False).logits[0]
    torch.testing.assert_close(flat, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_experts_that_give_a_tuple_or_a_flat_row_are_adapted():
    import torch
    from torch import nn

    from tunekit.model.bottleneck.layer import BottleneckLayer

    class Experts(nn.Linear):
        def forward(self, x):
            return super().forward(x).flatten(0, 1), x.sum()

    layer = BottleneckLayer(Experts(WIDTH, WIDTH), WIDTH)
    layer.update_layer("default", config_of(base(), style="parallel"))
    scatter(layer)
    x = torch.randn(2, 3, WIDTH)
    output, scores = layer(x)
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    update = up(down(x).clamp(min=0)).flatten(0, 1)
    torch.testing.assert_close(output, layer.base_layer(x)[0] + update)
    assert scores == x.sum()


def test_a_run_trains_the_adapter_on_flat_rows(tmp_path, monkeypatch):
    """Through recipe, plan and trainer; the saved adapter is the kind's own, and its last projection has moved."""
    from safetensors.torch import load_file

    from tunekit.core.progress import Silent
    from tunekit.plan.hardware import probe
    from tunekit.plan.resolve import resolve
    from tunekit.recipe.document import parse
    from tunekit.recipe.load import check
    from tunekit.train.pipeline import Job, run

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{n} what?"},
                {"role": "assistant", "content": "red " * (1 + n % 3)},
            ]
        }
        for n in range(24)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = RECIPE.format(tmp_path)
    plan = resolve(check(parse(text, "recipe.yaml")), tmp_path / "recipe.yaml", probe())
    run(Job(plan, text), Silent())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 30 and losses[-1] < losses[0] - 0.2  # the head and its random rows are frozen
    assert all(line["padding_share"] == 0 for line in lines if "loss" in line)
    settings = json.loads((tmp_path / "run" / "model" / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["style"], settings["size"]) == ("TUNEKIT_BOTTLENECK", "houlsby", 8)
    saved = load_file(tmp_path / "run" / "model" / "adapter_model.safetensors")
    assert len(saved) == 2 * 2 * 4 and all(value.abs().sum() > 0 for value in saved.values())


RECIPE = """\
method: sft
model: {{name: "builtin:random?layers=2&hidden=32&heads=2"}}
adapter: {{kind: bottleneck, style: houlsby, size: 8}}
data: {{train: [{{path: {0}/rows.jsonl}}], max_length: 128}}
train: {{max_steps: 30, batch_size: 8, log_every: 1, learning_rate: 2e-2, threads: 1, precision: fp32}}
eval: {{baseline: false}}
output: {{dir: {0}/run}}
"""
