"""What users get wrong with preferences: refused in words with a code, before anything is trained."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from tunekit.cli.app import app

RECIPE = """\
method: {method}
model: {{name: "builtin:random?layers=1&hidden=32&heads=2"}}
data: {{train: [{{path: rows.jsonl}}], max_length: 128}}
train: {{max_steps: 2, batch_size: 4, learning_rate: 1e-2, threads: 1, precision: fp32, save_every: never}}
eval: {{baseline: false}}
"""


@pytest.fixture
def run(tmp_path, monkeypatch, pair_of, verdict_of, write_rows):
    """Runs the program in a folder with recipes and rows.jsonl; ``change``: what becomes of the rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for method in ("dpo", "kto", "reward"):
        (tmp_path / f"{method}.yaml").write_text(RECIPE.format(method=method))

    def invoke(method, *sets, change=lambda number, row: row, command=None):
        row_of = verdict_of if method == "kto" else pair_of
        write_rows(tmp_path / "rows.jsonl", [change(number, row_of(number)) for number in range(24)])
        words = command or [method, f"{method}.yaml", "-o", "run"]
        given = [word for one in sets for word in ("--set", one)]
        return CliRunner().invoke(app, [*words, *given], prog_name="tunekit")

    return invoke


def without_rejected(number, row):
    return {"prompt": row["prompt"], "chosen": row["chosen"]}


def long(number, row):
    return row | {"prompt": [{"role": "user", "content": f"{number} " + "red blue green " * 60}]}


def identical(number, row):
    return row | {"rejected": row["chosen"]}


def conversation(number, row):
    return {"messages": row["prompt"] + row["chosen"]}


