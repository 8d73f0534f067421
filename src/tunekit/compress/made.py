"""What came of one kind: an artefact with its record, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunekit.core.errors import TunekitError

RECORD = "quantize.json"


@dataclass(frozen=True)
class Made:
    """What came of one kind: its record, or why it was refused."""

    kind: str
    folder: Path
    record: dict[str, Any] | None = None
    error: TunekitError | None = None
