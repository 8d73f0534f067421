"""What the reference finds answers worth: computed once, kept under all that shapes it, and never taken for another."""

from __future__ import annotations

import json
import shutil

import pytest

from tunekit.core.errors import DataError, MachineError, UserError
from tunekit.core.files import sha256_file
from tunekit.rl import reference

LORA = {"kind": "lora", "r": 4, "alpha": 8}
BASE = {"dpo__reference": "base"}


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder where references are kept, empty."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "tunekit" / "reference"


@pytest.fixture
def computed(monkeypatch):
    """How many rows references were computed of, one number each time."""
    counts, compute = [], reference.answers_logps

    def counting(trainer, model, rows, advance):
        counts.append(len(rows))
        return compute(trainer, model, rows, advance)

    monkeypatch.setattr(reference, "answers_logps", counting)
    return counts


@pytest.fixture
def started(tmp_path):
    """A folder of a LoRA adapter of the base of seed 42 that has learnt something."""
    import torch
    from peft import LoraConfig, get_peft_model

    from tunekit.model.names import resolve_name
    from tunekit.model.tokenizer import random_config

    def make(name="start", **more):
        from transformers import AutoModelForCausalLM, set_seed

        set_seed(42)
        model = AutoModelForCausalLM.from_config(
            random_config(resolve_name("builtin:random?layers=2&hidden=32&heads=2"))
        )
        targets = ["q_proj", "v_proj"]
        adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"))
        with torch.no_grad():
            for key, value in adapted.named_parameters():
                if "lora_B" in key:
                    value.normal_(std=0.2)
        adapted.save_pretrained(tmp_path / name)
        path = tmp_path / name / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
        factor = more.get("lora_alpha", 8)
        return {"kind": "lora", "r": 4, "alpha": factor, "start": str(tmp_path / name), "targets": targets}

    return make


def plainly(trainer, row):
    """The log-probabilities of a row's answers by torch alone, one answer at a time."""
    import torch

    ids, labels = row["input_ids"], row["labels"]
    begin = at = len(ids) - sum(row["branches"])
    found = []
    for size in row["branches"]:
        whole = ids[:begin] + ids[at : at + size]
        with torch.no_grad():
            logits = trainer.model.eval()(input_ids=torch.tensor([whole])).logits[0].float().log_softmax(-1)
        trained = [label >= 0 for label in labels[at : at + size]]
        values = logits[begin - 1 : len(whole) - 1].gather(1, torch.tensor(whole[begin:])[:, None])[:, 0]
        found.append(float(values[torch.tensor(trained)].sum()))
        at += size
    return found


@pytest.mark.parametrize(("method", "sets"), [("dpo", {}), ("dpo", {"adapter": LORA} | BASE), ("kto", {})])
def test_values_are_those_of_a_plain_loop(method, sets, preference_plan, ready_of, kept):
    _, trainer = ready_of(preference_plan(method, train__micro_batch_size=4, **sets))
    assert len(trainer.train_dataset) == 11
    for row in trainer.train_dataset:
        assert row["reference_logps"] == pytest.approx(plainly(trainer, row), rel=1e-5)


def test_a_second_run_computes_nothing(preference_plan, ready_of, kept, computed):
    sets = {"data__eval": {"count": 3}, "adapter": LORA}
    first = ready_of(preference_plan("dpo", **sets))[1]
    assert sorted(computed) == [3, 8] and len(list(kept.iterdir())) == 2
    again = ready_of(preference_plan("dpo", train__learning_rate=1e-3, dpo__beta=0.7, **sets))[1]
    assert len(computed) == 2
    for part in ("train_dataset", "eval_dataset"):
        assert getattr(first, part)["reference_logps"][:] == getattr(again, part)["reference_logps"][:]


def test_what_shapes_the_values_gives_another_key(preference_plan, ready_of, started, kept, computed):
    """Each of these is computed anew; what was kept for another would be wrong for it."""
    plans = {
        "full": {},
        "another seed of the model": {"train__seed": 7},
        "other rows": {"limit": 9},
        "shorter rows": {"data__max_length": 44},
        "another arithmetic": {"train__precision": "bf16"},
        "an adapter that has learnt": {"adapter": started()},
        "the same weights, another factor": {"adapter": started("scaled", lora_alpha=32)},
        "the base in full": BASE,
        "another base in full": BASE | {"train__seed": 7},
        "tails that count half": {"dpo__ld_alpha": 0.5},
        "tails that count little": {"dpo__ld_alpha": 0.1},
    }
    for name, sets in plans.items():
        before = len(computed)
        ready_of(preference_plan("dpo", **sets))
        assert len(computed) == before + 1, name


