"""Which format a source has, told from its first rows; and the conversion of a row by a format's name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any

from tunekit.core.errors import DataError, UserError
from tunekit.core.registry import FORMATS, METHODS, did_you_mean, nearest
from tunekit.core.types import Learnt, Material, RowError
from tunekit.data.columns import RESERVED, pick
from tunekit.recipe.kinds import material_of

PROBED = 50
SERVED: Mapping[Material, tuple[Material, ...]] = {
    "texts": ("texts",),
    "pairs": ("pairs",),
    "judged": ("judged", "pairs"),
    "prompts": ("prompts", "texts", "judged", "pairs"),
}
"""The material that is wanted, and what formats may give for it: of a pair one answer is good and the other bad, and
whatever has an answer has a prompt before it."""
WORDS: Mapping[Material, str] = {
    "texts": "these are texts or conversations, none better or worse than another",
    "pairs": "these are preference pairs",
    "judged": "each answer is judged good or bad",
    "prompts": "these are prompts without an answer to learn from",
}


def detect(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | None = None, material: Material = "texts"
) -> str:
    """The one format that all of the first rows (up to 50) have; the formats are asked by their `PRECEDENCE`.

    Args:
        rows: good rows from the beginning of a source.
        columns: the recipe's ``columns``; only formats that have all of these fields are asked.
        material: what the method learns from; only formats that serve it are asked.

    Raises:
        DataError: no format fits; the columns, the formats and the line to write are shown.
        UserError: ``columns`` names a field that no format has.
    """
    assert rows, "detect needs a row"
    mapped = _mapped(columns)
    probed = [_renamed(row, mapped) for row in rows[:PROBED]]
    serving = [name for name in _by_precedence() if serves(name, material)]
    asked = [name for name in serving if set(mapped) <= set(_loaded(name).FIELDS)]
    if not asked:
        known = {field for name in serving for field in _loaded(name).FIELDS}
        strange = next((field for field in mapped if field not in known), None)
        fix = did_you_mean(strange, known) if strange else "name the format that is meant: `format:`"
        raise UserError(f"`columns: {{{', '.join(mapped)}}}` fits no format", fix=fix)
    compared = material == "texts" and not mapped and (all(map(_is_pair, probed)) or all(map(_is_labelled, probed)))
    for name in () if compared else asked:
        if all(_loaded(name).matches(row) for row in probed):
            return name
    raise _unknown(rows[:PROBED], probed, asked, material)


def serves(name: str, material: Material) -> bool:
    """Whether rows of the format ``name`` can be taken as ``material``.

    Raises:
        UserError: there is no such format.
    """
    return _loaded(name).GIVES in SERVED[material]


def check_serves(name: str, material: Material) -> None:
    """Refuses a format whose rows are no ``material``.

    Raises:
        UserError: that; or there is no such format.
    """
    if not serves(name, material):
        known = ", ".join(other for other in _by_precedence() if serves(other, material))
        what = f"`format: {name}`: {WORDS[_loaded(name).GIVES]}, and this method does not learn from them"
        raise UserError(what, fix=f"{_methods(_loaded(name).GIVES)}; or give it rows of another format: {known}")


def to_example(name: str, row: Mapping[str, Any], columns: Mapping[str, str]) -> Learnt:
    """Converts one row by the format ``name``.

    Raises:
        RowError: the row does not fit; the reason names the column or turn.
        UserError: there is no such format, or it has no such field as ``columns`` names.
    """
    module = _loaded(name)
    mapped = _mapped(columns)
    for field in mapped:
        if field not in module.FIELDS:
            known = (*module.FIELDS, *RESERVED)
            raise UserError(f"the format '{name}' has no field '{field}'", fix=did_you_mean(field, known))
    learnt: Learnt = module.to_example(row, mapped)
    return learnt


@cache
def _loaded(name: str) -> ModuleType:
    return FORMATS.load(name)


def _by_precedence() -> list[str]:
    return sorted(FORMATS.names, key=lambda name: int(_loaded(name).PRECEDENCE))


def _mapped(columns: Mapping[str, str] | None) -> dict[str, str]:
    return {field: path for field, path in (columns or {}).items() if field not in RESERVED}


def _renamed(row: Mapping[str, Any], mapped: Mapping[str, str]) -> dict[str, Any]:
    """The row with the named columns under the formats' own names; what a row does not have is left out."""
    seen = dict(row)
    for field, path in mapped.items():
        try:
            seen[field] = pick(row, path)
        except RowError:
            continue
    return seen


