"""Whole runs of distillation on tiny models: what is learnt, what is written, what is refused, and how it goes on."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from tunekit.core.errors import DataError, Stopped, UserError
from tunekit.core.files import sha256_file

_spec = importlib.util.spec_from_file_location("fixtures_of_train", Path(__file__).parents[1] / "train" / "conftest.py")
_train = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_train)
quiet_machine, write_rows, talks = _train.quiet_machine, _train.write_rows, _train.talks
plan_of, run_plan, session_of, logged = _train.plan_of, _train.run_plan, _train.session_of, _train.logged

TINY = Path(__file__).parents[2] / "src/tunekit/model/builtin/tiny"
EVAL = {"data__eval": {"count": 5}, "eval__every": 2, "eval__batch_size": 4}


def weights(plan):
    from safetensors.torch import load_file

    return load_file(Path(plan.run_dir) / "model" / "model.safetensors")


def record_of(plan):
    return json.loads((Path(plan.run_dir) / "record.json").read_text())


@pytest.fixture(scope="session")
def twin(tmp_path_factory):
    """A small model of random weights that are far from uniform, in a folder: student and teacher alike."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tunekit.model.names import resolve_name
    from tunekit.model.tokenizer import random_config

    folder = tmp_path_factory.mktemp("twin")
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(random_config(resolve_name("builtin:random?layers=1&hidden=32&heads=2")))
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_(std=0.5)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
@pytest.mark.parametrize("mode", ["offline", "onpolicy"])
def test_identical_teacher_and_student_stay_as_they_are(mode, divergence, twin, plan_of, run_plan, logged):
    import torch
    from safetensors.torch import load_file

    block = {"teacher": twin, "mode": mode, "divergence": divergence}
    block |= {"max_new_tokens": 8} if mode == "onpolicy" else {}
    plan = plan_of("distill", model__name=twin, distill=block, train__max_steps=3)
    run_plan(plan)
    assert [line["loss"] for line in logged(plan) if "loss" in line] == [0.0, 0.0, 0.0]
    before, after = load_file(Path(twin) / "model.safetensors"), weights(plan)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_identical_models_have_no_jsd(twin, plan_of, run_plan, logged):
    block = {"teacher": twin, "divergence": "jsd", "beta": 0.1}
    plan = plan_of("distill", model__name=twin, distill=block, train__max_steps=1)
    run_plan(plan)
    assert abs(logged(plan)[0]["loss"]) < 1e-6


