import json
import re

import peft
import pytest
import torch
from kinds_for_tests import (
    KINDS,
    NEEDED,
    STEPS,
    batches,
    block,
    gradients,
    logits,
    put,
    tiny,
    train,
)  # fmt: skip
from peft import PeftModel, get_peft_model
from pydantic import ValidationError
from safetensors.torch import load_file

from tunekit.core.errors import UserError
from tunekit.core.registry import ADAPTERS
from tunekit.model.adapters._shared.structure import expression, feedforward_outputs, keys_and_values, norms
from tunekit.model.names import TINY
from tunekit.model.starts import convert, initial_state

LLAMA = ["self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj"]
LLAMA += ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"]


def save_adapter(model, folder, initial):
    model.save_pretrained(str(folder))
    convert(folder, initial)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def places(*names):
    return [f"model.layers.{layer}.{name}" for layer in range(3) for name in names]


def seeded(make):
    model = tiny()
    torch.manual_seed(3)
    return make(model)


# --- the same as PEFT used directly

DIRECT = {
    "lora": (
        {"r": 4, "alpha": 8},
        lambda: peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=places(*LLAMA)),
    ),
    "dora": (
        {"r": 4, "alpha": 8, "dora": True, "rslora": True, "targets": "attention"},
        lambda: peft.LoraConfig(
            task_type="CAUSAL_LM", r=4, lora_alpha=8, use_dora=True, use_rslora=True,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        ),
    ),
    "ia3": (
        {},
        lambda: peft.IA3Config(
            task_type="CAUSAL_LM", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
    ),
    "prefix": (
        {"virtual_tokens": 5},
        lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    ),
    "prompt": (
        {"virtual_tokens": 5},
        lambda: peft.PromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=5, prompt_tuning_init=peft.PromptTuningInit.SAMPLE_VOCAB
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DIRECT)
def test_weights_and_first_gradients_are_those_of_peft_used_directly(kind):
    keys, config = DIRECT[kind]
    ours = seeded(lambda model: put(model, "lora" if kind == "dora" else kind, **keys))
    theirs = seeded(lambda model: get_peft_model(model, config()))
    first, second = (dict(model.named_parameters()) for model in (ours, theirs))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    mine, wanted = gradients(ours), gradients(theirs)
    assert mine.keys() == wanted.keys()
    assert all(torch.equal(mine[name], wanted[name]) for name in mine)
    assert any(gradient.abs().max() > 0 for gradient in mine.values())


# --- every kind on every architecture

NOT_CONV1D = {"oft", "boft", "lokr", "loha", "hra", "miss", "shira"}
MOVES = {"prefix", "prompt", "p_tuning", "multitask_prompt"}  # virtual tokens cannot begin as nothing


@pytest.mark.parametrize("arch", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_builds_begins_as_the_base_and_learns_or_names_the_architecture(kind, arch):
    model, plugin = tiny(arch), ADAPTERS.load(kind)
    if (arch == "gpt2" and kind in NOT_CONV1D) or (arch == "qwen3" and kind == "llama_adapter"):
        with pytest.raises(UserError, match=arch):
            put(model, kind)
        return
    base, ids = logits(model), batches(1)[0]["input_ids"]
    model = put(model, kind)
    now = logits(model)[:, -ids.shape[1] :]
    assert ((now - base).abs().max() > 0.1) if kind in MOVES else torch.allclose(now, base, atol=1e-5)
    rate = max(getattr(plugin, "LEARNING_RATE", 2e-4), 1e-2)  # ten steps are few
    losses = train(model, rate, steps=10, data=batches(1), plugin=plugin)
    assert sum(losses[-3:]) < sum(losses[:3])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_described_fields_and_a_learning_rate_of_its_own_order(kind):
    plugin = ADAPTERS.load(kind)
    assert all(field.description for name, field in plugin.Config.model_fields.items() if name != "kind")
    assert plugin.__doc__.splitlines()[0].endswith(".")
    assert 1e-5 <= getattr(plugin, "LEARNING_RATE", 2e-4) <= 0.1


# --- rules between the fields

RULES = [
    ("lora", {"init": "pisa"}, "one of default"),
    ("lora", {"init": "pissa_niter_N"}, "one of default"),
    ("lora", {"init": "pissa_niter_0"}, "one of default"),
    *[("lora", {"init": init, "dora": True}, "without dora where") for init in
      ("pissa", "pissa_niter_4", "olora", "lora_ga", "loftq")],
    ("lora", {"init": "pissa", "start": "runs/a"}, "without init: pissa"),
    ("lora", {"init": "orthogonal", "r": 7}, "of even r"),
    ("lora", {"plus": 0.5}, "greater than or equal to 1"),
    ("lora", {"extra": {"use_dora": True}}, "key of its own: `dora`"),
    ("lora", {"extra": {"layer_replication": [[0, 2]]}}, "cannot be merged"),
    ("lora", {"extra": {"lora_bias": True}, "dora": True}, "without extra.lora_bias"),
    ("lora", {"targets": "q_proj("}, "regular expression"),
    ("adalora", {"r": 8, "init_r": 8}, "init_r above r"),
    ("adalora", {"tinit": 0.6, "tfinal": 0.4}, "below 1, the whole run"),
    ("adalora", {"tinit": 1.5}, "number of steps"),
    ("hra", {"r": 3}, "even"),
    ("lokr", {"factor": 0}, "-1, or at least 1"),
    ("miss", {"init": "mini"}, "both of init: mini and mini_r"),
    ("miss", {"mini_r": 2}, "both of init: mini and mini_r"),
    ("prefix", {"hidden": 8}, "with projection: true"),
    ("prefix", {"init": "zero", "projection": True}, "without init: zero"),
    ("prompt", {"init": "text"}, "both of init: text and text"),
    ("prompt", {"text": "Answer"}, "both of init: text and text"),
    ("p_tuning", {"dropout": 0.1}, "encoder: lstm"),
    ("p_tuning", {"layers": 3}, "encoder: lstm"),
    ("ln_tuning", {"targets": "mlp"}, "normalization layers, not mlp"),
    ("trainable_tokens", {"tokens": ()}, "at least 1"),
    ("trainable_tokens", {"tokens": ("<a>", "<a>")}, "named twice"),
    ("trainable_tokens", {"tokens": (-1,)}, "ids from 0"),
    ("freeze", {}, "nothing would be trained"),
    ("freeze", {"train": "a("}, "regular expression"),
    ("freeze", {"last_layers": 1, "start": "runs/a"}, "model.name"),
    ("layerwise", {"method": "lomo", "rank": 4}, "which belongs to galore"),
    ("layerwise", {"method": "lomo", "per_layer": True}, "always works so"),
    ("layerwise", {"targets": "mlp"}, "do not know mlp"),
    ("layerwise", {"targets": "a("}, "regular expression"),
    ("layerwise", {"start": "runs/a"}, "model.name"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "keys", "words"), RULES)
def test_a_rule_fires(kind, keys, words):
    with pytest.raises(ValidationError, match=re.escape(words)):
        block(kind, **keys)


MODEL_RULES = [
    ("lora", "gpt2", {"init": "olora"}, {}, "gpt2"),
    ("adalora", "llama", {}, {"steps": 1}, "the run has 1"),
    ("adalora", "llama", {"tinit": 60.0, "tfinal": 40.0}, {}, "the run has 100"),
    ("shira", "llama", {"r": 11}, {}, "at most 10"),
    ("fourierft", "llama", {"frequencies": 513}, {}, "at most 512"),
    ("oft", "llama", {"block_size": 24}, {}, "which has 64"),
    ("boft", "llama", {"block_size": 3}, {}, "which has 64"),
    ("miss", "llama", {"r": 33}, {}, "only 32 inputs"),
    ("miss", "llama", {"r": 5, "init": "bat"}, {}, "divides input and output"),
    ("miss", "llama", {"init": "mini", "mini_r": 5}, {}, "mini_r that divides"),
    ("llama_adapter", "llama", {"layers": 4}, {}, "the model has 3"),
    ("trainable_tokens", "llama", {"tokens": (64,)}, {}, "has 64 embeddings"),
    ("freeze", "llama", {"train": "layers"}, {}, "fits the expression"),
    ("freeze", "llama", {"train": ("mpl",)}, {}, "'mlp'"),
    ("freeze", "llama", {"last_layers": 4}, {}, "the model has 3"),
    ("layerwise", "gpt2", {}, {}, "gpt2"),
    ("layerwise", "llama", {"targets": ("norm",)}, {}, "no linear layers"),
]


@pytest.mark.parametrize(("kind", "arch", "keys", "options", "words"), MODEL_RULES)
def test_values_that_a_model_has_no_room_for_are_refused(kind, arch, keys, options, words):
    with pytest.raises(UserError) as caught:
        put(tiny(arch), kind, **options, **keys)
    problem = caught.value.problems[0]
    assert words in f"{problem.what} {problem.fix}" and problem.where.startswith("adapter")


@pytest.mark.parametrize("kind", ["lily", "xlora", "cpt", "poly"])
def test_kinds_that_do_not_do_what_is_wanted_say_why(kind):
    assert len(ADAPTERS.load(kind).REFUSED) > 30
    assert not hasattr(ADAPTERS.load("road"), "REFUSED")
    assert ADAPTERS.load("hira").LEARNING_RATE == 2e-3 and not hasattr(ADAPTERS.load("gralora"), "LEARNING_RATE")
    assert ADAPTERS.load("adamss").PACKAGES == {"sklearn": "pip install scikit-learn"}


# --- LoRA that starts from the weights

STARTS = [
    ("llama", {"init": "pissa"}),
    ("llama", {"init": "pissa_niter_4"}),
    ("llama", {"init": "olora"}),
    ("llama", {"init": "lora_ga"}),
    ("llama", {"init": "pissa", "rslora": True}),
    ("llama", {"init": "pissa", "train_modules": ("model.norm",)}),
    ("llama", {"init": "olora", "rslora": True,
               "extra": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3.0}}}),
    ("qwen3", {"init": "pissa_niter_2"}),
    ("gpt2", {"init": "pissa_niter_4"}),
    ("gpt2", {"init": "lora_ga"}),
]  # fmt: skip


