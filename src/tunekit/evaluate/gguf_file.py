"""A .gguf file in llama.cpp, through llama-cpp-python: vocabulary and forward pass; it says nothing on the screen."""

from __future__ import annotations

import ctypes
import functools
import glob
import re
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import MachineError, UserError

if TYPE_CHECKING:
    import numpy as np

_HELD: list[Any] = []  # callbacks that llama.cpp calls: Python must not free them
_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")


def find(path: Path) -> Path | None:
    """The .gguf file that a path means: itself, or the one in a folder that holds no other model; else None.

    Raises:
        UserError: there is no such file, or the folder holds several.
    """
    if path.suffix == ".gguf" and not path.is_dir():
        if not path.is_file():
            raise UserError("there is no such file", where=str(path), fix="name a .gguf file, or the folder of one")
        return path
    if not path.is_dir() or any((path / name).exists() for name in ("config.json", "adapter_config.json", "plan.json")):
        return None
    found = sorted(path.glob("*.gguf"))
    if found and set(parts(found[0])) == set(found):
        return found[0]
    if found:
        names = ", ".join(one.name for one in found)
        raise UserError(f"the folder holds {len(found)} .gguf files: {names}", where=str(path), fix="name one of them")
    return None


def parts(path: Path) -> list[Path]:
    """The files of a model: those of a split one, which llama.cpp loads by its first, or the one that there is."""
    split = _PART.fullmatch(path.name)
    if split is None:
        return [path]
    return sorted(path.parent.glob(f"{glob.escape(split[1])}-?????-of-{split[2]}.gguf"))


