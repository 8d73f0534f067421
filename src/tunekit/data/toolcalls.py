"""Tools and tool calls as data sets write them (objects, or JSON inside a string), brought to one form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunekit.core.types import RowError
from tunekit.data import strictjson
from tunekit.data.columns import field, shown
from tunekit.data.readers.record import kind


def decoded(value: Any, where: str) -> Any:
    """``value``, or what the JSON in it says when it is text.

    Raises:
        RowError: the text is not JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return strictjson.parse(value)
    except ValueError as error:
        raise RowError(f"{where}: {error}") from None


def tools_of(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    """The tools offered in a row: a list, or a list as JSON text; null and an empty text mean none.

    A bare function ``{name, description, parameters}`` is put into ``{"type": "function", "function": ...}``; the
    schemas inside are left as they are.

    Raises:
        RowError: something else, or a tool without a name.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return ()
    listed = decoded(value, where)
    if not isinstance(listed, list | tuple):
        raise RowError(f"{where}: a list of tools expected, found {kind(listed)}")
    return tuple(_tool(tool, f"{where}: tool {i}") for i, tool in enumerate(listed, start=1))


def tools_in(row: Mapping[str, Any], columns: Mapping[str, str], names: Sequence[str]) -> tuple[Mapping[str, Any], ...]:
    """The tools offered in a row's column of its own; none when there is no such column.

    Raises:
        RowError: as `tools_of`.
    """
    return tools_of(field(row, columns, "tools", names), f"column '{shown(row, columns, 'tools', names)}'")


def _tool(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RowError(f"{where}: an object expected, found {kind(value)}")
    function = value.get("function")
    _name(function if isinstance(function, Mapping) else value, where)
    return value if isinstance(function, Mapping) else {"type": "function", "function": value}


def _name(function: Mapping[str, Any], where: str) -> str:
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise RowError(f"{where} has no name")
    return name


def calls_of(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    """Tool calls: a list of them; null means none.

    Raises:
        RowError: something else, or a call that is damaged.
    """
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise RowError(f"{where}: a list of tool calls expected, found {kind(value)}")
    return tuple(call_of(call, f"{where}: tool call {i}") for i, call in enumerate(value, start=1))


def call_of(value: Any, where: str) -> Mapping[str, Any]:
    """One call, ``{name, arguments}`` or wrapped in ``function``, as object or as JSON text.

    Arguments become an object (null and an empty text: no arguments); an ``id`` is kept.

    Raises:
        RowError: no name, or arguments that are not an object.
    """
    call = decoded(value, where)
    if not isinstance(call, Mapping):
        raise RowError(f"{where}: an object expected, found {kind(call)}")
    if call.get("type", "function") not in ("function", None):
        raise RowError(f"{where}: type '{call['type']}' is not 'function'")
    function = call.get("function", call)
    if not isinstance(function, Mapping):
        raise RowError(f"{where}: an object expected under 'function', found {kind(function)}")
    name = _name(function, where)
    given = function.get("arguments")
    empty = given is None or (isinstance(given, str) and not given.strip())
    arguments = {} if empty else decoded(given, f"{where} ({name}): arguments")
    if not isinstance(arguments, Mapping):
        raise RowError(f"{where} ({name}): an object of arguments expected, found {kind(arguments)}")
    plain = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"id": call["id"], **plain} if isinstance(call.get("id"), str) else plain
