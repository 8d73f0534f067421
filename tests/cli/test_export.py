"""export from the command to the folder: what is written, that it is the same model, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from tunekit.cli.app import app
from tunekit.model.names import TINY

QUICK = ("--max-ppl-increase", "5%")


def run(*words):
    return CliRunner().invoke(app, ["export", *map(str, words)])


def told(done):
    return " ".join(done.output.split())


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """The steps are done in this process, on few rows; the working folder is an empty one."""
    import importlib

    import torch

    from tunekit.compress import fresh, proof

    def work(module, job, doing):
        return importlib.import_module(module).work(json.loads(json.dumps(dict(job)))) | {"peak_memory": 1 << 20}

    fitted = proof.fitted
    monkeypatch.setattr(fresh, "run", work)
    monkeypatch.setattr(proof, "fitted", lambda rows, positions, most, new: fitted(rows[:4], positions, 4, 4))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def answers(monkeypatch):
    """Of no prompt: what is compared is the logits."""
    from tunekit.compress import measuring

    nothing = {"answers": [], "texts": [], "answer_speed": 0.0}
    monkeypatch.setattr(measuring, "_spoken", lambda reading, rows, new: nothing)


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "my model"
    shutil.copytree(TINY, folder)
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def logits(folder, **options):
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.arange(5, 60)[None]
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, **options).eval()(ids).logits


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_safetensors_of_a_type_in_files_of_a_size(dtype, model, tmp_path, answers):
    """The logits are those of the source's own weights, cast by torch; every file is as small as was asked for."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = run(model, "--to", "safetensors", "--dtype", dtype, "--shard-size", "1MB")
    assert done.exit_code == 0, done.output
    out = tmp_path / "my model-safetensors"
    shards = sorted(out.glob("*.safetensors"))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(shards) > 2 and not (out / "model.safetensors").exists()
    found = {}
    for path in shards:
        tensors = load_file(path)
        taken = sum(value.numel() * value.element_size() for value in tensors.values())
        assert taken <= 1_000_000 or len(tensors) == 1, "a tensor is never cut"
        assert {index["weight_map"][name] for name in tensors} == {path.name}
        found |= tensors
    assert index["weight_map"].keys() == found.keys()
    assert index["metadata"]["total_size"] == sum(value.numel() * value.element_size() for value in found.values())
    assert {value.dtype for value in found.values()} == {getattr(torch, dtype)}
    cast = AutoModelForCausalLM.from_pretrained(model).to(getattr(torch, dtype)).state_dict()
    assert all(torch.equal(value, cast[name]) for name, value in found.items())
    assert torch.equal(logits(out, dtype="auto"), logits(model, dtype=getattr(torch, dtype)))
    text = (model / "chat_template.jinja").read_text(encoding="utf-8")
    assert AutoTokenizer.from_pretrained(out).chat_template == text
    assert json.loads((out / "quantize.json").read_text())["kind"] == dtype
    assert "AutoModelForCausalLM.from_pretrained('" in told(done)


def test_the_type_is_bfloat16_where_none_is_named(tmp_path, answers):
    import torch

    from tunekit.model.artefact import verify

    done = run("builtin:tiny", "--quiet")
    assert done.exit_code == 0 and done.output == "", done.output
    out = tmp_path / "work" / "tiny-safetensors"
    assert names(tmp_path / "work") == ["tiny-safetensors"]
    assert torch.equal(logits(out, dtype="auto"), logits(TINY, dtype=torch.bfloat16))
    assert verify(out)["quantized"] == "bfloat16"


def test_a_folder_for_vllm(model, tmp_path, answers):
    done = run(model, "--to", "vllm", "-o", tmp_path / "served", "--json")
    assert done.exit_code == 0, done.output
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "generation_config.json",
            "MANIFEST.json"} <= set(names(tmp_path / "served"))  # fmt: skip
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["folder"] == str(tmp_path / "served") and last["kinds"][0]["refused"] is None
    (model / "generation_config.json").write_text("{}")
    done = run(model, "--to", "vllm", "-o", tmp_path / "endless")
    assert done.exit_code == 2 and "at which token an answer ends" in told(done)
    assert names(tmp_path) == ["my model", "served", "work"]


