"""What is made smaller: any model by name, as a plain folder of full precision, and the tensors in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.compress.bare import bare_model
from tunekit.compress.contract import Role, Weight
from tunekit.compress.merged import merged
from tunekit.compress.scratch import scratch
from tunekit.compress.stored import BITS, headers
from tunekit.core.errors import UserError
from tunekit.core.front_matter import licence_files, license_of
from tunekit.core.progress import Screen
from tunekit.model import artefact
from tunekit.model.heads import refuse_scores
from tunekit.model.kbit import quantized_of
from tunekit.model.names import resolve_name
from tunekit.model.quiet import hushed
from tunekit.model.restore import Artefact, find
from tunekit.model.tokenizer import load_config, load_tokenizer
from tunekit.recipe.schema import ModelBlock
from tunekit.runs.layout import RunFolder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TABLES = (".inv_freq", ".masked_bias")
"""Ends of names of what older versions of transformers saved, and no version loads."""
_SCORES = "a reward model is used as it is: `reward: [{model: ...}]`"


@dataclass(frozen=True)
class Source:
    """A model of full precision on the disk.

    Args:
        name: as the user names it.
        folder: with weights, config and tokenizer.
        run: that made it, if one did.
        facts: what a manifest says of the base it comes from.
    """

    name: str
    folder: Path
    run: RunFolder | None
    facts: dict[str, Any]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        value: dict[str, Any] = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        return value

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer, with its chat template."""
        return load_tokenizer(ModelBlock(name=str(self.folder)))

    @cached_property
    def weights(self) -> tuple[Weight, ...]:
        """The tensors that the model loads, from the heads of its files and the model that the config describes."""
        return tuple(weight for weight in weights_of(self.folder) if weight.role != "unused")

    @property
    def size(self) -> int:
        """Bytes of those tensors."""
        return sum(prod(weight.shape) * weight.bits for weight in self.weights) // 8

    @cached_property
    def positions(self) -> int | None:
        """How many positions the model knows; None for no bound."""
        text = load_config(ModelBlock(name=str(self.folder))).get_text_config()
        found: int | None = getattr(text, "max_position_embeddings", None)
        return found

    def copy_papers(self, folder: Path) -> None:
        """Puts tokenizer, generation config and licence texts beside a smaller model's weights."""
        self.tokenizer.save_pretrained(folder)
        generation = self.folder / "generation_config.json"
        if generation.exists() and not (folder / generation.name).exists():
            shutil.copyfile(generation, folder / generation.name)
        self.copy_licences(folder)

    def copy_licences(self, folder: Path) -> None:
        """Puts its licence texts there."""
        for path in licence_files(self.folder):
            shutil.copyfile(path, folder / path.name)


@contextmanager
def opened(name: str, revision: str | None, screen: Screen, target: Path) -> Iterator[Source]:
    """A model as a plain folder; an adapter is merged into its base first, and that merge is proven, if it was not yet.

    Args:
        name: run folder, adapter, model folder, Hub id, or ``builtin:<name>``.
        revision: of a Hub id.
        screen: is told of a merge.
        target: what is made of it; a merge lies hidden beside.

    Raises:
        UserError: there is no such model, it cannot be merged, it scores, or its weights are quantized already.
        MachineError: files that are missing or not as they were saved.
    """
    path = Path(name).expanduser()
    if name.startswith("builtin:") or not path.is_dir():
        with scratch("source") as place:
            yield _named(name, revision, place)
        return
    if revision is not None:
        raise UserError(f"'{name}' is a folder, which has no revisions", where="--revision", fix="leave it out")
    found = find(path)
    _check(found)
    above = found.folder.resolve().parent
    run = RunFolder(above) if (above / "plan.json").exists() else None
    facts = dict((found.manifest or {}).get("base") or {})
    with ExitStack() as stack:
        folder = found.folder if found.base is None else stack.enter_context(merged(path, found, target, screen))
        refuse_quantized(folder, name)
        yield Source(name, folder, run, facts or {"name": path.resolve().name})


def _check(found: Artefact) -> None:
    """Looks at config and weights before anything long begins; of an adapter at those of its base."""
    if found.base is None:
        load_config(ModelBlock(name=str(found.folder)))  # one that cannot be read is told in words
    refuse_scores(found, _SCORES)
    kind = resolve_name(found.base.name) if found.base else None
    if kind is None:
        headers(found.folder)
    elif found.base is not None and not kind.random:
        headers(artefact.base_folder(kind, found.base.revision))


