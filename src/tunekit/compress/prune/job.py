"""From a model to a pruned one: made in a fresh process, proven in another, healed if asked, then put in place."""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunekit.compress import fresh, sizes
from tunekit.compress.contract import TRANSFORMERS
from tunekit.compress.proof import NotProvenError
from tunekit.compress.prune import heal, layers, recipe, zeros
from tunekit.compress.prune.heal import Healing
from tunekit.compress.scratch import scratch
from tunekit.compress.smaller_card import Said, write_card
from tunekit.compress.source import Source, opened
from tunekit.compress.trial import Trial
from tunekit.core.errors import MachineError, UserError, raise_all
from tunekit.core.files import write_json
from tunekit.core.front_matter import licence_files
from tunekit.core.progress import Screen
from tunekit.core.registry import PRUNERS
from tunekit.model import artefact
from tunekit.model.save import beside, staged
from tunekit.model.tokenizer import embedding_rows, load_config
from tunekit.recipe.schema import ModelBlock

RECORD = "prune.json"
SAME = ("perplexity", "increase", "mean_kl", "mean_kl_interval", "top1_agreement", "top1_agreement_interval",
        "same_texts")  # fmt: skip
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
        if self.wanted.calibration.data and not way.CALIBRATED:
            raise UserError(f"no text is looked at by '{self.wanted.way}'", where="--calib", fix="leave it out")
        if self.healing is not None:
            self.healing.read()
        with ExitStack() as stack:
            source = stack.enter_context(opened(self.wanted.model, self.wanted.revision, self.screen, self.target))
            raise_all(UserError, way.problems(config, layers.find_decoder(layers.skeleton(source.folder))))
            raise_all(MachineError, list(sizes.faulty(source.folder)))
            if self.healing is not None:
                self.healing.look(source.folder)
            kept = stack.enter_context(scratch("proof"))
            trial = Trial(self.wanted, self.base, source, kept, self.screen)
            trial.begin(calibrated=way.CALIBRATED)
            with staged(self.target) as staging:
                return self._made(trial, staging)

    def _made(self, trial: Trial, staging: Path) -> dict[str, Any]:
        source, fix = trial.source, "prune less" + ("" if self.healing else ", or heal it: --heal recipe.yaml")
        if self.healing is None:
            name, record = self.wanted.way, self._pruned(trial, staging)
            record |= trial.figures(name, TRANSFORMERS, staging, record["expected_size"])
        else:
            with beside(self.target) as place:
                name, record = "healed", self._healed(trial, place, staging)
        record |= trial.held(name, TRANSFORMERS, staging, record, fix)
        way = {"way": self.wanted.way, "options": recipe.options(self.wanted).model_dump(mode="json")}
        record = trial.facts(calibrated=True) | way | record
        write_json(staging / RECORD, record)
        write_card(staging, record, self._said(source))
        rows = embedding_rows(load_config(ModelBlock(name=str(staging))))
        facts = {"base": source.facts, "pruned": self.wanted.way, "rows": rows}
        artefact.write_manifest(staging, facts, source.tokenizer)
        return record

    def _said(self, source: Source) -> Said:
        healed = ", and trained again" if self.healing is not None else ""
        how = f"pruned by `{self.wanted.way}`: {PRUNERS.help(self.wanted.way).rstrip('.')}{healed}"
        return Said(how, (self.wanted.way, "pruned"), chat=source.tokenizer.chat_template is not None)

    def _pruned(self, trial: Trial, target: Path) -> dict[str, Any]:
        """Prunes in a fresh process; the folder is a whole model then."""
        import torch

        config, way, source = recipe.options(self.wanted), PRUNERS.load(self.wanted.way), trial.source
        ids = trial.read.ids if trial.read is not None else ()
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

    def _healed(self, trial: Trial, place: Path, staging: Path) -> dict[str, Any]:
        """Prunes and trains; of how much worse it may be only the last one is asked."""
        assert self.healing is not None
        pruned, run_folder = place / "pruned", place / "run"
        pruned.mkdir()
        record = self._pruned(trial, pruned)
        found = trial.figures("pruned", TRANSFORMERS, pruned, record["expected_size"])
        trained = self.healing.train(pruned, run_folder, self.screen, trial.rows)
        heal.whole_model(run_folder, staging, pruned, self.screen)
        for path in licence_files(pruned):
            shutil.copyfile(path, staging / path.name)
        final = trial.figures("healed", TRANSFORMERS, staging, record["expected_size"])
        heal.keep_record(run_folder, staging / "heal")
        told = {"method": trained.method, "before": {key: found[key] for key in SAME}}
        return record | final | {"healing": told}