SETS = {
    "packing": (["data.packing=true"], "lays its rows out without padding already", "leave data.packing out"),
    "streaming": (["data.streaming=true"], "goes over its rows before it trains", "leave data.streaming out"),
    "loss_on": (["data.loss_on=all"], "learns from last answers alone", "leave data.loss_on out"),
    "unknown loss": (["dpo.loss=sigmod"], "'dpo.loss' must be one of 'sigmoid', 'hinge'", "did you mean 'sigmoid'?"),
    "unknown in a mix": (["dpo.loss={sigmod: 1.0}"], "each with a weight above 0", "did you mean 'sigmoid'?"),
    "smoothing": (["dpo.loss=hinge", "dpo.label_smoothing=0.1"], "label_smoothing means nothing to the loss hinge",
                  "leave label_smoothing out"),
    "its default": (["dpo.loss=nca_pair", "dpo.label_smoothing=0.0"], "dpo.label_smoothing", "the loss nca_pair"),
    "alpha": (["dpo.alpha=0.5"], "alpha means nothing to the divergence reverse_kl", "dpo.alpha"),
    "alpha of a loss": (["dpo.loss=apo_zero", "dpo.alpha=0.5"], "alpha means nothing to the loss apo_zero",
                        "dpo.alpha"),
    "tau": (["dpo.tau=0.1"], "tau means nothing to the loss sigmoid", "leave tau out"),
    "no reference": (["dpo.loss={sft: 1.0}", "dpo.reference=initial"], "reference means nothing to the loss sft",
                     "leave reference out"),
    "tails": (["dpo.loss={sft: 1.0}", "dpo.ld_alpha=0.5"], "ld_alpha means nothing to the loss sft", "dpo.ld_alpha"),
    "weighting": (["dpo.loss={sigmoid: 1.0, aot: 1.0}", "dpo.use_weighting=true"], "without use_weighting", "(aot)"),
    "exo": (["dpo.loss=exo_pair"], "exo_pair has a label_smoothing above 0", "0.001"),
    "beta": (["dpo.beta=0"], "dpo.beta", ""),
    "no weight": (["dpo.loss={sigmoid: 0}"], "each with a weight above 0", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", SETS)
def test_a_wrong_recipe_is_refused(case, run, tmp_path):
    sets, what, fix = SETS[case]
    done = run("dpo", *sets)
    assert done.exit_code == 2, done.output
    assert what in done.output and fix in done.output and "Traceback" not in done.output
    assert not (tmp_path / "run").exists()


def test_what_cpo_does_not_go_by_is_refused(run, tmp_path):
    (tmp_path / "cpo.yaml").write_text(RECIPE.format(method="cpo"))
    done = run("cpo", "cpo.loss=hinge", "cpo.label_smoothing=0.1")
    assert done.exit_code == 2, done.output
    assert "label_smoothing means nothing to the loss hinge" in done.output and "cpo.label_smoothing" in done.output
    assert "leave label_smoothing out" in done.output and not (tmp_path / "run").exists()
    assert run("cpo", "cpo.label_smoothing=0.1").exit_code == 0


def test_several_that_mean_nothing_are_told_at_once_and_defaults_are_not(run):
    done = run("dpo", "dpo.loss={sft: 1.0}", "dpo.beta=0.2", "dpo.tau=0.1", "dpo.divergence=js")
    assert done.exit_code == 2, done.output
    told = [name for name in ("beta", "tau", "divergence", "alpha", "margin") if f"dpo.{name}\n" in done.output]
    assert told == ["beta", "tau", "divergence"]


ROWS = {
    "without rejected": (without_rejected, "no format fits the columns prompt, chosen", "rejected"),
    "conversations": (conversation, "no format fits the columns messages", "tunekit sft"),
    "long prompts": (long, "no trained token within data.max_length", "rows.jsonl:1"),
    "identical": (identical, "chosen and rejected are the same", "rows.jsonl:1"),
}


@pytest.mark.parametrize("case", ROWS)
def test_rows_that_are_no_pairs_are_refused(case, run):
    change, what, more = ROWS[case]
    done = run("dpo", change=change)
    assert done.exit_code == 3, done.output
    assert what in done.output and more in done.output and "Traceback" not in done.output
    assert ("raise data.max_length" in " ".join(done.output.split())) == (case == "long prompts")


def test_a_margin_that_is_no_number_loses_its_row(run, tmp_path):
    import pyarrow.parquet as parquet

    done = run("reward", change=lambda number, row: row | {"margin": float("nan") if number == 3 else 0.5})
    assert done.exit_code == 0, done.output
    lost = [row for row in parquet.read_table(tmp_path / "run" / "ledger.parquet").to_pylist() if row["fate"] != "kept"]
    assert [(row["line"], row["reason"]) for row in lost] == [(4, "NaN is not a JSON value")]
    command = ["reward", "reward.yaml", "-o", "another"]
    many = run("reward", change=lambda number, row: row | {"margin": float("nan")}, command=command)
    assert many.exit_code == 3 and "NaN is not a JSON value" in many.output


@pytest.mark.slow
def test_margins_that_reward_is_told_to_leave_are_left(run, tmp_path):
    losses = {}
    for margins in ("true", "false"):
        changed = lambda number, row: row | {"margin": 2.0}  # noqa: E731
        done = run("reward", f"reward.margins={margins}", f"output.dir=run-{margins}", "train.log_every=1",
                   change=changed, command=["reward", "reward.yaml"])  # fmt: skip
        assert done.exit_code == 0, done.output
        lines = (tmp_path / f"run-{margins}" / "metrics.jsonl").read_text().splitlines()
        losses[margins] = json.loads(lines[0])["loss"]
    assert losses["true"] > 1.8 and losses["false"] < 0.8  # log(1 + e ** 2) and log 2, about


def test_what_a_run_left_is_merged_and_evaluated_or_refused_in_words(run, tmp_path):
    lora = "adapter={kind: lora, r: 4}"
    for method in ("dpo", "reward"):
        done = run(method, lora, "data.eval={count: 4}", command=[method, f"{method}.yaml", "-o", f"run-{method}"])
        assert done.exit_code == 0, done.output
    done = run("reward", command=["merge", "run-reward", "-o", "merged"])
    assert done.exit_code == 2, done.output
    assert "this is a reward model: it scores answers, and writes none" in done.output
    done = run("reward", command=["eval", "-m", "run-reward", "-o", "scored"])
    assert done.exit_code == 0 and "preference accuracy" in done.output, done.output
    assert not (tmp_path / "merged").exists()
    done = run("dpo", command=["eval", "-m", "run-dpo", "-o", "found"])
    assert done.exit_code == 0, done.output