def test_a_loss_without_a_reference_computes_none(preference_plan, ready_of, kept, computed):
    trainer = ready_of(preference_plan("dpo", dpo__loss={"sft": 1.0}, data__eval={"count": 3}))[1]
    assert not computed and not kept.exists()
    assert not {"reference_logps"} & {*trainer.train_dataset.column_names, *trainer.eval_dataset.column_names}
    trainer.train()
    ready_of(preference_plan("dpo", dpo__loss={"sft": 1.0, "nca_pair": 0.1}))
    assert computed == [11]


def test_another_model_counts_tails_as_the_policy_does(preference_plan, ready_of, kept, tmp_path):
    """Its values are linear in the weight of the tokens beyond the shorter answer's length."""
    other = preference_plan("dpo", train__seed=7)
    session, trainer = ready_of(other)
    trainer.model.save_pretrained(tmp_path / "other")
    session.inputs.tokenizer.save_pretrained(tmp_path / "other")
    found = {
        weight: ready_of(preference_plan("dpo", dpo__reference=str(tmp_path / "other"), dpo__ld_alpha=weight))[1]
        for weight in (0.0, 0.25, 1.0)
    }
    none, some, whole = ([row["reference_logps"] for row in one.train_dataset] for one in found.values())
    assert whole[0] == pytest.approx(plainly(trainer, trainer.train_dataset[0]), rel=1e-5)
    differ = 0
    for row, (low, middle, high) in zip(trainer.train_dataset, zip(none, some, whole, strict=True), strict=True):
        assert middle == pytest.approx([0.75 * one + 0.25 * other for one, other in zip(low, high, strict=True)])
        longer = [size > min(row["branches"]) for size in row["branches"]]
        assert [one != other for one, other in zip(low, high, strict=True)] == longer
        differ += any(longer)
    assert differ > 5


def test_mismatched_answers_of_kto_are_part_of_the_key(
    preference_plan, ready_of, write_rows, tmp_path, kept, computed
):
    """With and without them, and cut at another length where no row of the data is."""
    sides = [("seven " * 12, "cat"), ("dog?", "river " * 10), ("moon?", "stone")]
    rows = [{"prompt": asked, "completion": said, "label": len(said) > 5} for asked, said in sides]
    source = {"data__train": [{"path": str(write_rows(tmp_path / "uneven.jsonl", rows))}]}
    whole = ready_of(preference_plan("kto", kto__loss="apo_zero_unpaired", **source))[1].train_dataset
    lengths = (128, max(whole["length"][:]))
    made = [ready_of(preference_plan("kto", data__max_length=most, **source))[1] for most in lengths]
    widths = [sum(map(sum, trainer.train_dataset["branches"][:])) for trainer in made]
    assert widths[0] > widths[1] > sum(map(sum, whole["branches"][:]))
    assert len(computed) == 3
    for trainer in made:
        for row in trainer.train_dataset:
            assert row["reference_logps"] == pytest.approx(plainly(trainer, row), rel=1e-5)


def test_damaged_values_are_noticed(preference_plan, ready_of, kept):
    plan = preference_plan("dpo")
    ready_of(plan)
    (folder,) = kept.iterdir()
    good = (folder / "values.npy").read_bytes()
    for bad in (good[:-4], good[:-1] + b"\x7f", b"", None):
        (folder / "values.npy").unlink()
        if bad is not None:
            (folder / "values.npy").write_bytes(bad)
        with pytest.raises(MachineError, match="the kept reference is damaged") as caught:
            ready_of(plan)
        assert str(folder) in str(caught.value) and "remove the folder" in caught.value.fix
        (folder / "values.npy").write_bytes(good)
    ready_of(plan)
    shutil.rmtree(folder)
    ready_of(plan)


def test_values_of_another_model_are_noticed(preference_plan, ready_of, kept):
    """Whole, with the sum that belongs to them, and wrong: no key can be trusted that far."""
    import numpy as np

    plan = preference_plan("dpo")
    ready_of(plan)
    (folder,) = kept.iterdir()
    path = folder / "values.npy"
    np.save(path, np.load(path) * 1.01)
    (folder / "sums.json").write_text(json.dumps({"values.npy": sha256_file(path)}))
    with pytest.raises(MachineError, match=r"another model's or of other rows: -\d+\.\d+ in the") as caught:
        ready_of(plan)
    assert "pairs.jsonl:" in str(caught.value) and str(folder) in str(caught.value)


