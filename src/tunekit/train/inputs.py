"""What stands before the weights: tokenizer, template, and the prepared data of a plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tunekit.core.errors import TunekitError, raise_all
from tunekit.core.files import sha256_json
from tunekit.core.progress import Screen
from tunekit.core.registry import METHODS
from tunekit.core.types import Material, Split
from tunekit.data import cache
from tunekit.data.examples import ExampleReader
from tunekit.data.fit import Fitter, TokenFacts, turn_end
from tunekit.data.groups import make_fitter
from tunekit.data.ledger import FATES, Ledger
from tunekit.data.prepare import Prepared, data_key, prepare
from tunekit.data.readers import builtin
from tunekit.data.render import Renderer, named_template
from tunekit.data.sources import fingerprint, input_files, is_hub
from tunekit.data.stream import Stream
from tunekit.evaluate.contract import EvalItem
from tunekit.evaluate.pairs import PairItem
from tunekit.model.adapt import start_folder
from tunekit.model.names import resolve_name
from tunekit.model.tokenizer import load_tokenizer, rows_with_new, tokenizer_hash
from tunekit.plan.plan import Plan
from tunekit.recipe.kinds import material_of
from tunekit.recipe.schema import Recipe, SourceBlock

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Inputs:
    """The data side of a recipe: reading, rendering and preparing need no weights.

    Args:
        recipe: the checked recipe.
        base: folder where relative data paths start.
    """

    recipe: Recipe
    base: Path

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, with the recipe's chat template."""
        tokenizer = load_tokenizer(self.recipe.model)
        if self.recipe.model.chat_template is not None:
            tokenizer.chat_template = named_template(self.recipe.model.chat_template)
        return tokenizer

    @cached_property
    def reader(self) -> ExampleReader:
        """Reads the recipe's sources."""
        return ExampleReader(self.base, material_of(self.recipe))

    def look(self) -> None:
        """Looks whether the files and folders that the recipe names are there; none is read.

        Raises:
            TunekitError: with everything that is not there, or not what it should be.
        """
        model, data = self.recipe.model, self.recipe.data
        looks: list[tuple[str, Callable[[], object]]] = [("model.name", partial(resolve_name, model.name))]
        if model.tokenizer is not None:
            looks.append(("model.tokenizer", partial(resolve_name, model.tokenizer, "model.tokenizer")))
        if model.chat_template is not None:
            looks.append(("model.chat_template", partial(named_template, model.chat_template)))
        start = getattr(self.recipe.adapter_block, "start", None)
        if start is not None:
            looks.append(("adapter.start", partial(start_folder, start, self.base)))
        check = getattr(METHODS.load(self.recipe.method), "check", None)
        if check is not None:
            looks.append((self.recipe.method, partial(check, self.recipe, self.base)))
        held_out = data.eval if isinstance(data.eval, tuple) else ()
        for part, sources in (("train", data.train), ("eval", held_out)):
            looks += [(f"data.{part}.{at}.path", partial(self._look_at, source)) for at, source in enumerate(sources)]
        errors: list[TunekitError] = []
        problems = []
        for key, look in looks:
            try:
                look()
            except TunekitError as error:
                errors.append(error)
                problems += [replace(problem, where=problem.where or key) for problem in error.problems]
        if errors:
            raise_all(type(min(errors, key=lambda error: error.exit_code)), problems)

    def _look_at(self, source: SourceBlock) -> None:
        if source.path.startswith(builtin.PREFIX) or is_hub(source, self.base):
            fingerprint(source, self.base)
        else:  # a fingerprint would read the files whole
            input_files(source, self.base)

    @cached_property
    def fitter(self) -> Fitter:
        """Renders, labels and cuts examples as the recipe says."""
        data, tokenizer = self.recipe.data, self.tokenizer
        renderer = Renderer(tokenizer, loss_on=data.loss_on)
        facts = TokenFacts(
            tokenizer_hash(tokenizer), rows_with_new(self.recipe.model, tokenizer), tokenizer.bos_token_id
        )
        isolated = METHODS.load(self.recipe.method).ISOLATED
        return make_fitter(material_of(self.recipe), renderer, facts, data.max_length, data.overlong, isolated)

    @property
    def key(self) -> cache.Key:
        """The key of the prepared data."""
        return data_key(self.recipe, self.reader, self.fitter)

    @property
    def parts(self) -> dict[str, Any]:
        """What shapes the data; for a stream, whose rows are not prepared, with the content of its sources."""
        parts = dict(self.key.parts)
        if self.stream is not None:
            parts["rows"] = parts["rows"] | {"train": self.reader.fingerprint(self.recipe.data.train)}
        return parts

    def identity(self, prepared: Prepared) -> str:
        """Identifies the examples of a run; for a stream, by all that shapes them."""
        return sha256_json(self.parts) if self.stream is not None else str(prepared.facts["fingerprint"])

    def prepare(self, screen: Screen, own_folder: Path) -> Prepared:
        """Prepared data, in the cache, or in ``own_folder`` when the recipe wants none kept; as the method wants it."""
        folder = cache.root() if self.recipe.data.cache else own_folder
        prepared = prepare(self.recipe, self.reader, self.fitter, screen, folder)
        check = getattr(self.recipe.options, "check_rows", None)
        if check is not None:  # of a method whose rewards need more of a row than its prompt
            check(_references(prepared))
        further = getattr(METHODS.load(self.recipe.method), "prepare", None)
        return further(self, prepared, screen, folder) if further else prepared

    @cached_property
    def stream(self) -> Stream | None:
        """The training rows as a stream, when the recipe streams."""
        return Stream(self.recipe, self.reader, self.fitter) if self.recipe.data.streaming else None

    @cached_property
    def turn_end(self) -> int | None:
        """The id of the token that ends an assistant turn in the chat template; None without a template."""
        return turn_end(self.fitter)