@pytest.mark.parametrize(("arch", "keys"), STARTS)
def test_what_started_from_the_weights_is_saved_as_lora_for_the_base_as_it_is(arch, keys, tmp_path):
    base = logits(tiny(arch))
    model = put(tiny(arch), "lora", r=4, alpha=8, data=batches(), **keys)
    assert torch.allclose(logits(model), base, atol=1e-4)
    with model.disable_adapter():  # the base has given up a part of its weights
        assert (logits(model) - base).abs().max() > 0.1
    initial = initial_state(model)
    train(model, 1e-3, steps=4)
    trained = logits(model)
    assert (trained - base).abs().max() > 0.1
    for folder in (tmp_path / "a", tmp_path / "b"):
        save_adapter(model, folder, initial)
        assert torch.equal(logits(model), trained)
    again = PeftModel.from_pretrained(tiny(arch), tmp_path / "b")
    assert (logits(again) - trained).abs().max() < 1e-5 * max(1.0, float(trained.abs().max()))
    with again.disable_adapter():
        assert torch.equal(logits(again), base)
    assert torch.allclose(logits(again.merge_and_unload()), trained, atol=1e-4)


@pytest.mark.parametrize("init", ["pissa_niter_4", "lora_ga"])
def test_saved_as_peft_does_it_unasked_such_an_adapter_is_loaded_wrong(init, tmp_path):
    model = put(tiny(), "lora", r=4, init=init, data=batches())
    train(model, 1e-3, steps=4)
    model.save_pretrained(tmp_path)
    base = tiny()
    torch.manual_seed(99)  # another process
    again = PeftModel.from_pretrained(base, tmp_path)
    assert (logits(again) - logits(model)).abs().max() > 0.1


