"""What changed since the checkpoint is shown and refused, or allowed and then truly applied."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunekit.core.errors import MachineError, UserError
from tunekit.core.files import sha256_file

LORA = {"kind": "lora", "r": 4, "alpha": 8}
BEGUN = {"train__max_steps": 4, "train__save_every": 2, "train__keep_checkpoints": 5, "train__schedule": "constant"}


@pytest.fixture(scope="module")
def begun(plan_of, run_plan, tmp_path_factory, write_rows, talk_of):
    """A run that ended at step 4 but whose record says that it was cut off: what can be gone on with, by a copy."""
    import shutil

    made = {}

    def copy(**sets):
        key = json.dumps(sets, sort_keys=True, default=str)
        if key not in made:
            rows = write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", [talk_of(n) for n in range(23)])
            made[key] = plan_of(**{"data__train": [{"path": str(rows)}], **BEGUN, **sets})
            run_plan(made[key])
        plan = made[key]
        folder = tmp_path_factory.mktemp("copy") / "run"
        shutil.copytree(plan.run_dir, folder)
        shutil.rmtree(folder / "checkpoints" / "step-000004")
        record = json.loads((folder / "record.json").read_text())
        (folder / "record.json").write_text(json.dumps(record | {"status": "running"}))
        return plan.model_copy(update={"run_dir": str(folder)})

    return copy


@pytest.fixture(scope="module")
def changed():
    """The plan with other recipe keys."""
    from tunekit.plan.resolve import resolve
    from tunekit.recipe.document import override, parse
    from tunekit.recipe.load import check

    def change(plan, **sets):
        text = json.dumps(plan.recipe.model_dump(mode="json"))
        given = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in sets.items()]
        recipe = check(override(parse(text, "recipe.yaml"), given))
        return resolve(recipe, Path(plan.recipe_folder) / "recipe.yaml", plan.hardware, plan.run_dir)

    return change


@pytest.fixture(scope="module")
def go_on():
    """Goes on with a plan's run; returns its record."""
    from tunekit.core.progress import Silent
    from tunekit.train.pipeline import Job, run

    return lambda plan, *allowed: run(Job(plan, None, resume=True, allowed=allowed), Silent())


def logged_rates(plan):
    lines = (Path(plan.run_dir) / "metrics.jsonl").read_text().splitlines()
    return {line["step"]: line["learning_rate"] for line in map(json.loads, lines) if "learning_rate" in line}


def model_hash(plan):
    return [sha256_file(path) for path in sorted((Path(plan.run_dir) / "model").glob("*.safetensors"))]


def test_nothing_changed_goes_on_to_the_same_end(begun, go_on):
    plan = begun()
    before = model_hash(plan)
    record = go_on(plan)
    assert (record.status, record.resumed[0].step, record.resumed[0].changes) == ("done", 2, ())
    assert model_hash(plan) == before


REFUSED = [
    ("train.learning_rate", {"train__learning_rate": 1e-3}, "0.01", "0.001"),
    ("train.seed", {"train__seed": 7}, "42", "7"),
    ("train.batch_size", {"train__batch_size": 4}, "8", "4"),
    ("train.micro_batch_size", {"train__micro_batch_size": 2}, "8", "2"),
    ("train.weight_decay", {"train__weight_decay": 0.1}, "0.0", "0.1"),
    ("train.schedule", {"train__schedule": "cosine"}, "constant", "cosine"),
    ("train.max_grad_norm", {"train__max_grad_norm": 0.5}, "1.0", "0.5"),
    ("train.max_steps", {"train__max_steps": 3}, "4", "3"),
    ("train.neftune_alpha", {"train__neftune_alpha": 5.0}, "not set", "5.0"),
    ("train.precision", {"train__precision": "bf16"}, "fp32", "bf16"),
    ("data.max_length", {"data__max_length": 96}, "128", "96"),
    ("data.loss_on", {"data__loss_on": "all"}, "assistant", "all"),
    ("data.shuffle", {"data__shuffle": False}, "true", "false"),
    ("data.packing", {"data__packing": True}, "false", "true"),
    ("model.chat_template", {"model__chat_template": "chatml"}, "not set", "chatml"),
]


@pytest.mark.parametrize(("key", "sets", "old", "new"), REFUSED, ids=[case[0] for case in REFUSED])
def test_a_changed_key_is_shown_and_refused_and_nothing_is_touched(key, sets, old, new, begun, changed, go_on):
    plan = begun()
    before = sorted((str(path), path.stat().st_mtime_ns) for path in Path(plan.run_dir).rglob("*"))
    with pytest.raises(UserError) as caught:
        go_on(changed(plan, **sets))
    problem = caught.value.problems[0]
    assert key in problem.what and old in problem.what and new in problem.what
    assert f"--allow-change {key}" in problem.fix
    assert before == sorted((str(path), path.stat().st_mtime_ns) for path in Path(plan.run_dir).rglob("*"))


