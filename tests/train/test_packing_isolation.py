"""Packed examples never see each other, family by family; a model that cannot keep them apart is refused by name."""

from __future__ import annotations

import pytest

from tunekit.core.errors import UserError

FAMILIES = {
    "llama": {"arch": "llama"},
    "qwen3": {"arch": "qwen3"},
    "mistral": {"arch": "mistral"},
    "gemma2": {"arch": "gemma2"},
    "gemma3": {"arch": "gemma3_text"},
    "phi3": {"arch": "phi3"},
    "qwen2": {"arch": "qwen2"},
    "gpt2": {"arch": "gpt2"},
}
LENGTHS = (11, 7, 19)  # the third is longer than the sliding window that is set below
WINDOW = 8


def build(arch: str, **changes):
    """A random model of a family, with its sliding window made short enough to matter."""
    import torch
    from transformers import AutoModelForCausalLM

    from tunekit.model.names import resolve_name
    from tunekit.model.tokenizer import random_config

    config = random_config(resolve_name(f"builtin:random?arch={arch}&layers=2&hidden=64&heads=2&vocab=97"))
    if getattr(config, "sliding_window", None):
        config.sliding_window = WINDOW
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def examples():
    import torch

    generator = torch.Generator().manual_seed(1)
    rows = []
    for number, length in enumerate(LENGTHS):
        ids = torch.randint(4, 97, (length,), generator=generator).tolist()
        labels = [-100] * 3 + ids[3:]
        row = {"number": number, "length": length, "input_ids": ids, "labels": labels, "turn_ends": [length - 1]}
        rows.append(row | {"truncated": False, "prompt_tokens": 3, "prompt": "", "reference": ""})
    return rows


def logits(model, rows, isolated=True):
    """Logits of each example when all are packed in one row, through the collator that training uses."""
    import torch

    from tunekit.data.collate import Collator
    from tunekit.data.store import join

    batch = Collator(0)([join(rows, isolated)])
    with torch.no_grad():
        out = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[0]
    return torch.split(out[: sum(LENGTHS)], LENGTHS)


def loss(values, row):
    import torch

    labels = torch.tensor(row["labels"][1:])
    return float(torch.nn.functional.cross_entropy(values[: row["length"] - 1].double(), labels, ignore_index=-100))


@pytest.mark.parametrize("family", FAMILIES)
def test_packing_changes_no_loss_and_leaks_nothing(family, note):
    model, rows = build(**FAMILIES[family]), examples()
    packed = logits(model, rows)
    alone = [logits_alone(model, row) for row in rows]
    differences = [abs(loss(p, r) / loss(a, r) - 1) for p, a, r in zip(packed, alone, rows, strict=True)]
    other = [dict(row) for row in rows]
    other[0]["input_ids"] = [(token * 7 + 1) % 90 + 4 for token in rows[0]["input_ids"]]
    perturbed = logits(model, other)
    moved = [float((a - b).abs().max()) for a, b in zip(packed, perturbed, strict=True)]
    note(f"{family}: loss packed against alone {max(differences):.1e}, leak {max(moved[1:]):.1e}, own {moved[0]:.1e}")
    assert max(differences) < 1e-5
    assert max(moved[1:]) < 1e-6 and moved[0] > 1e-3


def logits_alone(model, row):
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0]


def test_the_measure_sees_a_leak():
    """Without restarting positions the examples do see each other: the test above would notice."""
    model, rows = build("llama"), examples()
    other = [dict(row) for row in rows]
    other[0]["input_ids"] = [(token * 7 + 1) % 90 + 4 for token in rows[0]["input_ids"]]
    moved = logits(model, rows, isolated=False)[1] - logits(model, other, isolated=False)[1]
    assert float(moved.abs().max()) > 1e-3


NOT_ISOLATED = {
    "mamba": {"state_size": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "bloom": {"n_head": 2, "n_layer": 2},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 32},
}
SMALL = {
    "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 128, "vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def small(kind, **changes):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL | changes))


def verdict(model, **options):
    from contextlib import nullcontext

    from tunekit.data.collate import Collator
    from tunekit.train.isolation import check_isolated

    check_isolated(model, Collator(0, **options), 2, nullcontext())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_guard_lets_isolated_families_pass(family):
    model = build(**FAMILIES[family])
    verdict(model.train())
    assert model.training


@pytest.mark.parametrize("kind", NOT_ISOLATED)
def test_the_guard_names_the_kinds_that_leak(kind):
    with pytest.raises(UserError, match=rf"packed examples see each other in this model \({kind}") as caught:
        verdict(small(kind, **NOT_ISOLATED[kind]))
    assert "data.packing: false" in caught.value.fix


def test_experts_are_isolated_without_a_mask_and_refused_with_one():
    """The router loss needs the mask, and with a mask attention no longer looks at the positions."""
    model = small("mixtral", num_local_experts=4)
    verdict(model)
    with pytest.raises(UserError, match="mixtral"):
        verdict(model, with_mask=True)


def test_a_run_with_packing_is_refused_before_its_first_step(plan_of, session_of, tmp_path):
    from tunekit.model.load import load_model

    model = small("bloom", **NOT_ISOLATED["bloom"], vocab_size=2048)
    tokenizer_of = plan_of()
    session_of(tokenizer_of)[0].inputs.tokenizer.save_pretrained(tmp_path / "bloom")
    model.save_pretrained(tmp_path / "bloom")
    plan = plan_of(model__name=str(tmp_path / "bloom"), data__packing=True)
    assert load_model(plan).parameters
    with pytest.raises(UserError, match="bloom"):
        session_of(plan)
    session_of(plan_of(model__name=str(tmp_path / "bloom"), data__packing=False))


def test_packing_on_and_off_train_on_the_same_tokens(plan_of, session_of):
    """One step over all rows: the mean loss over all labelled tokens does not depend on how they are packed."""
    found = {}
    for packing in (False, True):
        plan = plan_of(data__packing=packing, train__batch_size=32)
        trainer = session_of(plan)[1]
        trainer.train()
        entry = trainer.state.log_history[0]
        found[packing] = (entry["loss"], float(entry["grad_norm"]))
    assert found[True] == pytest.approx(found[False], rel=1e-5)