def test_a_common_start_is_saved_as_it_is(tmp_path):
    model = put(tiny(), "lora", r=4)
    assert initial_state(model) == {}
    save_adapter(model, tmp_path, {})
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 4


def test_lora_ga_has_the_values_of_peft_s_own_preparation():
    from peft.tuners.lora.config import LoraGAConfig
    from peft.tuners.lora.loraga import preprocess_loraga

    torch.manual_seed(0)
    data, model = batches(), tiny()
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=places(*LLAMA), init_lora_weights="lora_ga",
        lora_ga_config=LoraGAConfig(),
    )  # fmt: skip
    preprocess_loraga(model, config, lambda: [model(**batch).loss.backward() for batch in data])
    wanted = initial_state(get_peft_model(model, config))
    found = initial_state(put(tiny(), "lora", r=4, alpha=8, init="lora_ga", data=data))
    assert found.keys() == wanted.keys()
    # the SVD is a random one: the same numbers but for its rounding, and the signs of its vectors
    for name, value in wanted.items():
        assert torch.allclose(found[name].abs(), value.abs(), atol=1e-3), name


def test_eva_takes_the_directions_of_the_inputs_and_leaves_the_output():
    keys = {"r": 2, "init": "eva", "targets": ("q_proj", "up_proj")}
    model = put(tiny(), "lora", data=batches(), **keys)
    assert torch.equal(logits(model), logits(tiny()))
    ranks = {name: value.shape[0] for name, value in model.state_dict().items() if "lora_A" in name}
    for name in ranks:
        a = model.state_dict()[name]
        assert torch.allclose(a @ a.T, torch.eye(len(a)), atol=1e-4), name
    assert len(set(ranks.values())) > 1, "ranks move between the layers"
    other = put(tiny(), "lora", data=batches(seed=9), **keys)
    names = set(ranks) & set(other.state_dict())
    assert any(other.state_dict()[n].shape != model.state_dict()[n].shape or
               not torch.equal(other.state_dict()[n], model.state_dict()[n]) for n in names)  # fmt: skip


