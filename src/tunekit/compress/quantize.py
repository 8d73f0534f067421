"""From a model to its smaller ones: each made in a fresh process, measured in another, and put in place if it holds."""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from tunekit.compress import fresh, recipe, sizes
from tunekit.compress.contract import LLAMA_CPP, TRANSFORMERS
from tunekit.compress.made import RECORD, Made
from tunekit.compress.report import write_report
from tunekit.compress.scratch import scratch
from tunekit.compress.smaller_card import Said, write_card
from tunekit.compress.source import Source, opened
from tunekit.compress.trial import Trial
from tunekit.core.errors import MachineError, Problem, TunekitError, UserError, raise_all
from tunekit.core.files import write_json
from tunekit.core.progress import Screen
from tunekit.core.registry import BACKENDS
from tunekit.model import artefact
from tunekit.model.save import staged, sweep_within

USELESS = 1.0
"""Rise of perplexity, a share, from which on an artefact is warned of where nothing bounds it."""
_FIX = "take a kind of more bits, or skip the layers that matter most"


@dataclass
class Job:
    """One quantization, of one model to one or several kinds.

    Args:
        wanted: the checked recipe.
        base: folder where its relative paths start.
        target: the new folder; of several kinds each gets one in it.
        screen: where progress goes.
        finish: puts what else belongs there into an artefact's folder, before it is proven.
    """

    wanted: Any
    base: Path
    target: Path
    screen: Screen
    finish: Callable[[Source, Path], None] = lambda source, folder: None

    def run(self) -> list[Made]:
        """Makes all kinds. One that is refused leaves nothing; the others stay.

        Raises:
            UserError, MachineError: something about the model or a kind is wrong before anything is made.
            DataError: the rows cannot be used.
        """
        calibrated = any(block.kind in _plugin(block).CALIBRATED for block in self.wanted.to)
        if self.wanted.calibration.data and not calibrated:
            names = ", ".join(block.kind for block in self.wanted.to)
            raise UserError(f"no text is looked at for {names}", where="--calib", fix="leave it out")
        raise_all(MachineError, list(self._lacking()))
        with ExitStack() as stack:
            source = stack.enter_context(opened(self.wanted.model, self.wanted.revision, self.screen, self.target))
            raise_all(UserError, list(self._problems(source)))
            raise_all(MachineError, list(sizes.faulty(source.folder)))
            kept = stack.enter_context(scratch("proof"))
            trial = Trial(self.wanted, self.base, source, kept, self.screen)
            trial.begin(calibrated=calibrated)
            return [self._made(block, trial) for block in self.wanted.to]

    def _lacking(self) -> Iterator[Problem]:
        """Packages and devices that are not there."""
        import torch

        here = "cuda" if torch.cuda.is_available() else "cpu"
        for block in self.wanted.to:
            plugin = _plugin(block)
            for module, line in plugin.PACKAGES.items():
                if importlib.util.find_spec(module) is None:
                    yield Problem(f"'{block.kind}' needs the package {module}", where="to", fix=line)
            devices = plugin.DEVICES.get(block.kind, ("cpu", "cuda"))
            if here not in devices and "cpu" not in devices:
                what = f"'{block.kind}' is made on {' or '.join(devices)}, and this machine has none"
                yield Problem(what, where="to", fix="make it on another machine, or take another kind")

    def _problems(self, source: Source) -> Iterator[Problem]:
        for block in self.wanted.to:
            yield from _plugin(block).problems(block.kind, recipe.options(block), source.config, source.weights)

    def _made(self, block: Any, trial: Trial) -> Made:
        folder = self.target / block.kind if len(self.wanted.to) > 1 else self.target
        try:
            with staged(folder) as staging:
                record = self._proven(block, trial, staging)
        except TunekitError as error:
            if len(self.wanted.to) == 1:
                raise
            return Made(block.kind, folder, error=error)
        return Made(block.kind, folder, record)

    def _proven(self, block: Any, trial: Trial, staging: Path) -> dict[str, Any]:
        kind, source = block.kind, trial.source
        plugin, config = _plugin(block), recipe.options(block)
        begin = time.perf_counter()
        with self.screen.step(f"making {kind}"):
            made = self._make(block, trial, staging)
            seconds = time.perf_counter() - begin
            if plugin.RUNTIME == TRANSFORMERS:
                source.copy_papers(staging)
            else:  # its one file holds the others
                source.copy_licences(staging)
            self.finish(source, staging)
        parts = [(weight, _bytes(plugin, kind, config, weight)) for weight in source.weights]
        expected = sum(size for _, size in parts)
        found = trial.figures(kind, plugin.RUNTIME, staging, expected, exact=kind in plugin.EXACT, parts=parts)
        if found["increase"][0] > USELESS and self.wanted.proof.max_ppl_increase is None:
            fix = "take a kind of more bits; --max-ppl-increase refuses such an artefact"
            self.screen.warn(f"{kind}: perplexity rises by {found['increase'][0]:.0%}; {fix}")
        found |= trial.held(kind, plugin.RUNTIME, staging, found, _FIX)
        record = trial.facts(calibrated=kind in plugin.CALIBRATED) | {
            "kind": kind,
            "options": config.model_dump(mode="json"),
            "seconds": seconds,
            "making_memory": made["peak_memory"],
            "made_by": _versions(plugin.PACKAGES),
            "expected_size": expected,
        } | found  # fmt: skip
        write_json(staging / RECORD, record)
        write_card(staging, record, _said(plugin, kind, source))
        if len(self.wanted.to) == 1:  # of several kinds one report is about all, and lies above them
            write_report(staging, [Made(kind, self.target, record)])
        for path in staging.rglob("*"):  # some libraries write files that their owner alone may read
            path.chmod(0o755 if path.is_dir() else 0o644)
        artefact.write_manifest(staging, {"base": source.facts, "quantized": kind}, source.tokenizer)
        return record

    def _make(self, block: Any, trial: Trial, staging: Path) -> dict[str, Any]:
        import torch

        calibrated = trial.read if block.kind in _plugin(block).CALIBRATED else None
        options = recipe.options(block).model_dump(mode="json", exclude_unset=True)
        job = {"backend": recipe.kinds()[block.kind], "kind": block.kind, "config": options}
        job |= {"source": str(trial.source.folder.resolve()), "target": str(staging), "seed": self.wanted.seed}
        job |= {"rows": calibrated.ids if calibrated else (), "threads": torch.get_num_threads()}
        return fresh.run("tunekit.compress.making", job, "quantizes")


