"""quantize where something goes wrong in the middle: a full disk, spoiled weights, recipes with mistakes; nothing but
what is sound is left, and every refusal says what it is."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tunekit.cli.app import app
from tunekit.compress import fresh, making
from tunekit.model.artefact import verify

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
from forked_for_tests import small_disk

sys.path.pop(0)
SMALL = ["proof.answers=1", "proof.new_tokens=4"]
LAYER = "model.layers.1.mlp.up_proj.weight"


def run(*words, rows=4):
    more = (f"--set={value}" for value in (*SMALL, f"proof.rows={rows}"))
    return CliRunner().invoke(app, ["quantize", *map(str, words), *more])


def told(done):
    return " ".join(done.output.split())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def changed(folder, change):
    """Another content of its weights."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture
def after_making(monkeypatch):
    """Does something with what the backend wrote, before it is proven."""

    def apply(spoil, kind=""):
        work = making.work

        def wrong(job):
            answer = work(job)
            if kind in ("", job["kind"]):
                spoil(Path(job["target"]))
            return answer

        monkeypatch.setattr(making, "work", wrong)

    return apply


@pytest.fixture
def made_apart(monkeypatch, here):
    """What is made is made in a real process of its own, what is measured here."""
    together, apart = fresh.run, fresh_run

    def either(module, job, doing):
        return (apart if module.endswith("making") else together)(module, job, doing)

    monkeypatch.setattr(fresh, "run", either)


fresh_run = fresh.run


# ---- the disk


@pytest.mark.slow
def test_a_file_that_cannot_be_written_to_its_end(model, tmp_path, made_apart):
    """The limit of file sizes cuts the weights in the middle, as a full disk does."""
    size = (model / "model.safetensors").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
    try:
        done = run(model, "--to", "bfloat16", "--output", tmp_path / "small")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.exit_code == 4, done.output
    assert "File too large" in told(done) or "I/O error" in told(done)
    assert names(tmp_path) == ["model"]


@pytest.mark.slow
def test_a_disk_that_is_full(model, tmp_path, made_apart):
    """Of two kinds the first one has room, and stays."""
    with small_disk(tmp_path / "disk", "size=8m") as disk:
        done = run(model, "--to", "bfloat16,float32", "--output", disk / "small")
        assert done.exit_code == 4 and "No space left" in told(done), done.output
        assert names(disk / "small") == ["bfloat16", "report.html"] and names(disk) == ["small"]
        verify(disk / "small" / "bfloat16")


def test_a_disk_that_is_full_when_the_rest_is_written(model, tmp_path, here, monkeypatch):
    """The weights have found room, the record does not."""
    from tunekit.compress import quantize

    def full(path, value):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(quantize, "write_json", full)
    done = run(model, "--to", "bfloat16", "--output", tmp_path / "small")
    assert done.exit_code == 4 and "No space left" in told(done), done.output
    assert names(tmp_path) == ["model"]


# ---- what was made


def a_row_of_noise(tensors):
    tensors[LAYER] = torch.randn_like(tensors[LAYER].float()).to(tensors[LAYER].dtype) * 20


def an_infinity(tensors):
    tensors["model.embed_tokens.weight"][7, 3] = float("inf")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(a_row_of_noise, "perplexity rises by"), (an_infinity, "not finite")],
)
def test_a_tensor_that_is_spoiled_between_making_and_proving(spoil, said, model, tmp_path, here, after_making):
    after_making(lambda folder: changed(folder, spoil))
    done = run(model, "--to", "bfloat16", "--max-ppl-increase", "2%", "--output", tmp_path / "small")
    assert done.exit_code == 5 and said in told(done), done.output
    assert "the smaller model is not proven" in told(done)
    assert names(tmp_path) == ["model"]


def test_a_tensor_that_is_lost_is_named(model, tmp_path, here, after_making):
    after_making(lambda folder: changed(folder, lambda tensors: tensors.pop(LAYER)))
    done = run(model, "--to", "bfloat16", "--output", tmp_path / "small")
    assert done.exit_code == 4 and f"the weights lack the tensor '{LAYER}'" in told(done), done.output
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.input_layernorm.weight"])
def test_a_small_tensor_that_is_lost_is_noticed(name, model, tmp_path, here, after_making):
    """Too small for the arithmetic of sizes; the library that loads it makes one of its own in its place."""
    after_making(lambda folder: changed(folder, lambda tensors: tensors.pop(name)))
    done = run(model, "--to", "bfloat16", "--output", tmp_path / "small")
    assert done.exit_code in (4, 5) and name in told(done), done.output
    assert names(tmp_path) == ["model"]


def cut_off(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def gone(folder):
    (folder / "model.safetensors").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [cut_off, gone])
