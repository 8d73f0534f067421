"""What a finished model has on top: a head that writes text, or one that scores it."""

from __future__ import annotations

import json

from tunekit.core.errors import UserError
from tunekit.model.restore import Artefact

_KIND = "ForSequenceClassification"


def scores(found: Artefact) -> bool:
    """Whether a model, or the adapter of one, gives scores (a reward model) and writes nothing."""
    if found.adapter is not None:
        return found.adapter.get("task_type") == "SEQ_CLS"
    path = found.folder / "config.json"
    if not path.is_file():
        return False
    named = json.loads(path.read_text(encoding="utf-8")).get("architectures") or []
    return any(str(name).endswith(_KIND) for name in named)


def refuse_scores(found: Artefact, fix: str) -> None:
    """Refuses a reward model where a model that writes is needed.

    Raises:
        UserError: it is one; ``fix`` says what to do.
    """
    if scores(found):
        raise UserError("this is a reward model: it scores answers, and writes none", where=str(found.folder), fix=fix)
