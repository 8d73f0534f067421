"""`python -m tunekit quantize` as users start it: real fresh processes make the artefact and measure it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tunekit.model.artefact import verify

SMALL = ("proof.rows=2", "proof.answers=1", "proof.new_tokens=2")


def made(kind, tmp_path):
    """The record of what the program made; it says nothing but JSON, and leaves nothing else."""
    command = [sys.executable, "-m", "tunekit", "quantize", "builtin:tiny", "--to", kind, "--json"]
    command += ["--output", str(tmp_path / "small"), *(f"--set={value}" for value in SMALL)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr + done.stdout
    (told,) = [event for line in done.stdout.splitlines() if (event := json.loads(line))["event"] == "done"]
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    assert "report.html" in verify(tmp_path / "small")["files"]
    record = json.loads((tmp_path / "small" / "quantize.json").read_text())
    assert told["kinds"][0]["record"]["size"] == record["size"] < record["source_size"]
    assert 0 < record["mean_kl"] < 1 and record["making_memory"] > 1 << 20
    return record


@pytest.mark.slow
def test_nf4(tmp_path):
    pytest.importorskip("bitsandbytes", reason="the backend that is always tested")
    record = made("nf4", tmp_path)
    assert record["size"] < 0.5 * record["source_size"]


@pytest.mark.slow
def test_gguf(tmp_path):
    pytest.importorskip("gguf", reason="writes the file")
    pytest.importorskip("llama_cpp", reason="reads it back")
    made("q4_0", tmp_path)
    assert len(list((tmp_path / "small").glob("*.gguf"))) == 1
