"""quantize from the command to the folder: what is made, what is refused, and that nothing is left of that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tunekit.cli.app import app
from tunekit.compress import making
from tunekit.core.errors import MachineError
from tunekit.model.artefact import verify

pytest.importorskip("bitsandbytes", reason="the backend that is always tested")
SMALL = ["proof.rows=4", "proof.answers=1", "proof.new_tokens=4"]


def run(*words):
    given = [str(word) for word in words]
    return CliRunner().invoke(app, ["quantize", *given, *(f"--set={value}" for value in SMALL)])


def spoiled(monkeypatch, spoil):
    """The backend's work, and then a change to what it wrote."""
    work = making.work

    def wrong(job):
        answer = work(job)
        spoil(Path(job["target"]))
        return answer

    monkeypatch.setattr(making, "work", wrong)


def test_a_model_becomes_a_quarter_and_says_what_that_cost(model, tmp_path, here):
    done = run(model, "--to", "nf4", "--output", tmp_path / "small")
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "small" / "quantize.json").read_text())
    assert record["kind"] == "nf4" and record["calibration"] is None and record["rows"] == "the embedded world"
    tensors = load_file(tmp_path / "small" / "model.safetensors").values()
    assert record["size"] == sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert record["size"] < 0.5 * record["source_size"]
    assert 0 < record["mean_kl"] < 0.2 and 0.8 < record["top1_agreement"] < 1
    low, high = record["increase"][1:]
    assert low <= record["increase"][0] <= high
    page = (tmp_path / "small" / "report.html").read_text()
    assert "nf4" in page and "http" not in page.split("</head>")[1]
    assert str(tmp_path) not in json.dumps(record)  # no path of this machine
    manifest = verify(tmp_path / "small")
    assert manifest is not None and "report.html" in manifest["files"]  # it was there before the folder had its name


def test_the_figures_are_those_of_plain_torch(model, tmp_path, here):
    """Perplexity, divergence and agreement again, by transformers and torch alone."""
    from torch.nn.functional import cross_entropy, kl_div, log_softmax
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = tmp_path / "rows.jsonl"
    texts = ["The dog of Anna sleeps here.", "Two and three make five.", "Where does the cat live?", "Red is a colour."]
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    done = run(model, "--to", "int8", "--data", rows, "--output", tmp_path / "small")
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "small" / "quantize.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(model)
    losses, count, divergence, same = [0.0, 0.0], 0, 0.0, 0
    both = [AutoModelForCausalLM.from_pretrained(place, dtype="auto").eval() for place in (model, tmp_path / "small")]
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        if tokenizer.eos_token_id is not None and int(ids[0, -1]) != tokenizer.eos_token_id:
            ids = torch.cat([ids, torch.tensor([[tokenizer.eos_token_id]])], 1)
        with torch.no_grad():
            logits = [one(ids).logits[0, :-1].double() for one in both]
        for at, found in enumerate(logits):
            losses[at] += float(cross_entropy(found, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
        before, after = (log_softmax(one, -1) for one in logits)
        divergence += float(kl_div(after, before, log_target=True, reduction="sum"))
        same += int((logits[0].argmax(-1) == logits[1].argmax(-1)).sum())
    assert record["positions"] == count
    for at, key in enumerate(("source_perplexity", "perplexity")):
        assert record[key][0] == pytest.approx(torch.tensor(losses[at] / count).exp().item(), rel=1e-4)
    assert record["mean_kl"] == pytest.approx(divergence / count, rel=1e-3)
    assert record["top1_agreement"] == pytest.approx(same / count)


def test_worse_than_allowed_is_refused_and_leaves_nothing(model, tmp_path, here, monkeypatch):
    def dull(folder):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        save_file(tensors | {"model.norm.weight": tensors["model.norm.weight"] * 0.0}, path, {"format": "pt"})

    spoiled(monkeypatch, dull)
    done = run(model, "--to", "int8", "--max-ppl-increase", "2%", "--output", tmp_path / "small")
    assert done.exit_code == 5 and "perplexity rises by" in done.output and "--max-ppl-increase" in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    done = run(model, "--to", "int8", "--output", tmp_path / "small")
    assert done.exit_code == 0


def test_of_several_kinds_the_sound_ones_stay(model, tmp_path, here, monkeypatch):
    def lose(folder):
        if "nf4" in folder.name:
            raise MachineError("OSError: no room")

    spoiled(monkeypatch, lose)
    done = run(model, "--to", "nf4,int8", "--output", tmp_path / "small")
    assert done.exit_code == 4 and "refused" in done.output
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == ["int8", "report.html"]


def numbers_are_lost(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, path, {"format": "pt"})


def the_template_is_lost(folder):
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "chat_template"}))


