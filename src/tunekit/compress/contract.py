"""What the ways of making a model smaller have in common: what they are given, what they answer, how they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np

    from tunekit.evaluate.contract import Engine

TRANSFORMERS, LLAMA_CPP = "transformers", "llama_cpp"
Role = Literal["linear", "head", "embedding", "other", "unused"]


@dataclass(frozen=True)
class Weight:
    """One tensor of the source, as it lies on the disk.

    Args:
        name: in the model, such as ``model.layers.0.mlp.up_proj.weight``.
        shape: of the tensor.
        bits: of one of its values.
        role: ``linear``: of a linear layer inside the decoder's layers; ``head``; ``embedding``; ``other``: norms,
            biases, and all else; ``unused``: in the file, and never loaded.
        tied: of an embedding: it is the head as well.
        turned: of a linear layer: it lies as (inputs, outputs), as GPT-2's do.
        stored: its name in the file.
        model: the content of the source's config.json: formats that mix types look at the layers' number.
    """

    name: str
    shape: tuple[int, ...]
    bits: int
    role: Role
    tied: bool = False
    turned: bool = False
    stored: str = ""
    model: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Making:
    """What a backend is given, in a process of its own.

    Args:
        kind: one of its `KINDS`.
        config: its validated `Config`.
        source: a plain folder of full precision, with weights, config and tokenizer.
        target: an empty folder; config and weights (or the .gguf file) go there, and what the format needs inside.
            Tokenizer, generation config, licence and manifest are the caller's.
        rows: token ids of the calibration, (row, token); empty for kinds that need none.
        seed: of whatever is drawn.
    """

    kind: str
    config: Any
    source: Path
    target: Path
    rows: tuple[tuple[int, ...], ...]
    seed: int


class Backend(Protocol):
    """A plug-in of `tunekit.compress.backends`: one library, and the kinds that it makes.

    Its module is light: libraries are imported inside its functions.
    """

    KINDS: Mapping[str, str]
    """What can be asked for by `--to`, each with one line of help."""
    CALIBRATED: frozenset[str]
    """Those that look at rows of text."""
    EXACT: frozenset[str]
    """Those that may equal their source: weights as they are."""
    PACKAGES: Mapping[str, str]
    """Modules that it needs beyond tunekit's own, each with the line that installs it."""
    DEVICES: Mapping[str, tuple[str, ...]]
    """Where a kind can be made and read; those that are not named: on ``cpu`` and ``cuda``."""
    RUNTIME: str
    """What reads the artefact back: `TRANSFORMERS` or `LLAMA_CPP`."""
    Config: type[Any]
    """A frozen `recipe.schema.Block` of its options, without ``kind``; ``skip`` names modules left as they are."""

    def problems(self, kind: str, config: Any, model: Mapping[str, Any], weights: Sequence[Weight]) -> list[Any]:
        """What stands against it, as `core.errors.Problem`: options that do not belong together, shapes, the model.

        Args:
            kind: one of `KINDS`.
            config: the options.
            model: the content of the source's config.json.
            weights: its tensors.
        """

    def bits(self, kind: str, config: Any, weight: Weight) -> float:
        """Bits on the disk for one value of a tensor, scales and zero points counted; 0 for one that is left out."""

    def make(self, making: Making) -> None:
        """Writes the artefact.

        Raises:
            TunekitError: what the library refuses, in words.
        """


class Reading(Protocol):
    """A loaded artefact, as its users load it."""

    vocabulary: int

    def logits(self, ids: Sequence[int], columns: Sequence[int]) -> np.ndarray:
        """(columns, V) float32: what follows each of these positions, after the row read from its start."""

    def answer(self, ids: Sequence[int], new_tokens: int, stops: Sequence[int]) -> list[int]:
        """The likeliest tokens after ``ids``, one by one; the stop is the last one, where one comes."""

    def tokenize(self, text: str) -> list[int]:
        """The ids of a text in which special tokens may be written out, without added ones."""

    def detokenize(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of ids, special tokens left out, or written out."""

    def stops(self) -> list[int]:
        """The ids that end an answer, as the artefact says itself."""

    def template(self) -> str | None:
        """The chat template inside the artefact."""

    def engine(self, tokenizer: Any) -> Engine:
        """The same model for the tasks of an evaluation.

        Args:
            tokenizer: the source's, for an artefact that transformers has none of.
        """


class Runtime(Protocol):
    """A module of `tunekit.compress.runtimes`: one program that reads artefacts."""

    LIBRARIES: tuple[str, ...]
    """What it is built on, imported before the clock of a loading starts."""

    def load(self, folder: Path, *, threads: int) -> Reading:
        """Loads an artefact's folder as a user would.

        Raises:
            MachineError: it cannot be read.
        """
