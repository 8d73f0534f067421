"""A short training run on what pruning left, by any method's recipe, and its model as a plain folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.compress.dtypes import round_weights
from tunekit.compress.merge import Request, merge
from tunekit.compress.scratch import scratch
from tunekit.compress.stored import dtypes, headers
from tunekit.core.errors import DataError, UserError
from tunekit.core.progress import Screen, Silent
from tunekit.model.names import TINY
from tunekit.model.quiet import hushed
from tunekit.model.restore import ADAPTER_CONFIG
from tunekit.plan.hardware import probe
from tunekit.plan.resolve import resolve
from tunekit.recipe.load import load
from tunekit.train.inputs import Inputs
from tunekit.train.pipeline import Job, run

if TYPE_CHECKING:
    from tunekit.data.prepare import Prepared
    from tunekit.evaluate.contract import EvalItem
    from tunekit.recipe.schema import Recipe
    from tunekit.runs.record import Record

KEPT = ("recipe.yaml", "metrics.jsonl", "report.html")
"""What is kept of the run, beside its model; its other files are about folders that are gone."""
CHANCE = 0.01
"""Share of the proof's rows that may be in the healing's data as well: short texts are alike by chance."""


@dataclass(frozen=True)
class Healing:
    """A training to come.

    Args:
        path: of its recipe.
    """

    path: Path

    def read(self) -> None:
        """Reads the recipe, whatever model it will be given.

        Raises:
            UserError: all that is wrong with it.
        """
        self._recipe(TINY, None)

    def look(self, model: Path) -> None:
        """Looks whether what it names is there, before anything is pruned.

        Raises:
            TunekitError: it cannot be trained by.
        """
        recipe = self._recipe(model, None)
        if recipe.model.quantize is not None:
            raise UserError("a quantized base cannot be healed: its weights are not what is trained",
                            where=str(self.path), fix="leave model.quantize out")  # fmt: skip
        Inputs(recipe, self.path.parent).look()

    def train(self, pruned: Path, folder: Path, screen: Screen, proven: Sequence[EvalItem] = ()) -> Record:
        """Makes the run.

        Args:
            pruned: the model.
            folder: of the run; new.
            screen: where progress goes.
            proven: rows that what comes of it is measured on.

        Raises:
            DataError: it would learn from those rows.
            TunekitError: the training failed.
            Stopped: somebody asked it to end.
        """
        plan = resolve(self._recipe(pruned, folder), self.path, probe(), str(folder))
        with screen.step("reading the rows to heal by"), scratch("heal") as place:
            prepared = Inputs(plan.recipe, self.path.parent).prepare(Silent(), place)
            self._apart(prepared, proven, screen)
        return run(Job(plan, self.path.read_text(encoding="utf-8-sig"), ("--quiet",)), screen)

    def _apart(self, prepared: Prepared, proven: Sequence[EvalItem], screen: Screen) -> None:
        """Looks whether the rows of the proof are among those that are trained on: it would be no proof."""
        trained, room = prepared.dataset("train"), max((len(row.input_ids) for row in proven), default=0)
        learnt = {tuple(ids[:room]) for ids in (trained["input_ids"] if trained else ())}
        found = sum(tuple(row.input_ids) in learnt for row in proven)
        if not found:
            return
        what = f"{found:,} of the {len(proven):,} rows that it would be proven on are rows that the healing trains on"
        if found > CHANCE * len(proven):
            fix = "hold them out by the recipe's data.eval, or name others: --data FILE"
            raise DataError(what, where=str(self.path), fix=fix)
        screen.warn(what)

    def _recipe(self, model: Path, folder: Path | None) -> Recipe:
        named = {"model.name": str(model.resolve()), "model.revision": None}
        if folder is not None:
            named["output.dir"] = str(folder)
        return load(self.path, overrides=[f"{key}={json.dumps(value)}" for key, value in named.items()])


def whole_model(run_folder: Path, target: Path, pruned: Path, screen: Screen) -> None:
    """Writes a healed run's model as a plain folder in the types of the pruned one; an adapter is merged, and proven.

    Args:
        run_folder: of the healing.
        target: an empty folder.
        pruned: the model that was trained.
        screen: is told of a merge.

    Raises:
        TunekitError: the adapter cannot be merged, or the model is not as the run saved it.
    """
    made = run_folder / "model"
    if (made / ADAPTER_CONFIG).exists():
        made = run_folder / "merged"
        merge(Request(run_folder, made, noted=False), screen)
    for path in made.iterdir():
        if path.is_dir():  # such as further chat templates
            shutil.copytree(path, target / path.name)
        elif path.name not in ("MANIFEST.json", "README.md", "merge.json"):
            shutil.copyfile(path, target / path.name)
    if {kind for kind, _, _ in headers(target).values()} != {kind for kind, _, _ in headers(pruned).values()}:
        _narrow(target, dtypes(pruned))


def _narrow(folder: Path, types: dict[str, str]) -> None:
    """Training keeps full precision; the artefact is of the source's types."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    with hushed():
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", use_safetensors=True)
        counts = sorted(types.values(), key=list(types.values()).count)
        round_weights(model, counts[-1], types)
        for path in folder.glob("*.safetensors*"):
            path.unlink()
        kept = folder / "generation_config.json"
        text = kept.read_bytes() if kept.exists() else None
        model.generation_config = GenerationConfig()
        model.save_pretrained(folder)
        kept.unlink(missing_ok=True)
        if text is not None:
            kept.write_bytes(text)


def keep_record(run_folder: Path, folder: Path) -> None:
    """Puts what tells of the healing beside the model."""
    folder.mkdir()
    for name in KEPT:
        if (run_folder / name).exists():
            shutil.copyfile(run_folder / name, folder / name)
