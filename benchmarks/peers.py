"""Makes the environments of the peers that `speed.py` compares with, and runs their commands for the contenders.

    python benchmarks/peers.py install llama_factory|axolotl [--into FOLDER] [--torch 2.13.0+cpu]

Each peer gets a virtual environment of its own, FOLDER/NAME (by default .peers/ in the repository), because both pin
other versions than tunekit's. torch is asked for as an exact CPU build: any other request pulls gigabytes of CUDA.
Where pip does not find that build, give pip PyTorch's own index of CPU builds (PIP_EXTRA_INDEX_URL), or, with a GPU,
another version in --torch. Takes 5 to 15 minutes and 2 to 5 GB. When it does not work, the reason is printed and
left in FOLDER/NAME.failed, and the contender then skips with that reason.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / ".peers"
CPU_TORCH = "2.13.0+cpu"


@dataclass(frozen=True)
class Peer:
    """What is installed: the release, its command, what is left out of its requirements and why, what must import."""

    title: str
    release: str
    command: str
    imports: str
    without: dict[str, str]
    alone: tuple[str, ...] = field(default=())
    """Installed without their requirements, which would pull another torch."""


PEERS = {
    "llama_factory": Peer(
        title="LLaMA-Factory",
        release="llamafactory==0.9.5",
        command="llamafactory-cli",
        imports="llamafactory.train.tuner",
        without={
            "torchvision": "pins the torch of its own release, and its wheel needs CUDA libraries; only for images",
            "torchaudio": "its wheel needs CUDA libraries; installed by itself, see below",
        },
        alone=("torchaudio==2.11.0",),
    ),
    "axolotl": Peer(
        title="Axolotl",
        release="axolotl==0.19.0",
        command="axolotl",
        imports="axolotl.cli.train",
        without={"xformers": "pins another torch and needs CUDA libraries; only for attention on a GPU"},
    ),
}
REQUIREMENTS = """\
import importlib.metadata, sys
from pip._vendor.packaging.requirements import Requirement
for line in importlib.metadata.requires(sys.argv[1]) or []:
    one = Requirement(line)
    if one.marker is None or one.marker.evaluate({"extra": ""}):
        one.marker = None
        print(one)
"""
NAME = re.compile(r"[A-Za-z0-9_.-]+")


class NotInstalled(Exception):
    """An environment could not be made; the text is the reason."""


def said(command: list[str], doing: str) -> str:
    """What a command prints; raises NotInstalled with its last error line."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines or ["no message"]
        raise NotInstalled(f"{doing}: {errors[-1].strip()}"[:400])
    return done.stdout


def without_cuda(place: Path) -> None:
    """Takes the compiled part out of torchaudio where it cannot be loaded.

    The wheel of the package index is built for CUDA. LLaMA-Factory imports torchaudio always and uses it for sound
    only; without its compiled part torchaudio imports as plain Python.
    """
    python = str(place / "bin" / "python")
    if subprocess.run([python, "-c", "import torchaudio"], capture_output=True).returncode == 0:
        return
    where = said([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], "site-packages").strip()
    shutil.rmtree(Path(where) / "torchaudio" / "lib", ignore_errors=True)
    print("  torchaudio: compiled part removed, it needs CUDA", flush=True)


def install(name: str, folder: Path, torch: str) -> None:
    """Makes the environment of a peer; raises NotInstalled."""
    peer, place = PEERS[name], folder / name
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(place, ignore_errors=True)
    said([sys.executable, "-m", "venv", str(place)], "the virtual environment")
    python = str(place / "bin" / "python")
    pinned = folder / f"{name}.constraints.txt"
    pinned.write_text(f"torch=={torch}\n", encoding="utf-8")
    pip = [python, "-m", "pip", "install", "-q", "-c", str(pinned)]
    print(f"{peer.title}: torch {torch}", flush=True)
    said([python, "-m", "pip", "install", "-q", f"torch=={torch}"], f"torch {torch}")
    said([*pip, "--no-deps", peer.release], peer.release)
    listed = said([python, "-c", REQUIREMENTS, peer.release.split("==")[0]], "requirements").splitlines()
    named = {line: (NAME.match(line) or [""])[0].lower() for line in listed}
    for line, package in named.items():
        if package in peer.without:
            print(f"  without {line}: {peer.without[package]}", flush=True)
    wanted = [line for line, package in named.items() if package not in peer.without and package != "torch"]
    print(f"  {len(wanted)} requirements, takes minutes", flush=True)
    said([*pip, *wanted], "requirements")
    for one in peer.alone:
        said([*pip, "--no-deps", one], one)
        without_cuda(place)
    said([python, "-c", f"import {peer.imports}"], f"import {peer.imports}")
    versions = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
    code = "import importlib.metadata as m, sys; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"
    print(f"  {peer.release}: {said([python, '-c', code, *versions], 'versions').strip()}", flush=True)


