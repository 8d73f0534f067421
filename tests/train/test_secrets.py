"""Secrets of the environment and texts of training rows are in no file that a run leaves, checkpoints among them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunekit.core.errors import Stopped, TunekitError

SECRETS = {"HF_TOKEN": "hf_" + "aB3" * 11, "WANDB_API_KEY": "0123abcd" * 5}  # made up, and not whole in this file
NUMBER = "078-05-1120"  # never a valid social security number: it was printed on a sample card


@pytest.fixture
def rows(tmp_path, write_rows, talk_of):
    told = {"messages": [{"role": "user", "content": f"mine is {NUMBER}"}, {"role": "assistant", "content": NUMBER}]}
    return write_rows(tmp_path / "rows.jsonl", [*(talk_of(n) for n in range(20)), told])


def hits(folder, words):
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            found += [f"{path.relative_to(folder)}: {word}" for word in words if word.encode() in content]
    return found


def test_a_run_that_is_stopped_gone_on_with_and_refused_leaves_none(rows, plan_of, monkeypatch, capfd):
    import os
    import signal

    from transformers import TrainerCallback

    from tunekit.runs.screen import PlainScreen
    from tunekit.train.pipeline import Job, run
    from tunekit.train.session import Session

    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    # the last evaluation samples held-out rows for the report: those are content, and not the row with the number
    plan = plan_of(
        data__train=[{"path": str(rows)}], train__max_steps=5, train__save_every=1, train__keep_checkpoints=9,
        adapter={"kind": "lora", "r": 4}, train__trackers=["tensorboard"],
    )  # fmt: skip
    build = Session.build

    class Ask(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    def armed(self):
        trainer = build(self)
        if self.checkpoint is None:
            trainer.add_callback(Ask())
        return trainer

    monkeypatch.setattr(Session, "build", armed)
    with pytest.raises(Stopped):
        run(Job(plan, "method: sft\n"), PlainScreen())
    run(Job(plan, None, resume=True), PlainScreen())
    changed = plan.model_copy(update={"recipe": plan.recipe.model_copy(update={"adapter": None})})
    with pytest.raises(TunekitError):
        run(Job(changed, None, resume=True), PlainScreen())
    folder = Path(plan.run_dir)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len([path for path in files if path.name == "MANIFEST.json"]) == 6 and len(files) > 60
    assert hits(folder, [*SECRETS.values(), NUMBER]) == []
    said = "".join(capfd.readouterr())
    assert not [word for word in (*SECRETS.values(), NUMBER) if word in said]


def test_the_search_finds_what_is_there(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\0" + NUMBER.encode())
    assert hits(tmp_path, [NUMBER]) == [f"a.bin: {NUMBER}"]