def a_stop_is_lost(folder):
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 5}))


def a_layer_is_forgotten(folder):
    path = folder / "model.safetensors"
    save_file(load_file(path) | {"more": torch.zeros(200_000)}, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "kind", "told"),
    [
        (numbers_are_lost, "int8", "not finite"),
        (a_layer_is_forgotten, "int8", "the bits of their weights come to"),
    ],
)
def test_what_is_wrong_with_an_artefact_is_named(model, tmp_path, here, monkeypatch, spoil, kind, told):
    spoiled(monkeypatch, spoil)
    done = run(model, "--to", kind, "--output", tmp_path / "small")
    assert done.exit_code == 5 and told in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize(
    ("spoil", "told"), [(the_template_is_lost, "chat template"), (a_stop_is_lost, "does not stop at")]
)
def test_what_is_wrong_beside_the_weights_is_named(model, tmp_path, here, monkeypatch, spoil, told):
    from tunekit.compress.source import Source

    copy = Source.copy_papers

    def wrong(self, folder):
        copy(self, folder)
        spoil(folder)

    monkeypatch.setattr(Source, "copy_papers", wrong)
    done = run(model, "--to", "int8", "--output", tmp_path / "small")
    assert done.exit_code == 5 and told in done.output, done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_source_with_numbers_that_are_not_finite_is_refused(model, tmp_path, here):
    numbers_are_lost(model)
    done = run(model, "--to", "nf4", "--output", tmp_path / "small")
    assert done.exit_code == 4
    assert "'model.norm.weight' has 1 numbers that are not finite" in " ".join(done.output.split())


def test_quantized_weights_are_not_quantized_again(model, tmp_path, here):
    assert run(model, "--to", "int8", "--output", tmp_path / "small").exit_code == 0
    again = run(tmp_path / "small", "--to", "nf4", "--output", tmp_path / "smaller")
    assert again.exit_code == 2 and "quantized already" in again.output


def test_a_full_disk_leaves_nothing(model, tmp_path, here, monkeypatch):
    def full(job):
        (Path(job["target"]) / "model.safetensors").write_bytes(b"half")
        raise MachineError("OSError: [Errno 28] No space left on device")

    monkeypatch.setattr(making, "work", full)
    done = run(model, "--to", "nf4", "--output", tmp_path / "small")
    assert done.exit_code == 4 and "No space left" in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--to", "nf5"), "did you mean 'nf4'?"),
        (("--to", "nf4,nf4"), "asked for twice"),
        ((), "--to nf4"),
        (("--to", "nf4", "--max-ppl-increase", "much"), "such as 2% or 0.02"),
        (("--to", "nf4", "--set", "to.0.skip=['no_such']"), "no linear layer is called 'no_such'"),
        (("--to", "nf4", "--set", "to.0.bits=3"), "unknown key"),
    ],
)
def test_what_is_asked_wrongly_is_told(model, tmp_path, words, told):
    done = run(model, *words, "--output", tmp_path / "small")
    assert done.exit_code == 2 and told in " ".join(done.output.split()), done.output
    assert not (tmp_path / "small").exists()


def test_a_folder_that_is_there_is_not_written_over(model, tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "mine.txt").write_text("mine")
    done = run(model, "--to", "nf4", "--output", tmp_path / "small")
    assert done.exit_code == 2 and "exists already" in done.output and (tmp_path / "small" / "mine.txt").exists()


def test_the_kinds_are_listed_with_what_they_need():
    done = CliRunner().invoke(app, ["quantize", "--list"])
    assert done.exit_code == 0 and "nf4" in done.output and "looks at text" in done.output


def test_the_sources_size_is_that_of_what_is_loaded(model, tmp_path, here):
    """Tables of older versions lie in the file, and no model loads them."""
    from tunekit.compress.sizes import stored

    path = model / "model.safetensors"
    whole = stored(model)
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(50_000)}
    save_file(load_file(path) | table, path, {"format": "pt"})
    assert stored(model) == whole + 200_000, "the fault that is guarded against"
    done = run(model, "--to", "bfloat16", "--output", tmp_path / "small")
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "small" / "quantize.json").read_text())["source_size"] == whole
