"""The models of an evaluation: what a name means, what it was trained from, and how it is asked."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import UserError
from tunekit.core.files import sha256_json
from tunekit.core.progress import Screen
from tunekit.core.registry import ENGINES
from tunekit.evaluate.contract import Engine
from tunekit.exam.recipe import LOCAL, options
from tunekit.model import restore
from tunekit.model.fingerprint import weights_fingerprint
from tunekit.model.names import resolve_name
from tunekit.model.quiet import hushed
from tunekit.model.restore import Artefact
from tunekit.model.tokenizer import tokenizer_hash
from tunekit.plan.plan import Plan
from tunekit.recipe.schema import ModelBlock
from tunekit.runs.environment import library_versions
from tunekit.runs.layout import RunFolder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_BASELINE = ("none", "null")


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
    """

    name: str
    role: str
    block: ModelBlock | None = None
    artefact: Artefact | None = None
    bare: bool = False
    run: RunFolder | None = None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer, with the chat template that it was trained with."""
        if self.artefact is not None:
            return restore.load_tokenizer(self.artefact)
        from tunekit.model.tokenizer import load_tokenizer

        assert self.block is not None
        return load_tokenizer(self.block)

    @property
    def revision(self) -> str | None:
        """Of a Hub id."""
        return self.block.revision if self.block else None


def subject(name: str, revision: str | None = None) -> Subject:
    """What a name stands for: a run folder, an adapter's or model's folder, a Hub id or a builtin model.

    Raises:
        UserError: there is no such model, or the run has none yet.
        MachineError: files that are missing or not as they were saved.
    """
    path = Path(name).expanduser()
    if not name.startswith("builtin:") and path.is_dir():
        found = restore.find(path)
        run = next((RunFolder(at) for at in (path, path.parent) if (at / "plan.json").exists()), None)
        role = f"{found.kind_word} adapter" if found.base else "model"
        return Subject(name, role, artefact=found, run=run)
    kind = resolve_name(name).kind
    return Subject(
        name, "builtin model" if kind == "builtin" else "Hub model", ModelBlock(name=name, revision=revision)
    )


def baseline_of(tuned: Subject, wanted: str | None) -> Subject | None:
    """The model that another one is compared with.

    Args:
        tuned: the one in question.
        wanted: a name, ``base`` for what it was trained from, ``auto`` for that where there is one; None for none.

    Raises:
        UserError: ``base`` is wanted and not known.
    """
    if wanted is None or wanted in NO_BASELINE:
        return None
    if wanted not in ("auto", "base"):
        return subject(wanted)
    found = tuned.artefact
    if found is not None and found.base is not None:
        return replace(tuned, name=found.base.name, role="base", bare=True, run=None)
    if tuned.run is not None:
        block = Plan.load(tuned.run.plan).recipe.model
        if resolve_name(block.name).random:
            if wanted == "auto":
                return None
            raise UserError("the run began with random weights", where="baseline", fix="baseline: null")
        # asked in the words that the tuned model learned, in the template that it was trained with
        return Subject(block.name, "base", block.model_copy(update={"quantize": None}))
    if wanted == "base":
        raise UserError(
            f"it is not known what '{tuned.name}' was trained from", where="baseline", fix="name the base model"
        )
    return None


@dataclass(frozen=True)
class Asked:
    """A model that is loaded, or reached: its engine, and what identifies its answers."""

    engine: Engine
    identity: str
    stop_ids: tuple[int, ...] = ()


@contextmanager
def asked(who: Subject, engine: Any, tokenizer: Any, turn_end: int | None, screen: Screen) -> Iterator[Asked]:
    """Loads a model, or reaches its server, for the time of the block.

    Args:
        who: the model.
        engine: the recipe's block.
        tokenizer: that prompts are written with.
        turn_end: id of the token that ends a turn in its chat template.
        screen: where progress goes.

    Raises:
        UserError, MachineError: it cannot be loaded or reached.
    """
    module = ENGINES.load(engine.kind)
    config = options(engine, module)
    if engine.kind != LOCAL:
        with module.open(config, who.name, screen) as opened:
            yield Asked(opened, sha256_json([engine.kind, who.name, config.model_dump(mode="json")]))
        return
    from tunekit.model.save import stop_ids

    with screen.step(f"loading {who.name}"):
        device = module.device_of(config)
        with hushed():
            model = _loaded(who, config).eval()
            if device.type != model.device.type:
                model = model.to(device)
    stops = tuple(stop_ids(tokenizer, model, turn_end))
    identity = [
        weights_fingerprint(model, frozen_only=False, whole=True),
        tokenizer_hash(tokenizer),
        config.model_dump(mode="json", exclude={"batch_size", "batch_tokens"}),
        {name: library_versions().get(name) for name in ("torch", "transformers", "peft")},
        str(model.device.type),
    ]
    try:
        yield Asked(module.around(config, model, tokenizer, stops), sha256_json(identity), stops)
    finally:
        del model
        gc.collect()


def _loaded(who: Subject, config: Any) -> Any:
    found = who.artefact
    if found is None:
        assert who.block is not None
        return restore.load_base(Artefact(Path(), None, None, who.block), dtype=config.dtype)
    quantized = bool(found.quantize) if config.quantized is None else config.quantized
    if found.base is None:
        return restore.restore(found.folder, dtype=config.dtype).model
    base = restore.load_base(found, dtype=config.dtype, quantized=quantized)
    return base if who.bare else restore.attach(base, found)
