"""The model card: README.md of a finished model, made from the facts of its run, without a path, a host or a secret."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tunekit.core.files import write_atomic
from tunekit.plan.plan import Plan
from tunekit.recipe.schema import SourceBlock
from tunekit.runs.baseline import base_line, with_base
from tunekit.runs.front_matter import as_yaml, license_of, license_words, snapshot
from tunekit.runs.layout import RunFolder
from tunekit.runs.record import FATES, EvaluationPart, Record
from tunekit.runs.scrub import Scrubber
from tunekit.runs.snippet import loading_words
from tunekit.runs.verdict import headline, metric_name, show_difference, show_estimate, show_p
from tunekit.runs.wording import count, json_ready, percent

NAME = "README.md"
_PLACES = ("path", "start", "tokenizer", "chat_template")  # keys of a recipe that may hold a file or a folder


@dataclass(frozen=True)
class Card:
    """What a card is made of.

    Args:
        folder: the run folder.
        record: of a run that is done.
        plan: as it was in the end.
        hub: those names of the recipe (model, tokenizer, data) that are Hub ids.
        model: the folder that the card goes into, when it is not the run's own.
        notes: further sections, each a heading and its text.
    """

    folder: RunFolder
    record: Record
    plan: Plan
    hub: frozenset[str]
    model: Path | None = None
    notes: tuple[tuple[str, str], ...] = ()

    @property
    def place(self) -> Path:
        """The folder of the model."""
        return self.model or self.folder.model

    @cached_property
    def is_adapter(self) -> bool:
        """Whether the folder holds an adapter, not a whole model."""
        return (self.place / "adapter_config.json").is_file()

    @cached_property
    def scrubber(self) -> Scrubber:
        """Takes out what belongs to a person or a machine."""
        return Scrubber.of_this_machine(self.folder.path)

    @cached_property
    def base(self) -> str:
        """The base's name for others: a Hub id, ``builtin:...``, or the last part of a folder's name."""
        name = self.plan.recipe.model.name
        known = name in self.hub or name.startswith("builtin:")
        return name if known else self.scrubber.text(Path(name).expanduser().name)

    @cached_property
    def base_folder(self) -> Path | None:
        """Where the base lies on this machine; None when it is embedded, or not found."""
        name = self.plan.recipe.model.name
        if name in self.hub:
            return snapshot(name, "config.json", self.plan.recipe.model.revision, "model")
        return None if name.startswith("builtin:") else Path(name).expanduser()

    @property
    def title(self) -> str:
        """One line that names the model."""
        adapter = f" with {self.plan.recipe.adapter_block.kind}" if self.plan.recipe.adapter_block is not None else ""
        return f"{self.base.rpartition('/')[2]} tuned by {self.record.method}{adapter}"


def write_card(card: Card) -> Path:
    """Writes the card beside the model, atomically, in the place of one that a library left there.

    Raises:
        OSError: as the file system says.
    """
    clean = card.scrubber.value(json_ready(card.record.model_dump()))
    record = with_base(Record.model_validate(clean), card.folder)
    sections = [
        ("Did it help?", _evaluation(record)),
        ("Base model", _base(card, record)),
        ("Training", _training(card, record)),
        ("Recipe", f"What was set; the rest are defaults.\n\n```yaml\n{as_yaml(_recipe(card))}```\n"),
        ("Data", _data(card, record)),
        *card.notes,
        ("Loading it", f"{_loading(card)}\n"),
    ]
    opening = f"# {card.title}\n\nMade by tunekit {record.tunekit}, which wrote this card from the facts of the run.\n"
    parts = [
        f"---\n{as_yaml(_front(card, record))}---\n",
        opening,
        *(f"## {head}\n\n{text}" for head, text in sections),
    ]
    path = card.place / NAME
    write_atomic(path, "\n".join(parts))
    return path


def _front(card: Card, record: Record) -> dict[str, Any]:
    """The front matter, by the rules of the Hub's model cards (https://huggingface.co/docs/hub/model-cards)."""
    kind = card.plan.recipe.adapter_block
    front: dict[str, Any] = {}
    if card.base in card.hub:
        front = {"base_model": card.base, "base_model_relation": "adapter" if card.is_adapter else "finetune"}
    front["library_name"] = "peft" if card.is_adapter else "transformers"
    front["pipeline_tag"] = "text-generation"
    front["tags"] = ["tunekit", record.method, *([kind.kind] if kind is not None else [])]
    front |= {key: card.scrubber.value(value) for key, value in license_of(card.base_folder).items()}
    data_sets = sorted({source.path for source in _sources(card.plan)} & card.hub)
    if data_sets:
        front["datasets"] = data_sets
    results = list(_results(record.evaluation)) if record.evaluation else []
    if results:
        front["model-index"] = [{"name": card.title, "results": results}]
    return front


def _results(evaluation: EvaluationPart) -> Iterator[dict[str, Any]]:
    for task in evaluation.tasks:
        if math.isfinite(task.tuned.value):
            yield {
                "task": {"type": "text-generation"},
                "dataset": {"name": "held-out rows of the run", "type": "held-out"},
                "metrics": [{"type": task.metric, "name": metric_name(task), "value": task.tuned.value}],
            }


