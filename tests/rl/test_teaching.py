"""Distillation's loss and gradients against plain torch, and the small parts of its trainers."""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from tunekit.core.errors import UserError

_spec = importlib.util.spec_from_file_location("fixtures_of_train", Path(__file__).parents[1] / "train" / "conftest.py")
_train = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_train)
quiet_machine, write_rows, talks = _train.quiet_machine, _train.write_rows, _train.talks
plan_of, session_of = _train.plan_of, _train.session_of

OTHER = "builtin:random?layers=1&hidden=64&heads=2"


def plain(kind, p, q, beta):
    """The divergence of log-probabilities (n, V) by its formula, summed."""
    import torch

    def kl(a, b):
        return (a.exp() * (a - b)).sum()

    if kind == "forward_kl":
        return kl(p, q)
    if kind == "reverse_kl":
        return kl(q, p)
    middle = torch.log(beta * p.exp() + (1 - beta) * q.exp())
    return beta * kl(p, middle) + (1 - beta) * kl(q, middle)


def expected(trainer, rows, kind, beta, temperature, nll):
    """Loss and gradients of one step, each example alone, with the models' own logits."""
    import torch
    from torch.nn.functional import cross_entropy

    model, total, count = trainer.model, 0.0, 0
    model.zero_grad()
    for row in rows:
        starts = [*row["starts"], len(row["input_ids"])]
        for begin, end in itertools.pairwise(starts):
            ids, labels = (torch.tensor([row[name][begin:end]]) for name in ("input_ids", "labels"))
            kept = labels[0, 1:] >= 0
            ours = model(input_ids=ids).logits[0, :-1][kept]
            with torch.no_grad():
                theirs = trainer.teacher(input_ids=ids).logits[0, :-1][kept]
            p, q = ((each / temperature).log_softmax(-1) for each in (theirs, ours))
            total = total + plain(kind, p, q, beta)
            total = total + nll * cross_entropy(ours, labels[0, 1:][kept], reduction="sum")
            count += int(kept.sum())
    loss = total / count
    loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.item(), grads, count


CASES = {
    "forward": {"divergence": "forward_kl"},
    "reverse": {"divergence": "reverse_kl", "temperature": 2.0},
    "jsd": {"divergence": "jsd", "beta": 0.3},
    "with cross-entropy": {"divergence": "forward_kl", "nll_weight": 0.5},
}
SHAPES = {
    "flat": {},
    "padded": {"model__attention": "eager"},
    "packed": {"data__packing": True, "data__max_length": 64},
    "packed and padded": {"data__packing": True, "data__max_length": 64, "model__attention": "sdpa"},
    "adapted head": {"adapter": {"kind": "lora", "r": 2, "targets": ["q_proj", "lm_head"], "init": "gaussian"}},
}


@pytest.mark.parametrize(
    ("case", "shape", "teacher"),
    [(case, "flat", "builtin:tiny") for case in CASES]
    + [("jsd", shape, "builtin:tiny") for shape in SHAPES if shape != "flat"]
    + [("reverse", "flat", "builtin:random?arch=gpt2&layers=1&hidden=32&heads=2")],
)
def test_first_step_is_that_of_plain_torch(case, shape, teacher, plan_of, session_of, note):
    import torch

    block = CASES[case]
    adapter = SHAPES[shape].get("adapter")
    more = SHAPES[shape] if adapter is None else {"adapter": {k: v for k, v in adapter.items() if k != "init"}}
    plan = plan_of("distill", distill={"teacher": teacher, **block}, **more)
    _, trainer = session_of(plan)
    assert bool(trainer.padded_because) == ("padded" in shape), trainer.padded_because
    rows = [trainer.train_dataset[index] for index in range(4)]
    if adapter is not None:
        assert trainer.head.tail is None
        with torch.no_grad():
            for name, parameter in trainer.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
    options = [block["divergence"], block.get("beta", 0.5), block.get("temperature", 1.0), block.get("nll_weight", 0.0)]
    trainer.model.eval()
    loss, grads, count = expected(trainer, rows, *options)
    trainer.model.train()
    found = trainer.compute_loss(trainer.model, trainer.data_collator(rows), num_items_in_batch=count)
    found.backward()
    assert found.item() == pytest.approx(loss, rel=1e-5)
    assert found.item() > 1e-3
    apart = 0.0
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            largest = max(float(grads[name].abs().max()), 1e-6)
            apart = max(apart, float((parameter.grad - grads[name]).abs().max()) / largest)
    note(f"{case}, {shape}: gradients apart by {apart:.1e} of the largest")
    assert apart < 1e-5
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in trainer.teacher.parameters())


