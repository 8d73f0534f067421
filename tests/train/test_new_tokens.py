"""Tokens that a recipe adds: begun as their pieces, trained, saved, and there again in a fresh process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tunekit.core.errors import UserError

NEW = ["<ask>", "<tool>", "<done>"]
TIED = {"tie_word_embeddings": True}
SCRIPT = """\
import sys, torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, target, adapter = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
ids = tokenizer("<ask> blue <tool> moon <done>", add_special_tokens=False)["input_ids"]
kind = AutoPeftModelForCausalLM if adapter == "True" else AutoModelForCausalLM
model = kind.from_pretrained(folder).eval()
with torch.no_grad():
    torch.save({"ids": ids, "logits": model(torch.tensor([ids])).logits}, target)
"""


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def base(request, plan_of, session_of, tmp_path):
    """A model folder, its head with weights of its own or with those of the embedding."""
    session, trainer = session_of(plan_of())
    if request.param:
        trainer.model.config.tie_word_embeddings = True
        trainer.model.tie_weights()
    trainer.model.save_pretrained(tmp_path / "base")
    session.inputs.tokenizer.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def rows(tmp_path, write_rows):
    return write_rows(
        tmp_path / "rows.jsonl",
        [{"messages": [{"role": "user", "content": f"<ask> {n} blue <tool>"},
                       {"role": "assistant", "content": f"moon {n} <done>"}]} for n in range(8)],
    )  # fmt: skip


def tables(model):
    found = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    return found[:1] if found[0] is found[1] else found


@pytest.mark.slow
@pytest.mark.parametrize(
    "adapter", [pytest.param(None, marks=pytest.mark.slow), {"kind": "lora", "r": 4}], ids=["full", "lora"]
)
def test_they_are_trained_saved_and_come_back_with_the_same_logits(adapter, base, rows, plan_of, session_of, tmp_path):
    import torch

    given = {"model__name": base, "model__new_tokens": NEW, "data__train": [{"path": str(rows)}]}
    session, trainer = session_of(plan_of(**given, adapter=adapter, train__max_steps=3))
    tokenizer = session.inputs.tokenizer
    ids = tokenizer("<ask> blue <tool> moon <done>", add_special_tokens=False)["input_ids"]
    new = tokenizer.convert_tokens_to_ids(NEW)
    assert set(new) <= set(ids) and len(tokenizer) == max(new) + 1
    with torch.no_grad():
        before = trainer.model.eval()(torch.tensor([ids])).logits
    trainer = session._train(trainer)
    session._save(trainer)
    with torch.no_grad():
        logits = trainer.model.eval()(torch.tensor([ids])).logits
    assert not torch.allclose(before[..., new], logits[..., new], atol=1e-3)
    target = tmp_path / "there.pt"
    command = [sys.executable, "-c", SCRIPT, str(Path(session.plan.run_dir) / "model"), str(target), str(bool(adapter))]
    done = subprocess.run(command, capture_output=True, timeout=240, text=True, check=False)
    assert done.returncode == 0, done.stderr
    there = torch.load(target, weights_only=True)
    assert there["ids"] == ids
    assert torch.allclose(there["logits"], logits, atol=1e-5, rtol=0)


def test_they_begin_as_the_mean_of_their_pieces(base, rows, plan_of):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tunekit.model.load import load_model

    plan = plan_of(model__name=base, model__new_tokens=NEW, data__train=[{"path": str(rows)}])
    model = load_model(plan).model
    old, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    first = len(tokenizer)
    for token, number in zip(NEW, range(first, first + 3)):
        pieces = tokenizer(token, add_special_tokens=False)["input_ids"]
        assert len(pieces) > 1
        for now, then in zip(tables(model), tables(old), strict=True):
            assert torch.allclose(now[number], then[pieces].mean(dim=0), atol=1e-6)
            assert torch.equal(now[:first], then[:first])


def test_a_token_that_the_tokenizer_reads_as_nothing_is_refused(base, rows, plan_of):
    """Its embedding would be the mean of no rows: nan."""
    import json

    from tunekit.model.load import load_model

    file = Path(base) / "tokenizer.json"
    whole = json.loads(file.read_text(encoding="utf-8"))
    whole["normalizer"] = {"type": "Replace", "pattern": {"String": "\u200b"}, "content": ""}
    file.write_text(json.dumps(whole), encoding="utf-8")
    plan = plan_of(model__name=base, model__new_tokens=["\u200b"], data__train=[{"path": str(rows)}])
    with pytest.raises(UserError, match="has no pieces in this tokenizer"):
        load_model(plan)


def test_an_adapter_trains_their_rows_and_no_other_row(base, rows, plan_of, session_of):
    import torch

    plan = plan_of(model__name=base, model__new_tokens=NEW, data__train=[{"path": str(rows)}], train__max_steps=2,
                   adapter={"kind": "lora", "r": 4})  # fmt: skip
    session, trainer = session_of(plan)
    new = session.inputs.tokenizer.convert_tokens_to_ids(NEW)

    def embedded(ids):
        with torch.no_grad():
            return trainer.model.get_input_embeddings()(torch.tensor(ids))

    others = [n for n in range(64) if n not in new]
    before = embedded(new), embedded(others)
    trainer = session._train(trainer)
    assert not torch.allclose(embedded(new), before[0], atol=1e-4) and torch.equal(embedded(others), before[1])


def test_kinds_that_cannot_train_them_and_tokens_that_are_there_are_refused(base, rows, plan_of, session_of):
    given = {"model__name": base, "data__train": [{"path": str(rows)}]}
    with pytest.raises(UserError, match="does not train new tokens"):
        session_of(plan_of(**given, model__new_tokens=NEW, adapter={"kind": "prompt"}))
    for tokens in (["<a>", "<a>"], ["the"]):
        with pytest.raises(UserError, match="is a token of this tokenizer already"):
            session_of(plan_of(**given, model__new_tokens=tokens))
