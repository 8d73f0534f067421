"""The one door through which data comes in: files, folders, globs, the Hub and the demo world, row by row.

A bad line is a `BadRow` with file, line and reason, and reading goes on; a container that cannot be read is a
`DataError`. Nothing is guessed and nothing is skipped in silence.
"""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from tunekit.core.errors import DataError, UserError
from tunekit.core.files import sha256_file
from tunekit.core.registry import did_you_mean, nearest
from tunekit.core.types import BadRow, Origin, Row
from tunekit.data.readers import builtin, delimited, hub, json_auto, table, text
from tunekit.data.readers.bytes import check_encoding
from tunekit.data.readers.record import InputFile, Record, Unreadable

SUFFIXES = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "txt",
}
COMPRESSED = (".gz", ".zst")
READERS: dict[str, ModuleType] = {
    "json": json_auto,
    "jsonl": json_auto,
    "csv": delimited,
    "tsv": delimited,
    "parquet": table,
    "arrow": table,
    "txt": text,
}
BINARY = ("parquet", "arrow")
BOOKKEEPING = ("dataset_info.json", "state.json")
"""Files that ``datasets.save_to_disk`` writes beside the data."""


class SourceSpec(Protocol):
    """One entry of the recipe's ``data.train`` or ``data.eval`` list; see the recipe reference for the fields."""

    @property
    def path(self) -> str:
        """A file, folder or glob; a Hub id; or ``builtin:<part>``."""

    @property
    def split(self) -> str | None:
        """Which split of a Hub data set or of the demo world."""

    @property
    def name(self) -> str | None:
        """The configuration of a Hub data set."""

    @property
    def revision(self) -> str | None:
        """The revision of a Hub data set."""

    @property
    def columns(self) -> Mapping[str, str]:
        """Our field -> their column; ``rows`` and ``header`` belong to the reader."""

    @property
    def limit(self) -> int | None:
        """Only the first rows, bad ones counted."""

    @property
    def encoding(self) -> str:
        """Of text files."""

    @property
    def container(self) -> str:
        """``auto`` or one of the keys of `READERS`."""

    @property
    def text_unit(self) -> str:
        """``line`` or ``document``, for txt files."""


def iter_rows(source: SourceSpec, index: int, base: Path) -> Iterator[Row | BadRow]:
    """Reads a source lazily; memory stays flat but for one row (one file with ``text_unit: document``).

    Args:
        source: the recipe's entry.
        index: its place in the recipe, which every row's origin carries.
        base: the recipe's folder.

    Raises:
        UserError: there is no such file, or a setting does not fit the source.
        DataError: nothing to read, or a file that cannot be read as a whole.
        MachineError: no permission, or the Hub cannot be reached.
    """
    rows = itertools.chain.from_iterable(_wrapped(shown, records, index) for shown, records in _open(source, base))
    return itertools.islice(rows, source.limit)


def _wrapped(shown: str, records: Iterator[Record], index: int) -> Iterator[Row | BadRow]:
    number = 0
    for number, value in records:
        origin = Origin(index, shown, number)
        yield BadRow(origin, value.reason) if isinstance(value, Unreadable) else Row(origin, value)
    if number == 0:
        raise DataError("there are no rows in it", where=shown, fix="take it out of `data`, or write it again")


def _open(source: SourceSpec, base: Path) -> Iterator[tuple[str, Iterator[Record]]]:
    if source.path.startswith(builtin.PREFIX):
        _refuse_settings(source, ("name", "revision"), "the demo world")
        yield builtin.shown(source.path, source.split), builtin.read(source.path, source.split, source.limit)
    elif is_hub(source, base):
        place = (source.path, source.name, source.revision, source.split)
        yield hub.shown(*place), hub.read(*place)
    else:
        for file in input_files(source, base):
            yield file.shown, READERS[file.container].read(file)


def _refuse_settings(source: SourceSpec, names: tuple[str, ...], what: str) -> None:
    given = {"split": source.split, "name": source.name, "revision": source.revision}
    for name in names:
        if given[name] is not None:
            fix = "leave it out; to take some files of a folder, give a glob such as `data/train*.jsonl`"
            raise UserError(f"`{name}: {given[name]}` has no meaning for {what} ('{source.path}')", fix=fix)


def is_hub(source: SourceSpec, base: Path) -> bool:
    """True when ``path`` is a Hub id: never for a path that exists, has a known suffix, or begins in a local folder."""
    path = source.path
    if path.startswith((".", "/", "~")) or glob.has_magic(path) or container_of(Path(path)) is not None:
        return False
    top = path.partition("/")[0]
    return hub.is_id(path, source.revision) and not any((root / top).exists() for root in (base, Path.cwd()))


