"""From a model to a pruned one: made in a fresh process, proven in another, healed if asked, then put in place."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tunekit
from tunekit.compress import calibration, fresh, proof, sizes
from tunekit.compress.contract import TRANSFORMERS
from tunekit.compress.parity import world_prompts
from tunekit.compress.proof import Measured, NotProvenError
from tunekit.compress.prune import heal, layers, recipe, zeros
from tunekit.compress.prune.heal import Healing
from tunekit.compress.source import Source, opened
from tunekit.core.errors import MachineError, UserError, raise_all
from tunekit.core.files import write_json
from tunekit.core.front_matter import licence_files
from tunekit.core.progress import Screen
from tunekit.core.registry import PRUNERS
from tunekit.exam import rows as exam_rows
from tunekit.model import artefact
from tunekit.model.save import staged
from tunekit.model.tokenizer import embedding_rows, load_config
from tunekit.recipe.schema import ModelBlock
from tunekit.runs.environment import library_versions

RECORD = "prune.json"
SAME = ("perplexity", "increase", "mean_kl", "top1_agreement", "same_texts")
"""Figures that are kept of the model before it was healed."""


@dataclass
class Job:
    """One pruning.

    Args:
        wanted: the checked recipe.
        base: folder where its relative paths start.
        target: the new folder.
        screen: where progress goes.
        healing: a training after it.
    """

    wanted: Any
    base: Path
    target: Path
    screen: Screen
    healing: Healing | None = None
    read: calibration.Calibration | None = field(default=None, init=False)
    rows: list[Any] = field(default_factory=list, init=False)
    rows_of: str = field(default="", init=False)

    def run(self) -> dict[str, Any]:
        """Makes the folder, or leaves nothing.

        Returns:
            The record, as in prune.json.

        Raises:
            UserError: an option or the model is wrong.
            DataError: the rows cannot be used.
            NotProvenError: the pruned model is not sound, or worse than allowed.
            MachineError: damaged files, numbers that are not finite, no room.
        """
        way, config = PRUNERS.load(self.wanted.way), recipe.options(self.wanted)
        if self.healing is not None and not way.TRAINABLE:
            raise UserError(f"training would fill the zeros of '{self.wanted.way}' again", where="--heal",
                            fix="heal what `--way channels` or `--way depth` leaves")  # fmt: skip
        with opened(self.wanted.model, self.wanted.revision, self.screen) as source, ExitStack() as stack:
            raise_all(UserError, way.problems(config, layers.find_decoder(layers.skeleton(source.folder))))
            raise_all(MachineError, list(sizes.faulty(source.folder)))
            if self.healing is not None:
                self.healing.look(source.folder)
            with self.screen.step("reading rows"):
                self._read_rows(source, calibrated=way.CALIBRATED)
            kept = Path(stack.enter_context(TemporaryDirectory(prefix="tunekit-proof-")))
            with self.screen.step("measuring the source"):
                before = self._measured(source.name, source.folder, kept, first=True)
            with staged(self.target) as staging:
                return self._made(source, before, kept, staging)

    def _read_rows(self, source: Source, *, calibrated: bool) -> None:
        """The rows that are measured on, and those that are looked at, which are others."""
        spec, asked = self.wanted.proof, self.wanted.calibration
        if spec.data:
            tally = exam_rows.Tally()
            found = list(exam_rows.examples(spec.data, self.base, exam_rows.fitter_of(source.tokenizer), tally))
            tally.settle(0.5, self.screen)
            self.rows_of = ", ".join(block.path for block in spec.data)
        elif source.run is not None:
            found, self.rows_of = exam_rows.held_out(source.run, self.screen), "the run's held-out rows"
        else:
            found, self.rows_of = world_prompts(source.tokenizer, spec.rows), "the embedded world"
        self.rows = proof.fitted(found, source.positions, spec.rows, spec.new_tokens)
        if calibrated:
            self.read = calibration.read(
                source, asked.data, self.base, self.screen, held={row.where for row in found}, count=asked.rows,
                length=asked.length, seed=self.wanted.seed,
            )  # fmt: skip
            texts = (str(source.tokenizer.decode(row.input_ids, skip_special_tokens=True)) for row in self.rows)
            calibration.check_language(self.read, "\n".join(texts))

    def _measured(self, name: str, folder: Path, kept: Path, *, first: bool = False) -> Measured:
        import torch

        spec, threads = self.wanted.proof, torch.get_num_threads()
        values = proof.measure(TRANSFORMERS, folder, self.rows, kept, first=first, threads=threads,
                               prompts=spec.answers, new_tokens=spec.new_tokens)  # fmt: skip
        return Measured(name, sizes.stored(folder), values)

    def _made(self, source: Source, before: Measured, kept: Path, staging: Path) -> dict[str, Any]:
        if self.healing is None:
            record = self._pruned(source, staging)
            with self.screen.step("proving it, in a fresh process"):
                record |= self._judged(source, before, self._measured(self.wanted.way, staging, kept), record)
        else:
            with TemporaryDirectory(dir=self.target.parent, prefix=f".{self.target.name}-heal.") as place:
                record = self._healed(source, before, kept, Path(place), staging)
        self._allowed(record)
        record = self._facts(source) | record
        write_json(staging / RECORD, record)
        rows = embedding_rows(load_config(ModelBlock(name=str(staging))))
        facts = {"base": source.facts, "pruned": self.wanted.way, "rows": rows}
        artefact.write_manifest(staging, facts, source.tokenizer)
        return record

    def _pruned(self, source: Source, target: Path) -> dict[str, Any]:
        """Prunes in a fresh process; the folder is a whole model then."""
        import torch

        config, way = recipe.options(self.wanted), PRUNERS.load(self.wanted.way)
        ids = self.read.ids if self.read is not None else ()
        job = {"way": self.wanted.way, "config": config.model_dump(mode="json"), "rows": ids}
        job |= {"source": str(source.folder.resolve()), "target": str(target.resolve())}
        begin = time.perf_counter()
        with self.screen.step(f"pruning by {self.wanted.way}"):
            made = fresh.run("tunekit.compress.prune.making", job | {"threads": torch.get_num_threads()}, "prunes")
            source.copy_papers(target)
        seconds, chosen = time.perf_counter() - begin, made["chosen"]
        if "tensors" in chosen:
            raise_all(NotProvenError, list(zeros.faults(target, chosen["tensors"], getattr(config, "group", None))))
        expected = sum(
            way.kept(chosen, weight) * zeros.stored_bytes(weight, source.config) for weight in source.weights
        )
        return {"pruned": chosen, "seconds": seconds, "making_memory": made["peak_memory"], "expected_size": expected}

    def _judged(self, source: Source, before: Measured, after: Measured, record: Mapping[str, Any]) -> dict[str, Any]:
        """Its figures, if it is sound; how much worse it may be is asked of the last one only."""
        found = proof.figures(before, after)
        proof.judge(before, after, found, record["expected_size"], None, exact=False)
        return found

    def _healed(self, source: Source, before: Measured, kept: Path, place: Path, staging: Path) -> dict[str, Any]:
        assert self.healing is not None
        pruned, run_folder = place / "pruned", place / "run"
        pruned.mkdir()
        record = self._pruned(source, pruned)
        with self.screen.step("proving it, in a fresh process"):
            found = self._judged(source, before, self._measured("pruned", pruned, kept), record)
        trained = self.healing.train(pruned, run_folder, self.screen)
        heal.whole_model(run_folder, staging, pruned, self.screen)
        for path in licence_files(pruned):
            shutil.copyfile(path, staging / path.name)
        with self.screen.step("proving what was healed, in a fresh process"):
            final = self._judged(source, before, self._measured("healed", staging, kept), record)
        heal.keep_record(run_folder, staging / "heal")
        told = {"method": trained.method, "before": {key: found[key] for key in SAME}}
        return record | final | {"healing": told}

    def _allowed(self, record: Mapping[str, Any]) -> None:
        most, (increase, low, high) = self.wanted.proof.max_ppl_increase, record["increase"]
        if most is not None and not increase <= most:
            what = f"perplexity rises by {increase:.1%} ({low:.1%} to {high:.1%}); at most {most:.1%} is allowed"
            fix = "prune less" + ("" if self.healing else ", or heal it: --heal recipe.yaml")
            raise NotProvenError(what, where="--max-ppl-increase", fix=fix)

    def _facts(self, source: Source) -> dict[str, Any]:
        return {
            "tunekit": tunekit.__version__,
            "source": source.facts | {"model": Path(source.name).name},
            "way": self.wanted.way,
            "options": recipe.options(self.wanted).model_dump(mode="json"),
            "rows": self.rows_of,
            "calibration": self.read.facts if self.read is not None else None,
            "libraries": {key: value for key, value in library_versions().items() if key in ("torch", "transformers")},
        }