def _evaluation(record: Record) -> str:
    words = headline(record)
    lines = [f"**{words.title}**", "", *(f"- {detail}" for detail in words.details)]
    tasks = record.evaluation.tasks if record.evaluation else ()
    rows = []
    for task in tasks:
        base, tuned, difference = (_with_interval(*pair) for pair in (
            show_estimate(task, task.base), show_estimate(task, task.tuned), show_difference(task)))  # fmt: skip
        p = show_p(task.difference.p_value if task.difference else None)
        verdict = f"{task.verdict or 'not compared'}{f', {p}' if p else ''}"
        rows.append([metric_name(task), count(task.n), base, tuned, difference, verdict])
    if rows:
        head = ["metric", "examples", "base", "tuned", "difference", "verdict"]
        sure = f"{tasks[0].confidence * 100:g} %"
        lines += ["", _table(head, rows), f"In brackets: {sure} intervals. Measured on rows held out from training."]
        lines += [base] if (base := base_line(record)) else []
    return "\n".join(lines) + "\n"


def _with_interval(value: str, interval: str) -> str:
    return f"{value} ({interval})" if interval else value


def _base(card: Card, record: Record) -> str:
    block, folder = card.plan.recipe.model, card.base_folder
    builtin = card.base.startswith("builtin:")
    lines = [f"- `{card.base}`{', which is part of tunekit' if builtin else ''}"]
    if card.base in card.hub:
        commit = f", commit `{folder.name}`" if folder is not None else ""
        lines.append(f"- revision: `{card.scrubber.text(block.revision or 'main')}`{commit}")
    if not builtin:
        lines.append(f"- licence: {card.scrubber.text(license_words(folder))}")
    if record.model is not None:
        lines.append(f"- parameters: {count(record.model.parameters)}, trained: {count(record.model.trainable)}")
    return "\n".join(lines) + "\n"


def _training(card: Card, record: Record) -> str:
    plan, training = card.plan, record.training
    adapter = plan.recipe.adapter_block
    adapted = _kind_words(adapter.model_dump(mode="json"), card) if adapter else "none, the model itself was trained"
    quantize = plan.recipe.model_dump(mode="json")["model"].get("quantize")
    quantized = f", quantized by {_kind_words(quantize, card)}" if quantize else ""
    train = plan.recipe.train
    packing = "packed" if plan.recipe.data.packing else "not packed"
    lines = [
        f"- method: `{record.method}`",
        f"- adapter: {adapted}",
        f"- optimizer: {train.optimizer}, learning rate {train.learning_rate:g}, {train.schedule}",
        f"- precision: {plan.precision}, weights loaded as {plan.weights_dtype}{quantized}",
        f"- seed: {train.seed}",
    ]
    if training is not None:
        steps, tokens = count(training.steps), count(training.trained_tokens)
        lines.append(f"- steps: {steps} of {plan.examples_per_step} examples; {tokens} trained tokens")
        padding = "" if training.padding_share is None else f", {percent(training.padding_share)} padding"
        why = f"; batches were padded: {training.padded_because}" if training.padded_because else ""
        lines.append(f"- rows: {packing}{padding}{why}")
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    return "\n".join([*lines, f"- versions: tunekit {record.tunekit}, {versions}"]) + "\n"


def _kind_words(block: Mapping[str, Any], card: Card) -> str:
    """A block with a kind, and those of its settings that are set: `lora`, r 16, alpha 32."""
    settings = card.scrubber.value(_without_places(block, card))
    words = [f"`{settings.pop('kind')}`"]
    for key, value in settings.items():
        if value not in (None, [], {}, False, ""):
            words.append(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}")
    return ", ".join(words)


def _sources(plan: Plan) -> list[SourceBlock]:
    data = plan.recipe.data
    return [*data.train, *(data.eval if isinstance(data.eval, tuple) else ())]


def _data(card: Card, record: Record) -> str:
    lines = []
    for source in {source.path: source for source in _sources(card.plan)}.values():
        shown = _place(source.path, card)
        if source.path.startswith("builtin:"):
            lines.append(f"- `{shown}`, which is part of tunekit")
            continue
        if source.path in card.hub:
            folder = snapshot(source.path, NAME, source.revision, "dataset")
        else:
            here = (Path(card.plan.recipe_folder) / source.path, Path(source.path).expanduser())
            folder = next((path if path.is_dir() else path.parent for path in here if path.exists()), None)
        lines.append(f"- `{shown}`, licence: {card.scrubber.text(license_words(folder))}")
    if record.data is not None:
        head = ["split", "rows", *FATES, "tokens", "trained tokens"]
        names = ["rows", *FATES, "tokens", "trained_tokens"]
        rows = [[split, *(count(getattr(part, name)) for name in names)] for split, part in record.data.splits.items()]
        lines += ["", _table(head, rows), f"Fingerprint of the prepared rows: `{record.data.fingerprint}`"]
    return "\n".join(lines) + "\n"


def _recipe(card: Card) -> Any:
    """The recipe's keys that differ from their defaults; file and folder names without the way to them."""
    value = card.plan.recipe.model_dump(mode="json", exclude_defaults=True, exclude={"output", "launch"})
    value["model"] = {"name": card.base} | {k: v for k, v in value.get("model", {}).items() if k != "name"}
    return card.scrubber.value(_without_places(value, card))


def _without_places(value: Any, card: Card, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _without_places(item, card, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_places(item, card, key) for item in value]
    if isinstance(value, str) and (key in _PLACES or value.startswith(("/", "~", "./", "../"))):
        return _place(value, card)
    return value


def _place(text: str, card: Card) -> str:
    """A file's or folder's own name; Hub ids and embedded data are no places."""
    return text if text in card.hub or text.startswith("builtin:") else card.scrubber.text(Path(text).name)


def _loading(card: Card) -> str:
    recipe = card.plan.recipe
    kind = recipe.adapter_block.kind if card.is_adapter and recipe.adapter_block is not None else None
    return loading_words(
        card.base,
        on_hub=card.base in card.hub,
        adapter=kind,
        chat=card.record.method != "pretrain" and (card.place / "chat_template.jinja").is_file(),
        more_rows=bool(recipe.model.model_dump().get("new_tokens")),
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