@pytest.fixture(scope="session")
def note():
    return lambda text: print(f"measured: {text}")


def test_a_teacher_that_must_be_padded_pads_the_student(plan_of, session_of, monkeypatch):
    """The layouts of both sides are one: otherwise positions of one would be compared with others of the other."""
    from tunekit.rl import teaching

    monkeypatch.setattr(teaching, "run_flat", lambda *args, **kwargs: "it does not take it")
    plan = plan_of("distill", distill={"teacher": OTHER, "divergence": "reverse_kl"})
    _, trainer = session_of(plan)
    assert trainer.padded_because == "the teacher: it does not take it"
    rows = [trainer.train_dataset[index] for index in range(4)]
    trainer.model.eval()
    loss, _, count = expected(trainer, rows, "reverse_kl", 0.5, 1.0, 0.0)
    found = trainer.compute_loss(trainer.model, trainer.data_collator(rows), num_items_in_batch=count)
    assert found.item() == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    ("block", "key"),
    [
        ({"mode": "offline", "max_new_tokens": 7}, "max_new_tokens"),
        ({"mode": "offline", "student_share": 1.0}, "student_share"),  # its default, and still without a meaning
        ({"mode": "onpolicy", "nll_weight": 0.5}, "nll_weight"),
        ({"mode": "sequence", "divergence": "jsd"}, "divergence"),
        ({"mode": "sequence", "temperature": 2.0}, "temperature"),
        ({"beta": 0.5}, "beta"),
    ],
)
def test_an_option_that_would_not_be_heeded_is_refused(block, key, tmp_path):
    from tunekit.core.errors import UserError
    from tunekit.methods import distill
    from tunekit.recipe.document import parse
    from tunekit.recipe.load import check

    text = json.dumps({"method": "distill", "data": {"train": [{"path": "builtin:instructions"}]},
                       "model": {"name": "builtin:tiny"}, "distill": {"teacher": "builtin:tiny", **block}})  # fmt: skip
    with pytest.raises(UserError) as caught:
        distill.check(check(parse(text, "r.yaml")), tmp_path)
    (problem,) = caught.value.problems
    assert problem.what.startswith(f"{key} means nothing to ") and problem.where == f"distill.{key}"


@pytest.mark.parametrize("block", [{"divergence": "jsd", "beta": 1.0}, {"divergence": "kl"}])
def test_a_value_that_there_is_not_is_refused(block):
    from tunekit.methods.distill import Config

    with pytest.raises(ValidationError):
        Config(teacher="builtin:tiny", **block)


def test_a_block_that_was_written_with_its_defaults_is_read_again():
    """A plan says every default; an option of another mode stands there without having been asked for."""
    from tunekit.methods.distill import Config

    for block in ({"mode": "sequence"}, {"mode": "onpolicy", "student_share": 0.5}, {"divergence": "jsd", "beta": 0.3}):
        made = Config(teacher="builtin:tiny", **block)
        assert Config.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize(
    ("block", "wanted"),
    [
        ({"mode": "offline"}, "texts"),
        ({"mode": "sequence"}, "prompts"),
        ({"mode": "onpolicy"}, "prompts"),
        ({"mode": "onpolicy", "student_share": 0.9}, "texts"),
    ],
)
def test_what_is_learnt_from_depends_on_the_mode(block, wanted, plan_of):
    from tunekit.recipe.kinds import material_of

    plan = plan_of("distill", distill={"teacher": OTHER, **block})
    assert material_of(plan.recipe) == wanted
    assert material_of("distill") == "texts"
    assert material_of("dpo") == "pairs"


