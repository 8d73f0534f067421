"""The models of an evaluation: what a name means, what it was trained from, and how it is asked."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tunekit.core.errors import MachineError, UserError, first_line
from tunekit.core.files import sha256_json
from tunekit.core.progress import Screen
from tunekit.core.registry import ENGINES, nearest
from tunekit.evaluate import gguf_file
from tunekit.evaluate.contract import Engine
from tunekit.exam.identity import code_version, identity_of
from tunekit.exam.recipe import GGUF, LOCAL, options
from tunekit.model import artefact, heads, restore
from tunekit.model.device import device_of
from tunekit.model.names import resolve_name
from tunekit.model.quiet import hushed
from tunekit.model.restore import Artefact
from tunekit.model.save import stop_ids
from tunekit.model.tokenizer import hub_errors, load_tokenizer, tokenizer_hash
from tunekit.plan.plan import Plan
from tunekit.recipe.schema import ModelBlock
from tunekit.runs.layout import RunFolder

NO_BASELINE = ("none", "null")
HUB = "Hub model"


@dataclass(frozen=True)
class Subject:
    """A model that is asked; nothing is loaded until `asked`.

    Args:
        name: as the user names it.
        role: what it is in words.
        block: the whole model to load, where it is no artefact.
        artefact: the adapter or model folder.
        bare: the artefact's base without its adapter.
        run: the run that made it.
        file: the .gguf file.
        words: whose tokenizer a .gguf file is asked with.
    """

    name: str
    role: str
    block: ModelBlock | None = None
    artefact: Artefact | None = None
    bare: bool = False
    run: RunFolder | None = None
    file: Path | None = None
    words: Subject | None = None

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer, with the chat template that it was trained with; None for a file that nothing names one of."""
        if self.file is not None:
            return self.words.tokenizer if self.words is not None else None
        if self.artefact is not None:
            base = self.artefact.base
            with hub_errors(resolve_name(base.name if base else str(self.artefact.folder))):
                return restore.load_tokenizer(self.artefact)
        assert self.block is not None
        try:
            return load_tokenizer(self.block)
        except MachineError as error:
            close = _close_folder(Path(self.name))
            if close is None:
                raise
            what = f"'{self.name}' is neither a folder nor a model of the Hub that can be reached"
            raise UserError(what, where="model", fix=f"did you mean '{close}'?") from error

    @cached_property
    def scores(self) -> bool:
        """Whether it is a reward model, which gives scores and writes nothing.

        Raises:
            UserError: a model for classification that is no reward model.
            MachineError: its files cannot be read.
        """
        found = self._whole
        if found is None or self.bare or not heads.scores(found):
            return False
        heads.check_scores(found)
        return True

    @cached_property
    def _whole(self) -> Artefact | None:
        """What its head is told from, before any weights are loaded; None where that is known to write."""
        if self.artefact is not None or self.block is None or self.role != HUB:
            return self.artefact
        _ = self.tokenizer  # what cannot be reached is told in its words
        return Artefact(Path(), None, None, self.block)

    @property
    def revision(self) -> str | None:
        """Of a Hub id."""
        return self.block.revision if self.block else None


def subject(name: str, revision: str | None = None, *, served: bool = False) -> Subject:
    """What a name stands for: a run folder, an adapter's or model's folder, a .gguf file, a Hub id or a builtin model.

    Raises:
        UserError: there is no such model, or the run has none yet.
        MachineError: files that are missing or not as they were saved.
    """
    path = Path(name).expanduser()
    if served:  # the name is the server's
        return Subject(name, "served model", ModelBlock(name=name, revision=revision))
    if revision is not None and path.exists():
        raise UserError(f"'{name}' is on the disk, and has no revisions", where="revision", fix="leave it out")
    weights = None if name.startswith("builtin:") else gguf_file.find(path)
    if weights is not None:
        if path.is_dir():
            artefact.verify(path)
        return Subject(name, "GGUF file", file=weights)
    if not name.startswith("builtin:") and path.is_dir():
        found = restore.find(path)
        places = (path, path.resolve().parent)
        run = next((RunFolder(at) for at in places if (at / "plan.json").exists()), None)
        what = "reward model" if heads.scores(found) else "model"
        role = f"{found.kind_word} adapter" if found.base else what
        return Subject(name, role, artefact=found, run=run)
    kind = resolve_name(name).kind
    return Subject(name, "builtin model" if kind == "builtin" else HUB, ModelBlock(name=name, revision=revision))