def _plugin(block: Any) -> Any:
    return BACKENDS.load(recipe.kinds()[block.kind])


def _versions(modules: Iterable[str]) -> dict[str, str]:
    """The packages that hold some modules, with their versions."""
    known = packages_distributions()
    return {name: version(name) for module in modules for name in known.get(module, ())}


def _bytes(plugin: Any, kind: str, config: Any, weight: Any) -> float:
    values = 1
    for length in weight.shape:
        values *= length
    return float(plugin.bits(kind, config, weight)) * values / 8


def _said(plugin: Any, kind: str, source: Source) -> Said:
    """What the card tells of a kind."""
    what = "in another form" if kind in plugin.EXACT else "in fewer bits"
    return Said(
        how=f"{what}: {plugin.KINDS[kind]}",
        tags=(kind,),
        relation="" if kind in plugin.EXACT else "quantized",
        file=plugin.RUNTIME == LLAMA_CPP,
        chat=source.tokenizer.chat_template is not None,
        needs=tuple(dict.fromkeys(plugin.PACKAGES.values())),
    )


def refuse_full(folder: Path) -> None:
    """Refuses a folder that has something in it.

    Raises:
        UserError: with the way out.
    """
    if folder.is_dir():
        sweep_within(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError("the folder exists already", where=str(folder), fix="name another with --output")


def forget(folder: Path) -> None:
    """Removes a folder of several kinds when none of them was made."""
    if folder.is_dir() and not any(folder.iterdir()):
        shutil.rmtree(folder)