@pytest.mark.parametrize(
    ("key", "sets"),
    [("model.name", {"model__name": "builtin:random?layers=2&hidden=64&heads=2"}), ("adapter", {"adapter": LORA}),
     ("train.optimizer", {"train__optimizer": "sgd"})],
)  # fmt: skip
def test_what_cannot_be_applied_to_a_checkpoint_is_refused_even_when_named(key, sets, begun, changed, go_on):
    plan = begun()
    with pytest.raises(UserError, match="it cannot be changed") as caught:
        go_on(changed(plan, **sets), key)
    assert key in caught.value.problems[0].what and "new run" in caught.value.problems[0].fix


def test_an_allowed_learning_rate_is_used(begun, changed, go_on):
    plan = changed(begun(), train__learning_rate=1e-3)
    record = go_on(plan, "train.learning_rate")
    assert record.resumed[0].changes == ("train.learning_rate: 0.01 -> 0.001",)
    rates = logged_rates(plan)
    assert (rates[1], rates[2]) == (1e-2, 1e-2) and rates[3] == rates[4] == pytest.approx(1e-3)
    assert model_hash(plan) != model_hash(begun())


def test_other_allowed_optimizer_values_are_in_the_optimizer(begun, changed, session_of):
    """Trainer alone would take the checkpoint's: its optimizer's state carries them."""
    plan = changed(begun(), train__weight_decay=0.25, train__adam_beta2=0.9, train__schedule="linear")
    _, trainer = session_of(plan)
    trainer.args.max_steps = 3
    trainer.train_from(Path(plan.run_dir) / "checkpoints" / "step-000002")
    groups = trainer.optimizer.param_groups
    assert {group["weight_decay"] for group in groups} == {0.25, 0.0}
    assert all(group["betas"] == (0.9, 0.9) for group in groups)


@pytest.mark.slow
def test_an_allowed_seed_gives_other_batches(begun, changed, go_on):
    plan = changed(begun(), train__seed=7)
    go_on(plan, "train.seed")
    same = begun()
    go_on(same)
    ours, theirs = ((Path(p.run_dir) / "samples.jsonl").read_text().splitlines() for p in (plan, same))
    assert ours[:2] == theirs[:2] and ours[2:] != theirs[2:]


def test_harmless_keys_need_no_word_and_hold(begun, changed, go_on):
    plan = changed(begun(), train__log_every=2, train__save_every=1, train__max_steps=6, eval__batch_size=3)
    record = go_on(plan)
    assert record.training.steps == 6 and {c.split(":")[0] for c in record.resumed[0].changes} == {
        "train.log_every", "train.save_every", "train.max_steps", "eval.batch_size",
    }  # fmt: skip
    assert sorted(logged_rates(plan)) == [1, 2, 4, 6]
    names = sorted(path.name for path in (Path(plan.run_dir) / "checkpoints").iterdir())
    assert names == ["step-000002", "step-000003", "step-000004", "step-000005", "step-000006"]


@pytest.mark.slow
def test_a_finished_run_is_left_alone_and_can_be_made_longer(plan_of, run_plan, changed, go_on):
    plan = plan_of(**BEGUN)
    run_plan(plan)
    before = model_hash(plan)
    assert go_on(plan).resumed == () and model_hash(plan) == before
    longer = changed(plan, train__max_steps=6)
    assert go_on(longer).training.steps == 6 and model_hash(longer) != before
    through = changed(plan_of(**BEGUN), train__max_steps=6)
    run_plan(through)
    assert model_hash(through) == model_hash(longer)  # a constant rate: as if it had been that long from the start


def test_other_rows_under_the_same_name_are_refused(begun, go_on, write_rows, talk_of):
    plan = begun()
    path = Path(plan.recipe.data.train[0].path)
    kept = path.read_bytes()
    try:
        write_rows(path, [talk_of(n + 100) for n in range(23)])
        with pytest.raises(UserError, match="the data is not that of the checkpoint") as caught:
            go_on(plan)
        assert "rows.jsonl" in caught.value.problems[0].what
        assert "--allow-change data.train" in caught.value.problems[0].fix
        assert go_on(plan, "data.train").status == "done"
    finally:
        path.write_bytes(kept)


