"""The proof: a merge spoiled on purpose is refused and leaves nothing; a good one stands in a fresh process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tunekit.compress import merge as module
from tunekit.compress import parity
from tunekit.compress.merge import PROOF, Request, merge
from tunekit.compress.parity import NotProvenError
from tunekit.core.errors import MachineError
from tunekit.core.progress import Silent


@pytest.fixture(scope="module")
def lora(base_of, adapter_of):
    """A LoRA adapter that changes a lot."""
    from peft import LoraConfig

    return adapter_of(base_of(), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"), move=0.15)[0]


def spoil(monkeypatch, how):
    """Changes the merged model just before it is written."""
    import torch

    honest = module.write

    def write(model, *others):
        with torch.no_grad():
            how(model)
        honest(model, *others)

    monkeypatch.setattr(module, "write", write)


def a_layer_is_forgotten(model):
    model.model.layers[1].mlp.down_proj.weight.mul_(0.5)


def a_number_is_not_one(model):
    model.model.layers[0].self_attn.q_proj.weight[3, 4] = float("nan")


def tables_change_places(model):
    model.lm_head.weight.copy_(model.lm_head.weight.roll(1, 0))


FAULTS = {
    "forgotten": (a_layer_is_forgotten, "differs by"),
    "nan": (a_number_is_not_one, "not finite"),
    "rolled": (tables_change_places, "differs by"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_spoiled_merge_is_refused_and_leaves_nothing(fault, lora, rows, here, tmp_path, monkeypatch):
    how, what = FAULTS[fault]
    spoil(monkeypatch, how)
    with pytest.raises(NotProvenError, match=what) as raised:
        merge(Request(lora, tmp_path / "merged", dtype="float32", rows=rows), Silent())
    assert raised.value.exit_code == 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_are_no_excuse(dtype, lora, rows, here, tmp_path, monkeypatch):
    proof = merge(Request(lora, tmp_path / "good", dtype=dtype, rows=rows), Silent())
    print(f"measured: {dtype} {proof['merged']} of {proof['limits']}, the adapter's own {proof['rounding']}")
    spoil(monkeypatch, a_layer_is_forgotten)
    with pytest.raises(NotProvenError, match="mean KL"):
        merge(Request(lora, tmp_path / "bad", dtype=dtype, rows=rows), Silent())
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merge_that_equals_the_base_is_refused(dtype, lora, rows, here, tmp_path, monkeypatch):
    """The weights as they were before: what a merge gives that loses the adapter."""
    from tunekit.model.restore import find, load_base

    base = load_base(find(lora), dtype="float32").state_dict()
    spoil(monkeypatch, lambda model: model.load_state_dict(base))
    with pytest.raises(NotProvenError, match="equals the base"):
        merge(Request(lora, tmp_path / "merged", dtype=dtype, rows=rows), Silent())
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_that_changes_nothing_is_refused(base_of, adapter_of, rows, here, tmp_path):
    from peft import LoraConfig

    fresh, _ = adapter_of(base_of(), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"), move=0.0)
    with pytest.raises(NotProvenError, match="changes nothing"):
        merge(Request(fresh, tmp_path / "merged", rows=rows), Silent())


def test_an_adapter_that_sixteen_bits_lose_is_refused_with_the_way_out(base_of, adapter_of, rows, here, tmp_path):
    from peft import LoraConfig

    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])
    small, _ = adapter_of(base_of(dtype="bfloat16", seed=5), config, move=2e-3)
    with pytest.raises(NotProvenError) as raised:
        merge(Request(small, tmp_path / "narrow", rows=rows), Silent())
    assert "--dtype float32" in str(raised.value) + str([problem.fix for problem in raised.value.problems])
    merge(Request(small, tmp_path / "wide", dtype="float32", rows=rows), Silent())


def test_another_template_in_the_merged_folder_is_refused(lora, rows, here, tmp_path, monkeypatch):
    honest = module.write

    def write(model, tokenizer, found, folder):
        honest(model, tokenizer, found, folder)
        (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")

    monkeypatch.setattr(module, "write", write)
    with pytest.raises(NotProvenError, match="chat template"):
        merge(Request(lora, tmp_path / "merged", rows=rows), Silent())


def test_the_figures_are_those_of_a_calculation_by_hand():
    """Two positions over two tokens: KL([.5, .5] || [.8, .2]) = .5 ln(.5/.8) + .5 ln(.5/.2), and one that is equal."""
    import math

    import torch

    from tunekit.compress.worker import difference

    one = [torch.tensor([[0.0, 0.0], [2.0, 0.0]])]
    other = [torch.tensor([[math.log(0.8), math.log(0.2)], [2.0, 0.0]])]
    found = difference(one, other)
    assert found["mean_kl"] == pytest.approx((0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)) / 2, rel=1e-6)
    assert found["largest_logit_difference"] == pytest.approx(math.log(5))
    assert found["largest_logit"] == 2.0
    assert found["top1_agreement"] == 1.0
    broken = difference(one, [torch.tensor([[math.nan, 0.0], [2.0, 0.0]])])
    assert math.isinf(broken["largest_logit_difference"]) and math.isinf(broken["mean_kl"])


def run(*words):
    from tunekit.cli.app import app

    return CliRunner().invoke(app, ["merge", *map(str, words)])


@pytest.mark.slow
def test_the_command_in_a_fresh_process(lora, tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "PROMPTS", 2)
    monkeypatch.setattr(parity, "NEW_TOKENS", 3)
    done = run(lora, "--output", tmp_path / "merged", "--dtype", "float32", "--json")
    assert done.exit_code == 0, done.output
    last = json.loads(done.stdout.splitlines()[-1])
    proof = json.loads((tmp_path / "merged" / PROOF).read_text(encoding="utf-8"))
    assert last["event"] == "done" and last["proof"]["merged"] == proof["merged"]
    assert proof["merged"]["largest_logit_difference"] < proof["limits"]["largest_logit_difference"]
    assert proof["rows"] == "the embedded world"
    refused = run(lora, "--output", tmp_path / "merged", "--quiet")
    assert refused.exit_code == 2 and "exists already" in refused.output


def test_the_command_refuses_a_spoiled_merge_in_a_fresh_process(lora, tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "PROMPTS", 2)
    monkeypatch.setattr(parity, "NEW_TOKENS", 3)
    spoil(monkeypatch, a_layer_is_forgotten)
    done = run(lora, "--output", tmp_path / "merged", "--dtype", "float32", "--quiet")
    assert done.exit_code == 5 and "the merge is not proven" in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_fresh_process_that_dies_is_told(lora, rows, tmp_path):
    (tmp_path / "merged").mkdir()
    with pytest.raises(MachineError, match="ended with code"):
        parity.measure(lora, tmp_path / "merged", "float32", rows()[:1], threads=1)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--dtype", "int8"), "no type 'int8'"),
        (("--weights", "1,2"), "--combine"),
        (("--method", "cat"), "--method: only about several"),
        (("--density", "0.5"), "--density: only about several"),
        (("--rank", "4", "--seed", "0"), "--rank, --seed: only about several"),
        (("--combine", "x", "--weights", "1,a"), "no list of numbers"),
    ],
)
def test_wrong_options(words, what, lora):
    done = run(lora, *words)
    assert done.exit_code == 2 and what in done.output


def test_the_table_has_the_figures():
    from rich.console import Console

    from tunekit.cli.merge import table

    part = {"largest_logit_difference": 0.5, "largest_logit": 9.0, "mean_kl": 0.25, "top1_agreement": 0.75}
    proof = {
        "prompts": 3, "positions": 1234, "dtype": "bfloat16", "merged": part | {"mean_kl": 0.001}, "effect": part,
        "limits": {"mean_kl": 0.002, "top1_agreement": 0.98}, "same_texts": 2,
        "perplexity": {"base": 9.0, "adapter": 3.0, "merged": 3.25, "as_trained": 3.5}, "as_trained": part,
    }  # fmt: skip
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(table(proof))
    text = console.export_text()
    for figure in ("1,234", "0.25", "≤ 0.002", "≥ 98.0 %", "3.25", "2 of 3", "as trained"):
        assert figure in text, figure


def test_the_runs_own_rows_are_found_while_they_are_kept(tmp_path):
    from tunekit.cli.merge import _held_out
    from tunekit.core.progress import Silent
    from tunekit.plan.hardware import probe
    from tunekit.plan.resolve import resolve
    from tunekit.recipe.document import override, parse
    from tunekit.recipe.load import check
    from tunekit.train.inputs import Inputs

    lines = [json.dumps({"prompt": f"say {n}", "completion": f"{n}"}) for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    given = [f"data.train={json.dumps([{'path': str(tmp_path / 'rows.jsonl')}])}", "data.eval={count: 4}"]
    run = tmp_path / "run"
    given += ["data.cache=false", f"output.dir={json.dumps(str(run))}", "data.max_length=64"]
    plan = resolve(check(override(parse("method: sft\n", "r.yaml"), given)), tmp_path / "r.yaml", probe())
    run.mkdir(exist_ok=True)
    plan.save(run / "plan.json")
    assert _held_out(run) == ()
    Inputs(plan.recipe, Path(plan.recipe_folder)).prepare(Silent(), run / "data")
    found = parity.fitted(_held_out(run), 64)
    assert len(found) == 4
    assert all(row.prompt_ids and any(row.trained) for row in found)
    (tmp_path / "rows.jsonl").unlink()
    assert _held_out(run) == ()


def test_rows_are_cut_to_the_models_positions(rows):
    short = parity.fitted(rows(), 80)
    assert all(len(row.input_ids) <= 80 and 0 < len(row.prompt_ids) <= 16 for row in short)