def container_of(path: Path) -> str | None:
    """What a file's suffix says it is; None for an unknown one."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


def resolve_files(source: SourceSpec, base: Path) -> list[Path]:
    """The files that a source stands for: itself; a folder's known files, recursively; or a glob's; in sorted order.

    A relative path is looked for in ``base`` (the recipe's folder), then in the current folder.

    Raises:
        UserError: there is nothing of that name; where it was looked for and the nearest name are given.
        DataError: the folder holds no data files.
    """
    wanted = Path(source.path).expanduser()
    candidates = [wanted] if wanted.is_absolute() else [base / wanted, Path.cwd() / wanted]
    for path in candidates:
        if path.is_dir():
            found = _in_folder(path, source.container)
            if not found:
                what = f"the folder '{source.path}' holds no data files"
                raise DataError(what, where=str(path), fix=f"known suffixes: {', '.join(SUFFIXES)} (and .gz, .zst)")
            return found
        if path.is_file():
            return [path]
        if path.exists():
            raise DataError(f"'{source.path}' is neither a file nor a folder", where=str(path), fix="give a file")
        found = _matching(path, source.container) if glob.has_magic(str(wanted)) else []
        if found:
            return found
    raise UserError(f"there is no '{source.path}'{_looked(wanted, base)}", fix=_look_around(candidates))


def _in_folder(folder: Path, container: str) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(item.name for item in folder.iterdir() if item.is_dir()))
        fix = f"name one split's folder: {splits}"
        raise DataError("the folder holds several splits of one data set", where=str(folder), fix=fix)
    found = []
    for path in sorted(folder.rglob("*"), key=lambda item: item.relative_to(folder).as_posix()):
        hidden = any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
        saved = path.name in BOOKKEEPING and (path.parent / "state.json").is_file()
        if path.is_file() and not hidden and not saved and _wanted(path, container):
            found.append(path)
    return found


def _wanted(path: Path, container: str) -> bool:
    kind = container_of(path)
    pair = ("json", "jsonl")
    return kind is not None and (container == "auto" or kind == container or (kind in pair and container in pair))


def _matching(pattern: Path, container: str) -> list[Path]:
    """Files of a glob; of unknown suffixes only where the recipe names the container."""
    found = [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207 (absolute patterns)
    return [path for path in found if path.is_file() and (container != "auto" or container_of(path) is not None)]


def _looked(wanted: Path, base: Path) -> str:
    if wanted.is_absolute():
        return ""
    own, here = base.resolve(), Path.cwd()
    if own == here:
        return f" in the recipe's folder, which is also the working folder ({here})"
    return f" in the recipe's folder ({own}) or the working folder ({here})"


def _look_around(candidates: list[Path]) -> str:
    lost = [next((p for p in reversed(path.parents) if not p.exists()), path) for path in candidates]
    for path in (path for path in lost if path.parent.is_dir()):
        close = nearest(path.name, os.listdir(path.parent))  # noqa: PTH208 (names are wanted, not paths)
        if close:
            return f"did you mean '{close}'? (in {path.parent.resolve()})"
    if lost[0] != candidates[0]:
        return f"the folder {lost[0]} does not exist: correct the path"
    return "correct the path; a relative one starts at the recipe's folder, then at the working folder"


def input_files(source: SourceSpec, base: Path) -> list[InputFile]:
    """The files of a local source, each with how it is to be read.

    Raises:
        UserError: there are none, or a setting does not fit the files.
        DataError: a folder without data files, or a file's container cannot be told from its name.
    """
    _refuse_settings(source, ("split", "name", "revision"), "local files")
    if source.container not in ("auto", *READERS):
        raise UserError(f"unknown container '{source.container}'", fix=did_you_mean(source.container, READERS))
    check_encoding(source.encoding)
    header = source.columns.get("header")
    files = [
        InputFile(
            path=path,
            shown=shown_path(path, base),
            container=_container(source, path, base),
            encoding=source.encoding,
            auto=source.container == "auto",
            whole=source.text_unit == "document",
            rows=source.columns.get("rows"),
            header=None if header is None else tuple(name.strip() for name in header.split(",")),
        )
        for path in resolve_files(source, base)
    ]
    _check_settings(source, {file.container for file in files})
    return files


def _container(source: SourceSpec, path: Path, base: Path) -> str:
    found = container_of(path) if source.container == "auto" else source.container
    if found is None:
        fix = f"write `container:` with one of {', '.join(READERS)}"
        raise DataError("the file's name does not tell what it is", where=shown_path(path, base), fix=fix)
    return found


def _check_settings(source: SourceSpec, containers: set[str]) -> None:
    """Refuses settings that none of the files could honour."""
    settings = (
        ("text_unit: document", source.text_unit == "document", {"txt"}),
        ("columns: {rows: ...}", "rows" in source.columns, {"json", "jsonl"}),
        ("columns: {header: ...}", "header" in source.columns, {"csv", "tsv"}),
        (f"encoding: {source.encoding}", source.encoding != "utf-8", set(READERS) - set(BINARY)),
    )
    for name, given, fitting in settings:
        if given and not containers & fitting:
            what = f"`{name}` has no meaning for {', '.join(sorted(containers))} files ('{source.path}')"
            raise UserError(what, fix="leave it out")


def shown_path(path: Path, base: Path) -> str:
    """A file's name for messages and the ledger: relative to the recipe's folder or the current one where it can be."""
    for root in (base, Path.cwd()):
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    return str(path)


def fingerprint(source: SourceSpec, base: Path) -> list[dict[str, Any]]:
    """What the cache must know to notice a change: for each file its name, size in bytes and sha256.

    The demo world and Hub data sets have size 0; their hash stands for the code's version and the resolved commit.

    Raises:
        TunekitError: as `iter_rows`.
    """
    if source.path.startswith(builtin.PREFIX):
        return [builtin.fingerprint(source.path, source.split)]
    if is_hub(source, base):
        return [hub.fingerprint(source.path, source.name, source.revision, source.split)]
    files = input_files(source, base)
    return [{"file": f.shown, "size": f.path.stat().st_size, "sha256": sha256_file(f.path)} for f in files]