@pytest.mark.slow
def test_a_finished_run_that_must_not_go_on_is_left_as_it_is(
    plan_of, run_plan, changed, go_on, write_rows, talk_of, tmp_path
):
    rows = write_rows(tmp_path / "rows.jsonl", [talk_of(n) for n in range(23)])
    plan = plan_of(**BEGUN, data__train=[{"path": str(rows)}])
    run_plan(plan)
    folder = Path(plan.run_dir)
    names = ("plan.json", "record.json", "recipe.yaml", "model/model.safetensors", "metrics.jsonl", "samples.jsonl")
    before = [sha256_file(folder / name) for name in names]
    write_rows(rows, [talk_of(n + 100) for n in range(23)])
    with pytest.raises(UserError, match="the data is not that of the checkpoint"):
        go_on(changed(plan, train__max_steps=6))
    assert before == [sha256_file(folder / name) for name in names]


def test_another_template_under_the_same_name_is_refused(begun, go_on, tmp_path, talks):
    from tunekit.data.render import named_template

    template = tmp_path / "template.jinja"
    template.write_text(named_template("chatml"))
    plan = begun(model__chat_template=str(template), data__train=[{"path": str(talks)}])
    template.write_text(named_template("chatml").replace("<|im_end|>", "<|im_end|>\n"))
    with pytest.raises(UserError, match="the data is not that of the checkpoint"):
        go_on(plan)


def test_another_base_revision_is_refused(begun, go_on, session_of, plan_of, tmp_path):
    """A local folder whose weights were exchanged, as a branch of the Hub moves on."""
    import torch

    _, trainer = session_of(plan_of())
    trainer.model.save_pretrained(tmp_path / "base")
    trainer.processing_class.save_pretrained(tmp_path / "base")
    plan = begun(model__name=str(tmp_path / "base"), adapter=LORA)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(1.01)
    trainer.model.save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match="the base model is not the one that this run began with"):
        go_on(plan)


@pytest.mark.parametrize("kind", ["missing", "emptied", "halved", "flipped"])
def test_a_damaged_checkpoint_is_passed_over_by_name(kind, begun, go_on):
    """Every file of the newest checkpoint in turn; an older one is there."""
    from tunekit.train.checkpoint import newest, put_in_place

    plan = begun()
    folder = Path(plan.run_dir) / "checkpoints"
    good = folder / "step-000002"
    import shutil

    facts = json.loads((good / "MANIFEST.json").read_text())
    names = sorted(str(path.relative_to(good)) for path in good.rglob("*") if path.is_file())
    assert len(names) >= 10
    for name in names:
        staged = Path(plan.run_dir) / "staged"
        shutil.copytree(good, staged)
        (staged / "MANIFEST.json").unlink()
        kept = {key: value for key, value in facts.items() if key not in ("step", "files", "manifest_sha256")}
        newer = put_in_place(staged, folder, 3, kept)
        damage(newer / name, kind)
        found, skipped = newest(folder)
        assert found.folder == good, name
        assert [skip.folder for skip in skipped] == [newer]
        assert skipped[0].why.file == name or name == "MANIFEST.json", (name, skipped[0].why)
        shutil.rmtree(newer)


def damage(path, kind):
    content = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "emptied":
        path.write_bytes(b"")
    elif kind == "halved":
        path.write_bytes(content[: len(content) // 2])
    else:
        at = len(content) // 2
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


def test_damage_is_said_the_older_one_is_used_and_the_damaged_kept_aside(plan_of, run_plan, go_on, capsys):
    from tunekit.runs.screen import PlainScreen
    from tunekit.train.pipeline import Job, run

    plan = plan_of(**BEGUN)
    run_plan(plan)
    before = model_hash(plan)
    folder = Path(plan.run_dir)
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(record | {"status": "running"}))
    damage(folder / "checkpoints" / "step-000004" / "optimizer.pt", "flipped")
    record = run(Job(plan, None, resume=True), PlainScreen())
    said = capsys.readouterr().err
    assert "step-000004 is not used: optimizer.pt: is not as it was written" in said
    assert record.resumed[0].step == 2 and model_hash(plan) == before
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["step-000002", "step-000004", "step-000004.damaged"]


def test_when_every_checkpoint_is_damaged_the_run_is_refused(begun, go_on):
    plan = begun()
    damage(Path(plan.run_dir) / "checkpoints" / "step-000002" / "model.safetensors", "halved")
    with pytest.raises(MachineError, match="none of the 1 checkpoints is whole") as caught:
        go_on(plan)
    assert caught.value.exit_code == 4 and "model.safetensors" in caught.value.problems[1].what


def test_a_folder_that_is_no_run_is_refused_untouched(plan_of, go_on):
    plan = plan_of()
    folder = Path(plan.run_dir)
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("three years")
    with pytest.raises(UserError, match="something else than a run"):
        go_on(plan)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
