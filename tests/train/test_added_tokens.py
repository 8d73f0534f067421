"""Tokens that were added to a tokenizer: trained with an adapter, saved with it, and there again in a fresh process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tunekit.core.errors import TunekitError

NEW = ["<ask>", "<tool>", "<done>"]
SCRIPT = """\
import sys, torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
folder, target = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
ids = tokenizer("<ask> blue <tool> moon <done>", add_special_tokens=False)["input_ids"]
model = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
with torch.no_grad():
    torch.save({"ids": ids, "logits": model(torch.tensor([ids])).logits}, target)
"""


@pytest.fixture
def base(plan_of, session_of, tmp_path):
    """A model folder whose tokenizer has three more tokens; ``resized`` gives the embedding room for them."""

    def build(resized):
        session, trainer = session_of(plan_of())
        tokenizer, model = session.inputs.tokenizer, trainer.model
        tokenizer.add_tokens(NEW)
        if resized:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model.save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        return str(tmp_path / "base")

    return build


@pytest.fixture
def rows(tmp_path, write_rows):
    return write_rows(
        tmp_path / "rows.jsonl",
        [{"messages": [{"role": "user", "content": f"<ask> {n} blue <tool>"},
                       {"role": "assistant", "content": f"moon {n} <done>"}]} for n in range(8)],
    )  # fmt: skip


def test_they_are_trained_saved_and_come_back_with_the_same_logits(base, rows, plan_of, session_of, tmp_path):
    import torch

    adapter = {"kind": "lora", "r": 4, "train_modules": ["embed_tokens", "lm_head"]}
    plan = plan_of(model__name=base(True), adapter=adapter, data__train=[{"path": str(rows)}], train__max_steps=3)
    session, trainer = session_of(plan)
    ids = session.inputs.tokenizer("<ask> blue <tool> moon <done>", add_special_tokens=False)["input_ids"]
    new = session.inputs.tokenizer.convert_tokens_to_ids(NEW)
    assert set(new) <= set(ids)
    before = trainer.model.get_input_embeddings().weight[new].detach().clone()
    trainer = session._train(trainer)
    assert not torch.equal(before, trainer.model.get_input_embeddings().weight[new])  # they were trained
    session._save(trainer)
    with torch.no_grad():
        logits = trainer.model.eval()(torch.tensor([ids])).logits
    target = tmp_path / "there.pt"
    command = [sys.executable, "-c", SCRIPT, str(Path(plan.run_dir) / "model"), str(target)]
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    there = torch.load(target, weights_only=True)
    assert there["ids"] == ids
    assert torch.allclose(there["logits"], logits, atol=1e-6, rtol=0)


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused(base, rows, plan_of, run_plan):
    plan = plan_of(model__name=base(False), data__train=[{"path": str(rows)}])
    with pytest.raises(TunekitError) as caught:
        run_plan(plan)
    assert caught.value.exit_code in (2, 3) and "embedding" in str(caught.value)
    assert not (Path(plan.run_dir) / "checkpoints").exists()