def test_a_file_that_is_spoiled_between_making_and_proving(spoil, model, tmp_path, here, after_making, monkeypatch):
    """The process that reads it back says so in words."""
    after_making(spoil)
    together, calls = fresh.run, []

    def either(module, job, doing):
        calls.append(module)
        return (fresh_run if calls.count(module) == 2 else together)(module, job, doing)

    monkeypatch.setattr(fresh, "run", either)
    done = run(model, "--to", "bfloat16", "--output", tmp_path / "small")
    assert done.exit_code in (2, 4) and "a bug" not in told(done), done.output
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("kind", ["float16"])
def test_a_layer_that_overflows(kind, model, tmp_path, here):
    """1e30 is a number in bfloat16, and none in float16."""
    changed(model, lambda tensors: tensors[LAYER].__setitem__((3, 4), 1e30))
    done = run(model, "--to", f"{kind},bfloat16", "--output", tmp_path / "small")
    assert done.exit_code == 5 and "its logits are not finite" in told(done), done.output
    assert "skip the layers that overflow" in told(done)
    assert names(tmp_path / "small") == ["bfloat16", "report.html"]


def test_of_two_kinds_one_is_refused_and_the_other_stays(model, tmp_path, here, after_making):
    after_making(lambda folder: changed(folder, a_row_of_noise), kind="float16")
    done = run(model, "--to", "float16,bfloat16", "--max-ppl-increase", "2%", "-o", tmp_path / "small", "--json")
    assert done.exit_code == 5, done.output
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    kinds = {one["kind"]: one for event in events if event["event"] == "done" for one in event["kinds"]}
    assert kinds["float16"]["record"] is None and "perplexity rises by" in kinds["float16"]["refused"]
    assert kinds["float16"]["folder"] is None and kinds["bfloat16"]["folder"] == str(tmp_path / "small" / "bfloat16")
    assert not any(event["event"] == "warning" for event in events), events
    assert kinds["bfloat16"]["refused"] is None and kinds["bfloat16"]["record"]["mean_kl"] < 1e-3
    assert names(tmp_path / "small") == ["bfloat16", "report.html"]
    verify(tmp_path / "small" / "bfloat16")
    assert "float16 was refused" in (tmp_path / "small" / "report.html").read_text().replace("</b>", "")


def test_where_every_kind_is_refused_no_folder_is_left(model, tmp_path, here, after_making):
    after_making(lambda folder: changed(folder, a_row_of_noise))
    done = run(model, "--to", "float16,bfloat16", "--max-ppl-increase", "2%", "--output", tmp_path / "small")
    assert done.exit_code == 5, done.output
    assert names(tmp_path) == ["model"]


def test_a_refusal_is_told_in_the_table_and_at_the_end(model, tmp_path, here, after_making):
    after_making(lambda folder: changed(folder, a_row_of_noise), kind="float16")
    done = run(model, "--to", "float16,bfloat16", "--max-ppl-increase", "2%", "--output", tmp_path / "small")
    assert done.exit_code == 5 and told(done).count("at most 2.0% is allowed") == 2, done.output


@pytest.mark.parametrize(("to", "said"), [("", "'' names no kind"), (" , ", "names no kind"), ("nf44", "'nf44'")])
def test_kinds_that_are_none_are_told_by_their_option(to, said, tmp_path):
    done = run("builtin:tiny", "--to", to, "--output", tmp_path / "small")
    assert done.exit_code == 2 and said in told(done) and "at: --to" in told(done), done.output


def test_the_share_that_is_allowed(model, tmp_path, here, after_making):
    """Refused just below what it costs, made just above."""
    after_making(lambda folder: changed(folder, lambda tensors: tensors["model.norm.weight"].mul_(2)))
    words = ("--to", "bfloat16", "--output")
    assert run(model, *words, tmp_path / "any").exit_code == 0
    cost = json.loads((tmp_path / "any" / "quantize.json").read_text())["increase"][0]
    print(f"measured: doubling the last norm raises perplexity by {cost:.1%}")
    assert cost > 0.01
    done = run(model, *words, tmp_path / "dear", "--max-ppl-increase", f"{98 * cost}%")
    assert done.exit_code == 5 and f"at most {0.98 * cost:.1%} is allowed" in told(done), done.output
    assert "--max-ppl-increase" in told(done) and "take a kind of more bits" in told(done)
    assert names(tmp_path) == ["any", "model"]
    done = run(model, *words, tmp_path / "cheap", "--max-ppl-increase", f"{102 * cost}%")
    assert done.exit_code == 0, done.output
    assert names(tmp_path) == ["any", "cheap", "model"]


def test_a_target_that_appears_in_the_meantime_is_not_written_over(model, tmp_path, here, after_making):
    def somebody(folder):
        (tmp_path / "small").mkdir()
        (tmp_path / "small" / "mine").write_text("mine")

    after_making(somebody)
    done = run(model, "--to", "bfloat16", "--output", tmp_path / "small")
    assert done.exit_code == 4, done.output
    assert names(tmp_path) == ["model", "small"] and names(tmp_path / "small") == ["mine"]