@pytest.mark.parametrize("init", ["eva", "lora_ga"])
def test_starts_from_the_data_need_data(init):
    with pytest.raises(UserError, match="there is none"):
        put(tiny(), "lora", init=init)


@pytest.mark.parametrize("bits", [4, 8])
def test_loftq_is_the_best_of_its_rank_to_what_quantization_took(bits, tmp_path):
    whole, model = quantized(tmp_path, bits)
    model = put(model, "lora", r=4, alpha=8, init="loftq")
    from peft.utils.integrations import dequantize_module_weight

    layer = model.get_submodule("base_model.model.model.layers.1.mlp.up_proj")
    left = whole.model.layers[1].mlp.up_proj.weight - dequantize_module_weight(layer.base_layer)
    rest = torch.linalg.norm(left - layer.get_delta_weight("default"))
    wanted = torch.linalg.svdvals(left)[4:].square().sum().sqrt()  # Eckart and Young
    assert torch.allclose(rest, wanted, rtol=1e-3) and rest < 0.9 * torch.linalg.norm(left)


@pytest.mark.parametrize("inner", [32, 128])
def test_loftq_on_a_transposed_layer(inner, tmp_path):
    """Quantized, a Conv1D is a linear layer, and lies the other way round; square ones would be taken as they lie."""
    from peft.utils.integrations import dequantize_module_weight

    whole, model = quantized(tmp_path, 4, arch="gpt2", n_inner=inner)
    model = put(model, "lora", r=4, alpha=8, init="loftq")
    layer = model.get_submodule("base_model.model.transformer.h.1.mlp.c_fc")
    full = whole.transformer.h[1].mlp.c_fc.weight.T  # (outputs, inputs)
    left = full - dequantize_module_weight(layer.base_layer)
    rest = torch.linalg.norm(left - layer.get_delta_weight("default"))
    wanted = torch.linalg.svdvals(left)[4:].square().sum().sqrt()
    assert torch.allclose(rest, wanted, rtol=1e-3) and rest < 0.9 * torch.linalg.norm(left)
    if inner == 32:  # the fault: with the weights as they lie nearly all of them would be an error of quantization
        assert torch.linalg.norm(full.T - dequantize_module_weight(layer.base_layer)) > 5 * torch.linalg.norm(left)


def test_loftq_refuses_a_base_that_is_quantized_on_the_disk(tmp_path):
    """Packed weights would be taken for the full ones."""
    _, model = quantized(tmp_path / "whole", 4)
    model.save_pretrained(tmp_path / "packed")
    stored = type(model).from_pretrained(tmp_path / "packed", dtype=torch.float32)
    with pytest.raises(UserError, match="quantized on the disk"):
        put(stored, "lora", init="loftq")


