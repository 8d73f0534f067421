"""metrics.jsonl and samples.jsonl: one JSON object a line, written as training goes, readable after a crash."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tunekit.core.errors import UserError
from tunekit.core.files import write_atomic
from tunekit.runs.wording import NOT_FINITE, json_ready


class MetricsWriter:
    """Appends lines to ``metrics.jsonl`` or ``samples.jsonl``; every line is flushed.

    Values that are not finite are "nan", "inf", "-inf".

    A last line torn by a crash is cut off when the file is opened. A training line without ``step`` is a programmer's
    error.

    Args:
        path: the file; its folder is made.
        keep_through: when a run is resumed from a checkpoint, the checkpoint's step: lines of later steps are removed,
            for those steps are about to be trained again. None keeps all.
    """

    def __init__(self, path: Path, *, keep_through: int | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _mend(path, keep_through)
        self._file = path.open("a", encoding="utf-8")

    def write(self, values: Mapping[str, Any]) -> None:
        """Appends one line.

        Raises:
            OSError: the disk does not take it.
        """
        assert "step" in values, values
        self._file.write(json.dumps(json_ready(values), ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Waits until the disk has every line."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Writes through to the disk and closes."""
        if not self._file.closed:
            self.sync()
            self._file.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _mend(path: Path, keep_through: int | None) -> None:
    """Cuts off a torn last line and, for a resumed run, the lines of steps after ``keep_through``."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    kept = whole
    if keep_through is not None:
        lines = whole.split(b"\n")[:-1]  # a text may hold separators which str.splitlines takes for ends of lines
        kept = b"".join(line + b"\n" for line in lines if json.loads(line)["step"] <= keep_through)
    if kept != content:
        write_atomic(path, kept)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a metrics file, "nan" and "inf" as floats again; an empty list when there is no file.

    A last line without its newline was torn by a crash and is left out.

    Raises:
        UserError: a line is not JSON.
    """
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    for at, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"damaged metrics: {error.msg}", where=f"{path}:{at}", fix="remove that line") from error
        if not isinstance(row, dict):
            raise UserError("damaged metrics: not an object", where=f"{path}:{at}", fix="remove that line")
        rows.append({key: float(value) if value in NOT_FINITE else value for key, value in row.items()})
    return rows