def test_what_a_killed_run_of_several_kinds_left_is_in_nobodys_way(model, tmp_path, here):
    (tmp_path / "small" / ".bfloat16.staging-12345678").mkdir(parents=True)
    done = run(model, "--to", "bfloat16,float16", "--output", tmp_path / "small")
    assert done.exit_code == 0, done.output
    assert names(tmp_path / "small") == ["bfloat16", "float16", "report.html"]


# ---- quantize.yaml


def recipe(tmp_path, text):
    path = tmp_path / "quantize.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("model: builtin:tiny\nproof:\n  rowss: 4\nto: [bfloat16]\n", [("3:3", "did you mean 'rows'?")]),
        ("model: builtin:tiny\nto: [bfloat16]\nsede: 1\n", [("3:1", "did you mean 'seed'?")]),
        ("model: builtin:tiny\nto:\n  - nf44\n  - bfloat16\n", [("3:5", "did you mean 'nf4'?")]),
        ("model: builtin:tiny\nto:\n  - kind: in8\n    skip: [lm_head]\n", [("3:11", "did you mean 'int8'?")]),
        ("model: builtin:tiny\nto:\n  - kind: bfloat16\n    double_quant: true\n", [("4:5", "double_quant")]),
        ("model: builtin:tiny\nto:\n  - kind: nf4\n    shard_size: 1GB\n", [("4:5", "shard_size")]),
        ("model: builtin:tiny\nto:\n  - kind: bfloat16\n    shard_size: big\n", [("4:17", "shard_size")]),
        ("model: builtin:tiny\nto: []\n", [("2:", "to")]),
        ("model: builtin:tiny\n", [("", "to")]),
        ("model: builtin:tiny\nto: [bfloat16, bfloat16]\n", [("2:", "'bfloat16' is asked for twice")]),
        (
            "model: builtin:tiny\nseeed: 1\nto: [bfloat16]\nproof:\n  max_ppl_increase: lots\n  answerss: 2\n",
            [("2:1", "did you mean 'seed'?"), ("5:21", "max_ppl_increase"), ("6:3", "did you mean 'answers'?")],
        ),
    ],
)
def test_mistakes_in_a_recipe_are_told_with_their_places(text, places, tmp_path):
    done = CliRunner().invoke(app, ["quantize", str(recipe(tmp_path, text)), "-o", str(tmp_path / "small")])
    assert done.exit_code == 2, done.output
    for place, said in places:
        shown = done.output.replace("\n", "")
        assert f"quantize.yaml:{place}" in shown.replace(" ", "") or not place, done.output
        assert said in told(done), done.output
    assert names(tmp_path) == ["quantize.yaml"]


def test_a_recipe_says_it_all(model, tmp_path, here, monkeypatch):
    """Its paths start where it lies; options and overrides of the command go before."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"The dog runs {n}."}) + "\n" for n in range(6)))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    path = recipe(tmp_path, f"""\
model: {json.dumps(str(model))}
to:
  - kind: bfloat16
    shard_size: 1MB
  - float16
proof:
  data: [{{path: rows.jsonl}}]
  rows: 50
output: {{dir: {json.dumps(str(tmp_path / "small"))}}}
""")
    done = run(path, "--set", "seed=3", "--quiet")
    assert done.exit_code == 0, done.output
    assert names(tmp_path / "small") == ["bfloat16", "float16", "report.html"]
    assert len(list((tmp_path / "small" / "bfloat16").glob("*.safetensors"))) > 2
    record = json.loads((tmp_path / "small" / "float16" / "quantize.json").read_text())
    assert record["rows"] == "rows.jsonl" and record["rows_measured"] == 4  # of six, evenly drawn


@pytest.mark.parametrize("text", ["5", "1", "-1%", "nan"])
def test_a_share_of_one_or_more_has_its_sign(text, model, tmp_path):
    """``5`` would allow five hundred per cent."""
    done = run(model, "--to", "bfloat16", "--output", tmp_path / "small", "--max-ppl-increase", text)
    assert done.exit_code == 2 and "such as 2% or 0.02" in told(done), done.output


@pytest.mark.parametrize(
    ("model", "wanted"), [("runs/x/", "runs/x-small"), ("builtin:tiny", "tiny-small"), (".", "w-small")]
)
def test_an_artefact_lies_beside_its_model(model, wanted, tmp_path, monkeypatch):
    from tunekit.cli.smaller import named_after

    (tmp_path / "w" / "runs" / "x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "w")
    found = named_after(model, "small")
    assert found == (tmp_path / wanted if model == "." else Path(wanted))


def test_text_that_nobody_would_look_at_is_refused(model, tmp_path):
    done = run(model, "--to", "bfloat16,float16", "--calib", "rows.jsonl", "--output", tmp_path / "small")
    assert done.exit_code == 2 and "no text is looked at for bfloat16, float16" in told(done), done.output
