"""From a model to its smaller ones: each made in a fresh process, measured in another, and put in place if it holds."""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tunekit
from tunekit.compress import calibration, fresh, proof, recipe, sizes
from tunekit.compress.contract import TRANSFORMERS
from tunekit.compress.parity import world_prompts
from tunekit.compress.proof import Measured
from tunekit.compress.source import Source, opened
from tunekit.core.errors import MachineError, Problem, TunekitError, UserError, raise_all
from tunekit.core.files import write_json
from tunekit.core.progress import Screen
from tunekit.core.registry import BACKENDS
from tunekit.exam import rows as exam_rows
from tunekit.model import artefact
from tunekit.model.save import staged
from tunekit.runs.environment import library_versions

RECORD = "quantize.json"


@dataclass(frozen=True)
class Made:
    """What came of one kind: its record, or why it was refused."""

    kind: str
    folder: Path
    record: dict[str, Any] | None = None
    error: TunekitError | None = None


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
    read: calibration.Calibration | None = field(default=None, init=False)
    rows: list[Any] = field(default_factory=list, init=False)
    rows_of: str = field(default="", init=False)

    def run(self) -> list[Made]:
        """Makes all kinds. One that is refused leaves nothing; the others stay.

        Raises:
            UserError, MachineError: something about the model or a kind is wrong before anything is made.
            DataError: the rows cannot be used.
        """
        raise_all(MachineError, list(self._lacking()))
        with opened(self.wanted.model, self.wanted.revision, self.screen) as source, ExitStack() as stack:
            raise_all(UserError, list(self._problems(source)))
            raise_all(MachineError, list(sizes.faulty(source.folder)))
            self._read_rows(source)
            kept = Path(stack.enter_context(TemporaryDirectory(prefix="tunekit-proof-")))
            with self.screen.step("measuring the source"):
                before = self._measured(source.name, TRANSFORMERS, source.folder, kept, first=True)
            return [self._made(block, source, before, kept) for block in self.wanted.to]

    def _lacking(self) -> Iterator[Problem]:
        """Packages and devices that are not there."""
        import torch

        here = "cuda" if torch.cuda.is_available() else "cpu"
        for block in self.wanted.to:
            plugin = BACKENDS.load(recipe.kinds()[block.kind])
            for module, line in plugin.PACKAGES.items():
                if importlib.util.find_spec(module) is None:
                    yield Problem(f"'{block.kind}' needs the package {module}", where="to", fix=line)
            devices = plugin.DEVICES.get(block.kind, ("cpu", "cuda"))
            if here not in devices and "cpu" not in devices:
                what = f"'{block.kind}' is made on {' or '.join(devices)}, and this machine has none"
                yield Problem(what, where="to", fix="make it on another machine, or take another kind")

    def _problems(self, source: Source) -> Iterator[Problem]:
        for block in self.wanted.to:
            plugin = BACKENDS.load(recipe.kinds()[block.kind])
            yield from plugin.problems(block.kind, recipe.options(block), source.config, source.weights)

    def _read_rows(self, source: Source) -> None:
        """The rows that are measured on, and those that are calibrated on, which are others."""
        spec = self.wanted.proof
        with self.screen.step("reading rows"):
            found, self.rows_of = self._held_out(source)
            self.rows = proof.fitted(found, source.positions, spec.rows, spec.new_tokens)
            if not any(block.kind in BACKENDS.load(recipe.kinds()[block.kind]).CALIBRATED for block in self.wanted.to):
                return
            asked = self.wanted.calibration
            held = {row.where for row in found}
            self.read = calibration.read(
                source, asked.data, self.base, self.screen,
                held=held, count=asked.rows, length=asked.length, seed=self.wanted.seed,
            )  # fmt: skip
            text = "\n".join(str(source.tokenizer.decode(row.input_ids, skip_special_tokens=True)) for row in self.rows)
            calibration.check_language(self.read, text)

    def _held_out(self, source: Source) -> tuple[Sequence[Any], str]:
        named = self.wanted.proof.data
        if named:
            tally = exam_rows.Tally()
            found = list(exam_rows.examples(named, self.base, exam_rows.fitter_of(source.tokenizer), tally))
            tally.settle(0.5, self.screen)
            return found, ", ".join(block.path for block in named)
        if source.run is not None:
            return exam_rows.held_out(source.run, self.screen), "the run's held-out rows"
        return world_prompts(source.tokenizer, self.wanted.proof.rows), "the embedded world"

    def _measured(self, name: str, runtime: str, folder: Path, kept: Path, *, first: bool) -> Measured:
        import torch

        spec = self.wanted.proof
        values = proof.measure(
            runtime, folder, self.rows, kept, first=first, threads=torch.get_num_threads(), prompts=spec.answers,
            new_tokens=spec.new_tokens,
        )  # fmt: skip
        return Measured(name, sizes.stored(folder), values)

    def _made(self, block: Any, source: Source, before: Measured, kept: Path) -> Made:
        folder = self.target / block.kind if len(self.wanted.to) > 1 else self.target
        try:
            with staged(folder) as staging:
                record = self._proven(block, source, before, kept, staging)
        except TunekitError as error:
            if len(self.wanted.to) == 1:
                raise
            self.screen.warn(f"{block.kind}: {error}")
            return Made(block.kind, folder, error=error)
        return Made(block.kind, folder, record)

    def _proven(self, block: Any, source: Source, before: Measured, kept: Path, staging: Path) -> dict[str, Any]:
        import torch

        name = recipe.kinds()[block.kind]
        plugin, config = BACKENDS.load(name), recipe.options(block)
        calibrated = self.read if block.kind in plugin.CALIBRATED else None
        job = {"backend": name, "kind": block.kind, "config": config.model_dump(mode="json", exclude_unset=True)}
        job |= {"source": str(source.folder.resolve()), "target": str(staging), "seed": self.wanted.seed}
        job |= {"rows": calibrated.ids if calibrated else (), "threads": torch.get_num_threads()}
        begin = time.perf_counter()
        with self.screen.step(f"making {block.kind}"):
            made = fresh.run("tunekit.compress.making", job, "quantizes")
            seconds = time.perf_counter() - begin
            if plugin.RUNTIME == TRANSFORMERS:
                source.copy_papers(staging)
            self.finish(source, staging)
        with self.screen.step(f"proving {block.kind}, in a fresh process"):
            after = self._measured(block.kind, plugin.RUNTIME, staging, kept, first=False)
        found = proof.figures(before, after)
        exact = block.kind in plugin.EXACT
        expected = sum(_bytes(plugin, block.kind, config, weight) for weight in source.weights)
        proof.judge(before, after, found, expected, self.wanted.proof.max_ppl_increase, exact=exact)
        record = {
            "tunekit": tunekit.__version__,
            "source": source.facts | {"model": Path(source.name).name},
            "kind": block.kind,
            "options": config.model_dump(mode="json"),
            "rows": self.rows_of,
            "prompts": [row.prompt_text for row in self.rows[: self.wanted.proof.answers]],
            "calibration": calibrated.facts if calibrated else None,
            "seconds": seconds,
            "making_memory": made["peak_memory"],
            "expected_size": expected,
            "libraries": {key: value for key, value in library_versions().items() if key in ("torch", "transformers")},
        } | found
        write_json(staging / RECORD, record)
        for path in staging.rglob("*"):  # some libraries write files that their owner alone may read
            path.chmod(0o755 if path.is_dir() else 0o644)
        facts = {"base": source.facts, "quantized": block.kind}
        artefact.write_manifest(staging, facts, source.tokenizer)
        return record


def _bytes(plugin: Any, kind: str, config: Any, weight: Any) -> float:
    values = 1
    for length in weight.shape:
        values *= length
    return float(plugin.bits(kind, config, weight)) * values / 8


def refuse_full(folder: Path) -> None:
    """Refuses a folder that has something in it.

    Raises:
        UserError: with the way out.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError("the folder exists already", where=str(folder), fix="name another with --output")


def forget(folder: Path) -> None:
    """Removes a folder of several kinds when none of them was made."""
    if folder.is_dir() and not any(folder.iterdir()):
        shutil.rmtree(folder)