def test_an_adapter_that_has_learnt_is_not_the_base(preference_plan, ready_of, started, kept):
    with pytest.raises(UserError, match="the policy does not begin as its reference") as caught:
        ready_of(preference_plan("dpo", adapter=started(), **BASE))
    assert "pairs.jsonl:" in str(caught.value) and "reference: initial" in caught.value.fix
    trainer = ready_of(preference_plan("dpo", adapter=started()))[1]
    for row in list(trainer.train_dataset)[:3]:
        assert row["reference_logps"] == pytest.approx(plainly(trainer, row), rel=1e-5)


BARE = {
    "ia3": {"kind": "ia3"},
    "dora": LORA | {"dora": True},
    "vera": {"kind": "vera", "r": 4},
    "boft": {"kind": "boft", "block_size": 4},
    "hra": {"kind": "hra", "r": 4},
    "ln_tuning": {"kind": "ln_tuning"},
    "bottleneck": {"kind": "bottleneck"},
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", BARE)
def test_kinds_that_begin_as_their_base(kind, precision, preference_plan, ready_of, kept):
    for sets in (BASE, {}):
        ready_of(preference_plan("dpo", 3, adapter=BARE[kind], train__precision=precision, **sets))


VIRTUAL = {"prompt": {"kind": "prompt", "virtual_tokens": 4}, "prefix": {"kind": "prefix", "virtual_tokens": 4}}


@pytest.mark.parametrize("kind", VIRTUAL)
def test_vectors_before_the_text(kind, preference_plan, ready_of, kept):
    """The policy begins with them; so does `initial`, and `base` is another model."""
    trainer = ready_of(preference_plan("dpo", adapter=VIRTUAL[kind], train__max_steps=3))[1]
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[0] == pytest.approx(0.693147, abs=1e-5) and losses[-1] < losses[0]
    with pytest.raises(UserError, match="the policy does not begin as its reference"):
        ready_of(preference_plan("dpo", adapter=VIRTUAL[kind], **BASE))


def test_pissa_begins_as_the_model_and_not_as_its_base(preference_plan, ready_of, kept):
    ready_of(preference_plan("dpo", adapter=LORA | {"init": "pissa"}))
    with pytest.raises(UserError, match="the policy does not begin as its reference"):
        ready_of(preference_plan("dpo", adapter=LORA | {"init": "pissa"}, **BASE))


@pytest.mark.parametrize("sets", [{}, BASE])
def test_weights_of_4_bits(sets, preference_plan, ready_of, kept):
    quantized = {"model__name": "builtin:tiny", "model__quantize": {"kind": "bnb", "bits": 4}}
    trainer = ready_of(preference_plan("dpo", 6, adapter=LORA, train__max_steps=2, **quantized, **sets))[1]
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[0] == pytest.approx(0.693147, abs=1e-4) and losses[1] < losses[0]


@pytest.mark.parametrize(("count", "what"), [(3, "all answers are the same"), (1, "one answer")])
def test_kto_needs_answers_that_differ(count, what, preference_plan, session_of, write_rows, tmp_path):
    from tunekit.core.progress import Silent

    rows = [{"prompt": f"{number}?", "completion": "yes", "label": number > 0} for number in range(count)]
    path = write_rows(tmp_path / "same.jsonl", rows)
    _, trainer = session_of(preference_plan("kto", data__train=[{"path": str(path)}]))
    with pytest.raises(DataError, match=what):
        trainer.ready(Silent())


def test_the_next_other_answer_is_found_in_one_pass():
    """Sorted by verdict with few different answers, as data sets are; a search from each row would take its square."""
    import time

    from datasets import Dataset

    from tunekit.rl.kto import with_others

    def rows(answers):
        made = [{"input_ids": [1, 2, answer], "labels": [-100, -100, answer], "branches": [1]} for answer in answers]
        return Dataset.from_list([row | {"position_ids": [0, 1, 2], "length": 3} for row in made])

    few = with_others(rows([5, 5, 7, 5, 8]), 16, "data.train")
    assert [ids[-1] for ids in few["input_ids"]] == [7, 7, 5, 8, 5]
    before = time.perf_counter()
    many = with_others(rows([5] * 6000 + [7] * 6000), 16, "data.train")
    assert time.perf_counter() - before < 20
    assert [many[at]["input_ids"][-1] for at in (0, 5999, 6000, 11999)] == [7, 7, 5, 5]
