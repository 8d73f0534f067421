"""A pair costs the same whether its beginning is computed once, for each answer, or in padded rows; gradients too."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

METHODS = {
    "dpo": {"dpo__loss": {"sigmoid": 1.0, "sft": 0.5}},
    "kto": {},
    "reward": {"reward__centre": 0.1},
    "simpo": {"simpo__nll_weight": 0.3},
}
SHAPES = {
    "llama": {},
    "mistral": {"sliding_window": 9},
    "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 256},
}


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """A model of random weights that are far from uniform, with the embedded tokenizer, in a folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tunekit.model.names import TINY

    made = {}

    def make(kind, **more):
        key = (kind, tuple(more.items()))
        if key in made:
            return made[key]
        shape = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1,
                 "intermediate_size": 64, "max_position_embeddings": 256}  # fmt: skip
        shape = (SHAPES[kind] if kind == "gpt2" else shape | SHAPES.get(kind, {})) | more
        config = AutoConfig.for_model(kind, vocab_size=2048, pad_token_id=0, bos_token_id=1, eos_token_id=1, **shape)
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" not in name and "ln_" not in name:
                    parameter.normal_(std=0.1)
        made[key] = str(tmp_path_factory.mktemp(kind))
        model.save_pretrained(made[key])
        for file in Path(TINY).glob("*"):
            if file.name.startswith("tokenizer") or file.suffix == ".jinja":
                shutil.copy(file, made[key])
        return made[key]

    return make


def found(trainer, rows, moved):
    """The mean loss of rows as one batch, and its gradients; ``moved``: added to the reference, so that a margin is."""
    import torch

    batch = trainer.data_collator([trainer.train_dataset[index] for index in rows])
    if "reference_logps" in batch:
        shape = batch["reference_logps"].shape
        batch["reference_logps"] += moved * torch.arange(math.prod(shape)).reshape(shape).sin()
    trainer.model.zero_grad()
    trainer.model.train()
    share = trainer.local_share(trainer.model, batch)
    (share.total / share.items).backward()
    grads = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    return float(share.total / share.items), grads


def apart(one, other):
    """The largest difference of two gradients, as a share of the norm of all."""
    assert one.keys() == other.keys() and one
    norm = sum(float(grad.square().sum()) for grad in one.values()) ** 0.5
    return max(float((one[name] - other[name]).abs().max()) for name in one) / norm


CASES = [*(("llama", method) for method in METHODS), ("mistral", "dpo"), ("mistral", "reward"), ("gpt2", "dpo"),
         ("gpt2", "reward"), ("gpt2", "kto")]  # fmt: skip


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_shared_separate_and_padded_are_one(kind, method, folder_of, preference_plan, ready_of, note):
    rows = [10, 0, 7, 3, 5, 1]
    sets = {"model__name": folder_of(kind)} | METHODS[method]
    _, trainer = ready_of(preference_plan(method, **sets))
    assert not trainer.padded_because, trainer.padded_because
    shared = trainer.shares
    assert shared or kind != "llama"
    got = {"flat": found(trainer, rows, 0.5)}
    trainer.shares = False
    got["separate"] = found(trainer, rows, 0.5)
    _, other = ready_of(preference_plan(method, model__attention="sdpa", **sets))
    assert other.padded_because
    got["padded"] = found(other, rows, 0.5)
    note(f"{kind} {method}, shared {shared}: {[(name, loss) for name, (loss, _) in got.items()]}")
    loss, grads = got["padded"]
    for name in ("flat", "separate"):
        assert got[name][0] == pytest.approx(loss, rel=1e-5), name
        assert apart(grads, got[name][1]) < 1e-5, name


def test_a_window_is_shorter_than_what_it_cuts(folder_of, preference_plan, ready_of):
    """The window of the mistral above does something: without it the loss is another one."""
    losses = {}
    for window in (9, 4096):
        folder = folder_of("mistral", sliding_window=window)
        _, trainer = ready_of(preference_plan("simpo", model__name=folder))
        losses[window] = found(trainer, [10, 0, 7], 0.0)[0]
    assert abs(losses[9] - losses[4096]) > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_fillers_add_nothing(method, folder_of, preference_plan, ready_of):
    """The last batch of an epoch is filled up with empty examples, and a micro-batch may hold nothing else."""
    from tunekit.train.batches import EpochBatches, EpochLoader

    _, trainer = ready_of(preference_plan(method, model__name=folder_of("llama"), **METHODS[method]))

    def share(picked):
        rows = EpochLoader(trainer.train_dataset, picked, collate_fn=trainer.data_collator).dataset
        return trainer.local_share(trainer.model, trainer.data_collator([rows[index] for index in picked[0]]))

    empty = EpochBatches.EMPTY
    plain, filled = share([[4, 2]]), share([[4, empty, 2, empty]])
    assert filled.items == plain.items == 2
    assert float(filled.total.detach()) == pytest.approx(float(plain.total.detach()), rel=1e-6)
    alone = share([[empty, empty]])
    assert alone.items == 0 and float(alone.total.detach()) == 0
    trainer.model.zero_grad()
    alone.total.backward()
    assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())
    batch = trainer.data_collator([trainer.train_dataset[0]])
    assert trainer.positions_of(batch) > 0 and trainer.lay_out(batch)


def test_dropout_of_the_model_is_off(folder_of, preference_plan, ready_of):
    """Modules of dropout, and shares that a model hands to a function."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tunekit.rl.groups import without_dropout

    torch.manual_seed(0)
    shapes = {
        "gpt2": {"n_layer": 1, "n_embd": 16, "n_head": 2, "resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3},
        "opt": {"num_hidden_layers": 1, "hidden_size": 16, "ffn_dim": 16, "num_attention_heads": 2, "dropout": 0.3,
                "attention_dropout": 0.3, "word_embed_proj_dim": 16},
        "llama": {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2,
                  "attention_dropout": 0.3},
        "bloom": {"n_layer": 1, "hidden_size": 16, "n_head": 2, "hidden_dropout": 0.3, "attention_dropout": 0.3},
    }  # fmt: skip
    ids = torch.arange(3, 19)[None]
    for kind, shape in shapes.items():
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=64, pad_token_id=0, **shape))
        model.train()
        with torch.no_grad():
            assert not torch.equal(model(ids).logits, model(ids).logits), kind  # the fault, first
            without_dropout(model)
            assert torch.equal(model(ids).logits, model(ids).logits), kind
            trained = model(ids).logits
            assert torch.equal(trained, model.eval()(ids).logits), kind