def baseline_of(tuned: Subject, wanted: str | None, *, served: bool = False) -> Subject | None:
    """The model that another one is compared with.

    Args:
        tuned: the one in question.
        wanted: a name, ``base`` for what it was trained from, ``auto`` for that where there is one; None for none.

    Raises:
        UserError: ``base`` is wanted and not known, or has no scores to compare a reward model's with.
    """
    if wanted is None or wanted in NO_BASELINE:
        return None
    if wanted not in ("auto", "base"):
        return subject(wanted, served=served)
    if tuned.scores:
        if wanted == "auto":
            return None
        what = "the base of a reward model has no head that scores"
        raise UserError(what, where="baseline", fix="name another reward model, or null")
    found = tuned.artefact
    if found is not None and found.base is not None:
        return replace(tuned, name=found.base.name, role="base", bare=True, run=None)
    if tuned.run is not None:
        block = Plan.load(tuned.run.plan).recipe.model
        if resolve_name(block.name).random:
            if wanted == "auto":
                return None
            raise UserError("the run began with random weights", where="baseline", fix="baseline: null")
        # asked in the words that the tuned model learned, in the template that it was trained with; so it gets as many
        # rows of embeddings
        assert found is not None, tuned.name
        return Subject(block.name, "base", artefact=replace(found, base=block), bare=True)
    if wanted == "base":
        raise UserError(
            f"it is not known what '{tuned.name}' was trained from", where="baseline", fix="name the base model"
        )
    return None


def engine_of(who: Subject, kind: str) -> str:
    """The engine that a model is asked with: the recipe's, where that reads it; a .gguf file is llama.cpp's matter."""
    if who.file is not None and kind == LOCAL:
        return GGUF
    return LOCAL if who.file is None and kind == GGUF else kind


@dataclass(frozen=True)
class Asked:
    """A model that is loaded, or reached: its engine, and what identifies its answers."""

    engine: Engine
    identity: str
    stop_ids: tuple[int, ...] = ()


@contextmanager
def asked(
    who: Subject, engine: Any, tokenizer: Any, turn_end: int | None, screen: Screen, *, kept: bool
) -> Iterator[Asked]:
    """Loads a model, or reaches its server, for the time of the block.

    Args:
        who: the model.
        engine: the recipe's block.
        tokenizer: that prompts are written with.
        turn_end: id of the token that ends a turn in its chat template.
        screen: where progress goes.
        kept: whether its answers are kept, so that it must be told from every other model.

    Raises:
        UserError, MachineError: it cannot be loaded or reached.
    """
    kind = engine_of(who, engine.kind)
    module = ENGINES.load(kind)
    config = options(engine, module) if kind == engine.kind else module.Config()
    if kind == GGUF:
        with module.open(config, str(who.file), screen, tokenizer) as opened:
            known = [kind, module.identity(config, str(who.file)), code_version()] if kept else None
            words = None if tokenizer is None else tokenizer_hash(tokenizer)
            yield Asked(opened, sha256_json([*known, words]) if known else "")
        return
    if kind != LOCAL:
        with module.open(config, who.name, screen) as opened:
            yield Asked(opened, sha256_json([kind, module.identity(config, who.name)]))
        return
    with screen.step(f"loading {who.name}"):
        device = device_of(config.device, "engine.device")
        with hushed():
            importlib.import_module("peft")  # what its packages say when they are first imported is no news
            model = _loaded(who, config).eval()
            if device.type != model.device.type:
                model = model.to(device)
    identity = sha256_json(identity_of(model, tokenizer, config)) if kept else ""
    try:
        if who.scores:
            yield Asked(module.scoring(config, model, tokenizer), identity)
        else:
            stops = tuple(stop_ids(tokenizer, model, turn_end))
            yield Asked(module.around(config, model, tokenizer, stops), identity, stops)
    finally:
        del model
        gc.collect()


def _close_folder(path: Path) -> Path | None:
    """The folder beside a path that was most likely meant: one with a model in it."""
    files = ("plan.json", "config.json", restore.ADAPTER_CONFIG)
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    close = nearest(path.name, [at.name for at in beside if any((at / file).is_file() for file in files)])
    return path.parent / close if close else None


def _loaded(who: Subject, config: Any) -> Any:
    """The model; files that cannot be read are the machine's matter, whoever wrote them.

    Raises:
        UserError, MachineError: it cannot be loaded.
    """
    from safetensors import SafetensorError

    try:
        return _read(who, config)
    except (SafetensorError, OSError) as error:
        place = who.artefact.folder if who.artefact is not None else who.name
        fix = "are its files whole? save the model again, or fetch it again"
        raise MachineError(f"the weights cannot be read: {first_line(error)}", where=str(place), fix=fix) from error


def _read(who: Subject, config: Any) -> Any:
    found = who.artefact
    quantized = bool(found and found.quantize and found.adapter) if config.quantized is None else config.quantized
    if found is None:
        assert who.block is not None
        found, quantized = Artefact(Path(), None, None, who.block), False
    if found.base is None and config.quantized:
        fix = "leave it out: a whole model is loaded as it is saved"
        raise UserError("only the base of an adapter can be loaded in fewer bits", where="engine.quantized", fix=fix)
    if who.scores:  # 16 bits tell two scores of 10 apart by sixteenths
        dtype = "float32" if config.dtype == "auto" else config.dtype
        return heads.load_scorer(found, dtype=dtype, quantized=quantized)
    if found.base is None:
        return restore.restore(found.folder, dtype=config.dtype).model
    base = restore.load_base(found, dtype=config.dtype, quantized=quantized)
    return base if who.bare or found.adapter is None else restore.attach(base, found)