def _named(name: str, revision: str | None, place: Path) -> Source:
    block, kind = ModelBlock(name=name, revision=revision), resolve_name(name)
    if revision is not None and kind.kind != "hub":
        raise UserError(f"'{name}' has no revisions", where="--revision", fix="leave it out")
    if kind.kind == "hub":
        _check(Artefact(artefact.base_folder(kind, revision), None, None, None))
    facts = artefact.base_facts(block, seed=0, dtype="float32")
    if kind.random:  # weights from a seed, for those who measure size and speed alone
        with hushed():
            artefact.fresh_base(block, seed=0, dtype="float32").save_pretrained(place)
            load_tokenizer(block).save_pretrained(place)
        return Source(name, place, None, facts)
    folder = artefact.base_folder(kind, revision)
    refuse_quantized(folder, name)
    return Source(name, folder, None, facts | {"licence": license_of(folder)})


def refuse_quantized(folder: Path, name: str) -> None:
    """Refuses weights of few bits: rounding them once more adds a second error to the first.

    Raises:
        UserError: with what they are.
    """
    kind = quantized_of(load_config(ModelBlock(name=str(folder))))
    if kind is not None:
        raise UserError(f"the weights of '{name}' are quantized already ({kind})", where=name,
                        fix="name the model that they were quantized from")  # fmt: skip


def weights_of(folder: Path) -> tuple[Weight, ...]:
    """The tensors of a folder, each with what it is in the model.

    Raises:
        UserError, MachineError: as `headers`; or transformers does not know the model.
    """
    skeleton = _skeleton(folder)
    model = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found = []
    tensors = headers(folder)
    places = skeleton.places({stored: shape for stored, (_, shape, _) in tensors.items()})
    for stored, (dtype, shape, _) in sorted(tensors.items()):
        name, role = places[stored]
        shared = skeleton.tied and role == "embedding"
        lies: dict[str, Any] = {"tied": shared, "turned": name in skeleton.turned, "stored": stored}
        found.append(Weight(name, shape, BITS.get(dtype, 16), role, model=model, **lies))
    return tuple(found)


@dataclass(frozen=True)
class _Skeleton:
    """What a model is made of.

    Args:
        roles: of its parameters, by name; those that are not named are ``other``.
        loaded: names of all that it takes from a file.
        modules: their names.
        prefix: what files may leave out at the beginning of names, or have too much.
        tied: head and embedding are one.
        turned: names of the weights that lie as (inputs, outputs).
        head: name and shape of the head's own weight; None where there is none.
    """

    roles: dict[str, Role]
    loaded: frozenset[str]
    modules: frozenset[str]
    prefix: str
    tied: bool
    turned: frozenset[str]
    head: tuple[str, tuple[int, ...]] | None

    def places(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[str, Role]]:
        """The names and roles in the model of the tensors in a file, by their names there."""
        found = {stored: self._place(stored) for stored in shapes}
        if self.head is not None and self.head[0] not in {name for name, _ in found.values()}:
            name, shape = self.head  # under the name that an older version gave it
            lost = (each for each in shapes if found[each][0] not in self.loaded and shapes[each] == shape)
            found |= dict.fromkeys(islice(lost, 1), (name, "head"))
        return found

    def _place(self, stored: str) -> tuple[str, Role]:
        names = (stored, f"{self.prefix}.{stored}", stored.removeprefix(f"{self.prefix}."))
        name = next((each for each in names if each in self.loaded), None)
        if name is not None:
            role = self.roles.get(name, "other")
            return name, "unused" if role == "head" and self.tied else role
        # of older versions: tables that the model makes itself now; what has another place is not known here
        above = [each.rpartition(".")[0] for each in names]
        table = stored.endswith(_TABLES) or any(each in self.modules for each in above)
        return stored, "unused" if table else "other"


@cache
def _skeleton_at(folder: Path, changed: int) -> _Skeleton:
    return _built(folder)


def _skeleton(folder: Path) -> _Skeleton:
    return _skeleton_at(folder.resolve(), (folder / "config.json").stat().st_mtime_ns)


def _built(folder: Path) -> _Skeleton:
    """Of a model without memory."""
    import torch
    from transformers.pytorch_utils import Conv1D

    model = bare_model(load_config(ModelBlock(name=str(folder))), str(folder))
    inner, outer = model.get_input_embeddings(), model.get_output_embeddings()
    found: dict[str, Role] = {}
    turned = set[str]()
    for name, module in model.named_modules():
        if module is inner or isinstance(module, torch.nn.Embedding):
            found[f"{name}.weight"] = "embedding"
        elif module is outer:
            found[f"{name}.weight"] = "head"
        elif isinstance(module, torch.nn.Linear | Conv1D):
            found[f"{name}.weight"] = "linear"
            turned |= {f"{name}.weight"} if isinstance(module, Conv1D) else set()
    tied = outer is not None and bool(model.config.get_text_config().tie_word_embeddings)
    modules, states = frozenset(name for name, _ in model.named_modules()), model.state_dict()
    own = next((name for name, role in found.items() if role == "head" and not tied), None)
    head = (own, tuple(states[own].shape)) if own is not None else None
    return _Skeleton(found, frozenset(states), modules, model.base_model_prefix, tied, frozenset(turned), head)
