"""The card of a smaller model: what it was made of and how, what that cost, and how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunekit.compress.tasks import read
from tunekit.compress.words import agreement, beside, divergence, interval, rise
from tunekit.core.errors import UserError
from tunekit.core.files import write_atomic
from tunekit.core.front_matter import LICENCE_KEYS, as_yaml
from tunekit.exam.report_words import change_words, estimate_words, p_words, verdict_word
from tunekit.model.artefact import CARD
from tunekit.model.names import resolve_name
from tunekit.runs.front_matter import UNKNOWN
from tunekit.runs.scrub import Scrubber
from tunekit.runs.snippet import loading_words
from tunekit.runs.verdict import metric_name

MIB = 1 << 20


@dataclass(frozen=True)
class Said:
    """What is told of the way that it was made.

    Args:
        how: what was done, after the name of the source: ``in fewer bits: ...``.
        tags: of the card, beside tunekit.
        relation: to the base, in the Hub's words; empty where it has none.
        file: it is a .gguf file.
        chat: it answers conversations.
        needs: lines that install what loads it, beside transformers.
    """

    how: str
    tags: tuple[str, ...]
    relation: str = ""
    file: bool = False
    chat: bool = False
    needs: tuple[str, ...] = ()


def write_card(folder: Path, record: Mapping[str, Any], said: Said) -> None:
    """Writes the card into an artefact's folder, without a path, a host or a secret.

    Args:
        folder: of the artefact.
        record: its figures, as in quantize.json and prune.json.
        said: how it was made.
    """
    source, scrubber = record["source"], Scrubber.of_this_machine(folder)
    base = _base(source)
    named = f"`{source['model']}`" + (f" (from `{base}`)" if base not in (source["model"], "") else "")
    sections = [
        ("What it costs and saves", _figures(record)),
        ("Tasks", _tasks(record.get("tasks") or ())),
        ("How it was made", _making(record)),
        ("Licence", f"{_licence(source, base)}\n"),
        ("Loading it", _loading(folder, said)),
    ]
    parts = [
        f"---\n{as_yaml(_front(source, said))}---\n",
        f"# {source['model']}, {said.tags[0]}\n\n{named} {said.how}. Made by tunekit {record['tunekit']}, which wrote "
        "this card from what it measured.\n",
        *(f"## {head}\n\n{text}" for head, text in sections if text),
    ]
    write_atomic(folder / CARD, scrubber.text("\n".join(parts)))


def _base(source: Mapping[str, Any]) -> str:
    """The base's name for others: a Hub id, ``builtin:...``, or the last part of a folder's name."""
    name = str(source.get("name") or "")
    return name if name.startswith("builtin:") or _on_hub(name) else Path(name).name


def _on_hub(name: str) -> bool:
    try:
        return "/" in name and resolve_name(name).kind == "hub"
    except UserError:  # a folder that is gone
        return False


def _front(source: Mapping[str, Any], said: Said) -> dict[str, Any]:
    front: dict[str, Any] = {}
    name = str(source.get("name") or "")
    if _on_hub(name):
        front = {"base_model": name} | ({"base_model_relation": said.relation} if said.relation else {})
    front |= {"library_name": "gguf" if said.file else "transformers", "pipeline_tag": "text-generation"}
    licence = source.get("licence") or {}
    return front | {"tags": ["tunekit", *said.tags]} | {key: licence[key] for key in LICENCE_KEYS if key in licence}


def _licence(source: Mapping[str, Any], base: str) -> str:
    if base.startswith("builtin:"):
        return f"The base is a part of tunekit: `{base}`."
    licence = source.get("licence") or {}
    found = licence.get("license", UNKNOWN)
    words = ", ".join(found) if isinstance(found, list) else str(found)
    more = f" ({licence['license_name']})" if "license_name" in licence else ""
    return f"That of the base: {words}{more}."


def _figures(record: Mapping[str, Any]) -> str:
    cost = record["cost"]
    sizes = [f"{size / MIB:,.1f} MiB" for size in (record["source_size"], record["size"])]
    lines = [
        ("tensors", *sizes),
        ("perplexity", *(beside(interval(record[key])) for key in ("source_perplexity", "perplexity"))),
        ("loads in", *(f"{seconds:.1f} s" for seconds in cost["load_seconds"])),
        ("memory at most", *(f"{peak / MIB:,.0f} MiB" for peak in cost["peak_memory"])),
        ("reads", *(f"{speed:,.0f} tokens/s" for speed in cost["prompt_speed"])),
        ("writes", *(f"{speed:,.0f} tokens/s" for speed in cost["answer_speed"])),
    ]
    rises, bounds = rise(record["increase"])
    facts = [
        f"perplexity: {rises} ({bounds}, paired by row)",
        f"mean KL divergence from the source: {beside(divergence(record))} nats a position; the likeliest token is the "
        f"same at {beside(agreement(record))} of the positions",
        f"greedy answers that are the same: {record['same_texts']} of {len(record['texts'])}",
    ]
    about = (
        f"Both were loaded in fresh processes and measured on {record['rows_measured']} rows ({record['rows']}), "
        f"{record['positions']:,} positions. Speeds and memory are those of one machine."
    )
    return f"{_table(('', 'source', 'this model'), lines)}\n{_list(facts)}\n{about}\n"


def _tasks(asked: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for task in read(asked):
        cells = (estimate_words(task, task.base), estimate_words(task, task.tuned), change_words(task, task.difference))
        values = (f"{value} ({below})" if below else value for value, below in cells)
        judged = ", ".join(filter(None, (verdict_word(task), p_words(task))))
        name = ", ".join(dict.fromkeys((task.name, metric_name(task))))
        lines.append((name, f"{task.n:,}", *values, judged))
    head = ("task", "rows", "source", "this model", "change", "verdict")
    return f"{_table(head, lines)}\nIn brackets: intervals; the change is paired by row.\n" if lines else ""


def _making(record: Mapping[str, Any]) -> str:
    used = record["calibration"]
    looked = f"{used['rows']} rows of text, {used['tokens']:,} tokens" if used else "no text"
    options = ", ".join(f"{key}: {value}" for key, value in record["options"].items() if value not in (None, [], ()))
    facts = [f"looked at {looked}", *([f"options: {options}"] if options else [])]
    if "healing" in record:
        facts.append(f"trained afterwards by `{record['healing']['method']}`, see `heal/`")
    return _list(facts)


def _loading(folder: Path, said: Said) -> str:
    if said.file:
        name = next((path.name for path in sorted(folder.glob("*.gguf"))), "model.gguf")
        return f"```bash\nllama-cli -m {name}\nllama-server -m {name} --jinja\n```\n"
    needs = f"```bash\n{chr(10).join(said.needs)}\n```\n\n" if said.needs else ""
    return f"{needs}{loading_words('', on_hub=False, adapter=None, chat=said.chat, more_rows=False)}\n"


def _list(lines: Sequence[str]) -> str:
    return "".join(f"- {line}\n" for line in lines)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
