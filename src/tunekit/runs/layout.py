"""Where everything lies in a run folder, and how run folders are found."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_CHECKPOINT = re.compile(r"step-\d{6,}")
_DEEPEST = 4  # folders below the root in which runs are looked for


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run's folder; the properties name its parts, whether they exist yet or not."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name: that of its folder."""
        return self.path.resolve().name

    @property
    def recipe(self) -> Path:
        """The recipe as the user gave it."""
        return self.path / "recipe.yaml"

    @property
    def plan(self) -> Path:
        """The plan: the recipe with every default and derived number."""
        return self.path / "plan.json"

    @property
    def ledger(self) -> Path:
        """Every input row's fate."""
        return self.path / "ledger.parquet"

    @property
    def metrics(self) -> Path:
        """One JSON object a line for every logged step and evaluation."""
        return self.path / "metrics.jsonl"

    def samples(self, rank: int) -> Path:
        """The ledger's rows that each step saw on a rank, one JSON object a line."""
        return self.path / ("samples.jsonl" if rank == 0 else f"samples-{rank}.jsonl")

    @property
    def rollouts(self) -> Path:
        """Answers that a policy gave while it was trained, with their rewards, one JSON object a line."""
        return self.path / "rollouts.jsonl"

    @property
    def staging(self) -> Path:
        """Where checkpoints are written before they are put in place."""
        return self.path / ".staging"

    @property
    def log(self) -> Path:
        """What the libraries said."""
        return self.path / "log.txt"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints, ``step-000100`` and so on."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The artefact: a plain Hugging Face or PEFT folder."""
        return self.path / "model"

    @property
    def record(self) -> Path:
        """The run record."""
        return self.path / "record.json"

    @property
    def report(self) -> Path:
        """The report, one self-contained page."""
        return self.path / "report.html"


def checkpoint_name(step: int) -> str:
    """The folder's name of a step's checkpoint."""
    return f"step-{step:06d}"


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint, from its folder's name."""
    return int(checkpoint.name.removeprefix("step-"))


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in ``folder`` under their final names, oldest first, whole or not."""
    found = [path for path in folder.glob("step-*") if _CHECKPOINT.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=step_of)


def list_runs(root: Path) -> list[RunFolder]:
    """The run folders at or below ``root`` (those that hold a ``record.json``), sorted by path.

    Hidden folders are passed over and a run folder is not searched for further runs.
    """
    found: list[RunFolder] = []
    for folder, below, files in os.walk(root):
        depth = len(Path(folder).relative_to(root).parts)
        if "results.parquet" in files and "plan.json" not in files:  # an evaluation
            below.clear()
        elif "record.json" in files:
            found.append(RunFolder(Path(folder)))
            below.clear()
        elif depth >= _DEEPEST:
            below.clear()
        else:
            below[:] = [name for name in below if not name.startswith(".")]
    return sorted(found, key=lambda run: run.path)
