"""Sequences that share a beginning: laid out, attended to and trained as each of them alone."""

from __future__ import annotations

import random

import pytest
from branches_for_tests import NO, Group, alone_logps, batch_of, groups, laid_out, sequences_of, weights_of
from kernels_for_tests import build, distance, gradients, made_flat
from test_attention import CASES, attend, defined, stand_in

SHAPES = ((11, 9, 6), (7, 5), (14, 3, 8, 3, 8), (5,), (11, 9, 6))  # beginnings and branches longer than the window of 8
WAYS = ("shared", "separate", "padded")
KINDS = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "gpt2")

PAIR = {"input_ids": [10, 11, 12, 20, 21, 30, 31, 32], "labels": [NO, NO, NO, 20, 21, NO, 31, 32]}
HAND = {  # a pair of branches, a filler of no tokens, one sequence without branches
    "input_ids": [PAIR["input_ids"], [77, 0, 0, 0, 0, 0, 0, 0], [40, 41, 42, 43, 44, 45, 0, 0]],
    "labels": [PAIR["labels"], [NO] * 8, [NO, 41, NO, NO, NO, 45, NO, NO]],
    "position_ids": [[0, 1, 2, 3, 4, 3, 4, 5], list(range(8)), list(range(8))],
    "tokens": [8, 0, 6],
    "branches": [[2, 3], [0, 0], [0, 0]],
}
TARGETS = ([20, 21, 31, 32, 41, 45], [0, 0, 1, 1, 3, 3])  # and whose they are


def hand():
    import torch

    return {name: torch.tensor(values) for name, values in HAND.items()}


def lists(flat, *names):
    return [flat[name].tolist() for name in names]