def _unknown(
    rows: Sequence[Mapping[str, Any]],
    probed: Sequence[Mapping[str, Any]],
    asked: Sequence[str],
    material: Material,
) -> DataError:
    columns = list(dict.fromkeys(str(column) for row in rows for column in row))
    fitting = {name: sum(map(_loaded(name).matches, probed)) for name in asked}
    best = max(asked, key=lambda name: fitting[name])
    if 0 < fitting[best] < len(probed):
        odd = next(i for i, row in enumerate(probed, start=1) if not _loaded(best).matches(row))
        what = f"{fitting[best]} of the first {len(rows)} rows look like '{best}', good row {odd} does not"
        return DataError(what, fix=f"write `format: {best}` to refuse such rows one by one, or split the file")
    known = "; ".join(f"{name} ({', '.join(_loaded(name).REQUIRED)})" for name in asked)
    what = f"no format fits the columns {', '.join(columns[:20])}. Formats: {known}"
    return DataError(what, fix=_other(probed, material) or _advice(rows[0], columns, asked))


def _other(probed: Sequence[Mapping[str, Any]], material: Material) -> str:
    """What to do with rows that are no ``material`` but another one; empty where they are none either."""
    given: Material | None = None
    if material == "texts" and _is_pair(probed[0]):
        given = "pairs"
    elif material == "texts" and _is_labelled(probed[0]):
        given = "judged"
    for name in () if given else _by_precedence():
        if not serves(name, material) and all(_loaded(name).matches(row) for row in probed):
            given = _loaded(name).GIVES
            break
    if given is None:
        alone = next((name for name in ("chosen", "rejected") if name in probed[0]), None)
        if material in ("pairs", "judged") and alone:
            missing = "rejected" if alone == "chosen" else "chosen"
            told = f"there is no '{missing}' answer beside '{alone}'"
            return f"{told}: add one; or `tunekit sft` with `columns: {{completion: {alone}}}`"
        if material == "judged" and isinstance(probed[0].get("label"), str):
            words = "true or false, 1 or 0, yes or no, good or bad"
            return f"the label {probed[0]['label'][:30]!r} says neither good nor bad: write {words}"
        return ""
    advice = f"{WORDS[given]}: {_methods(given)}"
    return f"{advice}; or name a format, for example `format: chat`, to train on all" if given == "judged" else advice


def _methods(given: Material) -> str:
    """The methods that learn from what is given."""
    wanted = [name for name in METHODS.names if given in SERVED[material_of(name)]]
    exact = [name for name in wanted if material_of(name) == given]
    named = ", ".join(f"`tunekit {name}`" for name in exact or wanted)
    return f"for {named}" if named else "for a method that learns from such rows"


def _advice(row: Mapping[str, Any], columns: Sequence[str], asked: Sequence[str]) -> str:
    if "parent_id" in columns or "parent_message_id" in columns:
        return "each row is one message of a tree: nest the replies first (`format: tree`)"
    if any(len(name) > 40 or name.endswith((".", "?", "!", "。", "？", "！")) for name in columns):
        return 'without a header line, name the columns: `columns: {header: "a, b"}`'
    paths = sorted(_paths(row), key=lambda found: not found[1])
    for name in asked:
        found = {field: _path_for(field, _loaded(name).FIELDS[field], paths) for field in _loaded(name).REQUIRED}
        fitting = {field: path for field, path in found.items() if path is not None}
        if len(fitting) == len(found) and _loaded(name).matches(_renamed(row, fitting)):
            moved = ", ".join(f"{field}: {path}" for field, path in fitting.items())
            return f"perhaps `format: {name}` with `columns: {{{moved}}}`"
    lengths = {name: len(row[name]) for name in columns if isinstance(row.get(name), str)}
    example = max(lengths, key=lambda name: lengths[name], default="NAME")
    name, fields = asked[-1], _loaded(asked[-1]).REQUIRED
    moved = f"{fields[0]}: {example}" if len(fields) == 1 else ", ".join(f"{field}: NAME" for field in fields)
    return f"name the format and its columns, for example `format: {name}` with `columns: {{{moved}}}`"


def _is_pair(row: Mapping[str, Any]) -> bool:
    return "chosen" in row and "rejected" in row


def _is_labelled(row: Mapping[str, Any]) -> bool:
    """Answers with a verdict, as KTO trains on: the bad ones among them are not to be imitated."""
    return isinstance(row.get("label"), bool)


def _paths(value: Any, prefix: str = "", depth: int = 3) -> Iterator[tuple[str, bool]]:
    """Dotted paths to the texts (True) and lists (False) in a row, outermost first."""
    items: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        items = [(f"{prefix}{key}", item) for key, item in value.items()]
    elif isinstance(value, list | tuple) and value and prefix:
        items = [(f"{prefix}0", value[0])]
    for path, item in items:
        if isinstance(item, str | list | tuple):
            yield path, isinstance(item, str)
    if depth > 1:
        for path, item in items:
            yield from _paths(item, f"{path}.", depth - 1)


def _path_for(field: str, defaults: Sequence[str], paths: Sequence[tuple[str, bool]]) -> str | None:
    """The path whose last name (indexes aside) is one of the field's own, or else nearest to it; texts come first."""
    last = {path.removesuffix(".0").rpartition(".")[2]: path for path, _ in reversed(paths)}
    exact = next((last[name] for name in (field, *defaults) if name in last), None)
    close = nearest(field, last) if len(field) > 4 else None
    return exact or (last[close] if close else None)
