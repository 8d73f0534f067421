"""Attention of a flat row, against a plain definition of it and against transformers on each document alone."""

from __future__ import annotations

import inspect
import subprocess
import sys
from itertools import pairwise

import pytest
from kernels_for_tests import (
    LENGTHS,
    WINDOW,
    alone,
    alone_loss,
    build,
    distance,
    documents,
    flat_batch,
    gradients,
    made_flat,
    places,
)

KINDS = ("llama", "qwen3", "mistral", "gemma2", "gemma3_text", "gpt2", "phi3", "opt")
NAME = "tunekit"
ROW = (7, 7, 5, 3, 1)  # the documents of a row, the longest first


def segments_of(lengths):
    import torch

    from tunekit.kernels.segments import Segments

    starts = torch.tensor([0, *lengths]).cumsum(0)
    return Segments(tuple(lengths), starts.to(torch.int32))


def heads(query=4, key=4, size=8, value=8, lengths=ROW, dtype="float32"):
    import torch

    generator = torch.Generator().manual_seed(0)
    total, kind = sum(lengths), getattr(torch, dtype)
    shapes = ((query, size), (key, size), (key, value))
    return [torch.randn(1, each, total, width, generator=generator).to(kind).requires_grad_() for each, width in shapes]


def defined(query, key, value, lengths, scaling=None, window=None, softcap=None):
    """One document, head and token at a time, in double precision: (1, N, H, D)."""
    import torch

    query, key, value = (each[0].double() for each in (query, key, value))
    repeats, scale = query.shape[0] // key.shape[0], query.shape[-1] ** -0.5 if scaling is None else scaling
    out, start = [], 0
    for length in lengths:
        for at in range(start, start + length):
            first = start if window is None else max(start, at - window + 1)
            row = []
            for head in range(query.shape[0]):
                scores = key[head // repeats, first : at + 1] @ query[head, at] * scale
                scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
                row.append(scores.softmax(0) @ value[head // repeats, first : at + 1])
            out.append(torch.stack(row))
        start += length
    return torch.stack(out)[None]


def attend(*parts, segments, module=None, **options):
    import torch

    from tunekit.kernels.attention import attention, mask_of

    return attention(module or torch.nn.Module(), *parts, mask_of(segments), segments=segments, **options)[0]


CASES = {
    "plain": ({}, {}),
    "two groups": ({"key": 2}, {}),
    "one group": ({"key": 1}, {}),
    "values of another size": ({"value": 6}, {}),
    "values of another size, two groups": ({"value": 6, "key": 2}, {"sliding_window": 3}),
    "scaled": ({}, {"scaling": 0.7}),
    "window": ({"key": 2}, {"sliding_window": 3}),
    "window of one": ({}, {"sliding_window": 1}),
    "window as long as a document": ({}, {"sliding_window": 7}),
    "window one shorter than a document": ({}, {"sliding_window": 6}),
    "window longer than all": ({}, {"sliding_window": 100}),
    "soft cap": ({"key": 2}, {"softcap": 0.5, "scaling": 1.3}),
    "soft cap and window": ({"key": 1}, {"softcap": 0.5, "sliding_window": 3}),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_definition(case):
    import torch

    shape, options = CASES[case]
    parts = heads(**shape)
    named = {"scaling": "scaling", "sliding_window": "window", "softcap": "softcap"}
    expected = defined(*parts, ROW, **{named[key]: value for key, value in options.items()})
    found = attend(*parts, segments=segments_of(ROW), **options)
    assert found.shape == expected.shape
    assert torch.allclose(found.double(), expected, atol=1e-6)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad((found * weights).sum(), parts)
    theirs = torch.autograd.grad((expected * weights).sum(), parts)
    for a, b in zip(ours, theirs):
        assert torch.allclose(a, b.float(), atol=2e-6)


def test_lengths_seen_before_with_another_window_are_not_mixed_up():
    """Masks are kept from call to call."""
    import torch

    parts = heads()
    for window in (3, 2, 3, None, 5):
        expected = defined(*parts, ROW, window=window)
        found = attend(*parts, segments=segments_of(ROW), sliding_window=window)
        assert torch.allclose(found.double(), expected, atol=1e-6)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_dropout_drops_weights_and_keeps_their_mean(softcap):
    """Equal scores and values of one: each output is the share of weights that stayed, over the share that stays."""
    import torch

    lengths = (64, 64, 64)
    query, key, value = (part.detach() for part in heads(lengths=lengths))
    parts = torch.zeros_like(query), key, torch.ones_like(value)
    torch.manual_seed(0)
    found = attend(*parts, segments=segments_of(lengths), dropout=0.25, softcap=softcap)
    again = attend(*parts, segments=segments_of(lengths), dropout=0.25, softcap=softcap)
    assert float(found.mean()) == pytest.approx(1, abs=0.05)
    long = found.reshape(3, 64, -1)[:, 48:]  # means of at least 48 weights: a variance of 1 / (3 x 48) or less
    assert float(long.std()) == pytest.approx((1 / 3 / 56) ** 0.5, rel=0.3)
    assert not torch.equal(found, again)


@pytest.mark.parametrize("name", ["s_aux", "position_bias"])
def test_what_it_does_not_compute_it_refuses(name):
    import torch

    from tunekit.kernels.attention import CannotAttend

    with pytest.raises(CannotAttend, match=name):
        attend(*heads(), segments=segments_of(ROW), **{name: torch.zeros(4)})


def test_attention_that_looks_ahead_is_refused():
    import torch

    from tunekit.kernels.attention import CannotAttend

    module = torch.nn.Module()
    module.is_causal = False
    with pytest.raises(CannotAttend, match="not causal"):
        attend(*heads(), segments=segments_of(ROW), module=module)


def ready(kind, **changes):
    """A model that `run_flat` has made ready, and its rows."""
    model = build(kind, **changes)
    assert made_flat(model) == ""
    assert model.config._attn_implementation == NAME
    return model


def reference(kind, **changes):
    """The same model with transformers' own attention: eager, which alone knows the soft cap."""
    model = build(kind, **changes)
    if kind == "gemma2":
        model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_a_flat_row_gives_each_document_its_own_logits(kind, note):
    import torch

    model, rows = ready(kind), documents()
    changed = documents()
    changed[0] = changed[0] | {"input_ids": [(token * 7 + 1) % 90 + 4 for token in rows[0]["input_ids"]]}
    with torch.no_grad():
        found, moved = (model(**flat_batch(each)[0], use_cache=False).logits[0] for each in (rows, changed))
        for number, (row, start) in enumerate(zip(rows, places(rows))):
            own = slice(start, start + row["length"])
            assert torch.allclose(found[own], alone(reference(kind), row), atol=1e-5)
            difference = float((found[own] - moved[own]).abs().max())
            assert difference > 1e-3 if number == 0 else difference <= 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_of_each_document_are_those_it_has_alone(kind, note):
    import torch

    model, other, rows = ready(kind), reference(kind), documents()
    worst = 0.0
    for row, start in zip(rows, places(rows)):
        expected, theirs = alone_loss(other, [row])
        model.zero_grad()
        logits = model(**flat_batch(rows)[0], use_cache=False).logits[0, start : start + row["length"] - 1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(row["labels"][1:]), reduction="sum")
        loss.backward()
        worst = max(worst, distance(gradients(model), theirs))
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    note(f"{kind}: gradients of a document in a flat row against alone {worst:.1e}")
    assert worst < 1e-5


def flat_loss(model, rows):
    """Summed loss and gradients of a flat row, by F.cross_entropy on all logits."""
    import torch

    model.zero_grad()
    inputs, keep, targets = flat_batch(rows)
    logits = model(**inputs, use_cache=False).logits[0].float()
    loss = torch.nn.functional.cross_entropy(logits[keep], targets, reduction="sum")
    loss.backward()
    return float(loss.detach()), gradients(model)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_autocast_and_checkpointed_layers_change_nothing_else(kind, note):
    import torch

    model, rows = ready(kind), documents()
    expected, theirs = alone_loss(reference(kind), rows)
    with torch.autocast("cpu", torch.bfloat16):
        loss, ours = flat_loss(model, rows)
    note(f"{kind}, bfloat16: loss {abs(loss / expected - 1):.1e}, gradients {distance(ours, theirs):.1e}")
    assert loss == pytest.approx(expected, rel=5e-3)
    assert distance(ours, theirs) < 0.1
    model.gradient_checkpointing_enable()
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    loss, ours = flat_loss(model, rows)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert distance(ours, theirs) < 1e-5


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_heads(groups):
    rows = documents()
    expected, theirs = alone_loss(build("llama", num_key_value_heads=groups), rows)
    loss, ours = flat_loss(ready("llama", num_key_value_heads=groups), rows)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert distance(ours, theirs) < 1e-5


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_a_model_with_attention_dropout_trains(kind):
    import torch

    rows = documents()
    model = ready(kind, attention_dropout=0.3)
    still, _ = flat_loss(model, rows)
    model.train()
    torch.manual_seed(0)
    losses = {flat_loss(model, rows)[0] for _ in range(3)}
    assert len(losses) == 3
    assert all(loss == pytest.approx(still, rel=0.3) for loss in losses)


# Windows, chunks and the like that are longer than the documents that `run_flat` asks with.
LONG = {
    "mistral": {"sliding_window": 16},
    "gemma2": {"sliding_window": 16},
    "cohere2": {"sliding_window": 16},
    "qwen2_moe": {"sliding_window": 16, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 2},
    "phimoe": {"sliding_window": 16},
    "llama4_text": {"attention_chunk_size": 16},
    "modernbert-decoder": {"local_attention": 32},
}


MASKED = ("qwen2_moe", "phimoe", "llama4_text")  # whose attention is not told of its reach


@pytest.mark.parametrize("kind", LONG)
def test_a_window_longer_than_the_probe_is_kept_or_the_model_runs_padded(kind):
    """The reach of attention may come with the mask alone, of which there is none in a flat row."""
    rows, model = documents((40, 11)), build(kind, **LONG[kind])
    expected, theirs = alone_loss(reference(kind, **LONG[kind]), rows)
    if made_flat(model):
        assert kind in MASKED
        return
    loss, ours = flat_loss(model, rows)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert distance(ours, theirs) < 1e-5


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "gemma3_text", "gpt2", "opt"])
def test_generation_is_that_of_transformers_token_by_token(kind):
    """Left padding with a mask, with and without a cache, further than the sliding window reaches."""
    import torch

    from tunekit.kernels.attention import register

    register()
    model = build(kind)
    ids = torch.randint(4, 97, (3, 14), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[0, :5], mask[1, :2] = 0, 0
    ids[mask == 0] = 0
    texts, logits = {}, {}
    for name in ("eager", "tunekit"):
        model.set_attn_implementation(name)
        for cached in (True, False):
            options = {"max_new_tokens": WINDOW + 4, "do_sample": False, "use_cache": cached, "eos_token_id": None}
            texts[name, cached] = model.generate(ids, attention_mask=mask, pad_token_id=0, **options).tolist()
        with torch.no_grad():
            logits[name] = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    assert texts["tunekit", True] == texts["eager", True]
    assert texts["tunekit", False] == texts["eager", False]
    assert torch.allclose(logits["tunekit"], logits["eager"], atol=1e-5)


LOADS = """\
import sys
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert not any(name.split(".")[0] == "tunekit" for name in sys.modules)
torch.save(model.eval()(torch.arange(4, 12)[None]).logits, sys.argv[2])
"""


@pytest.mark.parametrize("kind", ["gemma2"])
def test_a_saved_model_does_not_remember_the_attention(kind, tmp_path):
    import torch

    model = ready(kind)
    model.save_pretrained(tmp_path / "model")
    assert not [path.name for path in (tmp_path / "model").glob("*.json") if NAME in path.read_text(encoding="utf-8")]
    command = [sys.executable, "-c", LOADS, str(tmp_path / "model"), str(tmp_path / "logits")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    with torch.no_grad():
        logits = model(torch.arange(4, 12)[None]).logits
    assert torch.allclose(torch.load(tmp_path / "logits"), logits, atol=1e-5)


def stand_in(real, repeats_heads):
    """Variable-length attention on the CPU, by definition; takes what torch's takes and refuses what torch refuses."""
    import torch

    signature, calls = inspect.signature(real), []

    def varlen(*args, **kwargs):
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        values = given.arguments
        assert repeats_heads or "enable_gqa" not in kwargs, "2.11 does not know it"
        query, key, value = values["query"], values["key"], values["value"]  # (N, heads, D)
        assert values["enable_gqa"] or query.shape[1] == key.shape[1]
        starts, keys = values["cu_seq_q"].tolist(), values["cu_seq_k"].tolist()
        assert values["cu_seq_q"].dtype == values["cu_seq_k"].dtype == torch.int32
        lengths, seen = ([b - a for a, b in pairwise(each)] for each in (starts, keys))
        assert starts[-1] == len(query) and keys[-1] == len(key) == len(value)
        assert values["max_q"] == max(lengths) and values["max_k"] == max(seen)
        left, right = values["window_size"]
        assert right == 0 and isinstance(values["max_q"], int) and isinstance(values["max_k"], int)
        calls.append(kwargs)
        out = []
        for own, all_keys, at, place in zip(lengths, seen, starts, keys):
            before = query.new_zeros((all_keys - own, *query.shape[1:]))  # the last query lies over the last key
            whole = torch.cat([before, query[at : at + own]]), *(x[place : place + all_keys] for x in (key, value))
            rows = [each.transpose(0, 1)[None] for each in whole]
            window = None if left < 0 else left + 1
            out.append(defined(*rows, (all_keys,), values["scale"], window)[0, all_keys - own :])
        return torch.cat(out).to(query.dtype)

    return varlen, calls


@pytest.mark.parametrize("version", [(2, 11), (2, 12), (2, 13), (3, 0)])
@pytest.mark.parametrize("window", [None, 1, 3, 7, 100])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_variable_length_attention_gets_the_right_arguments(version, window, groups, monkeypatch):
    import torch
    from torch.nn.attention import varlen

    from tunekit.kernels import attention

    replacement, calls = stand_in(varlen.varlen_attn, version >= (2, 12))
    monkeypatch.setattr(varlen, "varlen_attn", replacement)
    monkeypatch.setattr(attention, "_VARLEN", version)
    monkeypatch.setattr(attention, "_flash", lambda *_: True)
    parts = heads(key=groups)
    found = attend(*parts, segments=segments_of(ROW), scaling=0.6, sliding_window=window)
    assert len(calls) == 1
    assert torch.allclose(found.double(), defined(*parts, ROW, 0.6, window), atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_whole_model_through_variable_length_attention(kind, monkeypatch):
    import torch
    from torch.nn.attention import varlen

    from tunekit.kernels import attention

    replacement, calls = stand_in(varlen.varlen_attn, True)
    model, rows = ready(kind), documents(LENGTHS[1:])
    monkeypatch.setattr(varlen, "varlen_attn", replacement)
    monkeypatch.setattr(attention, "_flash", lambda *_: True)
    with torch.no_grad():
        found = model(**flat_batch(rows)[0], use_cache=False).logits[0]
        for row, start in zip(rows, places(rows)):
            assert torch.allclose(found[start : start + row["length"]], alone(reference(kind), row), atol=1e-5)
    assert len(calls) == 2


class OnCuda:
    """As much of a tensor as `_flash` looks at."""

    def __init__(self, dtype, size, cuda=True):
        import torch

        self.dtype, self.shape, self.is_cuda = getattr(torch, dtype), (1, 4, 9, size), cuda


@pytest.mark.parametrize(
    ("expected", "dtype", "size", "cuda", "dropout", "softcap", "version"),
    [
        (True, "bfloat16", 64, True, 0.0, None, (2, 11)),
        (True, "float16", 256, True, 0.0, None, (3, 0)),
        (False, "float32", 64, True, 0.0, None, (2, 13)),
        (False, "bfloat16", 264, True, 0.0, None, (2, 13)),
        (False, "bfloat16", 60, True, 0.0, None, (2, 13)),
        (False, "bfloat16", 64, False, 0.0, None, (2, 13)),
        (False, "bfloat16", 64, True, 0.1, None, (2, 13)),
        (False, "bfloat16", 64, True, 0.0, 50.0, (2, 13)),
        (False, "bfloat16", 64, True, 0.0, None, (2, 10)),
    ],
)
def test_when_variable_length_attention_is_taken(expected, dtype, size, cuda, dropout, softcap, version, monkeypatch):
    from tunekit.kernels import attention

    monkeypatch.setattr(attention, "_VARLEN", version)
    part = OnCuda(dtype, size, cuda)
    assert attention._flash(part, part, part, dropout, softcap) is expected