def quantized(folder, bits, **shape):
    from transformers import BitsAndBytesConfig

    whole = tiny(**shape)
    whole.save_pretrained(folder)
    config = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_quant_type="nf4")
    return whole, type(whole).from_pretrained(folder, quantization_config=config, dtype=torch.float32)


def test_loftq_needs_quantized_weights_and_the_starts_from_weights_whole_ones(tmp_path):
    with pytest.raises(UserError, match="these are not"):
        put(tiny(), "lora", init="loftq")
    for init in ("pissa", "pissa_niter_2", "olora", "lora_ga"):
        with pytest.raises(UserError, match="are quantized"):
            put(quantized(tmp_path, 4)[1], "lora", init=init, data=batches())


# --- LoRA+

@pytest.mark.parametrize("keys", [{}, {"dora": True}, {"train_modules": ("model.norm",)}])
def test_lora_plus_has_the_groups_of_peft(keys):
    from peft.optimizers import create_loraplus_optimizer

    model, plugin = put(tiny(), "lora", r=4, plus=16.0, **keys), ADAPTERS.load("lora")
    ours = plugin.parameter_groups(model, block("lora", plus=16.0), 1e-3, 0.1)
    theirs = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0, loraplus_weight_decay=0.1
    ).param_groups

    def settings(groups):
        return {id(p): (pytest.approx(g["lr"]), g["weight_decay"]) for g in groups for p in g["params"]}

    # PEFT takes every vector for one of B's; one that is trained whole beside the adapter keeps its own rate here.
    whole = {id(p) for name, p in model.named_parameters() if p.ndim == 1 and "lora_" not in name and p.requires_grad}
    assert len(whole) == ("train_modules" in keys)
    rates = settings(ours)
    assert {key: value for key, value in rates.items() if key not in whole} == {
        key: value for key, value in settings(theirs).items() if key not in whole
    }
    assert all(rates[key][0] == pytest.approx(1e-3) for key in whole)
    assert {id(p) for g in ours for p in g["params"]} == {id(p) for p in model.parameters() if p.requires_grad}
    assert max(g["lr"] for g in ours) / min(g["lr"] for g in ours) == pytest.approx(16)
    assert plugin.parameter_groups(model, block("lora"), 1e-3, 0.1) == []


# --- AdaLoRA

def test_adalora_takes_ranks_away_down_to_the_budget():
    plugin = ADAPTERS.load("adalora")
    model = put(tiny(), "adalora", r=2, init_r=4, steps=12, every=1, tinit=2.0, tfinal=3.0)
    train(model, 2e-2, steps=12, plugin=plugin)
    kept = sum(sum(row) for row in model.peft_config["default"].rank_pattern.values())
    assert kept == 2 * len(places(*LLAMA))
    assert len({sum(row) for row in model.peft_config["default"].rank_pattern.values()}) > 1


def test_adalora_s_further_loss_is_what_peft_adds_where_it_sees_labels():
    model, batch = put(tiny(), "adalora", orthogonal=0.5), batches(1)[0]
    alone = model.base_model.model(**batch).loss
    added = ADAPTERS.load("adalora").further_loss(model)
    assert added > 0 and torch.allclose(model(**batch).loss - alone, added, atol=1e-5)
    assert ADAPTERS.load("adalora").further_loss(put(tiny(), "adalora", orthogonal=0.0)) is None


def test_adalora_goes_on_to_the_bit_from_weights_and_state():
    plugin, keys = ADAPTERS.load("adalora"), {"r": 2, "init_r": 4, "steps": 12, "every": 1, "tinit": 2.0, "tfinal": 3.0}

    def steps(model, numbers):
        for step in numbers:
            (model(**batches()[step % 3]).loss).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.sub_(0.05 * parameter.grad)
            plugin.after_step(model, step)
            model.zero_grad()
        return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    first = put(tiny(), "adalora", **keys)
    first.train()
    half = steps(first, range(6))
    saved = {name: value.clone() for name, value in plugin.state(first).items()}
    wanted = steps(first, range(6, 12))

    def resumed(with_state):
        model = put(tiny(), "adalora", **keys)
        model.train()
        model.load_state_dict(half, strict=False)
        if with_state:
            plugin.restore(model, saved)
        return steps(model, range(6, 12))

    assert any(not torch.equal(wanted[name], value) for name, value in resumed(False).items())  # the fault
    assert all(torch.equal(wanted[name], value) for name, value in resumed(True).items())


