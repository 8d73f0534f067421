"""Prepared data: made once, before any model is loaded, and found again under its key."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.core.progress import Screen
from tunekit.core.types import Split
from tunekit.data import cache
from tunekit.data.examples import ExampleReader
from tunekit.data.fit import Fitter
from tunekit.data.preparation import Preparation, eval_sources
from tunekit.recipe.schema import EvalSplit, Recipe

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Prepared:
    """A folder of prepared data: ``train.arrow``, ``eval.arrow``, ``ledger.parquet``, ``facts.json``."""

    folder: Path

    @property
    def facts(self) -> dict[str, Any]:
        """``summary`` (of the ledger), ``fingerprint``, ``filled`` (share of positions used), and counts."""
        value: dict[str, Any] = json.loads((self.folder / "facts.json").read_text(encoding="utf-8"))
        return value

    @property
    def ledger_path(self) -> Path:
        """The ledger's parquet file."""
        return self.folder / "ledger.parquet"

    def dataset(self, split: Split) -> Dataset | None:
        """The final examples, memory-mapped; None when there are none (nothing held out, or a stream)."""
        from datasets import Dataset

        path = self.folder / f"{split}.arrow"
        return Dataset.from_file(str(path)) if path.exists() else None


def data_key(recipe: Recipe, reader: ExampleReader, fitter: Fitter) -> cache.Key:
    """Everything that shapes the prepared data of a recipe."""
    data = recipe.data
    held_out = data.eval.model_dump(mode="json") if isinstance(data.eval, EvalSplit) else "named sources"
    texts = fitter.material == "texts"  # loss_on is of no account elsewhere
    train = [] if data.streaming else reader.fingerprint(data.train)  # a stream is not prepared
    return cache.Key({
        "rows": {"train": train, "eval": reader.fingerprint(eval_sources(recipe))},
        "tokenizer": fitter.facts.tokenizer_hash,
        "template": fitter.template_hash,
        "mask": data.loss_on if texts else fitter.material,
        "lengths": {"max_length": data.max_length, "overlong": data.overlong, "packing": data.packing,
                    "isolated": fitter.isolated, "embedding_rows": fitter.facts.vocabulary},
        "split": {"eval": held_out, "seed": recipe.train.seed},
        "policy": {"duplicates": data.duplicates, "max_drop_rate": data.max_drop_rate},
        "code": cache.code_version(),
    })  # fmt: skip


def prepare(recipe: Recipe, reader: ExampleReader, fitter: Fitter, screen: Screen, folder: Path) -> Prepared:
    """Prepares the data of a recipe under ``folder``, or finds it prepared there.

    Raises:
        DataError: the ledger or the gate refuses it; nothing is kept then.
    """
    key = data_key(recipe, reader, fitter)
    found = (folder / key.name / "key.json").exists()
    final = cache.keep(key, folder, lambda staging: Preparation(recipe, reader, fitter, screen, staging).run())
    if found:
        screen.say(f"data: prepared before (key {key.name[:12]})")
    return Prepared(final)