def _references(prepared: Prepared) -> Iterator[tuple[str, str]]:
    """The reference and ``file:line`` of each prepared row."""
    ledger = Ledger.load(prepared.ledger_path)
    splits: tuple[Split, ...] = ("train", "eval")
    for split in splits:
        data = prepared.dataset(split)
        if data is not None:
            numbers = dict.fromkeys(zip((rows[0] for rows in data["rows"]), data["reference"], strict=True))
            yield from ((reference, str(ledger[number].origin)) for number, reference in numbers)


def said_of_rows(facts: dict[str, Any], material: Material) -> list[str]:
    """Lines on each split: what became of its rows, and why of those that are not kept.

    Args:
        facts: of the prepared data.
        material: prompts have no trained tokens: a model's own answers to them are trained.
    """
    lines = []
    for split, counts in facts["summary"].items():
        sums = " + ".join(f"{counts[fate]:,} {fate}" for fate in FATES if counts[fate])
        if material == "prompts":
            tokens = f"{counts['kept'] + counts['truncated']:,} prompts of {counts['tokens']:,} tokens"
        else:
            tokens = f"{counts['trained_tokens']:,} of {counts['tokens']:,} tokens trained"
        lines.append(f"{split}: {counts['rows']:,} rows = {sums}; {tokens}")
        lines += [f"  {number:,} x {reason}" for reason, number in list(counts["reasons"].items())[:5]]
    return lines


def eval_items(prepared: Prepared) -> list[EvalItem]:
    """The held-out rows; empty when nothing is held out. A row cut before its last answer has no ``prompt_ids``."""
    data = prepared.dataset("eval")
    if data is None:
        return []
    ledger = Ledger.load(prepared.ledger_path)
    items = []
    for row in data:
        values = cast(dict[str, Any], row)
        where = str(ledger[values["rows"][0]].origin)
        items.append(_text_item(values, where) if values["branches"] is None else _group_item(values, where))
    scores = data["score"]
    return items if not items or scores[0] is None or isinstance(items[0], PairItem) else _judged(items, scores)


def _judged(items: list[EvalItem], scores: list[float]) -> list[EvalItem]:
    """Good and bad answers of one row as pairs, each with each; where no row has both, the good answers."""
    good: dict[str, list[EvalItem]] = {}
    bad: dict[str, list[EvalItem]] = {}
    for item, score in zip(items, scores, strict=True):
        (good if score > 0.5 else bad).setdefault(item.where, []).append(item)
    pairs: list[EvalItem] = [
        PairItem(**vars(one), rejected_ids=other.input_ids, rejected_trained=other.trained)
        for where, better in good.items()
        for one in better
        for other in bad.get(where, ())
    ]
    return pairs or [item for better in good.values() for item in better]


def _text_item(row: dict[str, Any], where: str) -> EvalItem:
    ids = tuple(row["input_ids"])
    return EvalItem(
        input_ids=ids,
        trained=tuple(label >= 0 for label in row["labels"]),
        prompt_ids=ids[: row["prompt_tokens"]] if row["prompt_tokens"] < len(ids) else (),
        prompt_text=row["prompt"],
        reference=row["reference"],
        where=where,
    )


def _group_item(row: dict[str, Any], where: str) -> EvalItem:
    """The first answer of a group as a row of its own, the second beside it; or a prompt that has no answer yet."""
    ids, labels = tuple(row["input_ids"]), row["labels"]
    sizes = row["branches"]
    beginning = len(ids) - sum(sizes)
    first = beginning + sum(sizes[:1])
    trained = tuple(label >= 0 for label in labels[:first])
    prompt = ids[: trained.index(True)] if any(trained) else ids[:first]
    shared: dict[str, Any] = {"prompt_text": row["prompt"], "reference": row["reference"], "where": where}
    if len(sizes) < 2:
        return EvalItem(input_ids=ids[:first], trained=trained, prompt_ids=prompt, **shared)
    second = first + sizes[1]
    return PairItem(
        input_ids=ids[:first],
        trained=trained,
        prompt_ids=prompt,
        rejected_ids=ids[:beginning] + ids[first:second],
        rejected_trained=(False,) * beginning + tuple(label >= 0 for label in labels[first:second]),
        **shared,
    )


def planned_steps(plan: Plan, facts: dict[str, Any]) -> int:
    """The optimizer steps of a whole run on prepared data; transformers' Trainer counts them the same way."""
    train = plan.recipe.train
    if train.max_steps is not None:  # a stream names its steps
        return train.max_steps
    a_pass = math.ceil(int(facts["examples"]) / plan.examples_per_step)
    passes = getattr(plan.recipe.options, "passes", 1)  # of a method that draws answers: steps that learn from one
    return math.ceil(a_pass * passes * (train.epochs or 1))
