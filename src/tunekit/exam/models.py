"""The models of an evaluation: what a name means, what it was trained from, and how it is asked."""

from __future__ import annotations

import gc
import hashlib
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import MachineError, UserError
from tunekit.core.files import sha256_file, sha256_json
from tunekit.core.progress import Screen
from tunekit.core.registry import ENGINES, nearest
from tunekit.evaluate import likelihoods
from tunekit.evaluate.contract import Engine
from tunekit.evaluate.mode import plain_model
from tunekit.exam.recipe import LOCAL, options
from tunekit.model import restore
from tunekit.model.fingerprint import weights_fingerprint
from tunekit.model.heads import refuse_scores
from tunekit.model.names import resolve_name
from tunekit.model.quiet import hushed
from tunekit.model.restore import Artefact
from tunekit.model.tokenizer import hub_errors, load_tokenizer, tokenizer_hash
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

    @property
    def revision(self) -> str | None:
        """Of a Hub id."""
        return self.block.revision if self.block else None


def subject(name: str, revision: str | None = None, *, served: bool = False) -> Subject:
    """What a name stands for: a run folder, an adapter's or model's folder, a Hub id or a builtin model.

    Raises:
        UserError: there is no such model, or the run has none yet.
        MachineError: files that are missing or not as they were saved.
    """
    path = Path(name).expanduser()
    if served:  # the name is the server's
        return Subject(name, "served model", ModelBlock(name=name, revision=revision))
    if revision is not None and path.is_dir():
        raise UserError(f"'{name}' is a folder, which has no revisions", where="revision", fix="leave it out")
    if not name.startswith("builtin:") and path.is_dir():
        found = restore.find(path)
        refuse_scores(found, "how good it is stands in its run's report; evaluate a policy that it rewarded")
        places = (path, path.resolve().parent)
        run = next((RunFolder(at) for at in places if (at / "plan.json").exists()), None)
        role = f"{found.kind_word} adapter" if found.base else "model"
        return Subject(name, role, artefact=found, run=run)
    kind = resolve_name(name).kind
    return Subject(
        name, "builtin model" if kind == "builtin" else "Hub model", ModelBlock(name=name, revision=revision)
    )


def baseline_of(tuned: Subject, wanted: str | None, *, served: bool = False) -> Subject | None:
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
        return subject(wanted, served=served)
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
    module = ENGINES.load(engine.kind)
    config = options(engine, module)
    if engine.kind != LOCAL:
        with module.open(config, who.name, screen) as opened:
            yield Asked(opened, sha256_json([engine.kind, module.identity(config, who.name)]))
        return
    from tunekit.model.save import stop_ids

    with screen.step(f"loading {who.name}"):
        device = module.device_of(config)
        with hushed():
            importlib.import_module("peft")  # what its packages say when they are first imported is no news
            model = _loaded(who, config).eval()
            if device.type != model.device.type:
                model = model.to(device)
    stops = tuple(stop_ids(tokenizer, model, turn_end))
    identity = sha256_json(_identity(model, tokenizer, config)) if kept else ""
    try:
        yield Asked(module.around(config, model, tokenizer, stops), identity, stops)
    finally:
        del model
        gc.collect()


def _identity(model: Any, tokenizer: Any, config: Any) -> list[Any]:
    """All that shapes an answer but its request: weights, how they are computed with, the code that asks."""
    inner = plain_model(model)
    adapters = getattr(model, "peft_config", None) or {}
    packages = ("torch", "transformers", "peft", "bitsandbytes", "torchao")
    return [
        weights_fingerprint(model, frozen_only=False, whole=True),
        {key: value for key, value in inner.config.to_dict().items() if not key.startswith("_name")},
        str(inner.config._attn_implementation),
        [_settings(adapter) for adapter in adapters.values()],
        [_scales(module.weight.quant_state) for module in model.modules() if _is_packed(module)],
        tokenizer_hash(tokenizer),
        {name: library_versions().get(name) for name in packages},
        str(model.device.type),
        code_version(),
        config.model_dump(mode="json", exclude={"batch_size", "batch_tokens"}),
    ]


def _settings(adapter: Any) -> dict[str, str]:
    """An adapter's configuration but where its base lies."""
    return {key: str(value) for key, value in sorted(adapter.to_dict().items()) if "path" not in key}


def _is_packed(module: Any) -> bool:
    return getattr(getattr(module, "weight", None), "quant_state", None) is not None


def _scales(state: Any) -> str:
    """Hash of what bitsandbytes keeps beside packed weights, which is no parameter."""
    from torch import uint8

    digest = hashlib.sha256()
    for key, value in sorted(state.as_dict(packed=True).items()):
        digest.update(f"{key} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(uint8).numpy().data)
    return digest.hexdigest()


@cache
def code_version() -> str:
    """Hash of the code that computes answers: editing it makes old ones unreachable."""
    here = Path(likelihoods.__file__).parent
    return sha256_json([(path.name, sha256_file(path)) for path in sorted(here.glob("*.py"))])


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
        told = str(error).strip().splitlines() or [type(error).__name__]
        fix = "are its files whole? save the model again, or fetch it again"
        raise MachineError(f"the weights cannot be read: {told[0]}", where=str(place), fix=fix) from error


def _read(who: Subject, config: Any) -> Any:
    found = who.artefact
    if found is None:
        assert who.block is not None
        return restore.load_base(Artefact(Path(), None, None, who.block), dtype=config.dtype)
    quantized = bool(found.quantize and found.adapter) if config.quantized is None else config.quantized
    if found.base is None:
        if config.quantized:
            fix = "leave it out: a whole model is loaded as it is saved"
            raise UserError(
                "only the base of an adapter can be loaded in fewer bits", where="engine.quantized", fix=fix
            )
        return restore.restore(found.folder, dtype=config.dtype).model
    base = restore.load_base(found, dtype=config.dtype, quantized=quantized)
    return base if who.bare else restore.attach(base, found)
