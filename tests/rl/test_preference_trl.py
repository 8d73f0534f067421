"""The steps of dpo, kto and reward are TRL's: losses and gradient norms against TRL itself, on the same tokens."""

from __future__ import annotations

import json

import pytest

LORA = {"kind": "lora", "r": 4, "alpha": 8}
ADAPTERS = {"full": None, "lora": LORA}
STEPS = 3
SLOW = pytest.mark.slow
AT_ONCE = ("sigmoid", "ipo", "mix", "wpo ld")
COMMON = {
    "max_steps": STEPS, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "logging_steps": 1, "max_length": 128,
    "report_to": "none", "save_strategy": "no", "use_cpu": True, "bf16": False, "disable_tqdm": True,
    "gradient_checkpointing": False, "seed": 42, "lr_scheduler_type": "constant",
}  # fmt: skip


def some(names, at_once):
    """All of them; those that are not named are for the slow suite."""
    assert set(at_once) <= set(names)
    return [pytest.param(name, marks=() if name in at_once else SLOW) for name in names]


def steps(trainer):
    """Loss and gradient norm of each step."""
    trainer.train()
    return [(line["loss"], float(line["grad_norm"])) for line in trainer.state.log_history if "grad_norm" in line]


def same(ours, theirs):
    """The first step to rounding; the later ones follow weights that Adam has moved by rounding's own sign."""
    assert len(ours) == len(theirs) == STEPS
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-6)


def parts(row):
    """A prepared group as its beginning and its branches, each with its labels."""
    ids, labels, at = row["input_ids"], row["labels"], len(row["input_ids"]) - sum(row["branches"])
    found = [ids[:at]]
    for size in row["branches"]:
        assert labels[at] >= 0, "an answer is trained from its first token"
        found.append((ids[at : at + size], sum(label >= 0 for label in labels[at : at + size])))
        at += size
    return found


def given_to(kind):
    """A TRL trainer that takes rows of tokens as they are."""

    class Given(kind):
        def _prepare_dataset(self, dataset, *_):
            return dataset

    return Given


def plain(plan):
    from tunekit.model.load import load_model

    return load_model(plan).model


def dpo_of(plan, rows, folder, *, cls=None, **options):
    from trl import DPOConfig, DPOTrainer

    from tunekit.model.tokenizer import load_tokenizer

    kind = given_to(DPOTrainer) if cls is None else cls
    arguments = DPOConfig(output_dir=str(folder), **(COMMON | options))
    reference = None if plan.recipe.adapter_block else plain(plan)
    tokenizer = load_tokenizer(plan.recipe.model)
    return kind(plain(plan), reference, arguments, train_dataset=rows, processing_class=tokenizer)


def pair_rows(prepared):
    from datasets import Dataset

    made = []
    for row in prepared:
        beginning, (chosen, good), (rejected, bad) = parts(row)
        made.append({"prompt_ids": beginning, "chosen_ids": chosen[:good], "rejected_ids": rejected[:bad]})
    return Dataset.from_list(made)


def lora_of(names):
    """Each with LoRA."""
    return [pytest.param(name, "lora", marks=() if name in AT_ONCE else SLOW) for name in names]


LOSSES = {
    "sigmoid": ({}, {}),
    "hinge": ({"loss": "hinge"}, {"loss_type": ["hinge"]}),
    "ipo": ({"loss": "ipo"}, {"loss_type": ["ipo"]}),
    "robust": ({"loss": "robust", "label_smoothing": 0.1, "beta": 0.3},
               {"loss_type": ["robust"], "label_smoothing": 0.1, "beta": 0.3}),
    "js": ({"divergence": "js"}, {"f_divergence_type": "js_divergence"}),
    "mix": ({"loss": {"sigmoid": 0.8, "bco_pair": 0.5, "sft": 1.5}},
            {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.5, 1.5]}),
    "ld": ({"ld_alpha": 0.3}, {"ld_alpha": 0.3}),
    "ld 0 ipo": ({"ld_alpha": 0.0, "loss": "ipo"}, {"ld_alpha": 0.0, "loss_type": ["ipo"]}),
    "ld mix": ({"ld_alpha": 0.5, "loss": {"hinge": 0.7, "sft": 1.5}},
               {"ld_alpha": 0.5, "loss_type": ["hinge", "sft"], "loss_weights": [0.7, 1.5]}),
    "wpo": ({"use_weighting": True}, {"use_weighting": True}),
    "wpo ld": ({"use_weighting": True, "ld_alpha": 0.5, "loss": {"sigmoid": 1.0, "nca_pair": 0.5}},
               {"use_weighting": True, "ld_alpha": 0.5, "loss_type": ["sigmoid", "nca_pair"],
                "loss_weights": [1.0, 0.5]}),
}  # fmt: skip


