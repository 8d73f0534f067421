"""MuonAdamW against torch's own two optimizers, each run on its share of the parameters."""

from __future__ import annotations

import copy

import torch
from torch import nn

from tunekit.train.muon import MuonAdamW, muon_for


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 4)
        self.layer = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)

    def get_output_embeddings(self):
        return self.head

    def forward(self, ids):
        return self.head(torch.relu(self.layer(self.embedding(ids))))


def _gradients(model):
    model.zero_grad()
    ids = torch.tensor([1, 2, 3, 4])
    nn.functional.cross_entropy(model(ids), torch.tensor([2, 3, 4, 5])).backward()


def _ours(model, lr=0.1):
    return muon_for(model, lr=lr, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)


def test_it_steps_like_torch_s_muon_and_adamw():
    ours, theirs = Tiny(), Tiny()
    optimizer = _ours(ours)
    muon = torch.optim.Muon([theirs.layer.weight], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    rest = [theirs.embedding.weight, theirs.layer.bias, theirs.head.weight]
    adamw = torch.optim.AdamW(rest, lr=0.1, weight_decay=0.0, betas=(0.9, 0.95), eps=1e-8)
    for _ in range(3):
        _gradients(ours)
        optimizer.step()
        _gradients(theirs)
        muon.step()
        adamw.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7, msg=name)


def test_embeddings_and_heads_are_not_orthogonalized():
    model = Tiny()
    optimizer = _ours(model)
    muon = {id(p) for group in optimizer.muon.param_groups for p in group["params"]}
    assert muon == {id(model.layer.weight)}


def test_a_scheduler_moves_both():
    model = Tiny()
    optimizer = _ours(model, lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert schedule.get_last_lr() == [0.05, 0.05]
    assert {group["lr"] for inner in optimizer.inner for group in inner.param_groups} == {0.05}


def test_its_state_survives_saving_and_loading():
    one, two = Tiny(), Tiny()
    first = _ours(one)
    for _ in range(2):
        _gradients(one)
        first.step()
    two.load_state_dict(one.state_dict())
    second = _ours(two)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for model, optimizer in ((one, first), (two, second)):
        _gradients(model)
        optimizer.step()
    for mine, other in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_only_trainable_parameters_are_taken():
    model = Tiny()
    model.embedding.weight.requires_grad_(False)
    optimizer = MuonAdamW(model.named_parameters(), set(), lr=0.1, weight_decay=0.0, betas=(0.9, 0.99), eps=1e-8)
    taken = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert id(model.embedding.weight) not in taken
    assert id(model.layer.weight) in taken
