"""Whether the branches of an example may share its beginning is asked of the model that trains, not trusted."""

from __future__ import annotations

from dataclasses import replace

import pytest

CASES = {
    "as it comes": ({}, True),
    "bfloat16": ({"train__precision": "bf16"}, True),
    "lora": ({"adapter": {"kind": "lora", "r": 4}}, True),
    "lora in bfloat16": ({"adapter": {"kind": "lora", "r": 4}, "train__precision": "bf16"}, True),
    "padded": ({"model__attention": "sdpa"}, False),
    "eager": ({"model__attention": "eager"}, False),
}


def asked(trainer):
    from tunekit.train.isolation import shares_prefix

    return shares_prefix(trainer.model, trainer.accelerator.autocast())


@pytest.fixture(scope="module")
def trainer(plan_of, session_of):
    return session_of(plan_of())[1]


@pytest.mark.parametrize("case", CASES)
def test_the_model_that_trains_is_asked(case, plan_of, session_of):
    sets, expected = CASES[case]
    ours = session_of(plan_of(**sets))[1]
    assert bool(ours.padded_because) is not expected, ours.padded_because
    assert asked(ours) is expected


def changed(**fields):
    """A layout as it is, but for its segments."""
    from tunekit.kernels.segments import flatten

    def lay_out(batch, **options):
        flat = flatten(batch, **options)
        return flat | {"segments": replace(flat["segments"], **fields)}

    return lay_out


def at_the_upper_left(queries, keys, window, device):
    """Where some kernels put the causal mask when there are fewer queries than keys."""
    import torch

    return torch.ones((queries, keys), dtype=torch.bool, device=device).tril()


def of_all(queries, keys, window, device):
    """The branch sees its own tokens to come."""
    import torch

    return torch.ones((queries, keys), dtype=torch.bool, device=device)


def test_branches_that_do_not_see_the_beginning_are_noticed(trainer, monkeypatch):
    from tunekit.train import isolation

    assert asked(trainer) is True
    monkeypatch.setattr(isolation, "flatten", changed(prefixes=(), key_starts=None))
    assert asked(trainer) is False


def test_branches_that_see_the_branch_before_them_are_noticed(trainer, monkeypatch):
    """The whole first document as what the second sees."""
    from tunekit.train import isolation
    from tunekit.train.isolation import LENGTH

    monkeypatch.setattr(isolation, "flatten", changed(prefixes=((0, 2 * LENGTH),)))
    assert asked(trainer) is False


@pytest.mark.parametrize("mask", [at_the_upper_left, of_all])
def test_a_kernel_that_puts_the_mask_elsewhere_is_noticed(mask, trainer, monkeypatch):
    from tunekit.kernels import attention

    monkeypatch.setattr(attention, "_causal", mask)
    assert asked(trainer) is False


def test_a_model_that_refuses_is_not_shared_and_memory_that_runs_out_is_told(trainer, monkeypatch):
    import torch

    from tunekit.train import isolation

    def refuses(*_, **__):
        raise TypeError("what is a branch?")

    monkeypatch.setattr(isolation, "_in_one_row", refuses)
    assert asked(trainer) is False

    def too_large(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(isolation, "_in_one_row", too_large)
    with pytest.raises(torch.OutOfMemoryError):
        asked(trainer)


def test_asking_leaves_no_trace(trainer):
    import torch

    trainer.model.train()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    attention = trainer.model.config._attn_implementation
    asked(trainer)
    assert torch.equal(torch.get_rng_state(), before)
    assert trainer.model.training and trainer.model.config._attn_implementation == attention