@functools.cache
def quieted() -> tuple[Any, deque[str]]:
    """llama.cpp's functions, and the last lines that it said: they go nowhere else."""
    import llama_cpp

    said: deque[str] = deque(maxlen=8)

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
    def listen(level: int, text: bytes, data: Any) -> None:
        said.append(text.decode("utf-8", errors="replace").strip())

    llama_cpp.llama_log_set(listen, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    _HELD.append(listen)
    return llama_cpp, said


def last_word(said: Sequence[str]) -> str:
    """What llama.cpp said of an error; else its last line."""
    told = [line for line in said if "error" in line] or [line for line in said if "fail" in line] or [*said, "no word"]
    return told[0]


class Opened:
    """A .gguf file that llama.cpp has loaded; ends with its ``with`` block, or with `close`.

    Args:
        path: of the file.
        words: the vocabulary alone.
        threads: of the forward pass.

    Raises:
        MachineError: llama.cpp cannot load it; with what it said.
    """

    def __init__(self, path: Path, *, words: bool = False, threads: int = 1) -> None:
        self.cpp, said = quieted()
        settings = self.cpp.llama_model_default_params()
        settings.vocab_only = words
        settings.use_extra_bufts = False  # copies laid out for AMX: on some virtual machines they end the process
        self.model = self.cpp.llama_model_load_from_file(bytes(path), settings)
        if not self.model:
            what = f"llama.cpp cannot load the file: {last_word(said)}"
            raise MachineError(what, where=path.name, fix="make it again")
        self.name = path.name
        self.words = self.cpp.llama_model_get_vocab(self.model)
        self.vocabulary = int(self.cpp.llama_vocab_n_tokens(self.words))
        self.threads, self._context, self._room = threads, None, 0

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Gives the memory back."""
        if self._context is not None:
            self.cpp.llama_free(self._context)
        if self.model is not None:
            self.cpp.llama_model_free(self.model)
        self._context = self.model = None

    @property
    def positions(self) -> int:
        """How many tokens the model was trained to read."""
        return int(self.cpp.llama_model_n_ctx_train(self.model))

    @property
    def ends(self) -> tuple[int | None, int | None]:
        """The ids that texts begin and end with, where there are any; where none begins them, files name the end's."""
        first, last = int(self.cpp.llama_vocab_bos(self.words)), int(self.cpp.llama_vocab_eos(self.words))
        begins = first >= 0 and (first != last or bool(self.cpp.llama_vocab_get_add_bos(self.words)))
        return first if begins else None, last if last >= 0 else None

    def tokenize(self, text: str, *, around: bool = False) -> list[int]:
        """The ids of a text, special tokens written out in it; ``around``: with those that belong around it."""
        raw = text.encode("utf-8")
        room = len(raw) + 8
        found = (self.cpp.llama_token * room)()
        count = self.cpp.llama_tokenize(self.words, raw, len(raw), found, room, around, True)
        assert count >= 0, (count, room)
        return list(found[:count])

    def piece(self, index: int, *, special: bool = False) -> bytes:
        """The bytes of a token; none of a special one, unless it is wanted too."""
        size = 64
        while True:
            found = ctypes.create_string_buffer(size)
            count = self.cpp.llama_token_to_piece(self.words, index, found, size, 0, special)
            if count >= 0:
                return found.raw[:count]
            size = -count

    def text(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of ids."""
        return b"".join(self.piece(index, special=special) for index in ids).decode("utf-8", errors="replace")

    def stops(self) -> list[int]:
        """The ids after which llama.cpp ends a text."""
        return [index for index in range(self.vocabulary) if self.cpp.llama_vocab_is_eog(self.words, index)]

    def template(self) -> str | None:
        """The chat template inside."""
        found = self.cpp.llama_model_chat_template(self.model, None)
        return None if found is None else str(found.decode("utf-8"))

    def keep(self, count: int, *, room: int) -> int:
        """Forgets what was read but for its first ids.

        Args:
            count: of ids to keep.
            room: how many ids there will be in all.

        Returns:
            How many are kept: none, where there is no room for what comes or the model cannot forget a part.
        """
        if count == 0 or self._context is None or room > self._room:
            return 0
        memory = self.cpp.llama_get_memory(self._context)
        return count if self.cpp.llama_memory_seq_rm(memory, 0, count, -1) else 0

    def feed(self, ids: Sequence[int], columns: Sequence[int], *, room: int, start: int = 0) -> np.ndarray:
        """Reads ids behind those that were read already.

        Args:
            ids: to read.
            columns: places in ``ids`` whose next token is asked for, rising.
            room: how many ids there will be in all.
            start: how many were read already; 0 begins anew.

        Returns:
            (columns, V) float32 logits.

        Raises:
            MachineError: there is no memory for a text of this length.
        """
        import numpy as np

        if start == 0:
            self._begin(room)
        batch = self.cpp.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens, asked = len(ids), set(columns)
            for at, index in enumerate(ids):
                batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.seq_id[at][0] = index, start + at, 1, 0
                batch.logits[at] = at in asked
            code = self.cpp.llama_decode(self._context, batch)
        finally:
            self.cpp.llama_batch_free(batch)
        if code != 0:
            raise MachineError(f"llama.cpp cannot read {start + len(ids):,} tokens (code {code})", fix="free memory")
        found = np.empty((len(columns), self.vocabulary), dtype=np.float32)
        for row, at in enumerate(columns):
            given = self.cpp.llama_get_logits_ith(self._context, at)
            found[row] = np.ctypeslib.as_array(given, (self.vocabulary,))
        return found

    def _begin(self, room: int) -> None:
        """A context with room for a text, or the one there is, emptied."""
        if self._context is not None and room <= self._room:
            self.cpp.llama_memory_clear(self.cpp.llama_get_memory(self._context), True)
            return
        if self._context is not None:
            self.cpp.llama_free(self._context)
        self._room = max(256, 1 << (room - 1).bit_length())
        settings = self.cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = self._room
        settings.n_threads = settings.n_threads_batch = self.threads
        self._context = self.cpp.llama_init_from_model(self.model, settings)
        if not self._context:
            self._context = None
            raise MachineError(f"llama.cpp has no memory for a text of {self._room:,} tokens", fix="free memory")
