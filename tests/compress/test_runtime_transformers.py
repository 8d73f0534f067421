"""Reading an artefact with transformers: logits, answers, tokens, and a folder that cannot be read."""

from __future__ import annotations

import shutil

import pytest
from backends_for_tests import TINY, load

from tunekit.compress.runtimes import transformers as runtime
from tunekit.core.errors import MachineError


@pytest.fixture(scope="module")
def reading():
    return runtime.load(TINY, threads=1)


def test_logits_are_those_of_a_whole_pass(reading):
    import numpy as np
    import torch

    ids = list(range(5, 40))
    with torch.no_grad():
        whole = load(TINY)(torch.tensor([ids])).logits[0].float().numpy()
    found = reading.logits(ids, [0, 7, 34])
    assert found.shape == (3, reading.vocabulary) and found.dtype == np.float32
    np.testing.assert_allclose(found, whole[[0, 7, 34]], atol=0.13, rtol=0)  # bfloat16: two of its steps at 8
    assert (found.argmax(-1) == whole[[0, 7, 34]].argmax(-1)).all()


def test_an_answer_is_the_likeliest_token_each_time(reading):
    """With a cache; by hand without one."""
    ids = reading.tokenize("<|im_start|>user\nWhat is two and two?<|im_end|>\n<|im_start|>assistant\n")
    said = reading.answer(ids, 8, reading.stops())
    assert 0 < len(said) <= 8
    for at, token in enumerate(said):
        scores = reading.logits([*ids, *said[:at]], [len(ids) + at - 1])[0]
        assert scores[token] >= scores.max() - 0.13
    stopped = reading.answer(ids, 8, [said[1]])
    assert stopped == said[: said.index(said[1]) + 1]


def test_tokens_template_and_stops(reading, tokenizer):
    text = "One two.<|im_end|>"
    assert reading.tokenize(text) == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert reading.detokenize(reading.tokenize(text)) == "One two."
    assert reading.template() == tokenizer.chat_template
    assert 2 in reading.stops()


@pytest.mark.parametrize("fault", ["broken", "missing", "short"])
def test_weights_that_cannot_be_read_are_told(fault, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    weights = folder / "model.safetensors"
    if fault == "broken":
        weights.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00nonsense")
    elif fault == "short":
        weights.write_bytes(weights.read_bytes()[:-1000])
    else:
        weights.unlink()
    with pytest.raises(MachineError, match="transformers cannot load it: "):
        runtime.load(folder, threads=1)


def test_eight_bits_are_read_in_silence(tmp_path, capfd):
    pytest.importorskip("bitsandbytes", reason="the artefact is bitsandbytes'")
    from backends_for_tests import backend, make
    from transformers import AutoTokenizer

    make(backend("bnb"), "int8", tmp_path)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(tmp_path)
    capfd.readouterr()
    runtime.load(tmp_path, threads=1).logits([5, 6, 7], [2])
    assert capfd.readouterr() == ("", "")
