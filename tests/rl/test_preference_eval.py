"""What is measured on held-out preferences: the same in any batches, a plain loop's numbers, and the saved model's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

LORA = {"kind": "lora", "r": 4, "alpha": 8}
EVAL = {"data__eval": {"count": 5}, "eval__batch_size": 2, "eval__baseline": True}
STEPS = {"train__max_steps": 4, "train__batch_size": 3}
CASES = {
    "dpo": ("dpo", {}),
    "dpo mix": ("dpo", {"dpo__loss": {"sigmoid": 1.0, "sft": 0.5}}),
    "kto": ("kto", {"kto__beta": 0.5}),
    "apo_zero_unpaired": ("kto", {"kto__loss": "apo_zero_unpaired"}),
    "reward": ("reward", {"reward__centre": 0.1}),
    "orpo": ("orpo", {}),
    "simpo": ("simpo", {"simpo__nll_weight": 0.5}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_held_out_loss_depends_on_no_batch(case, preference_plan, ready_of, note):
    """After some steps, so that policy and reference are apart; and it is what training takes the rows to cost."""
    method, sets = CASES[case]
    _, trainer = ready_of(preference_plan(method, **EVAL, **STEPS, **sets))
    trainer.train()
    found = {}
    for size in (1, 2, 4, 5, 32):
        trainer.args.per_device_eval_batch_size = size
        found[size] = {name: value for name, value in trainer.evaluate().items() if name.startswith("eval_")}
    note(f"{case}: {found[1]}")
    for size, values in found.items():
        assert values == pytest.approx(found[1], rel=1e-5, abs=1e-6), size
    if case in ("kto", "dpo mix"):
        batch = trainer.data_collator(list(trainer.eval_dataset))
        trainer.chosen_tokens = None
        share = trainer.local_share(trainer.model.eval(), batch)
        assert found[1]["eval_loss"] == pytest.approx(float(share.total.detach()) / 5, rel=1e-5)


def log_likelihood(model, ids, trained):
    """Of the trained tokens of one text, by torch alone."""
    import torch

    with torch.no_grad():
        logps = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return sum(float(logps[at - 1, ids[at]]) for at in range(1, len(ids)) if trained[at])


def evaluation_of(plan):
    record = json.loads((Path(plan.run_dir) / "record.json").read_text())
    return {task["metric"]: task for task in record["evaluation"]["tasks"]}


def held_out(session_of, plan):
    from tunekit.train.inputs import eval_items

    return eval_items(session_of(plan)[0].prepared)


@pytest.mark.parametrize("adapter", [None, pytest.param(LORA, marks=pytest.mark.slow)])
def test_before_and_after_are_a_plain_loops_numbers(adapter, preference_plan, run_plan, session_of):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from tunekit.model.load import load_model
    from tunekit.model.names import TINY

    plan = preference_plan("dpo", adapter=adapter, model__name="builtin:tiny", **EVAL, **STEPS)
    run_plan(plan)
    items = held_out(session_of, plan)
    folder = Path(plan.run_dir) / "model"
    tuned = AutoModelForCausalLM.from_pretrained(TINY if adapter else folder, dtype="float32")
    if adapter:
        tuned = PeftModel.from_pretrained(tuned, folder)
    models = {"base": load_model(plan).model.eval(), "tuned": tuned.eval()}
    tasks = evaluation_of(plan)
    for name, model in models.items():
        margins = [
            log_likelihood(model, item.input_ids, item.trained)
            - log_likelihood(model, item.rejected_ids, item.rejected_trained)
            for item in items
        ]
        assert len(margins) == 5
        assert tasks["margin"][name]["value"] == pytest.approx(sum(margins) / 5, rel=1e-4, abs=1e-4)
        right = sum(margin > 0 for margin in margins) / 5
        assert tasks["preference_accuracy"][name]["value"] == pytest.approx(right)


def test_kto_on_pairs_is_measured_on_pairs(preference_plan, preferences, run_plan, session_of):
    """Both answers of a row are held out together, and compared; judged rows alone are measured by their good ones."""
    from tunekit.evaluate.pairs import PairItem

    source = {"data__train": [{"path": str(preferences("dpo"))}]}
    plan = preference_plan("kto", **(EVAL | source))
    run_plan(plan)
    items = held_out(session_of, plan)
    assert items and all(isinstance(item, PairItem) for item in items)
    assert all(item.input_ids != item.rejected_ids for item in items)
    assert evaluation_of(plan)["preference_accuracy"]["n"] == len(items)
    alone = preference_plan("kto", **EVAL)
    assert not any(isinstance(item, PairItem) for item in held_out(session_of, alone))


SCORES = """\
import json, sys, torch
from transformers import AutoModelForSequenceClassification
folder, adapter, texts = json.loads(sys.stdin.read())
if adapter:
    from peft import PeftModel
    base = AutoModelForSequenceClassification.from_pretrained(adapter, num_labels=1, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folder)
else:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
model.eval()
with torch.no_grad():
    print(json.dumps([float(model(input_ids=torch.tensor([ids])).logits[0, 0]) for ids in texts]))
"""


@pytest.mark.parametrize("adapter", [None, pytest.param(LORA, marks=pytest.mark.slow)])
def test_a_saved_reward_model_scores_as_the_trainer(adapter, preference_plan, run_plan, session_of, monkeypatch):
    """In transformers, in a fresh process, and in `RewardModel`; its files are those of its manifest."""
    from tunekit.core.errors import MachineError
    from tunekit.evaluate.mode import plain_model
    from tunekit.evaluate.scorer import last_scores
    from tunekit.model.names import TINY
    from tunekit.rl import reward_model
    from tunekit.rl.scores import ScoreTrainer

    kept, scores = [], ScoreTrainer._scores

    def noting(self, model, texts, pad, screen):
        kept.append(scores(self, model, texts, pad, screen))
        return kept[-1]

    monkeypatch.setattr(ScoreTrainer, "_scores", noting)
    plan = preference_plan("reward", adapter=adapter, model__name="builtin:tiny", **EVAL, **STEPS)
    run_plan(plan)
    items = held_out(session_of, plan)
    texts = [ids for item in items for ids in (item.input_ids, item.rejected_ids)]
    folder = Path(plan.run_dir) / "model"
    asked = json.dumps([str(folder), str(TINY) if adapter else "", texts])
    done = subprocess.run(
        [sys.executable, "-c", SCORES], input=asked, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == pytest.approx(kept[-1], rel=1e-5, abs=1e-5)
    assert max(abs(a - b) for a, b in zip(*kept, strict=True)) > 1e-3, "it has learnt something"
    loaded = reward_model.RewardModel.load(Path(plan.run_dir))
    ours = last_scores(plain_model(loaded.model), texts)
    assert ours == pytest.approx(kept[-1], rel=1e-5, abs=1e-5)
    margins = [chosen - rejected for chosen, rejected in zip(kept[-1][::2], kept[-1][1::2], strict=True)]
    tasks = evaluation_of(plan)
    assert tasks["margin"]["tuned"]["value"] == pytest.approx(sum(margins) / 5, rel=1e-5)
    assert tasks["preference_accuracy"]["tuned"]["value"] == sum(margin > 0 for margin in margins) / 5
    (weights,) = folder.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(MachineError):
        reward_model.find(folder)
