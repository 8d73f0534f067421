"""YAML 1.2 text to plain values, with the line and column of every key and value.

Only the YAML 1.2 core schema is read (https://yaml.org/spec/1.2.2/#103-core-schema): ``2e-5`` is a number, ``no`` and
``2026-01-01`` are text. Tags, duplicate keys, and documents that unfold to more than a fixed size are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunekit.core.errors import Problem, UserError, first_line, raise_all

Path_ = tuple[str | int, ...]
MAX_BYTES = 1 << 20
MAX_NODES = 10_000
MAX_DEPTH = 40

# a longer row of digits is no number that a recipe means, and Python refuses to convert it
_INT = re.compile(r"[-+]?[0-9]{1,300}\Z|0o[0-7]{1,300}\Z|0x[0-9a-fA-F]{1,250}\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_SPECIAL_FLOAT = re.compile(r"[-+]?\.(inf|Inf|INF)\Z|\.(nan|NaN|NAN)\Z")
_SURROGATE = re.compile("[\ud800-\udfff]")
_TAG = "tag:yaml.org,2002:"
_WORDS: dict[str, bool | None] = dict.fromkeys(("", "~", "null", "Null", "NULL"))
_WORDS |= dict.fromkeys(("true", "True", "TRUE"), True) | dict.fromkeys(("false", "False", "FALSE"), False)


@dataclass(frozen=True)
class Document:
    """A parsed recipe: its plain value, and where each part of it stands.

    ``keys`` holds the place of each mapping key or list item, ``values`` that of its value, by path from the root.
    Places are ``file:line:column``, or ``--set key`` for overrides.
    """

    value: dict[str, Any]
    name: str
    keys: dict[Path_, str] = field(default_factory=dict)
    values: dict[Path_, str] = field(default_factory=dict)

    def place(self, path: Path_, *, of_value: bool = False) -> str:
        """Where ``path`` stands; for a missing key, where its nearest existing parent stands."""
        table = self.values if of_value else self.keys
        for end in range(len(path), 0, -1):
            if path[:end] in table:
                return table[path[:end]]
        return self.name


def scalar(text: str) -> Any:
    """The value of a plain (unquoted) scalar by the YAML 1.2 core schema."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.match(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.match(text):
        return float(text)
    if _SPECIAL_FLOAT.match(text):
        return float(text.replace(".", "", 1))
    return text


class _Builder:
    """Turns ruamel's node graph into values and places, refusing what a recipe must not hold."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.keys: dict[Path_, str] = {}
        self.values: dict[Path_, str] = {}
        self.problems: list[Problem] = []
        self.nodes = 0
        self.open: set[int] = set()

    def place(self, node: Any) -> str:
        return f"{self.name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"

    def build(self, node: Any, path: Path_) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise UserError(
                f"the recipe unfolds to more than {MAX_NODES} values or {MAX_DEPTH} levels",
                where=self.place(node),
                fix="write it without nested aliases (&x, *x)",
            )
        if id(node) in self.open:
            raise UserError("an alias contains itself", where=self.place(node), fix="remove the alias")
        self.values[path] = self.place(node)
        self.open.add(id(node))
        try:
            return self._build(node, path)
        finally:
            self.open.discard(id(node))

    def _build(self, node: Any, path: Path_) -> Any:
        from ruamel.yaml.nodes import MappingNode, SequenceNode

        if not self.is_plain(node):
            return None
        if isinstance(node, MappingNode):
            return self.mapping(node, path)
        if isinstance(node, SequenceNode):
            items = []
            for index, item in enumerate(node.value):
                self.keys[(*path, index)] = self.place(item)
                items.append(self.build(item, (*path, index)))
            return items
        return scalar(node.value) if node.style is None else node.value

    def is_plain(self, node: Any) -> bool:
        """Whether a node has neither a written tag nor text that cannot be saved; otherwise that is a problem."""
        # what ruamel resolves by itself carries the whole tag and no handle; `!!str` and `!custom` have one
        if node.ctag.handle is not None or not str(node.tag).startswith(_TAG):
            what = f"tag '{str(node.tag).replace(_TAG, '!!')}' is not allowed in a recipe"
            self.problems.append(Problem(what, self.place(node), "write a plain value, in quotes if it is text"))
        elif isinstance(node.value, str) and _SURROGATE.search(node.value):
            what = "half of a surrogate pair (\\ud800 to \\udfff) is no character"
            self.problems.append(Problem(what, self.place(node), "write the character itself"))
        else:
            return True
        return False

    def mapping(self, node: Any, path: Path_) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = self.place(key_node)
            if not isinstance(key_node.value, str):
                self.problems.append(Problem("a key must be plain text", place, "write `name: value`"))
                continue
            if not self.is_plain(key_node):
                continue
            key = key_node.value
            if key == "<<":
                self.problems.append(Problem("merge keys (<<) are not part of YAML 1.2", place, "repeat the keys"))
            elif key in result:
                first = self.keys[(*path, key)]
                self.problems.append(Problem(f"key '{key}' stands twice", place, f"the first is at {first}; keep one"))
            else:
                self.keys[(*path, key)] = place
                result[key] = self.build(value_node, (*path, key))
        return result


def _compose(text: str, name: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        return YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        what = " ".join(str(part) for part in (error.context, error.problem) if part)
        raise UserError(f"not valid YAML: {what}", where=where, fix=_hint(what)) from None
    except RecursionError:
        raise UserError(f"the recipe has more than {MAX_DEPTH} levels", where=name, fix="close the brackets") from None
    except YAMLError as error:
        raise UserError(
            f"not valid YAML: {first_line(error)}", where=name, fix="save the recipe as plain UTF-8 text"
        ) from None


def _hint(what: str) -> str:
    if "\\t" in what or "tab" in what:
        return "indent with spaces, not tabs"
    if "another document" in what:
        return "one file is one recipe: remove what follows the line `---`"
    return "check the indentation, colons and quotes here"


def parse(text: str, name: str) -> Document:
    """Reads one YAML document.

    Args:
        text: the document.
        name: what to call it in messages, usually the file's path.

    Raises:
        UserError: not YAML, not a mapping, duplicate keys, tags, too large; with ``name:line:column``.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise UserError(
            "the recipe is larger than 1 MB", where=name, fix="a recipe names its data, it does not hold it"
        )
    root = _compose(text, name)
    if root is None:
        raise UserError(
            "the recipe is empty", where=name, fix="`tunekit init sft -o recipe.yaml` writes one that works"
        )
    builder = _Builder(name)
    value = builder.build(root, ())
    raise_all(UserError, builder.problems)
    if not isinstance(value, dict):
        raise UserError("a recipe is a mapping of blocks", where=name, fix="begin with `model:` and `data:`")
    return Document(value, name, builder.keys, builder.values)