def test_a_shared_row_is_what_was_worked_out_by_hand():
    from tunekit.kernels.segments import flatten, sequences

    flat, segments = flatten(hand()), flatten(hand())["segments"]
    assert flat["input_ids"].tolist() == [[40, 41, 42, 43, 44, 45, 10, 11, 12, 20, 21, 77, 30, 31, 32]]
    assert flat["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 0, 3, 4, 5]]
    assert lists(flat, "keep", "targets", "owner") == [[8, 9, 12, 13, 0, 4], *TARGETS]
    assert segments.lengths == (6, 5, 1, 3) and segments.starts.tolist() == [0, 6, 11, 12, 15]
    assert segments.prefixes == ((1, 3),) and segments.seen == (0, 0, 0, 3)
    assert segments.key_starts.tolist() == [0, 6, 11, 12, 18]
    assert sequences(hand()).tolist() == [2, 1, 1]


def test_the_first_token_of_each_branch_is_predicted_at_the_same_position():
    from tunekit.kernels.segments import flatten

    flat = flatten(batch_of([Group([5, 6, 7], [[8, 9], [8, 10], [11]])]))
    assert flat["input_ids"].tolist() == [[5, 6, 7, 8, 9, 8, 10, 11]]
    assert lists(flat, "keep", "targets", "owner") == [[2, 3, 2, 5, 2], [8, 9, 8, 10, 11], [0, 0, 1, 1, 2]]


def test_separate_and_padded_layouts_are_what_was_worked_out_by_hand():
    from tunekit.kernels.segments import flatten, padded

    flat = flatten(hand(), shared=False)
    assert flat["input_ids"].tolist() == [[10, 11, 12, 30, 31, 32, 40, 41, 42, 43, 44, 45, 10, 11, 12, 20, 21, 77]]
    assert lists(flat, "keep", "targets", "owner") == [[14, 15, 3, 4, 6, 10], *TARGETS]
    assert flat["segments"].lengths == (6, 6, 5, 1) and not flat["segments"].prefixes
    rows = padded(hand())
    assert [row[:6] for row in rows["input_ids"].tolist()[:2]] == [[10, 11, 12, 20, 21, 10], [10, 11, 12, 30, 31, 32]]
    assert rows["position_ids"].tolist() == [list(range(8))] * 4
    assert lists(rows, "keep", "targets", "owner") == [[2, 3, 11, 12, 24, 28], *TARGETS]
    assert "attention_mask" not in rows


def test_padding_is_marked_where_the_collator_marks_it():
    from tunekit.kernels.segments import padded

    rows = padded(batch_of([Group([5, 6, 7], [[8, 9], [8]])], with_mask=True))
    assert rows["attention_mask"].tolist() == [[1] * 5 + [0] * 3, [1] * 4 + [0] * 4]


def test_without_branches_every_example_is_one_sequence():
    """Two packed documents of an example have one owner."""
    from test_segments import PACKED
    from test_segments import batch_of as plain

    from tunekit.kernels.segments import flatten, label_positions, sequences

    batch = plain(**PACKED)
    assert flatten(batch)["owner"].tolist() == [0, 1, 1, 0]  # of targets 23, 42, 43, 12
    assert label_positions(batch["labels"])["owner"].tolist() == [0, 0, 1, 1]
    assert sequences(batch).tolist() == [1, 1]


@pytest.mark.parametrize("few", [False, True])
def test_random_groups_have_the_labels_of_their_sequences_in_every_layout(few):
    """Against plain loops over the sequences: the token before each label, the label and its owner, in one order."""
    from tunekit.kernels.segments import flatten, padded, rounded

    for seed in range(40):
        pick = random.Random(seed)
        shapes = [
            (pick.randint(1, 9), *(pick.randint(1, 7) for _ in range(pick.randint(0, 4))))
            for _ in range(pick.randint(1, 6))
        ]
        given = groups(shapes, seed)
        expected = [
            (owner, ids[at - 1], labels[at])
            for owner, (ids, labels) in enumerate(sequences_of(given))
            for at in range(1, len(ids))
            if labels[at] != NO
        ]
        batch = batch_of(given)
        for flat in (flatten(batch, few_shapes=few), flatten(batch, few_shapes=few, shared=False), padded(batch)):
            ids = flat["input_ids"].flatten()
            owner, before, targets = flat["owner"].tolist(), ids[flat["keep"]].tolist(), flat["targets"].tolist()
            assert list(zip(owner, before, targets)) == expected
            if "segments" in flat:
                segments = flat["segments"]
                assert sum(segments.lengths) == len(ids) == int(segments.starts[-1])
                assert len(segments.seen) == len(segments.lengths)
                assert sum(count for count, _ in segments.groups) == len(segments.lengths)
                assert not few or len(ids) == rounded(len(ids) - segments.filler) == len(ids)
        tokens = sum(len(group.example()["input_ids"]) for group in given)
        assert sum(flatten(batch)["segments"].lengths) == tokens


LENGTHS = (9, 7, 3, 5, 5, 4, 2)  # three documents, three branches, a filler
PREFIXES = ((0, 6), (1, 6), (0, 6))


def branched():
    import torch

    from tunekit.kernels.segments import Segments

    starts = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
    seen = torch.tensor([0, 0, 0, 6, 6, 6, 0])
    keys = torch.cat([torch.zeros(1), (torch.tensor(LENGTHS) + seen).cumsum(0)]).to(torch.int32)
    return Segments(LENGTHS, starts, 2, PREFIXES, keys)


def heads(query=4, key=4, size=8, value=8):
    from test_attention import heads

    return heads(query, key, size, value, lengths=LENGTHS)


def defined_with_branches(*parts, **options):
    """Each document by definition: a branch as the end of [what it sees; its own tokens]."""
    import torch

    segments = branched()
    out, starts = [], segments.starts.tolist()
    for number, length in enumerate(LENGTHS):
        own = slice(starts[number], starts[number] + length)
        document, seen = PREFIXES[number - 3] if 3 <= number < 6 else (0, 0)
        begin = slice(starts[document], starts[document] + seen)
        whole = [torch.cat([part[:, :, begin], part[:, :, own]], 2) for part in parts]
        out.append(defined(*whole, (seen + length,), **options)[:, seen:])
    return torch.cat(out, 1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("varlen", [False, True])
def test_attention_of_branches_is_that_of_the_definition(case, varlen, monkeypatch):
    import torch

    shape, options = CASES[case]
    parts = heads(**shape)
    named = {"scaling": "scaling", "sliding_window": "window", "softcap": "softcap"}
    if varlen:
        if "value" in shape or "softcap" in options:
            pytest.skip("not taken then")
        calls = with_varlen(monkeypatch)
    expected = defined_with_branches(*parts, **{named[key]: value for key, value in options.items()})
    found = attend(*parts, segments=branched(), **options)
    assert not varlen or len(calls) == 1
    assert torch.allclose(found.double(), expected, atol=1e-6)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad((found * weights).sum(), parts)
    theirs = torch.autograd.grad((expected * weights).sum(), parts)
    for a, b in zip(ours, theirs):
        assert torch.allclose(a, b.float(), atol=3e-6)


def with_varlen(monkeypatch):
    """The path of CUDA, on a stand-in for its kernel that puts the last query over the last key."""
    from torch.nn.attention import varlen

    from tunekit.kernels import attention

    replacement, calls = stand_in(varlen.varlen_attn, True)
    monkeypatch.setattr(varlen, "varlen_attn", replacement)
    monkeypatch.setattr(attention, "_flash", lambda *_: True)
    return calls


def ready(kind, **changes):
    model = build(kind, **changes)
    assert made_flat(model) == ""
    return model


def reference(kind):
    model = build(kind)
    if kind == "gemma2":
        model.set_attn_implementation("eager")  # which alone knows the soft cap
    return model


def logps(model, given, way, **options):
    from tunekit.kernels.label_loss import LabelHead, find_tail

    head = model.get_output_embeddings()
    inputs, keep, targets, owner = laid_out(given, way)
    return LabelHead(head, find_tail(model, head)).logps(model, inputs, keep, targets, **options), owner


def trained(model, given, way):
    """(log-probabilities, gradients of their weighted sum)."""
    found, _ = logps(model, given, way)
    model.zero_grad()
    (found.logps * weights_of(found.logps)).sum().backward()
    return found.logps.detach(), gradients(model)


def trained_alone(model, given):
    import torch

    model.zero_grad()
    found = torch.cat(alone_logps(model, given))
    (found * weights_of(found)).sum().backward()
    return found.detach(), gradients(model)


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_and_gradients_are_those_of_each_sequence_alone(kind, note):
    """However they are laid out; the beginning gets the gradients of all its branches."""
    import torch

    given = groups(SHAPES)
    expected, theirs = trained_alone(reference(kind), given)
    for way in WAYS:
        found, ours = trained(reference(kind) if way == "padded" else ready(kind), given, way)
        values, worst = float((found - expected).abs().max()), distance(ours, theirs)
        note(f"{kind}, {way}: log-probabilities {values:.1e}, gradients {worst:.1e}")
        assert torch.allclose(found, expected, atol=2e-5)
        assert worst < 1e-5


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_the_path_of_cuda_shares_too(kind, monkeypatch):
    import torch

    given = groups(SHAPES)
    expected, theirs = trained_alone(reference(kind), given)
    model = ready(kind)
    calls = with_varlen(monkeypatch)
    found, ours = trained(model, given, "shared")
    assert len(calls) == 2
    assert torch.allclose(found, expected, atol=2e-5)
    assert distance(ours, theirs) < 1e-5


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2"])
def test_bfloat16_autocast_and_checkpointed_layers(kind, note):
    import torch

    given = groups(SHAPES)
    expected, theirs = trained_alone(reference(kind), given)
    model = ready(kind)
    for way in ("shared", "separate"):
        with torch.autocast("cpu", torch.bfloat16):
            found, ours = trained(model, given, way)
        assert found.dtype == torch.float32
        note(f"{kind}, bfloat16, {way}: {float((found - expected).abs().mean()):.1e}, {distance(ours, theirs):.1e}")
        assert float((found - expected).abs().mean()) < 0.05
        assert distance(ours, theirs) < 0.1
    model.gradient_checkpointing_enable()
    model.train()
    found, ours = trained(model, given, "shared")
    assert torch.allclose(found, expected, atol=2e-5)
    assert distance(ours, theirs) < 1e-5


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2"])
def test_branches_do_not_see_each_other_and_examples_do_not_either(kind):
    """Other tokens in one branch move its own log-probabilities, and no other's by a rounding."""
    import torch

    model, given = ready(kind), groups(((11, 9, 6, 6), (7, 5, 4)))
    with torch.no_grad():
        before, owner = logps(model, given, "shared")
        for number, (example, branch) in enumerate(((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))):
            own = [list(each) for each in given[example].branches]
            own[branch][0] = (own[branch][0] * 7 + 1) % 90 + 4
            other = Group(given[example].beginning, own, given[example].untrained)
            after, _ = logps(model, [other if at == example else given[at] for at in range(2)], "shared")
            moved = [float((before.logps - after.logps)[owner == each].abs().max()) for each in range(5)]
            assert moved[number] > 1e-3
            assert max(moved[:number] + moved[number + 1 :]) <= 1e-6, moved


def test_branches_see_the_beginning():
    """First the fault: a row that does not say what they share gives them other log-probabilities."""
    from dataclasses import replace

    import torch

    from tunekit.kernels.label_loss import LabelHead, Tail

    model, given = ready("llama"), groups(((11, 9, 6),))
    inputs, keep, targets, owner = laid_out(given, "shared")
    head = LabelHead(model.get_output_embeddings(), Tail())
    blind = inputs | {"segments": replace(inputs["segments"], prefixes=(), key_starts=None)}
    with torch.no_grad():
        expected = torch.cat(alone_logps(model, given))
        found, missed = (head.logps(model, each, keep, targets).logps for each in (inputs, blind))
    assert torch.allclose(found, expected, atol=2e-5)
    assert float((missed - expected)[owner == 1].abs().max()) > 1e-2


def test_there_is_no_mask_of_the_whole_row():
    """Eight pairs, N 400: the largest tensors are the hidden states of the widest layer and the logits of a piece."""
    import torch
    from test_label_loss import sizes_seen

    model, given = ready("llama", vocab_size=97), groups([(30, 10, 10)] * 8)
    with torch.no_grad():
        largest = sizes_seen(lambda: logps(model, given, "shared"))
    assert largest < 400 * 400


@pytest.mark.parametrize("tokens", [1, 2])
def test_the_shortest_groups(tokens):
    import torch

    given = groups([(tokens, 1, 1), (1, tokens), (tokens,)])
    expected = torch.cat(alone_logps(build("llama"), given))
    found, _ = logps(ready("llama"), given, "shared")
    assert torch.allclose(found.logps, expected, atol=2e-5)
