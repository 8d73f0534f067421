"""A base on the Hub that this machine has never seen: a server in this process stands for the Hub, over real HTTP."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from tunekit.compress.dtypes import base_dtype
from tunekit.compress.merge import Request, merge
from tunekit.core.errors import MachineError, UserError
from tunekit.core.front_matter import front_matter
from tunekit.core.progress import Silent
from tunekit.model.artefact import base_facts, base_fingerprint, base_folder, check_base
from tunekit.model.names import resolve_name
from tunekit.model.restore import find, load_tokenizer, restore
from tunekit.recipe.schema import ModelBlock

NAME = "org/base"
COMMITS = {"main": "a" * 40, "v1": "b" * 40}


class Hub(BaseHTTPRequestHandler):
    """Files of one repository, a folder for each revision; ``papers_fail`` refuses card and licence."""

    root: Path
    papers_fail = False
    asked: ClassVar[list[str]] = []

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET(head=True)

    def do_GET(self, *, head=False):
        Hub.asked.append(self.path)
        _, _, place = self.path.partition(f"/{NAME}/resolve/")
        revision, _, file = place.partition("/")
        name = {commit: name for name, commit in COMMITS.items()}.get(revision, revision)
        path = self.root / name / file
        if not path.is_file():
            self.answer(404, b"", head, {"X-Error-Code": "EntryNotFound"}, name)
            return
        if Hub.papers_fail and file.startswith(("README", "LICENSE")):
            self.answer(403, b"", head, {}, name)
            return
        content = path.read_bytes()
        self.answer(200, content, head, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'}, name)

    def answer(self, code, content, head, headers, revision):
        self.send_response(code)
        headers |= {"Content-Length": str(len(content)), "X-Repo-Commit": COMMITS.get(revision, "0" * 40)}
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if not head:
            self.wfile.write(content)


@pytest.fixture(scope="module")
def url():
    """Of one server for all tests: the Hub's client keeps the first address that it was given."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(tmp_path, monkeypatch, base_of, url):
    """A Hub with one bfloat16 base, and an empty cache; returns the folder of the repository's main revision."""
    from huggingface_hub import constants, hf_api

    remote = tmp_path / "remote"
    shutil.copytree(base_of(dtype="bfloat16", seed=4), remote / "main")
    head = "---\nlicense: [mit, apache-2.0]  # either\nlicense_link: LICENSE.txt\n---\n"
    (remote / "main" / "README.md").write_text(head, encoding="utf-8")
    (remote / "main" / "LICENSE.txt").write_text("the licence", encoding="utf-8")
    monkeypatch.setattr(Hub, "root", remote, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(hf_api.api, "endpoint", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return remote / "main"


def shard(folder):
    """Cuts a folder's weights in two files with an index, and puts another file of weights beside them."""
    from safetensors.torch import load_file, save_file

    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(whole)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({key: whole[key] for key in keys}, folder / file, metadata={"format": "pt"})
    places = {key: file for file, keys in parts.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    save_file({"other": whole[names[0]]}, folder / "consolidated.safetensors")


def facts():
    return base_facts(ModelBlock(name=NAME), seed=0, dtype="float32")


@pytest.mark.parametrize("shards", [False, True])
def test_the_first_run_of_a_hub_base_hashes_its_weights_not_nothing(shards, hub):
    if shards:
        shard(hub)
    found = facts()
    assert found["weights"] != hashlib.sha256(b"").hexdigest(), "the hash of nothing"
    assert found["weights"] == base_fingerprint(hub)
    assert found["commit"] == COMMITS["main"]
    assert found["licence"] == {"license": ["mit", "apache-2.0"]}
    there = {path.name for path in base_folder(resolve_name(NAME), None).iterdir()}
    assert "LICENSE.txt" in there and "consolidated.safetensors" not in there
    Hub.asked.clear()
    assert facts() == found
    assert not [path for path in Hub.asked if "LICENSE" in path or "safetensors" in path], "what is known is not asked"


def test_a_correct_adapter_is_merged_where_its_base_was_never_loaded(
    hub, base_of, adapter_of, rows, here, tmp_path, tokenizer
):
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    known = facts()
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    folder, _ = adapter_of(base_of(dtype="bfloat16", seed=4), config, move=0.3, facts={"base": known})
    shutil.rmtree(tmp_path / "cache")
    assert base_dtype(find(folder)) == "bfloat16", "not what comes of no files"
    shutil.rmtree(tmp_path / "cache")
    check_base(known, ModelBlock(name=NAME))
    shutil.rmtree(tmp_path / "cache")
    merge(Request(folder, tmp_path / "merged", rows=rows), Silent())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").dtype == torch.bfloat16
    assert (tmp_path / "merged" / "LICENSE.txt").read_text(encoding="utf-8") == "the licence"
    head = front_matter(tmp_path / "merged" / "README.md")
    assert head == {"license": ["mit", "apache-2.0"], "license_link": "LICENSE.txt", "base_model": NAME}


def test_a_licence_that_cannot_be_had_stops_nothing(hub, monkeypatch):
    monkeypatch.setattr(Hub, "papers_fail", True)
    found = facts()
    assert found["weights"] == base_fingerprint(hub) and found["licence"] == {}


def test_weights_that_the_hub_does_not_have_are_told(hub):
    (hub / "model.safetensors").unlink()
    with pytest.raises(MachineError, match=r"model\.safetensors"):
        facts()


def test_another_base_under_the_same_name_is_refused(hub, base_of, tmp_path):
    known = facts()
    shutil.copyfile(base_of(dtype="bfloat16", seed=6) / "model.safetensors", hub / "model.safetensors")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UserError, match="is not the one"):
        check_base(known, ModelBlock(name=NAME))


@pytest.mark.slow
def test_the_bases_tokenizer_is_that_of_the_adapters_revision(hub, base_of, adapter_of, tokenizer):
    """An adapter's folder without a tokenizer; main has one token more since."""
    from peft import LoraConfig
    from transformers import AutoTokenizer

    shutil.copytree(hub, hub.with_name("v1"))
    larger = AutoTokenizer.from_pretrained(hub)
    larger.add_tokens(["<|more|>"])
    larger.save_pretrained(hub)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])
    folder, _ = adapter_of(base_of(dtype="bfloat16", seed=4), config)
    for path in (*folder.glob("tokenizer*"), folder / "MANIFEST.json", folder / "chat_template.jinja"):
        path.unlink(missing_ok=True)
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    settings |= {"base_model_name_or_path": NAME, "revision": "v1"}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert len(load_tokenizer(find(folder))) == len(tokenizer)
    assert len(restore(folder).tokenizer) == len(tokenizer)