@pytest.fixture(scope="session")
def shaken(tmp_path_factory):
    """The embedded model with noise on its weights, in a folder: a student that answers, but worse."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("shaken")
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype="float32")
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.2 * value.std())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return str(folder)


ONPOLICY = {
    "all": {"divergence": "reverse_kl"},
    "half": {"divergence": "jsd", "student_share": 0.5},
}


@pytest.mark.parametrize("name", ["all", pytest.param("half", marks=pytest.mark.slow)])
def test_on_policy_lowers_the_divergence(name, shaken, plan_of, run_plan, logged):
    """On the student's own greedy answers where the data has none to look at, on the data's where it has."""
    block = {"teacher": "builtin:tiny", "mode": "onpolicy", "max_new_tokens": 8, **ONPOLICY[name]}
    student = {"model__name": shaken, "train__learning_rate": 2e-4}
    plan = plan_of("distill", distill=block, train__max_steps=12, **student, **EVAL)
    run_plan(plan)
    lines = logged(plan)
    held_out = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert held_out[-1] < 0.9 * held_out[0], held_out
    drawn = [line["answer_tokens"] for line in lines if "answer_tokens" in line]
    assert all(1 <= size <= 8 for size in drawn)
    assert len(drawn) == 12 if name == "all" else 2 <= len(drawn) <= 10
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[-3:]) < sum(losses[:3])


@pytest.fixture(scope="module")
def sequenced(plan_of, run_plan):
    """A finished run in the mode ``sequence``."""
    block = {"teacher": "builtin:tiny", "mode": "sequence", "max_new_tokens": 12}
    more = {"eval__generate": True, "eval__max_new_tokens": 12, "eval__baseline": True}
    plan = plan_of("distill", distill=block, train__max_steps=3, **EVAL, **more)
    run_plan(plan)
    return plan


def prepared_of(plan):
    from tunekit.core.progress import Silent
    from tunekit.train.inputs import Inputs

    inputs = Inputs(plan.recipe, Path(plan.recipe_folder))
    return inputs, inputs.prepare(Silent(), Path(plan.run_dir) / "data")


def test_sequence_trains_on_the_teachers_greedy_answers(sequenced):
    """Against transformers' own greedy search, prompt by prompt."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tunekit.data.ledger import Ledger
    from tunekit.model.save import stop_ids

    inputs, prepared = prepared_of(sequenced)
    teacher = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    ends = stop_ids(tokenizer, teacher, inputs.turn_end)
    ledger = Ledger.load(Path(sequenced.run_dir) / "ledger.parquet")
    seen = 0
    for split in ("train", "eval"):
        for row in prepared.dataset(split):
            size = row["prompt_tokens"]
            prompt = row["input_ids"][:size]
            assert tokenizer.decode(prompt).endswith("assistant\n")
            with torch.no_grad():
                wanted = teacher.generate(
                    input_ids=torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=ends
                )[0].tolist()
            assert row["input_ids"] == wanted
            assert row["labels"] == [-100] * size + wanted[size:]
            (number,) = row["rows"]
            entry, ended = ledger[number], wanted[-1] in ends
            assert (entry.fate, entry.trained_tokens) == ("kept" if ended else "truncated", len(wanted) - size)
            assert entry.reason == ("answered by the teacher" if ended else
                                    "the teacher's answer is cut at distill.max_new_tokens")  # fmt: skip
            assert row["turn_ends"] == ([len(wanted) - 1] if ended else [])
            seen += 1
    assert seen == 23 == len(ledger)


def test_the_right_answer_of_the_data_stays_the_reference(sequenced):
    _, prepared = prepared_of(sequenced)
    rows = [json.loads(line) for line in Path(sequenced.recipe.data.train[0].path).read_text().splitlines()]
    said = {row["messages"][-1]["content"] for row in rows}
    assert all(row["reference"] in said for row in prepared.dataset("eval"))


@pytest.fixture
def apart(sequenced, tmp_path, monkeypatch):
    """The run, with an empty cache: its answers are to be written again."""
    from tunekit.runs.layout import RunFolder

    def build(cached):
        if not cached:
            monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
        return RunFolder(Path(sequenced.run_dir))

    return build


@pytest.mark.parametrize("cached", [True, False])
def test_an_evaluation_has_the_rows_that_the_run_held_out(cached, sequenced, apart):
    """The teacher's answers; without the cache they are written again, and not taken for another data set's."""
    from tunekit.core.progress import Silent
    from tunekit.exam import rows

    wanted = {tuple(row["input_ids"]) for row in prepared_of(sequenced)[1].dataset("eval")}
    found = rows.held_out(apart(cached), Silent())
    assert {item.input_ids for item in found} == wanted and len(wanted) == 5


@pytest.mark.parametrize("cached", [True, False])
def test_the_training_texts_are_the_teachers_answers(cached, sequenced, apart):
    """And not those of the data, which nobody has learnt."""
    from tunekit.exam import rows

    inputs, prepared = prepared_of(sequenced)
    lines = [json.loads(line) for line in Path(sequenced.recipe.data.train[0].path).read_text().splitlines()]
    right = {row["messages"][-1]["content"] for row in lines}
    written = {
        inputs.tokenizer.decode(row["input_ids"][row["prompt_tokens"] :], skip_special_tokens=True)
        for row in prepared.dataset("train")
    }
    texts = {text for text, _ in rows.training_texts(apart(cached), (), Path())}
    assert written <= texts and len(written) > 5
    asked = {turn["content"] for row in lines for turn in row["messages"][:-1]}
    assert not (right - written - asked) & texts
    held = {row["prompt"] for row in prepared.dataset("eval")}
    assert held and not held & texts


