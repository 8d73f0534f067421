"""KTO's losses against hand-worked numbers and against TRL's, values and gradients."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from tunekit.rl.kto_loss import kto_loss


def test_by_hand():
    # beta 0.5, z0 = 0.5
    # good: ratio -1 - -3 = 2, sigmoid(-0.5 (2 - 0.5)) = sigmoid(-0.75) = 0.3208213
    # bad:  ratio -4 - -2 = -2, 2 x sigmoid(0.5 (-2 - 0.5)) = 2 sigmoid(-1.25) = 2 x 0.2227001 = 0.4454003
    ratios, good = torch.tensor([2.0, -2.0]), torch.tensor([True, False])
    found = kto_loss(ratios, good, beta=0.5, z0=0.5, undesirable=2.0)
    assert found.tolist() == pytest.approx([0.3208213, 0.4454003], abs=1e-6)
    # without a reference point: sigmoid(-1) = 0.2689414 and sigmoid(-1) = 0.2689414
    found = kto_loss(ratios, good, beta=0.5, kind="apo_zero_unpaired")
    assert found.tolist() == pytest.approx([0.2689414] * 2, abs=1e-6)


def test_kto_without_a_reference_point_is_a_mistake():
    with pytest.raises(AssertionError, match="reference point"):
        kto_loss(torch.zeros(1), torch.tensor([True]), beta=0.1)


def trl_loss(kind, logps, mask, reference, good, mismatched, reference_mismatched):
    """TRL's own code on log-probabilities (B, T) of tokens."""
    from trl.trainer.kto_trainer import KTOTrainer

    accelerator = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda x: x)
    stub = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=accelerator, aux_loss_enabled=False,
        precompute_ref_logps=True, calculate_KL=kind == "kto", loss_type=kind, beta=0.3, desirable_weight=1.3,
        undesirable_weight=0.7, _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0,
        _tp_size=1, _compute_kl_logps=lambda model, batch: mismatched,
    )  # fmt: skip
    empty = torch.zeros_like(mask)
    outputs = SimpleNamespace(log_probs=logps * mask, entropy=empty, mean_logits=empty)
    completion = torch.cat([torch.zeros(len(mask), 1), mask], 1)
    batch = {
        "input_ids": torch.zeros_like(completion).long(), "attention_mask": torch.ones_like(completion).long(),
        "completion_mask": completion, "label": good, "ref_logps": reference, "ref_KL_logps": reference_mismatched,
    }  # fmt: skip
    return KTOTrainer._compute_loss(stub, lambda **_: outputs, batch, False)


@pytest.mark.parametrize("kind", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("goods", [(1, 0, 0, 1, 1), (1, 1, 1, 1, 1), (0, 0, 0, 0, 0)])
@pytest.mark.parametrize("shift", [-1.0, 1.0])  # a reference point at 0 and above it
def test_as_trl(kind, goods, shift):
    torch.manual_seed(1)
    logps = (-3 * torch.rand(5, 6)).requires_grad_()
    mask = (torch.arange(6) < torch.tensor([6, 3, 4, 1, 5])[:, None]).float()
    reference, good = -3 * torch.rand(5) * mask.sum(1), torch.tensor(goods, dtype=torch.bool)
    mismatched, other = torch.randn(5) + shift, torch.randn(5)
    theirs = trl_loss(kind, logps, mask, reference, good, mismatched, other)
    ratios, z0 = (logps * mask).sum(1) - reference, (mismatched - other).mean().clamp(min=0) if kind == "kto" else None
    ours = kto_loss(ratios, good, beta=0.3, z0=z0, kind=kind, desirable=1.3, undesirable=0.7).mean()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    torch.testing.assert_close(*(torch.autograd.grad(x, logps)[0] for x in (ours, theirs)), atol=1e-6, rtol=1e-5)
