"""llama.cpp through llama-cpp-python: its quantizer, vocabulary and forward pass; it says nothing on the screen."""

from __future__ import annotations

import ctypes
import functools
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tunekit.core.errors import MachineError

if TYPE_CHECKING:
    import numpy as np

_HELD: list[Any] = []  # callbacks that llama.cpp calls: Python must not free them


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


def quantize(source: Path, target: Path, kind: str, kept: Mapping[str, str], threads: int) -> None:
    """llama.cpp's own quantizer.

    Args:
        source: a .gguf file of floats.
        target: the file to write.
        kind: a name in `gguf.LlamaFileType`.
        kept: names of tensors in the file, and the types that they are given whatever the mix says.
        threads: to work with.

    Raises:
        MachineError: it failed; with what it said last.
    """
    import gguf

    cpp, said = quieted()
    settings = cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = int(gguf.LlamaFileType[kind]), threads
    rules = (cpp.llama_model_tensor_override * (len(kept) + 1))()  # ends with one of nulls
    for rule, (name, stored) in zip(rules, kept.items()):
        rule.pattern = f"^{name}$".replace(".", "[.]").encode()
        rule.type = int(gguf.GGMLQuantizationType[stored])
    if kept:
        settings.tt_overrides = rules
    if cpp.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(settings)) != 0:
        raise MachineError(
            f"llama.cpp's quantizer failed: {_last(said)}", where=str(target), fix="free disk and memory"
        )


def _last(said: Sequence[str]) -> str:
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
            raise MachineError(f"llama.cpp cannot load the file: {_last(said)}", where=path.name, fix="make it again")
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

    def tokenize(self, text: str, *, around: bool = False) -> list[int]:
        """The ids of a text, special tokens written out in it; ``around``: with those that belong around it."""
        raw = text.encode("utf-8")
        room = len(raw) + 8
        found = (self.cpp.llama_token * room)()
        count = self.cpp.llama_tokenize(self.words, raw, len(raw), found, room, around, True)
        assert count >= 0, (count, room)
        return list(found[:count])

    def piece(self, index: int) -> bytes:
        """The bytes of a token; none of a special one."""
        size = 64
        while True:
            found = ctypes.create_string_buffer(size)
            count = self.cpp.llama_token_to_piece(self.words, index, found, size, 0, False)
            if count >= 0:
                return found.raw[:count]
            size = -count

    def stops(self) -> list[int]:
        """The ids after which llama.cpp ends a text."""
        return [index for index in range(self.vocabulary) if self.cpp.llama_vocab_is_eog(self.words, index)]

    def template(self) -> str | None:
        """The chat template inside."""
        found = self.cpp.llama_model_chat_template(self.model, None)
        return None if found is None else str(found.decode("utf-8"))

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
