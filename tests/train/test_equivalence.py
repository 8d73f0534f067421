"""tunekit's step is TRL's step: loss and gradient norm against TRL itself, across batch geometries, seeds and ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LORA = {"kind": "lora", "r": 4, "alpha": 8}
ADAPTERS = {"full": None, "lora": LORA}


def first_step(trainer):
    """Loss and gradient norm of the first step."""
    trainer.train()
    entry = trainer.state.log_history[0]
    return entry["loss"], float(entry["grad_norm"])


def rows_8(plan_of, talks, **sets):
    """Exactly one global batch, so that the order of rows does not matter."""
    return plan_of(data__train=[{"path": str(talks), "limit": 8}], **sets)


def trl_step(plan, rows, folder, **options):
    """The same step by TRL's SFTTrainer, set up as its users do, with its own collator and attention mask."""
    from trl import SFTConfig, SFTTrainer

    from tunekit.model.load import load_model
    from tunekit.model.tokenizer import load_tokenizer

    arguments = SFTConfig(
        output_dir=str(folder), max_steps=1, per_device_train_batch_size=8, learning_rate=1e-2, logging_steps=1,
        report_to="none", save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True, max_length=128,
        gradient_checkpointing=False, seed=42, **options,
    )  # fmt: skip
    tokenizer = load_tokenizer(plan.recipe.model)
    trainer = SFTTrainer(load_model(plan).model, arguments, train_dataset=rows, processing_class=tokenizer)
    return first_step(trainer)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_loss_and_gradient_are_trls_on_the_same_tokens(adapter, plan_of, talks, session_of, tmp_path, note):
    from datasets import Dataset

    plan = rows_8(plan_of, talks, adapter=ADAPTERS[adapter])
    session, trainer = session_of(plan)
    prepared = session.prepared.dataset("train")
    rows = Dataset.from_dict({name: prepared[name][:] for name in ("input_ids", "labels")})
    ours, theirs = first_step(trainer), trl_step(plan, rows, tmp_path)
    note(f"TRL, its tokens given, {adapter}: tunekit {ours}, TRL {theirs}")
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_loss_and_gradient_are_trls_on_messages(adapter, plan_of, talks, session_of, tmp_path, note):
    """End to end: TRL renders, tokenizes and masks the conversations itself, by the template's generation marks."""
    from datasets import Dataset

    plan = rows_8(plan_of, talks, adapter=ADAPTERS[adapter])
    rows = Dataset.from_list([json.loads(line) for line in talks.read_text().splitlines()[:8]])
    ours = first_step(session_of(plan)[1])
    theirs = trl_step(plan, rows, tmp_path, assistant_only_loss=True)
    note(f"TRL, messages given, {adapter}: tunekit {ours}, TRL {theirs}")
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_micro_batches_and_accumulation_do_not_change_the_step(plan_of, talks, session_of, note):
    """Ragged lengths: the loss is a mean over the labelled tokens of the global batch (transformers PR 34191)."""
    found = {}
    for micro in (8, 4, 2, 1):
        plan = rows_8(plan_of, talks, train__micro_batch_size=micro)
        assert (plan.micro_batch_size, plan.accumulation) == (micro, 8 // micro)
        found[micro] = first_step(session_of(plan)[1])
    note(f"micro-batch -> (loss, gradient norm): {found}")
    for step in found.values():
        assert step == pytest.approx(found[8], rel=1e-5)


@pytest.mark.slow
def test_a_seed_gives_the_same_weights_and_another_seed_others(plan_of, run_plan):
    from tunekit.core.files import sha256_file

    def weights(seed):
        plan = plan_of(train__seed=seed, train__max_steps=4, train__batch_size=4, adapter=LORA | {"dropout": 0.1})
        run_plan(plan)
        return sha256_file(Path(plan.run_dir) / "model" / "adapter_model.safetensors")

    first, again, other = weights(7), weights(7), weights(8)
    assert first == again != other


def test_a_seed_gives_the_same_full_model(plan_of, run_plan):
    from tunekit.core.files import sha256_file

    def weights(seed):
        plan = plan_of(train__seed=seed, train__max_steps=3, train__batch_size=4, train__neftune_alpha=5.0)
        run_plan(plan)
        return sha256_file(Path(plan.run_dir) / "model" / "model.safetensors")

    first, again, other = weights(7), weights(7), weights(8)
    assert first == again != other


RECIPE = """\
method: sft
model: {{name: "builtin:random?layers=2&hidden=32&heads=2"}}
data:
  train: [{{path: "{train}"}}]
  eval: [{{path: "{held}"}}]
  max_length: 128
train: {{epochs: 2, batch_size: 4, learning_rate: 1e-2, log_every: 1, threads: 1, precision: fp32}}
eval: {{every: 3, batch_size: 2, baseline: false}}
"""


def test_two_ranks_train_and_evaluate_as_one_process(tmp_path, talks, write_rows, talk_of, note):
    """23 rows in batches of 4: the last of each epoch holds 3, which two ranks cannot share; and of 5 held-out rows
    in batches of 2, rank 0 gets two batches and rank 1 one."""
    held = write_rows(tmp_path / "held.jsonl", [talk_of(n) for n in range(100, 105)])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(train=talks, held=held))
    found = {}
    for ranks in (1, 2):
        folder = tmp_path / f"ranks-{ranks}"
        command = [sys.executable, "-m", "tunekit", "sft", str(recipe), "-n", str(ranks), "-o", str(folder), "--quiet"]
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        found[ranks] = {
            name: [line[name] for line in lines if name in line] for name in ("loss", "grad_norm", "eval_loss")
        }
        found[ranks]["tokens"] = json.loads((folder / "record.json").read_text())["training"]["tokens"]
    note(f"ranks -> losses: {found}")
    assert len(found[1]["loss"]) == 12 and len(found[1]["eval_loss"]) == 4
    for name, values in found[1].items():
        assert found[2][name] == pytest.approx(values, rel=1e-5), name
