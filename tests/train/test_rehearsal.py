"""The rehearsal of the end: it leaves nothing, and it fails at the beginning where the end would fail."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from forked_for_tests import forked, small_disk
from safetensors.torch import load_file, save_file

from tunekit.core.errors import MachineError
from tunekit.model.save import save_model
from tunekit.runs.layout import RunFolder
from tunekit.train import rehearsal
from tunekit.train.rehearsal import rehearse

LORA = {"kind": "lora", "r": 4, "dropout": 0.1}
KINDS = {
    "full, tied": {},
    "lora": {"adapter": LORA},
    "lora and a whole module": {"adapter": {**LORA, "train_modules": ["lm_head"]}},
    "recomputed, bf16": {"train__gradient_checkpointing": True, "model__dtype": "bfloat16"},
    "small shipped": {"model__name": "builtin:tiny"},
}


@pytest.fixture
def ready(plan_of, session_of):
    """(arguments of `rehearse`, trainer, folder) of a recipe; the folder exists and is empty."""

    def build(**sets):
        plan = plan_of(**sets)
        session, trainer = session_of(plan)
        folder = RunFolder(Path(plan.run_dir))
        folder.path.mkdir(parents=True, exist_ok=True)
        return (trainer, session.inputs.tokenizer, folder, session.inputs.turn_end), trainer, folder

    return build


def settled(trainer):
    """All that a rehearsal might disturb."""
    from peft import PeftModel

    model = trainer.model
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    adapters = [str(config) for config in model.peft_config.values()] if isinstance(model, PeftModel) else []
    return (
        dict(vars(inner.config)), dict(vars(inner.generation_config)), adapters, inner.config.use_cache,
        inner.is_gradient_checkpointing, [(p.dtype, p.requires_grad, p.grad) for p in model.parameters()],
        [module.training for module in model.modules()], random.getstate(), np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(), trainer.state.global_step, trainer.optimizer,
    )  # fmt: skip


def left(folder):
    return sorted(str(path.relative_to(folder.path)) for path in folder.path.rglob("*"))


@pytest.mark.parametrize("kind", KINDS)
def test_it_writes_what_the_end_writes_and_leaves_nothing(kind, ready, tmp_path, note):
    arguments, trainer, folder = ready(**KINDS[kind])
    before, there = settled(trainer), left(folder)
    assert before[3] is False
    written = rehearse(*arguments)
    assert settled(trainer) == before
    assert left(folder) == there
    save_model(trainer.model, arguments[1], tmp_path / "model", arguments[3])
    real = sum(path.stat().st_size for path in (tmp_path / "model").rglob("*") if path.is_file())
    note(f"{kind}: {written:,} bytes")
    assert written == real
    assert trainer.model.config.use_cache is True  # that is what a save does: it was put back before


@pytest.mark.parametrize("changed", [False, True])
def test_a_model_whose_tensors_are_saved_under_other_names(changed, ready, monkeypatch):
    """Experts lie stacked in memory and one by one on disk."""
    from transformers import MixtralConfig, MixtralForCausalLM

    (trainer, tokenizer, folder, turn_end), *_ = ready()
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    experts = {"num_key_value_heads": 2, "num_local_experts": 4, "vocab_size": 64, "tie_word_embeddings": False}
    trainer.model = MixtralForCausalLM(MixtralConfig(**small, **experts))
    if not changed:
        assert rehearse(trainer, tokenizer, folder, turn_end) > 0
        return
    monkeypatch.setattr(rehearsal, "save_model", spoiled(flip_a_bit))
    with pytest.raises(MachineError, match="came back from the disk changed"):
        rehearse(trainer, tokenizer, folder, turn_end)


@pytest.mark.parametrize("kind", ["full, tied", "lora"])
def test_a_run_with_it_has_the_same_weights(kind, ready):
    trained = []
    for with_rehearsal in (True, False):
        arguments, trainer, _ = ready(**KINDS[kind], train__max_steps=2)
        if with_rehearsal:
            rehearse(*arguments)
        trainer.train()
        trained.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
    assert all(torch.equal(value, trained[1][name]) for name, value in trained[0].items())


def spoiled(how):
    """`save_model`, after which the weights are changed by ``how(tensors)``."""

    def save(model, tokenizer, place, turn_end):
        save_model(model, tokenizer, place, turn_end)
        path = next(place.glob("*.safetensors"))
        tensors = load_file(path)
        how(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return save


def flip_a_bit(tensors):
    name = sorted(tensors)[-1]
    tensors[name].reshape(-1).view(torch.uint8)[5] ^= 1


def lose_the_last(tensors):
    del tensors[max(tensors)]


def negate_a_zero(tensors):
    name = next(name for name in sorted(tensors) if "lora_B" in name)  # begins at zero
    tensors[name].neg_()


def change_the_type(tensors):
    name = sorted(tensors)[-1]
    tensors[name] = tensors[name].to(torch.float64)


@pytest.mark.parametrize(
    ("kind", "how", "words"),
    [
        ("full, tied", flip_a_bit, "came back from the disk changed"),
        ("lora", flip_a_bit, "came back from the disk changed"),
        ("lora", negate_a_zero, "came back from the disk changed"),
        ("full, tied", change_the_type, "came back from the disk changed"),
        ("full, tied", lose_the_last, "was not saved"),
        ("lora", lose_the_last, "was not saved"),
    ],
)
def test_a_changed_tensor_is_named(kind, how, words, ready, monkeypatch):
    arguments, trainer, folder = ready(**KINDS[kind])
    before, there = settled(trainer), left(folder)
    monkeypatch.setattr(rehearsal, "save_model", spoiled(how))
    with pytest.raises(MachineError, match=words) as caught:
        rehearse(*arguments)
    named = str(caught.value).split("'")[1]
    assert caught.value.exit_code == 4 and ("lora_" in named if kind == "lora" else "model." in named), named
    assert left(folder) == there and settled(trainer) == before


def test_a_file_that_is_cut_cannot_be_read_back(ready, monkeypatch):
    def cut(model, tokenizer, place, turn_end):
        save_model(model, tokenizer, place, turn_end)
        path = place / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])

    arguments, _, folder = ready()
    monkeypatch.setattr(rehearsal, "save_model", cut)
    there = left(folder)
    with pytest.raises(MachineError, match="cannot be read back") as caught:
        rehearse(*arguments)
    assert caught.value.exit_code == 4 and left(folder) == there


def test_something_stands_where_checkpoints_go(ready):
    arguments, trainer, folder = ready()
    before = settled(trainer)
    folder.checkpoints.write_text("a file")
    there = left(folder)
    with pytest.raises(MachineError, match="cannot be saved here") as caught:
        rehearse(*arguments)
    problem = caught.value.problems[0]
    assert caught.value.exit_code == 4 and problem.where == str(folder.checkpoints) and "output.dir" in problem.fix
    assert left(folder) == there and settled(trainer) == before


@pytest.mark.parametrize("kind", ["folder", "file", "broken link"])
def test_something_stands_where_the_model_goes(kind, ready):
    arguments, _, folder = ready()
    if kind == "folder":
        folder.model.mkdir()
        (folder.model / "config.json").write_text("{}")
    elif kind == "file":
        folder.model.write_text("a file")
    else:
        folder.model.symlink_to("nowhere")
    there = left(folder)
    with pytest.raises(MachineError, match="finished model") as caught:
        rehearse(*arguments)
    assert caught.value.problems[0].where == str(folder.model) and left(folder) == there


def test_existing_checkpoints_and_the_rest_of_a_killed_rehearsal(ready):
    arguments, _, folder = ready()
    (folder.checkpoints / "step-000005").mkdir(parents=True)
    for rest in (folder.path / ".rehearsal", folder.checkpoints / ".rehearsal"):
        (rest / "model").mkdir(parents=True)
        (rest / "model" / "config.json").write_text("{}")
    rehearse(*arguments)
    assert (folder.checkpoints / "step-000005").is_dir()
    assert not [name for name in left(folder) if "rehearsal" in name or name.startswith("model")]


def test_files_that_may_not_grow(ready):
    arguments, _, folder = ready()
    there = left(folder)
    kind, name, code, what, place, fix = forked(lambda: rehearse(*arguments), file_limit=100_000)
    assert (kind, name, code) == ("error", "MachineError", 4)
    assert "limit of file sizes" in what and place == str(folder.path) and "ulimit" in fix
    assert left(folder) == there


@pytest.mark.parametrize(
    ("options", "words", "advice"),
    [("size=200k", "the disk is full: needed", "free space"), ("ro", "Read-only file system", "chmod")],
)
def test_a_disk_that_takes_nothing(options, words, advice, ready, tmp_path):
    (trainer, tokenizer, _, turn_end), *_ = ready()
    before = settled(trainer)
    with small_disk(tmp_path / "disk", options) as disk:
        with pytest.raises(MachineError) as caught:
            rehearse(trainer, tokenizer, RunFolder(disk), turn_end)
        problem = caught.value.problems[0]
        assert caught.value.exit_code == 4 and words in problem.what and advice in problem.fix
        assert str(disk) in problem.where and list(disk.iterdir()) == []
    assert settled(trainer) == before
