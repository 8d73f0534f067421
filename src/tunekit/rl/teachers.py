"""The teacher of a distillation: what its name stands for, whether its tokens are the student's, how it is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import TunekitError, raise_all
from tunekit.model import restore
from tunekit.model.names import resolve_name
from tunekit.model.quiet import hushed
from tunekit.model.restore import Artefact
from tunekit.model.tokenizer import hub_errors, load_tokenizer
from tunekit.recipe.schema import ModelBlock, Recipe
from tunekit.rl.vocabulary import check_same_vocabulary
from tunekit.train.inputs import Inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KEY = "distill.teacher"


@dataclass(frozen=True)
class Teacher:
    """A model that is learnt from; nothing of it is loaded yet.

    Args:
        name: as the recipe names it.
        found: its folder; or no folder, and the Hub id or builtin name as base.
    """

    name: str
    found: Artefact

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer.

        Raises:
            UserError: it has none that can be read.
            MachineError: the Hub cannot be reached, or a file is not as it was saved.
        """
        with _placed():
            if self.found.manifest is None and self.found.adapter is None and self.found.base is not None:
                return load_tokenizer(self.found.base)
            base = self.found.base
            with hub_errors(resolve_name(base.name if base else str(self.found.folder))):
                return restore.load_tokenizer(self.found)

    def load(self, dtype: str) -> PreTrainedModel:
        """The model on the CPU, in evaluation mode and without gradients; an adapter on its base.

        Args:
            dtype: ``float32``, ``bfloat16`` or ``float16``.

        Raises:
            UserError: the base is not that of the teacher's training, or it is no model that can be loaded.
            MachineError: files are missing, or not as they were saved.
        """
        found = self.found
        with _placed(), hushed():
            if found.base is None:
                with hub_errors(resolve_name(str(found.folder))):
                    model: Any = restore.restore(found.folder, dtype=dtype).model
            else:
                quantized = bool(found.quantize and found.adapter)
                model = restore.load_base(found, dtype=dtype, quantized=quantized)
                model = restore.attach(model, found) if found.adapter else model
        return model.eval().requires_grad_(False)  # type: ignore[no-any-return]


def find_teacher(name: str, folder: Path) -> Teacher:
    """The teacher of this name.

    Args:
        name: a run's folder, an adapter's or a model's, a Hub id, or ``builtin:``.
        folder: where a relative path is looked for first; then in the working folder, as data is.

    Raises:
        UserError: there is no such model, or the run has none yet.
        MachineError: files that are missing or not as they were saved.
    """
    with _placed():
        if not name.startswith("builtin:"):
            path = Path(name).expanduser()
            for place in dict.fromkeys((folder / path, path)):
                if place.is_dir():
                    return Teacher(name, restore.find(place))
        resolve_name(name)
        return Teacher(name, Artefact(Path(), None, None, ModelBlock(name=name)))


def check_teacher(recipe: Recipe, folder: Path) -> None:
    """Whether the recipe's teacher is there and speaks the student's tokens; no weights are loaded.

    Args:
        recipe: of the method ``distill``.
        folder: where relative paths begin.

    Raises:
        UserError: there is no such teacher, or its vocabulary is another.
        MachineError: its files are not as they were saved, or the Hub cannot be reached.
    """
    teacher = find_teacher(recipe.options.teacher, folder).tokenizer()
    try:
        student = Inputs(recipe, folder).tokenizer
    except TunekitError:
        return  # told of by its own key
    with _placed():
        check_same_vocabulary(student, teacher)


@contextmanager
def _placed() -> Iterator[None]:
    """What is wrong with a model is told at the teacher's key: those who find it think of the recipe's own model."""
    try:
        yield
    except TunekitError as error:
        problems = [
            replace(problem, where=KEY if problem.where in ("", "model.name", "model.tokenizer") else problem.where)
            for problem in error.problems
        ]
        raise_all(type(error), problems)
        raise