# --- where IA3 and LN tuning go

def test_keys_values_and_the_way_back_are_found_by_structure():
    assert keys_and_values(tiny()) == sorted(places("self_attn.k_proj", "self_attn.v_proj"))
    assert keys_and_values(tiny("gpt2")) == [f"transformer.h.{layer}.attn.c_attn" for layer in range(3)]
    assert feedforward_outputs(tiny("qwen3")) == places("mlp.down_proj")
    assert feedforward_outputs(tiny("gpt2")) == [f"transformer.h.{layer}.mlp.c_proj" for layer in range(3)]
    assert len(norms(tiny())) == 7 and len(norms(tiny("qwen3"))) == 13  # two a layer and one, and those of q and k
    fits = expression(feedforward_outputs(tiny()))
    assert re.fullmatch(fits, "model.layers.11.mlp.down_proj")
    assert not re.fullmatch(fits, "model.layers.1.mlp.down_proj.base")
    assert not re.fullmatch(fits, "model.layers.1.mlp.up_proj")


@pytest.mark.parametrize("arch", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("targets", [None, "all-linear", "attention", "mlp"])
def test_ia3_is_loaded_again_whatever_its_targets(arch, targets, tmp_path):
    model = put(tiny(arch), "ia3", **({} if targets is None else {"targets": targets}))
    scaled_at_input = {
        name.rsplit(".", 1)[-1]
        for name, module in model.base_model.model.named_modules()
        if getattr(module, "is_feedforward", False)
    }
    back = {"c_proj"} if arch == "gpt2" else {"down_proj"}
    assert scaled_at_input == (set() if targets == "attention" else back)
    train(model, 0.05)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny(arch), tmp_path)), logits(model))


# --- virtual tokens

def test_a_prompt_begins_as_the_text_of_peft_s_own_and_keeps_no_place(tmp_path):
    from transformers import AutoTokenizer

    text = "Answer the question about the town."
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=9, prompt_tuning_init=peft.PromptTuningInit.TEXT,
        prompt_tuning_init_text=text, tokenizer_name_or_path=str(TINY),
    )  # fmt: skip
    theirs = get_peft_model(tiny(vocab_size=2048), config)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    ours = put(tiny(vocab_size=2048), "prompt", virtual_tokens=9, init="text", text=text, tokenizer=tokenizer)
    wanted = theirs.prompt_encoder["default"].embedding.weight
    assert torch.equal(ours.prompt_encoder["default"].embedding.weight, wanted)
    given = put(
        tiny(vocab_size=2048), "prompt", virtual_tokens=9, init="text", text=tuple(tokenizer(text)["input_ids"])
    )
    assert torch.equal(given.prompt_encoder["default"].embedding.weight, wanted)
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    assert str(TINY) in (tmp_path / "theirs" / "adapter_config.json").read_text()
    assert str(TINY) not in (tmp_path / "ours" / "adapter_config.json").read_text()


def test_a_multitask_prompt_is_called_without_tasks_once_prepared(tmp_path):
    plugin, model = ADAPTERS.load("multitask_prompt"), tiny()
    bare = get_peft_model(tiny(), plugin.peft_config(block("multitask_prompt"), model, STEPS))
    with pytest.raises((ValueError, AttributeError, TypeError)):
        logits(bare)
    model = put(model, "multitask_prompt", virtual_tokens=4)
    train(model, 1e-2)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny(), tmp_path)
    plugin.prepare(again)
    assert torch.allclose(logits(again), logits(model), atol=1e-6)
    made = model.eval().generate(input_ids=batches(1)[0]["input_ids"][:1], max_new_tokens=3, do_sample=False)
    assert made.shape[1] == 15


def test_prefix_begins_with_values_of_zero_or_is_projected():
    model = put(tiny(), "prefix", init="zero")
    assert all(p.abs().max() == 0 for p in model.parameters() if p.requires_grad)
    projected = put(tiny(), "prefix", projection=True, hidden=8)
    assert any(p.shape[0] == 8 for p in projected.parameters() if p.requires_grad)


