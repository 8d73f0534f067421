"""From a recipe document to a typed Recipe: every problem found is reported at once, with its place and a hint."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tunekit.core.errors import Problem, UserError, raise_all
from tunekit.core.registry import METHODS, did_you_mean
from tunekit.recipe import document as documents
from tunekit.recipe.checks import recipe_problems
from tunekit.recipe.extra import extra_problems
from tunekit.recipe.kinds import Kinds, recipe_type, unknown_kinds
from tunekit.recipe.rates import usual_rate
from tunekit.recipe.schema import Recipe

T = TypeVar("T", bound=BaseModel)
_BOUNDS = {
    "greater_than": ("gt", ">"),
    "greater_than_equal": ("ge", ">="),
    "less_than": ("lt", "<"),
    "less_than_equal": ("le", "<="),
}


def load(path: Path, *, method: str | None = None, overrides: Iterable[str] = ()) -> Recipe:
    """Reads, overrides and checks a recipe file.

    Args:
        path: the recipe.
        method: the command's method; None takes the recipe's own ``method`` key.
        overrides: ``key.path=value`` assignments.

    Raises:
        UserError: with one problem for each thing that is wrong, each with ``file:line:column`` and a hint.
    """
    return check(documents.override(documents.read(path), list(overrides)), method)


def check(document: documents.Document, method: str | None = None) -> Recipe:
    """Turns a document into a Recipe; raises UserError with all problems at once."""
    value = dict(document.value)
    chosen = _method_of(document, method)
    value["method"] = chosen
    problems = _foreign_blocks(document, value, chosen)
    problems += unknown_kinds(document, value)
    problems += extra_problems(document)
    recipe, faults = typed(document, recipe_type(chosen, Kinds.of(value)), value)
    problems += faults if recipe is None else recipe_problems(recipe, document)
    refuse(problems)
    assert recipe is not None
    return _with_learning_rate(recipe)


def typed(
    document: documents.Document, wanted: type[T], value: dict[str, Any], context: dict[str, Any] | None = None
) -> tuple[T | None, list[Problem]]:
    """The document's value as one of the type ``wanted``, or all that is wrong with it, each with its place.

    Args:
        document: where the value stands.
        wanted: the type.
        value: the document's, or what was made of it.
        context: for validators that ask for it.
    """
    try:
        return wanted.model_validate_json(json.dumps(value, ensure_ascii=True), context=context), []
    except ValidationError as error:
        return None, _problems(error, document, wanted, value)


def refuse(problems: Iterable[Problem]) -> None:
    """Raises a UserError with all of them, in the order of the file, if there is one."""
    raise_all(UserError, sorted(problems, key=_line))


def _with_learning_rate(recipe: Recipe) -> Recipe:
    """Where the recipe names none, the learning rate is the one that suits its method and what it trains."""
    if "learning_rate" in recipe.train.model_fields_set:
        return recipe
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"learning_rate": usual_rate(recipe)})})


def _line(problem: Problem) -> tuple[int, ...]:
    return tuple(int(part) for part in problem.where.split(":")[-2:] if part.isdigit())


def _method_of(document: documents.Document, method: str | None) -> str:
    named = document.value.get("method")
    place = document.place(("method",), of_value=True)
    if named is not None and not isinstance(named, str):
        raise UserError("`method` must be text", where=place, fix=f"one of: {', '.join(METHODS.names)}")
    if named is not None and named not in METHODS.names:
        raise UserError(f"unknown method '{named}'", where=place, fix=did_you_mean(named, METHODS.names))
    if method and named and method != named:
        raise UserError(
            f"this recipe is for `{named}`, the command is `{method}`",
            where=place,
            fix=f"run `tunekit {named} {document.name}`",
        )
    chosen = method or named
    if chosen is None:
        blocks = [name for name in METHODS.names if name in document.value]
        if len(blocks) != 1:
            raise UserError(
                "the recipe does not say its method", where=document.name, fix="add `method: sft` as its first line"
            )
        chosen = blocks[0]
    return chosen


def _foreign_blocks(document: documents.Document, value: dict[str, Any], method: str) -> list[Problem]:
    problems = []
    for other in METHODS.names:
        if other != method and other in value:
            del value[other]
            what = f"block '{other}' belongs to another method; this recipe is `{method}`"
            problems.append(Problem(what, document.place((other,)), f"remove it, or run `tunekit {other}`"))
    return problems


def _problems(error: ValidationError, document: documents.Document, root: type[BaseModel], value: Any) -> list[Problem]:
    grouped: dict[tuple[documents.Path_, str], list[ErrorDetails]] = {}
    for item in error.errors(include_url=False):
        path = _path_in(item["loc"], value)
        missing = item["type"] == "missing"
        grouped.setdefault(((*path, item["loc"][-1]) if missing else path, item["type"] if missing else ""), []).append(
            item
        )
    paths = [path for path, _ in grouped]
    return [
        _problem(path, items, document, root, value)
        for (path, _), items in grouped.items()
        # a list whose item is wrong counts as too short, or as not the word that may stand in its place, as well:
        # the item's own problem says enough
        if not (
            items[0]["type"] in ("too_short", "literal_error", "string_type")
            and any(other[: len(path)] == path != other for other in paths)
        )
    ]


def _path_in(loc: tuple[int | str, ...], value: Any) -> documents.Path_:
    """The part of a pydantic location that exists in the document (union tags are left out)."""
    path: list[int | str] = []
    at = value
    for position, part in enumerate(loc):
        if isinstance(at, Mapping) and part == at.get("kind") and position < len(loc) - 1:
            continue  # the tag of a union, even where the block has an (unknown) key of that name
        inside = isinstance(at, list) and isinstance(part, int) and part < len(at)
        if inside or (isinstance(at, Mapping) and part in at):
            at = at[part]
            path.append(part)
    return tuple(path)


def _problem(
    path: documents.Path_, items: list[ErrorDetails], document: documents.Document, root: type[BaseModel], value: Any
) -> Problem:
    dotted = ".".join(str(part) for part in path)
    first = items[0]
    kind = first["type"]
    if kind == "extra_forbidden":
        known = {name for block in _blocks_at(root, path[:-1], value) for name in block.model_fields}
        return Problem(f"unknown key '{dotted}'", document.place(path), did_you_mean(str(path[-1]), known))
    if kind == "missing":
        return Problem(f"missing key '{dotted}'", document.place(path[:-1]), f"add `{path[-1]}:`")
    given = _shown(reduce(lambda at, part: at[part], path, value))
    wanted = list(dict.fromkeys(_wanted(item) for item in items))
    if kind in _BOUNDS:
        wanted = [_range(root, path, value, wanted[0])]
    what = f"'{dotted}' must be {' or '.join(wanted)}; it is {given}"
    fix = _fix(kind, first, dotted, wanted)
    expected = first.get("ctx", {}).get("expected", "")
    if kind in ("literal_error", "union_tag_invalid") and isinstance(first["input"], (str, dict)):
        names = [
            name.strip("' ")
            for name in str(expected or first["ctx"].get("expected_tags", "")).replace(" or ", ",").split(",")
        ]
        word = first["input"] if isinstance(first["input"], str) else str(first["input"].get("kind"))
        fix = did_you_mean(word, [name for name in names if name])
    return Problem(what, document.place(path, of_value=True), fix)


def _fix(kind: str, item: ErrorDetails, dotted: str, wanted: list[str]) -> str:
    """What to write: the note of the validator that refused, else a value of the type that is wanted."""
    notes = getattr(item.get("ctx", {}).get("error"), "__notes__", ())
    if notes:
        return "; ".join(notes)
    if kind in _BOUNDS:
        return f"write a number {wanted[0]} for `{dotted}`, or leave it out"
    if kind in ("int_type", "float_type", "bool_type", "int_from_float", "finite_number"):
        return f"write {wanted[0]} for `{dotted}`, without quotes"
    return ""


def _shown(given: Any) -> str:
    text = json.dumps(given, ensure_ascii=False)
    kind = "text " if isinstance(given, str) else "the block " if isinstance(given, dict) else ""
    return kind + (text if len(text) <= 60 else text[:57] + "...")


def _wanted(item: ErrorDetails) -> str:
    context = item.get("ctx", {})
    match item["type"]:
        case "int_type" | "int_parsing" | "int_from_float":
            return "a whole number"
        case "float_type" | "float_parsing":
            return "a number"
        case "finite_number":
            return "a finite number"
        case "bool_type" | "bool_parsing":
            return "true or false"
        case "string_type":
            return "text"
        case "string_too_short":
            return "text that is not empty"
        case "tuple_type" | "list_type":
            return "a list"
        case "too_short":
            return f"a list of at least {context.get('min_length', 1)}"
        case "dict_type" | "model_type" | "model_attributes_type":
            return "a block of keys"
        case kind if kind in _BOUNDS:
            key, symbol = _BOUNDS[kind]
            return f"{symbol} {_number(context[key])}"
        case "literal_error":
            return f"one of {context['expected']}"
        case "union_tag_invalid":
            return f"of a kind among {context['expected_tags']}"
        case "union_tag_not_found":
            return "a block with a `kind`"
        case "value_error":
            return str(context.get("error", item["msg"]))
        case _:
            return item["msg"]


def _blocks_at(root: type[BaseModel], path: documents.Path_, value: Any) -> list[type[BaseModel]]:
    """The classes that the block at ``path`` of ``value`` may be of; a block with a known ``kind`` is of one class."""
    found: list[Any] = [root]
    for part in path:
        kinds = [kind for annotation in found for kind in _alternatives(annotation)]
        if isinstance(part, int):
            found = [get_args(kind)[0] for kind in kinds if get_origin(kind) is tuple]
        else:
            found = [kind.model_fields[part].annotation for kind in _blocks(kinds) if part in kind.model_fields]
        value = value[part]
    blocks = _blocks([kind for annotation in found for kind in _alternatives(annotation)])
    named = value.get("kind") if isinstance(value, Mapping) else None
    of_kind = [b for b in blocks if "kind" in b.model_fields and named in get_args(b.model_fields["kind"].annotation)]
    return of_kind or blocks


def _alternatives(annotation: Any) -> list[Any]:
    """The members of a union, however nested; any other annotation is its own only member."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for inner in get_args(annotation) for kind in _alternatives(inner)]
    return [annotation]


def _blocks(kinds: Iterable[Any]) -> list[type[BaseModel]]:
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


def _range(root: type[BaseModel], path: documents.Path_, value: Any, broken: str) -> str:
    """The whole range of a bounded number, such as ``> 0 and <= 10``."""
    fields = [kind.model_fields.get(str(path[-1])) for kind in _blocks_at(root, path[:-1], value)]
    metadata = [item for field in fields if field is not None for item in field.metadata]
    signs = dict(_BOUNDS.values())
    bounds = [f"{signs[key]} {_number(getattr(item, key))}" for item in metadata for key in signs if hasattr(item, key)]
    return " and ".join(bounds) if broken in bounds else broken


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
