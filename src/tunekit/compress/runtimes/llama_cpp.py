"""llama.cpp through llama-cpp-python, on the CPU: reads the one .gguf file of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import MachineError
from tunekit.core.registry import ENGINES
from tunekit.evaluate.contract import Engine
from tunekit.evaluate.gguf_file import Opened

if TYPE_CHECKING:
    import numpy as np

LIBRARIES = ("numpy", "llama_cpp")


class GgufReading:
    """A loaded .gguf file.

    Args:
        opened: by llama.cpp.
    """

    def __init__(self, opened: Opened) -> None:
        self._opened, self.vocabulary = opened, opened.vocabulary

    def logits(self, ids: Sequence[int], columns: Sequence[int]) -> np.ndarray:
        """(columns, V) float32: what follows each of these positions, after the row read from its start."""
        last = max(columns) + 1
        return self._opened.feed(ids[:last], columns, room=last)

    def answer(self, ids: Sequence[int], new_tokens: int, stops: Sequence[int]) -> list[int]:
        """The likeliest tokens after ``ids``, one by one; the stop is the last one, where one comes."""
        room, found = len(ids) + new_tokens, list[int]()
        following = self._opened.feed(ids, (len(ids) - 1,), room=room)
        while len(found) < new_tokens:
            found.append(int(following[0].argmax()))
            if found[-1] in stops or len(found) == new_tokens:
                break
            following = self._opened.feed(found[-1:], (0,), room=room, start=len(ids) + len(found) - 1)
        return found

    def tokenize(self, text: str) -> list[int]:
        """The ids of a text in which special tokens may be written out, without added ones."""
        return self._opened.tokenize(text)

    def detokenize(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of ids, special tokens left out, or written out."""
        return self._opened.text(ids, special=special)

    def stops(self) -> list[int]:
        """The ids that end an answer, as the artefact says itself."""
        return self._opened.stops()

    def template(self) -> str | None:
        """The chat template inside the artefact."""
        return self._opened.template()

    def engine(self, tokenizer: Any) -> Engine:
        """The same model for the tasks of an evaluation, with the source's tokenizer."""
        found: Engine = ENGINES.load("llama_cpp").around(self._opened, tokenizer)
        return found


def load(folder: Path, *, threads: int) -> GgufReading:
    """Loads the .gguf file of a folder.

    Raises:
        MachineError: there is none or more than one, or llama.cpp cannot read it.
    """
    found = sorted(folder.glob("*.gguf"))
    if len(found) != 1:
        raise MachineError(f"the folder has {len(found)} .gguf files, not one", where=str(folder), fix="make it again")
    return GgufReading(Opened(found[0], threads=threads))
