"""The recipe reference, written from the schema: `python -m tunekit.recipe.reference > docs/recipe.md`."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from pydantic import BaseModel

from tunekit.core.registry import METHODS
from tunekit.recipe.kinds import recipe_type

_HEAD = """# The recipe, key by key

Written from the schema by `python -m tunekit.recipe.reference`; a test keeps it true. `tunekit schema` prints the same
for editors. Every key can be overridden on the command line: `--set train.learning_rate=1e-4`.
"""

_WORDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true, false",
    "object": "block",
    "null": "null",
}


_ELSEWHERE = {
    "adapter": "A block with a `kind`; the kinds, what they can do and their keys: [adapters.md](adapters.md).",
}


class Key(NamedTuple):
    """A key of a block, in words: the values it takes, what it is when left out, what it does."""

    name: str
    values: str
    default: str
    help: str


def reference() -> str:
    """The whole reference as Markdown."""
    parts = [_HEAD]
    shared: set[str] = set()
    for method in METHODS.names:
        schema = recipe_type(method).model_json_schema()
        for name, field in schema["properties"].items():
            if name not in shared:
                shared.add(name)
                parts.append(_block(name, field, schema["$defs"]))
    return "\n".join(parts)


def keys_of(block: type[BaseModel]) -> list[Key]:
    """The keys of one block, in their order."""
    schema = block.model_json_schema()
    return _keys(schema, schema.get("$defs", {}))


def markdown_table(keys: list[Key]) -> list[str]:
    """Keys as the lines of a Markdown table."""
    if not keys:
        return ["No keys of its own."]
    rows = [f"| `{key.name}` | {key.values} | {key.default} | {key.help} |" for key in keys]
    return ["| key | value | default | |", "|---|---|---|---|", *rows]


def _block(name: str, field: dict[str, Any], definitions: dict[str, Any]) -> str:
    found = _definition(field, definitions)
    if found is None:
        lines = [f"## `{name}`", "", field.get("description", "")]
        if name in _ELSEWHERE:
            lines += ["", _ELSEWHERE[name]]
        return "\n".join(lines) + "\n"
    lines = [f"## `{name}:`", "", field.get("description") or found.get("description", ""), ""]
    lines += _table(found, definitions)
    for key, inner in _inner_blocks(found, definitions):
        lines += [
            "",
            f"### A block of `{name}.{key}`",
            "",
            inner.get("description", ""),
            "",
            *_table(inner, definitions),
        ]
    return "\n".join(lines) + "\n"


def _inner_blocks(definition: dict[str, Any], definitions: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The blocks that a block's keys hold, each once."""
    found: dict[str, str] = {}
    for key, field in definition.get("properties", {}).items():
        for option in (field, *field.get("anyOf", ()), *field.get("oneOf", ())):
            reference = option.get("$ref") or option.get("items", {}).get("$ref")
            if reference:
                found.setdefault(reference.rsplit("/", 1)[-1], key)
    return [(key, definitions[name]) for name, key in found.items()]


def _definition(field: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any] | None:
    for option in (field, *field.get("anyOf", ())):
        if "$ref" in option:
            value: dict[str, Any] = definitions[option["$ref"].rsplit("/", 1)[-1]]
            return value
    return None


def _table(definition: dict[str, Any], definitions: dict[str, Any]) -> list[str]:
    return markdown_table(_keys(definition, definitions))


def _keys(definition: dict[str, Any], definitions: dict[str, Any]) -> list[Key]:
    found = []
    for name, field in definition.get("properties", {}).items():
        default = "required" if name in definition.get("required", []) else _plain(field.get("default"))
        found.append(Key(name, _kind(field, definitions), default, field.get("description", "")))
    return found


def _kind(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "anyOf" in field or "oneOf" in field:
        options = [*field.get("anyOf", ()), *field.get("oneOf", ())]
        kinds = [_kind(option, definitions) for option in options]
        return " or ".join(kind for kind in dict.fromkeys(kinds) if kind != "null")
    if "$ref" in field:
        return "block"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array":
        return f"list of ({_kind(field.get('items', {}), definitions)})"
    return _WORDS.get(field.get("type", ""), "any") + _bounds(field)


def _bounds(field: dict[str, Any]) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    found = [f"{sign} {field[name]:,}" for name, sign in signs.items() if name in field]
    return f" ({' and '.join(found)})" if found else ""


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, dict)) and not any(value.values() if isinstance(value, dict) else value):
        return "empty"
    return f"`{value}`"


if __name__ == "__main__":
    sys.stdout.write(reference())
