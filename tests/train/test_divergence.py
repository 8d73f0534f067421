"""A loss or gradient that is not finite ends the run before the optimizer sees it; earlier checkpoints are whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunekit.core.errors import DivergedError
from tunekit.core.files import sha256_file

FAULT_AT = 3
"""The first step that goes wrong."""


def plant(kind):
    """A callback that spoils the model when step FAULT_AT begins, and keeps the weights as they were."""
    import torch
    from transformers import TrainerCallback

    class Plant(TrainerCallback):
        weights: dict

        def on_step_begin(self, args, state, control, model=None, **_):
            if state.global_step != FAULT_AT - 1:
                return
            parameter = [*model.parameters()][-1]  # the last norm's weight, which every token passes
            if kind == "weight":
                with torch.no_grad():
                    parameter.view(-1)[0] = float("nan")
            else:
                parameter.register_hook(lambda gradient: gradient * float(kind))
            self.weights = {name: value.clone() for name, value in model.state_dict().items()}

    return Plant()


@pytest.fixture
def spoiled(monkeypatch):
    """Every trainer gets the fault; returns what the callback and the trainer of the run are."""
    from tunekit.train.session import Session

    original, made = Session._trainer, {}

    def spoil(kind):
        def build(self, loaded):
            made["trainer"], made["plant"] = original(self, loaded), plant(kind)
            made["trainer"].add_callback(made["plant"])
            return made["trainer"]

        monkeypatch.setattr(Session, "_trainer", build)
        return made

    return spoil


@pytest.mark.parametrize(("kind", "what"), [("weight", "loss"), ("inf", "gradient norm"), ("nan", "gradient norm")])
def test_the_run_stops_before_the_update(kind, what, spoiled, plan_of, run_plan):
    import torch

    made = spoiled(kind)
    plan = plan_of(train__max_steps=6, train__batch_size=4, train__micro_batch_size=2, train__save_every=1)
    with pytest.raises(DivergedError, match=f"the {what} of step {FAULT_AT} is (nan|inf)") as caught:
        run_plan(plan)
    assert caught.value.exit_code == 5
    folder = Path(plan.run_dir)
    record = json.loads((folder / "record.json").read_text())
    assert (record["status"], record["exit_code"]) == ("failed", 5)
    assert f"step {FAULT_AT}" in record["error"]["problems"][0]["where"]
    assert not (folder / "model").exists()
    for name, value in made["trainer"].model.state_dict().items():
        assert torch.equal(torch.nan_to_num(value), torch.nan_to_num(made["plant"].weights[name])), name
    checkpoints = sorted((folder / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == ["step-000001", "step-000002"]
    for path in checkpoints:
        listed = json.loads((path / "MANIFEST.json").read_text())["files"]
        assert all(sha256_file(path / name) == facts["sha256"] for name, facts in listed.items())
    losses = [json.loads(line).get("loss") for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == FAULT_AT - 1 and all(loss > 0 for loss in losses)


def test_a_model_that_is_broken_from_the_start_makes_no_step(plan_of, run_plan, session_of, tmp_path):
    import torch

    session, trainer = session_of(plan_of())
    with torch.no_grad():
        next(trainer.model.parameters()).view(-1)[:] = float("nan")
    trainer.model.save_pretrained(tmp_path / "nan")
    session.inputs.tokenizer.save_pretrained(tmp_path / "nan")
    plan = plan_of(model__name=str(tmp_path / "nan"))
    with pytest.raises(DivergedError, match="the loss of step 1 is nan"):
        run_plan(plan)
    assert not (Path(plan.run_dir) / "checkpoints").exists()


def test_the_scaler_of_fp16_may_skip_steps_but_not_for_ever(plan_of, session_of):
    """GradScaler begins with a scale of 65536: an overflow there is its way of finding the scale, not a divergence."""
    import torch

    trainer = session_of(plan_of())[1]
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    trainer.accelerator.scaler.scale(torch.ones(1))  # makes its scale
    assert trainer._get_grad_norm(trainer.model, grad_norm=float("inf")) == float("inf")
    trainer.accelerator.scaler.update(0.5)
    with pytest.raises(DivergedError, match="the gradient norm of step 1 is inf"):
        trainer._get_grad_norm(trainer.model, grad_norm=float("inf"))


def test_the_row_and_the_module_at_fault_are_named(plan_of, run_plan, monkeypatch, write_rows, tmp_path, talk_of):
    """One row holds a token whose embedding is not finite: its file and line are in the error, and no other row's."""
    import torch

    from tunekit.train.session import Session

    rows = [talk_of(n) for n in range(8)]
    rows[5]["messages"][0]["content"] += " zebra"
    path = write_rows(tmp_path / "rows.jsonl", rows)
    original = Session._trainer

    def poisoned(self, loaded):
        trainer = original(self, loaded)
        ids = [self.inputs.tokenizer(text, add_special_tokens=False)["input_ids"] for text in map(str, rows)]
        (token,) = {min(set(ids[5]) - {t for i, row in enumerate(ids) if i != 5 for t in row})}
        with torch.no_grad():
            trainer.model.get_input_embeddings().weight[token] = float("nan")
        return trainer

    monkeypatch.setattr(Session, "_trainer", poisoned)
    plan = plan_of(data__train=[{"path": str(path)}], train__batch_size=8, train__max_steps=2)
    with pytest.raises(DivergedError) as caught:
        run_plan(plan)
    told = "\n".join(f"{p.what} {p.where}" for p in caught.value.problems)
    assert "rows.jsonl:6" in told and not any(f"rows.jsonl:{n}" in told for n in (1, 2, 3, 4, 5, 7, 8))
    assert "embed_tokens" in told
    assert not (Path(plan.run_dir) / "checkpoints").exists()