def test_examples_come_back_from_a_batch():
    from tunekit.rl.teach_examples import PromptCollator, examples_of

    rows = [
        {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8], "position_ids": None, "rows": [3],
         "prompt_tokens": 2},
        {"input_ids": [0], "labels": [-100], "position_ids": None, "empty": True},
        {"input_ids": [9, 4], "labels": [-100, -100], "position_ids": [0, 1], "rows": [1], "prompt_tokens": 2,
         "branches": []},
    ]  # fmt: skip
    batch = PromptCollator(0)(rows)
    assert "branches" not in batch
    assert batch["prompt_tokens"].tolist() == [2, 0, 2]
    found = examples_of(batch)
    assert [one["input_ids"] for one in found] == [[5, 6, 7, 8], [0], [9, 4]]
    assert [one["rows"] for one in found] == [[3], [], [1]]
    assert [one.get("empty", False) for one in found] == [False, True, False]
    again = PromptCollator(0)(found)
    assert all((again[name] == batch[name]).all() for name in batch)


def test_a_share_of_the_steps_is_the_students_own(plan_of, session_of):
    plan = plan_of("distill", distill={"teacher": OTHER, "mode": "onpolicy", "student_share": 0.3})
    _, trainer = session_of(plan)
    own = [trainer.own(step) for step in range(2000)]
    assert 0.26 < sum(own) / 2000 < 0.34
    assert own == [trainer.own(step) for step in range(2000)]


def test_an_answer_takes_the_place_of_the_datas(plan_of, session_of):
    """Prompt, then what the student says, all of it trained; the student's own greedy answer, by transformers."""
    import torch

    plan = plan_of("distill", distill={"teacher": OTHER, "mode": "onpolicy", "student_share": 0.5, "max_new_tokens": 6})
    _, trainer = session_of(plan)
    rows = [trainer.train_dataset[index] for index in (0, 1)]
    found = trainer._answered([dict(row) for row in rows], None, told=False)
    for row, answered in zip(rows, found, strict=True):
        size = row["prompt_tokens"]
        prompt = row["input_ids"][:size]
        with torch.no_grad():
            wanted = trainer.model.generate(
                input_ids=torch.tensor([prompt]), max_new_tokens=6, do_sample=False, eos_token_id=list(trainer.stop_ids)
            )[0].tolist()
        assert answered["input_ids"] == wanted
        assert answered["labels"] == [-100] * size + wanted[size:]
        assert answered["rows"] == row["rows"]
        assert wanted[size:] != row["input_ids"][size:][:6]


def test_the_longest_answer_is_what_memory_is_tried_with(plan_of, session_of):
    plan = plan_of("distill", distill={"teacher": OTHER, "mode": "onpolicy", "max_new_tokens": 50})
    _, trainer = session_of(plan)
    row = trainer.train_dataset[0]
    tried = trainer.trial(dict(row))
    assert len(tried["input_ids"]) == len(row["input_ids"]) + 50
    assert sum(label >= 0 for label in tried["labels"]) == 50


@pytest.mark.parametrize("mode", ["offline", "onpolicy"])
def test_another_teacher_is_not_gone_on_with(mode, plan_of, session_of):
    _, one = session_of(plan_of("distill", distill={"teacher": OTHER, "mode": mode}))
    other_shape = "builtin:random?layers=2&hidden=64&heads=2"
    _, other = session_of(plan_of("distill", distill={"teacher": other_shape, "mode": mode}))
    state = json.loads(json.dumps(one.method_state()))
    one.restore_method_state(state)
    with pytest.raises(UserError, match="teacher's weights"):
        other.restore_method_state(state)