@pytest.mark.parametrize(("loss", "adapter"), [("sigmoid", "full"), *lora_of(LOSSES)])
def test_dpo_is_trls(loss, adapter, preference_plan, ready_of, tmp_path, note):
    ours, theirs = LOSSES[loss]
    options = {f"dpo__{name}": value for name, value in ours.items()}
    plan = preference_plan("dpo", 8, adapter=ADAPTERS[adapter], train__max_steps=STEPS, **options)
    session, trainer = ready_of(plan)
    rows = pair_rows(session.prepared.dataset("train"))
    found = steps(trainer), steps(dpo_of(plan, rows, tmp_path, **theirs))
    note(f"dpo {loss} {adapter}: tunekit, TRL {found}")
    same(*found)


def first_gradients(trainer):
    """Of each trained parameter in the first step, before the gradients are clipped."""
    from transformers import TrainerCallback

    found = {}

    class Seen(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            if not found:
                found.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    trainer.args.max_grad_norm = 0.0
    trainer.add_callback(Seen())
    trainer.train()
    return found


@pytest.mark.parametrize("loss", ["ld mix", "wpo ld"])
def test_gradients_of_weighted_tokens_and_pairs_are_trls(loss, preference_plan, ready_of, tmp_path):
    """Every number of the gradient; the rows' answers differ in length, and TRL's batch is one, ours four."""
    ours, theirs = LOSSES[loss]
    options = {f"dpo__{name}": value for name, value in ours.items()}
    plan = preference_plan("dpo", 8, train__micro_batch_size=2, **options)
    session, trainer = ready_of(plan)
    rows = pair_rows(session.prepared.dataset("train"))
    mine = first_gradients(trainer)
    other = first_gradients(dpo_of(plan, rows, tmp_path, **theirs))
    assert mine.keys() == other.keys() and len(mine) > 10
    size = max(float(value.abs().max()) for value in other.values())
    for name, value in other.items():
        assert float((mine[name] - value).abs().max()) < 1e-5 * size, name
    plain = first_gradients(ready_of(preference_plan("dpo", 8, dpo__loss=plan.recipe.options.loss))[1])
    assert max(float((plain[name] - value).abs().max()) for name, value in other.items()) > 1e-2 * size


def test_how_likely_answers_are_by_hand(preference_plan, ready_of):
    """The same from logits that the model makes itself, as it does where its head is adapted."""
    import torch

    from tunekit.rl.pairs import likeliness

    _, trainer = ready_of(preference_plan("dpo", 5, dpo__use_weighting=True))
    inputs = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[at] for at in range(5)]))
    groups = trainer.groups_of(trainer.model, inputs)
    found = likeliness(trainer.head, groups)
    chances = trainer.head.head(groups.hidden).double().softmax(-1)
    right = chances[torch.arange(len(chances)), inputs["targets"]] / chances.square().sum(-1)
    for answer in range(10):
        own = right[inputs["owner"] == answer]
        assert float(found[answer]) == pytest.approx(float(own.prod() ** (1 / len(own))), rel=1e-5)
    trainer.head.tail = None
    again = likeliness(trainer.head, trainer.groups_of(trainer.model, inputs))
    torch.testing.assert_close(found, again, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_dpo_is_trls_on_messages(adapter, preference_plan, preferences, ready_of, tmp_path, note):
    """End to end: TRL renders and tokenizes the conversations itself.

    It trains what the template writes after the end of the turn too, which nobody has a model say: here, nothing.
    """
    from datasets import Dataset
    from trl import DPOTrainer

    class Ended(DPOTrainer):
        def _prepare_dataset(self, *arguments):
            rows = super()._prepare_dataset(*arguments)
            return rows.map(lambda row: {name: row[name][:-1] for name in ("chosen_ids", "rejected_ids")})

    plan = preference_plan("dpo", 8, adapter=ADAPTERS[adapter], train__max_steps=STEPS)
    lines = [json.loads(line) for line in preferences("dpo").read_text().splitlines()[:8]]
    rows = Dataset.from_list([{name: line[name] for name in ("prompt", "chosen", "rejected")} for line in lines])
    found = steps(ready_of(plan)[1]), steps(dpo_of(plan, rows, tmp_path, cls=Ended))
    note(f"dpo, messages, {adapter}: tunekit, TRL {found}")
    same(*found)


@pytest.mark.parametrize(
    ("loss", "adapter"),
    [("kto", "lora"), pytest.param("kto", "full", marks=SLOW), pytest.param("apo_zero_unpaired", "lora", marks=SLOW)],
)
def test_kto_is_trls(loss, adapter, preference_plan, ready_of, tmp_path, note):
    """Of a large rate, so that policy and reference are apart and the reference point is above 0."""
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    from tunekit.model.tokenizer import load_tokenizer

    plan = preference_plan(
        "kto", 8, adapter=ADAPTERS[adapter], train__max_steps=STEPS, kto__loss=loss, kto__beta=0.5,
        kto__desirable_weight=1.5, kto__undesirable_weight=0.7,
    )  # fmt: skip
    _, trainer = ready_of(plan)
    made = []
    for row in trainer.train_dataset:
        beginning, (own, count), *other = parts(row)
        made.append({"prompt_ids": beginning, "completion_ids": own[:count], "label": row["score"] > 0.5})
        if other:
            made[-1]["KL_completion_ids"] = other[0][0][: other[0][1]]
    arguments = KTOConfig(
        output_dir=str(tmp_path), loss_type=loss, beta=0.5, desirable_weight=1.5, undesirable_weight=0.7, **COMMON
    )
    theirs = given_to(KTOTrainer)(
        plain(plan), None if adapter == "lora" else plain(plan), arguments, train_dataset=Dataset.from_list(made),
        processing_class=load_tokenizer(plan.recipe.model),
    )  # fmt: skip
    found = steps(trainer), steps(theirs)
    points = [[line["kl"] for line in one.state.log_history if "kl" in line] for one in (trainer, theirs)]
    note(f"kto {loss} {adapter}: tunekit, TRL {found}; reference points {points}")
    same(*found)
    if loss == "kto":
        assert max(points[1]) > 0.01
        assert [max(0.0, point) for point in points[0]] == pytest.approx(points[1], rel=2e-3, abs=1e-5)


REWARDS = [("full", 0.0, False), ("full", 0.1, True), ("lora", 0.1, True)]


@pytest.mark.parametrize(("adapter", "centre", "margin"), REWARDS)
def test_reward_is_trls(adapter, centre, margin, preference_plan, session_of, tmp_path, note):
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    from tunekit.model.tokenizer import load_tokenizer

    plan = preference_plan(
        "reward", 8, adapter=ADAPTERS[adapter], train__max_steps=STEPS, reward__centre=centre, reward__margins=margin
    )
    session, trainer = session_of(plan)
    made = []
    for row in session.prepared.dataset("train"):
        beginning, (chosen, _), (rejected, _) = parts(row)
        made.append({"chosen_ids": beginning + chosen, "rejected_ids": beginning + rejected})
        if margin:
            made[-1]["margin"] = row["score"] or 0.0
    assert not margin or sum(one["margin"] > 0 for one in made) == 2
    arguments = RewardConfig(output_dir=str(tmp_path), center_rewards_coefficient=centre or None, **COMMON)
    model, tokenizer = plain(plan), load_tokenizer(plan.recipe.model)
    model.config.pad_token_id = tokenizer.pad_token_id
    rows = Dataset.from_list(made)
    theirs = given_to(RewardTrainer)(model, arguments, train_dataset=rows, processing_class=tokenizer)
    found = steps(trainer), steps(theirs)
    note(f"reward {adapter} centre {centre}: tunekit, TRL {found}")
    same(*found)


CASES = {
    "dpo": ("dpo", {}),
    "dpo mix": ("dpo", {"dpo__loss": {"sigmoid": 1.0, "sft": 0.5}}),
    "kto": ("kto", {}),
    "reward": ("reward", {"reward__centre": 0.1}),
    "cpo": ("cpo", {}),
    "orpo": ("orpo", {}),
    "simpo": ("simpo", {"simpo__nll_weight": 0.5}),
}


@pytest.mark.parametrize("case", some(CASES, ("dpo",)))
def test_micro_batches_and_accumulation_do_not_change_the_step(case, preference_plan, ready_of, note):
    """Ragged pairs: also a likelihood over tokens is a mean over those of the global batch."""
    method, options = CASES[case]
    found = {}
    for micro in (8, 4, 2, 1):
        plan = preference_plan(method, 8, train__micro_batch_size=micro, **options)
        assert (plan.micro_batch_size, plan.accumulation) == (micro, 8 // micro)
        trainer = ready_of(plan)[1]
        trainer.train()
        found[micro] = [trainer.state.log_history[0][name] for name in ("loss", "grad_norm")]
    note(f"{case}: micro-batch -> (loss, gradient norm): {found}")
    for step in found.values():
        assert step == pytest.approx(found[8], rel=1e-5)
