"""Groups of sequences that share a beginning, and what plain loops and transformers say of each alone."""

from __future__ import annotations

from dataclasses import dataclass

NO = -100


@dataclass(frozen=True)
class Group:
    """A beginning and what goes on from it; the first ``untrained`` tokens of each branch have no label."""

    beginning: list[int]
    branches: list[list[int]]
    untrained: int = 0

    def alone(self):
        """(tokens, labels) of each sequence, the beginning written out before its branch."""
        return [
            (self.beginning + own, [NO] * (len(self.beginning) + self.untrained) + own[self.untrained :])
            for own in self.branches or [[]]
        ]

    def example(self):
        own = [token for branch in self.branches for token in branch]
        labels = [token if at >= self.untrained else NO for branch in self.branches for at, token in enumerate(branch)]
        start, positions = len(self.beginning), list(range(len(self.beginning)))
        for branch in self.branches:
            positions += range(start, start + len(branch))
        ids = self.beginning + own
        return {"input_ids": ids, "labels": [NO] * start + labels, "position_ids": positions}


def groups(shapes, seed=1):
    """Groups of random tokens; a shape is (tokens of the beginning, of each branch)."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def tokens(count):
        return torch.randint(4, 97, (count,), generator=generator).tolist()

    return [
        Group(tokens(first), [tokens(own) for own in branches], number % 2)
        for number, (first, *branches) in enumerate(shapes)
    ]


def batch_of(given, with_mask=False):
    """As the collator gives it."""
    import torch

    from tunekit.data.collate import Collator

    most = max(len(group.branches) for group in given)
    branches = [[len(own) for own in group.branches] + [0] * (most - len(group.branches)) for group in given]
    batch = Collator(0, with_mask=with_mask)([group.example() for group in given])
    return batch | {"branches": torch.tensor(branches, dtype=torch.long).reshape(len(given), most)}


def sequences_of(given):
    """(tokens, labels) of every sequence of the groups, in the order of their numbers."""
    return [each for group in given for each in group.alone()]


def laid_out(given, way):
    """(inputs of the model, keep, targets, owner) of groups: ``shared``, ``separate`` or ``padded``."""
    from tunekit.kernels.attention import mask_of
    from tunekit.kernels.segments import flatten, padded

    flat = padded(batch_of(given)) if way == "padded" else flatten(batch_of(given), shared=way == "shared")
    keep, targets, owner = (flat.pop(name) for name in ("keep", "targets", "owner"))
    if way != "padded":
        flat["attention_mask"] = mask_of(flat["segments"])
    return flat, keep, targets, owner


def alone_logps(model, given, temperature=1.0):
    """Log-probabilities of the labelled tokens of each sequence by itself: transformers' logits and torch's softmax."""
    import torch

    found = []
    for ids, labels in sequences_of(given):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1] / temperature
        wanted = torch.tensor(labels[1:], dtype=torch.long)
        at = (wanted != NO).nonzero().flatten()
        found.append(logits.log_softmax(-1)[at, wanted[at]])
    return found


def weights_of(targets):
    """A different weight for every label, of both signs."""
    import torch

    return torch.cos(torch.arange(len(targets)) * 1.7)