def test_another_model_reads_the_teachers_answers_too(sequenced, apart):
    """With the data's own right answers as what is right."""
    from transformers import AutoTokenizer

    from tunekit.core.progress import Silent
    from tunekit.exam import rows

    run = apart(cached=True)
    held = rows.held_out(run, Silent())
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tally = rows.Tally()
    found = rows.held_out_for(run, held, rows.fitter_of(tokenizer), tally, answers=True)
    for one, other in zip(held, found, strict=True):
        said = [tokenizer.decode(item.input_ids[len(item.prompt_ids) :], skip_special_tokens=True).strip()
                for item in (one, other)]  # fmt: skip
        assert said[0] == said[1] and one.reference == other.reference != said[0]


def test_answers_are_written_once_for_a_teacher(sequenced, monkeypatch, tmp_path):
    from tunekit.rl import teacher_answers

    _, first = prepared_of(sequenced)
    monkeypatch.setattr(teacher_answers, "_write", None)
    _, again = prepared_of(sequenced)
    assert first.folder == again.folder
    other = tmp_path / "teacher"
    shutil.copytree(TINY, other)
    changed = sequenced.recipe.model_copy(
        update={"distill": sequenced.recipe.options.model_copy(update={"teacher": str(other)})}
    )
    same = prepared_of(sequenced.model_copy(update={"recipe": changed}))[1]
    assert same.folder == first.folder  # the same weights under another name
    longer = sequenced.recipe.options.model_copy(update={"max_new_tokens": 13})
    changed = sequenced.recipe.model_copy(update={"distill": longer})
    with pytest.raises(TypeError):  # they would be written anew
        prepared_of(sequenced.model_copy(update={"recipe": changed}))


@pytest.mark.slow
def test_the_teachers_own_number_stands_in_the_record(sequenced, plan_of, run_plan):
    """Against an evaluation of the teacher as the base of a run of sft."""
    teacher = record_of(sequenced)["evaluation"]["teacher"]
    assert teacher["name"] == "builtin:tiny"
    assert {task["metric"] for task in teacher["tasks"]} == {"perplexity", "exact_match"}
    more = {"data__eval": {"count": 5}, "eval__baseline": True}
    offline = plan_of("distill", distill={"teacher": "builtin:tiny"}, **more)
    run_plan(offline)
    base = plan_of("sft", model__name="builtin:tiny", **more)
    run_plan(base)
    (told,) = record_of(offline)["evaluation"]["teacher"]["tasks"]
    (task,) = record_of(base)["evaluation"]["tasks"]
    assert told["value"] == pytest.approx(task["base"]["value"], rel=1e-6)


def test_a_checkpoint_holds_the_student_alone(plan_of, run_plan):
    from safetensors.torch import load_file

    plan = plan_of("distill", distill={"teacher": "builtin:tiny"}, train__max_steps=2)
    run_plan(plan)
    (folder,) = (Path(plan.run_dir) / "checkpoints").iterdir()
    student = sum(value.numel() for value in weights(plan).values())
    held = sum(value.numel() for path in folder.glob("*.safetensors") for value in load_file(path).values())
    assert held == student == 2 * 2048 * 32 + 2 * (4 * 32 * 32 - 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32) + 32
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4 * (3 * student) * 1.2 + 400_000


def refused(plan, kind=UserError):
    from tunekit.train.pipeline import claim

    with pytest.raises(kind) as caught:
        claim(plan)
    assert not Path(plan.run_dir).exists()
    return caught.value