def read(path: Path) -> Document:
    """Reads a recipe file.

    Raises:
        UserError: the file is missing, unreadable, too large, not UTF-8, or not a valid recipe document.
    """
    name = str(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)  # no more: it may be a model's weights, or a pipe without an end
        # an incomplete character at the cut is left to `parse`, which refuses the size
        text = content.decode("utf-8-sig", "replace" if len(content) > MAX_BYTES else "strict")
    except FileNotFoundError:
        near = ", ".join(sorted(str(p) for p in path.parent.glob("*.y*ml"))[:5]) if path.parent.is_dir() else ""
        hint = f"recipes in that folder: {near}" if near else "`tunekit init sft -o recipe.yaml` writes one that works"
        raise UserError("there is no such recipe", where=name, fix=hint) from None
    except IsADirectoryError:
        raise UserError("this is a folder, not a recipe", where=name, fix="name the .yaml file in it") from None
    except UnicodeDecodeError as error:
        raise UserError(f"the recipe is not UTF-8 (byte {error.start})", where=name, fix="save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"the recipe cannot be read: {error.strerror}", where=name) from None
    return parse(text, name)


def override(document: Document, assignments: Iterator[str] | list[str]) -> Document:
    """Applies ``key.path=value`` assignments; values are read as YAML, so lists and mappings work too.

    Raises:
        UserError: an assignment without ``=``, a value that is no YAML, or a path that runs through something that is
            no block or list.
    """
    import copy

    value = copy.deepcopy(document.value)
    keys, values = dict(document.keys), dict(document.values)
    for assignment in assignments:
        dotted, sign, text = assignment.partition("=")
        place, parts = f"--set {dotted}", dotted.split(".")
        if not sign or not all(parts) or len(parts) > MAX_DEPTH:
            raise UserError(
                f"'{assignment}' is not of the form key.path=value",
                where="--set",
                fix="for example --set train.learning_rate=1e-4",
            )
        path = _assign(value, parts, _assigned(text, place), place)
        for table in (keys, values):
            for known in [p for p in table if p[: len(path)] == path]:
                del table[known]
            # blocks on the way that the file does not have are named by the assignment too
            table |= {path[:end]: place for end in range(1, len(path) + 1) if path[:end] not in table}
    return Document(value, document.name, keys, values)


def _assigned(text: str, place: str) -> Any:
    try:
        value = parse(f"value: {text}", place).value
    except UserError as error:
        raise_all(UserError, [Problem(problem.what, place, problem.fix) for problem in error.problems])
    if list(value) != ["value"]:
        raise UserError("one assignment sets one key", where=place, fix="give --set once for each key")
    return value["value"]


def _assign(root: dict[str, Any], parts: list[str], new: Any, place: str) -> Path_:
    """Puts ``new`` into ``root``; returns the path, in which items of lists are numbers."""
    at: Any = root
    path: Path_ = ()
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        name = ".".join(parts[:position])
        if isinstance(at, list):
            if not (part.isascii() and part.isdigit()):
                raise UserError(f"'{name}' is a list, it has no '{part}'", where=place, fix=f"name an item: {name}.0")
            index = int(part[:9])
            if index > len(at) or (index == len(at) and not last):
                raise UserError(
                    f"there is no item {part} in a list of {len(at)}", where=place, fix="items count from 0"
                )
            path = (*path, index)
            if last:
                at[index : index + 1] = [new]
            else:
                at = at[index]
        elif isinstance(at, dict):
            path = (*path, part)
            if last:
                at[part] = new
            else:
                if at.get(part) is None:
                    at[part] = {}
                at = at[part]
        else:
            raise UserError(f"'{name}' is a single value, it has no '{part}'", where=place, fix=f"set {name} itself")
    return path