# --- tokens, frozen layers, optimizers of low rank

@pytest.mark.parametrize("tied", [True, False])
def test_only_the_named_tokens_are_trained_where_they_are_read_and_written(tied):
    base = tiny(tie_word_embeddings=tied)
    model = put(tiny(tie_word_embeddings=tied), "trainable_tokens", tokens=(3, 7))
    train(model, 0.1)
    merged = model.merge_and_unload()
    for found, first in (
        (merged.get_input_embeddings().weight, base.get_input_embeddings().weight),
        (merged.get_output_embeddings().weight, base.get_output_embeddings().weight),
    ):
        assert [row for row in range(64) if not torch.equal(found[row], first[row])] == [3, 7]


def test_tokens_are_named_as_the_tokenizer_has_them():
    from transformers import AutoTokenizer

    tokenizer, plugin = AutoTokenizer.from_pretrained(TINY), ADAPTERS.load("trainable_tokens")
    known = tokenizer.convert_ids_to_tokens([300, 200])
    assert plugin.tokenize(block("trainable_tokens", tokens=tuple(known)), tokenizer).tokens == (200, 300)
    assert plugin.tokenize(block("trainable_tokens", tokens=(9, 4)), tokenizer).tokens == (4, 9)
    with pytest.raises(UserError, match="has no token '<new>'"):
        plugin.tokenize(block("trainable_tokens", tokens=("<new>",)), tokenizer)


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"last_layers": 1}, {"model.layers.2"}),
        ({"train": ("lm_head", "mlp")}, {"lm_head", *places("mlp")}),
        ({"train": r".*\.1\.self_attn|model\.norm", "last_layers": 1},
         {"model.layers.1.self_attn", "model.norm", "model.layers.2"}),
    ],
)  # fmt: skip
def test_freeze_trains_what_is_named_and_nothing_else(keys, wanted):
    model = put(tiny(), "freeze", **keys)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if any(n.startswith(f"{w}.") for w in wanted)}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, 1e-2, steps=2)
    assert {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])} == trained


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"rank": 8, "scale": 0.5, "update_every": 50},
         {"optim": "galore_adamw", "optim_target_modules": "all-linear",
          "optim_args": "rank=8,update_proj_gap=50,scale=0.5"}),
        ({"method": "galore_8bit", "targets": "model.*proj"},
         {"optim": "galore_adamw_8bit", "optim_target_modules": "model.*proj"}),
        ({"method": "apollo", "per_layer": True},
         {"optim": "apollo_adamw_layerwise", "optim_target_modules": "all-linear"}),
        ({"method": "adalomo"}, {"optim": "adalomo"}),
    ],
)  # fmt: skip
def test_layerwise_chooses_trainer_s_optimizer_and_says_what_it_needs(keys, wanted, tmp_path):
    from transformers import TrainingArguments

    plugin, given = ADAPTERS.load("layerwise"), block("layerwise", **keys)
    assert plugin.arguments(given) == wanted
    assert TrainingArguments(tmp_path, **wanted).optim == wanted["optim"]
    assert len(plugin.packages(given)) == 1 and plugin.packages(given).items() <= plugin.PACKAGES.items()
    assert all(parameter.requires_grad for parameter in put(tiny(), "layerwise", **keys).parameters())


def test_layerwise_names_are_whole_parts_of_names():
    wanted = ADAPTERS.load("layerwise").arguments(block("layerwise", targets=("q_proj", "v_proj")))
    fits = wanted["optim_target_modules"]
    assert re.fullmatch(fits, "model.layers.0.self_attn.q_proj") and re.fullmatch(fits, "v_proj")
    assert not re.fullmatch(fits, "model.layers.0.self_attn.qq_proj")


def test_tensors_beside_the_adapter_survive_the_change_of_form(tmp_path):
    model = put(tiny(), "lora", r=4, init="pissa", train_modules=("model.norm",))
    initial = initial_state(model)
    train(model, 1e-2)
    save_adapter(model, tmp_path, initial)
    names = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert any("norm" in name for name in names) and len(names) == 2 * len(places(*LLAMA)) + 1
    assert NEEDED.keys() <= set(KINDS)