@pytest.mark.parametrize("mode", ["offline", "onpolicy", "sequence"])
def test_a_teacher_of_other_tokens_is_refused(mode, plan_of, tmp_path):
    folder = tmp_path / "teacher"
    shutil.copytree(TINY, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    tokens = {id_: token for token, id_ in vocabulary.items()}
    vocabulary[tokens[1000]], vocabulary[tokens[1500]] = 1500, 1000
    (folder / "tokenizer.json").write_text(json.dumps(content))
    error = refused(plan_of("distill", distill={"teacher": str(folder), "mode": mode}))
    assert error.exit_code == 2
    assert "different vocabularies" in str(error) and "token 1,000" in str(error)
    assert error.problems[0].where == "distill.teacher"


@pytest.mark.parametrize(
    ("teacher", "told"),
    [
        ("runs/nowhere/at/all", "there is no model folder"),
        ("builtin:huge", "there is no builtin model"),
        ("{unfinished}", "no finished model"),
        ("{empty}", "there is no model in this folder"),
    ],
)
def test_a_teacher_that_is_not_there_is_refused(teacher, told, plan_of, tmp_path):
    unfinished, empty = tmp_path / "unfinished", tmp_path / "empty"
    unfinished.mkdir(), empty.mkdir()
    (unfinished / "plan.json").write_text("{}")
    named = teacher.format(unfinished=unfinished, empty=empty)
    error = refused(plan_of("distill", distill={"teacher": named}))
    assert error.exit_code == 2 and told in str(error)
    assert error.problems[0].where in ("distill.teacher", named)


def test_what_a_mode_cannot_do_is_refused(plan_of):
    block = {"teacher": "builtin:tiny", "mode": "onpolicy", "student_share": 0.5}
    assert "cannot be packed" in str(refused(plan_of("distill", distill=block, data__packing=True)))
    smoothed = {"train__extra": {"label_smoothing_factor": 0.1}}
    assert "not smoothed" in str(refused(plan_of("distill", distill={"teacher": "builtin:tiny"}, **smoothed)))
    with pytest.raises(UserError, match="packing"):
        plan_of("distill", distill=block | {"mode": "sequence", "student_share": 1.0}, data__packing=True)


def test_texts_without_a_prompt_cannot_be_answered(plan_of, session_of, write_rows, tmp_path):
    rows = write_rows(tmp_path / "texts.jsonl", [{"text": f"row {number} says so"} for number in range(9)])
    block = {"teacher": "builtin:tiny", "mode": "onpolicy", "student_share": 0.5}
    with pytest.raises(DataError, match="no row has a prompt"):
        session_of(plan_of("distill", distill=block, data__train=[{"path": str(rows), "format": "text"}]))


@pytest.mark.slow
def test_a_run_is_a_teacher(plan_of, run_plan):
    """An adapter's run: the teacher is the base with the adapter, not the base."""
    import torch

    from tunekit.rl.teachers import find_teacher

    plan = plan_of("sft", model__name="builtin:tiny", adapter={"kind": "lora", "r": 4}, train__max_steps=3)
    run_plan(plan)
    tuned, base = (find_teacher(name, Path()).load("float32") for name in (plan.run_dir, "builtin:tiny"))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert not torch.allclose(tuned(ids).logits, base(ids).logits, atol=1e-3)
    block = {"teacher": Path(plan.run_dir).name}
    other = plan_of("distill", distill=block).model_copy(update={"recipe_folder": str(Path(plan.run_dir).parent)})
    assert run_plan(other).status == "done"


@pytest.fixture
def ask_at(monkeypatch):
    """Asks this process to end when a step of a new run ends."""
    from transformers import TrainerCallback

    from tunekit.train.session import Session

    build = Session.build

    def arm(step):
        class Ask(TrainerCallback):
            sent = False

            def on_step_end(self, args, state, control, **_):
                if state.global_step == step and not self.sent:
                    self.sent = True
                    os.kill(os.getpid(), signal.SIGTERM)

        def armed(self):
            trainer = build(self)
            if self.checkpoint is None:
                trainer.add_callback(Ask())
            return trainer

        monkeypatch.setattr(Session, "build", armed)

    return arm


def told(plan):
    lines = [json.loads(line) for line in (Path(plan.run_dir) / "metrics.jsonl").read_text().splitlines()]
    timed = {"seconds", "tokens_per_second", "trained_tokens_per_second", "memory_gb", "mfu"}
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


RESUMED = {
    "offline": {"divergence": "jsd", "nll_weight": 0.3},
    "onpolicy": {"mode": "onpolicy", "max_new_tokens": 6},
    "mixed": {"mode": "onpolicy", "max_new_tokens": 6, "student_share": 0.6},
    "sequence": {"mode": "sequence", "max_new_tokens": 6},
}


def slow(*names):
    return [pytest.param(name, marks=[pytest.mark.slow]) for name in names]


@pytest.mark.parametrize("name", slow("mixed", "offline", "onpolicy", "sequence"))
def test_stopped_and_gone_on_with_is_as_if_never_stopped(name, plan_of, run_plan, ask_at):
    from tunekit.core.progress import Silent
    from tunekit.train.pipeline import Job, run

    block = {"teacher": "builtin:tiny", **RESUMED[name]}
    adapter = {"adapter": {"kind": "lora", "r": 4, "dropout": 0.1}} if name == "offline" else {}
    plan = plan_of("distill", distill=block, train__max_steps=5, train__log_every=2, **EVAL, **adapter)
    run_plan(plan)
    cut = plan.model_copy(update={"run_dir": f"{plan.run_dir}-cut"})
    ask_at(2)
    with pytest.raises(Stopped):
        run_plan(cut)
    run(Job(cut, None, resume=True), Silent())
    files = [sorted((Path(each.run_dir) / "model").glob("*.safetensors")) for each in (plan, cut)]
    assert told(plan) == told(cut)
    assert [sha256_file(path) for path in files[0]] == [sha256_file(path) for path in files[1]]


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 0])
def test_stopped_among_the_students_answers_it_ends_at_once_and_goes_on(step, plan_of, run_plan, ask_in):
    """After the second of a step's four; the run that goes on draws them all."""
    from tunekit.core.progress import Silent
    from tunekit.train.pipeline import Job, run

    block = {"teacher": "builtin:tiny", **RESUMED["onpolicy"], "rollout_batch_size": 1}
    plan = plan_of("distill", distill=block, train__max_steps=4, train__log_every=1, **EVAL)
    run_plan(plan)
    cut = plan.model_copy(update={"run_dir": f"{plan.run_dir}-cut"})
    done = ask_in("drawing answers", step, 2)
    with pytest.raises(Stopped) as caught:
        run_plan(cut)
    assert f"at step {step}, with a checkpoint" in caught.value.told
    assert done.count("drawing answers") == 2
    assert run(Job(cut, None, resume=True), Silent()).status == "done"
    files = [sorted((Path(each.run_dir) / "model").glob("*.safetensors")) for each in (plan, cut)]
    assert told(plan) == told(cut)
    assert [sha256_file(path) for path in files[0]] == [sha256_file(path) for path in files[1]]


@pytest.mark.parametrize("name", slow("mixed", "offline", "sequence"))
def test_two_ranks_do_what_one_does(name, plan_of, run_plan, logged):
    block = {"teacher": "builtin:tiny", **RESUMED[name]}
    one, two = (
        plan_of("distill", distill=block, train__max_steps=4, launch__processes=count, **EVAL) for count in (1, 2)
    )
    run_plan(one), run_plan(two)
    for value in ("loss", "eval_loss", "answer_tokens", "nll"):
        first, second = ([line[value] for line in logged(plan) if value in line] for plan in (one, two))
        assert second == pytest.approx(first, rel=2e-4), value
    assert record_of(two)["evaluation"]["teacher"]["tasks"]