def command_of(name: str) -> tuple[Path | None, str]:
    """The peer's command, beside this interpreter or in .peers/, or None and why there is none."""
    peer = PEERS[name]
    for folder in (Path(sys.executable).parent, FOLDER / name / "bin"):
        if (folder / peer.command).exists():
            return folder / peer.command, ""
    failed = FOLDER / f"{name}.failed"
    if failed.exists():
        return None, f"{peer.title} could not be installed: {failed.read_text(encoding='utf-8').strip()}"
    return None, f"{peer.title} is not installed: python benchmarks/peers.py install {name}"


def end_of_text(model: Path) -> str:
    """The text of the tokenizer's end-of-text token."""
    named = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))["eos_token"]
    return named if isinstance(named, str) else named["content"]


def rows_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


@dataclass
class Watched:
    """What was read off a trainer's output while it ran: the values of each logged line and when it came."""

    first_step: float | None = None
    """Seconds from the start of the process until the first optimizer step was done."""
    times: list[float] = field(default_factory=list)
    logs: list[dict[str, float]] = field(default_factory=list)
    last: dict[str, float] = field(default_factory=dict)
    error: str = ""


LOGGED = re.compile(r"\{'(?:loss|train_runtime)'.*?\}")
VALUE = re.compile(r"'([^']+)': '?([-+0-9.e]+)'?")


def watch(command: list[str], folder: Path, extra: dict[str, str], age: Callable[[], float]) -> Watched:
    """Runs a trainer of transformers that logs every step; its output goes on to this process's output."""
    seen, tail = Watched(), [""]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "400", **extra}
    environment["PATH"] = f"{Path(command[0]).parent}{os.pathsep}{environment.get('PATH', '')}"
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
    )
    assert process.stdout is not None
    rest = ""
    while chunk := process.stdout.read(65536):
        now, text = age(), chunk.decode("utf-8", errors="replace")
        sys.stdout.write(text)
        *lines, rest = re.split(r"[\r\n]", rest + text)
        for line in lines:
            tail = [*tail[-200:], line]
            if found := LOGGED.search(line):
                values = {key: float(value) for key, value in VALUE.findall(found[0])}
                if "loss" not in values:
                    seen.last = values
                    continue
                seen.first_step = seen.first_step or now
                seen.times.append(now)
                seen.logs.append(values)
    if process.wait() != 0:
        errors = [line.strip() for line in tail if re.match(r"\s*\w*(Error|Exception)\b", line)]
        seen.error = (errors or [line.strip() for line in tail if line.strip()] or ["no message"])[-1][:300]
        seen.error = seen.error if errors else f"exit status {process.returncode}: {seen.error}"
    return seen


CHECK = """\
import json, sys
from datasets import Dataset, concatenate_datasets
from tokenizers import Tokenizer
model, rows, end, *files = sys.argv[1:]
tokenizer = Tokenizer.from_file(model + "/tokenizer.json")
asked, said = [], []
for line in open(rows, encoding="utf-8"):
    row = json.loads(line)
    asked.append(tokenizer.encode(row["prompt"], add_special_tokens=False).ids)
    said.append(tokenizer.encode(row["completion"], add_special_tokens=False).ids + [tokenizer.token_to_id(end)])
wanted = sorted((a + s, [-100] * len(a) + s) for a, s in zip(asked, said))
sets = [one for one in map(Dataset.from_file, files) if {"input_ids", "labels"} <= set(one.column_names)]
seen = [(list(row["input_ids"]), list(row["labels"])) for one in sets for row in one]
labelled = sum(label != -100 for _, labels in seen for label in labels)
print(json.dumps({"rows": len(seen), "labelled": labelled, "same": sorted(seen) == wanted,
                  "tokens": sum(len(ids) for ids, _ in seen)}))
"""


def tokenized(python: Path, job: Any, folder: Path) -> dict[str, Any]:
    """What the peer made of the rows, read from the Arrow files it left: rows, tokens, labelled, same."""
    files = [str(one) for one in sorted(folder.rglob("*.arrow"))]
    command = [str(python), "-c", CHECK, job.model, job.train, end_of_text(Path(job.model)), *files]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        return {"same": None, "why": done.stderr.strip().splitlines()[-1:]}
    return json.loads(done.stdout.splitlines()[-1])


def steady(ends: list[float], counts: list[float], tokens: int, warm: int) -> float | None:
    """Tokens/s after the first ``warm`` steps; ``counts`` grows in proportion to the real tokens, ``tokens`` in all."""
    if len(ends) != len(counts) or len(ends) <= warm + 1:
        return None
    return tokens * (counts[-1] - counts[warm - 1]) / counts[-1] / (ends[-1] - ends[warm - 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=["install"])
    parser.add_argument("name", choices=list(PEERS))
    parser.add_argument("--into", type=Path, default=FOLDER)
    parser.add_argument("--torch", default=CPU_TORCH)
    wanted = parser.parse_args()
    failed = wanted.into / f"{wanted.name}.failed"
    failed.unlink(missing_ok=True)
    try:
        install(wanted.name, wanted.into.resolve(), wanted.torch)
    except NotInstalled as error:
        failed.write_text(f"{error}\n", encoding="utf-8")
        sys.exit(f"{PEERS[wanted.name].title} could not be installed: {error}")


if __name__ == "__main__":
    main()