def test_a_file_for_llama_cpp_and_one_for_ollama(model, tmp_path, answers):
    pytest.importorskip("gguf", reason="writes the file")
    pytest.importorskip("llama_cpp", reason="reads it back")
    done = run(model, "--to", "gguf", "-o", tmp_path / "plain")
    assert done.exit_code == 0, done.output
    assert [path.suffix for path in (tmp_path / "plain").glob("*.gguf")] == [".gguf"]
    assert json.loads((tmp_path / "plain" / "quantize.json").read_text())["kind"] == "f16"
    done = run(model, "--to", "ollama", "-o", tmp_path / "local")
    assert done.exit_code == 0, done.output
    lines = (tmp_path / "local" / "Modelfile").read_text(encoding="utf-8")
    weights = next((tmp_path / "local").glob("*.gguf")).name
    assert lines.startswith(f"FROM ./{weights}\n") and 'PARAMETER stop "<|im_end|>"' in lines
    assert "Modelfile" in json.loads((tmp_path / "local" / "MANIFEST.json").read_text())["files"]


def test_a_template_that_ollama_cannot_say_is_refused_and_leaves_nothing(model, tmp_path, answers):
    pytest.importorskip("gguf", reason="writes the file")
    pytest.importorskip("llama_cpp", reason="reads it back")
    (model / "chat_template.jinja").write_text("{{ messages[-1].content }}", encoding="utf-8")
    done = run(model, "--to", "ollama", "-o", tmp_path / "local")
    assert done.exit_code == 2 and "chat template" in told(done), done.output
    assert names(tmp_path) == ["my model", "work"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--to", "gguuf"), "did you mean 'gguf'?"),
        (("--to", "safetensors", "--dtype", "q8_0"), "one of bfloat16, float16, float32"),
        (("--to", "ollama", "--dtype", "bfloat16"), "'bfloat16' is no type for ollama"),
        (("--to", "safetensors", "--shard-size", "2 G"), "--shard-size must be a whole number of KB, MB or GB"),
        (("--to", "safetensors", "--shard-size", "0GB"), "--shard-size must be"),
        (("--to", "gguf", "--shard-size", "1GB"), "--shard-size is no option here"),
        (("--max-ppl-increase", "much"), "such as 2% or 0.02"),
        (("--data", "nowhere.jsonl"), "nowhere.jsonl"),
    ],
)
def test_what_is_asked_wrongly_is_told(words, said, model, tmp_path):
    done = run(model, *words, "-o", tmp_path / "out")
    assert done.exit_code == 2 and said in told(done), done.output
    assert names(tmp_path) == ["my model", "work"]


def test_a_folder_that_is_there_is_not_written_over(model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    done = run(model, "-o", tmp_path / "out")
    assert done.exit_code == 2 and "exists already" in told(done)
    assert names(tmp_path / "out") == ["mine.txt"]


def test_a_model_in_the_home_folder_gets_its_export_beside_it(model, tmp_path, answers, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    done = run("~/my model/", "--quiet")
    assert done.exit_code == 0, done.output
    assert names(tmp_path) == ["my model", "my model-safetensors", "work"] and names(tmp_path / "work") == []


def test_an_export_that_is_worse_than_allowed_is_refused(model, tmp_path, answers, monkeypatch):
    """A weight beyond the range of 16-bit floats becomes infinite."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = 1e30
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    done = run(model, "--dtype", "float16", "-o", tmp_path / "out")
    assert done.exit_code == 5 and "not finite" in told(done), done.output
    assert names(tmp_path) == ["my model", "work"]
