"""A .gguf file in an evaluation: it brings no tokenizer of transformers, and no rows, so others lend theirs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tunekit.core.errors import UserError
from tunekit.exam.models import Subject
from tunekit.exam.recipe import GGUF
from tunekit.recipe.schema import ModelBlock


def with_words(tuned: Subject, baseline: Subject | None, engine: Any) -> tuple[Subject, Subject | None]:
    """Gives .gguf files the tokenizer that prompts are written with: the engine's own, or that of the other model.

    What it is compared with is most often what the file was made of: so a run's held-out rows are there for it as well.

    Raises:
        UserError: the engine reads .gguf files alone, and the model is none.
    """
    if engine.kind == GGUF and tuned.file is None:
        fix = "leave the engine out, or name a .gguf file"
        raise UserError(f"'{tuned.name}' is no .gguf file, which the engine {GGUF} reads", where="engine", fix=fix)
    named = engine.tokenizer if engine.kind == GGUF else None
    own = Subject(named, "tokenizer", ModelBlock(name=named)) if named else None

    def worded(one: Subject, other: Subject | None) -> Subject:
        if one.file is None:
            return one
        plain = other if other is not None and other.file is None else None
        return replace(one, words=own or plain, run=one.run or (plain.run if plain is not None else None))

    return worded(tuned, baseline), worded(baseline, tuned) if baseline is not None else None
