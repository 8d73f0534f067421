"""Answers kept by what they answer: nothing is computed twice, also after a kill in the middle."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from tunekit.core.errors import MachineError
from tunekit.core.files import sha256_json
from tunekit.core.progress import Screen
from tunekit.data import cache
from tunekit.evaluate.contract import Conversation, Engine, Generated, Likelihood, Prompt, Score, Scored

Request = TypeVar("Request", Likelihood, Prompt, Conversation)
Answer = TypeVar("Answer", Scored, Generated, Score)
_ASKED = 500  # keys looked up at a time


def kept_answers() -> Path:
    """The folder of all kept answers, beside the prepared data."""
    return cache.root().parent / "answers"


@dataclass(frozen=True)
class Store:
    """The answers of one model, in a file of SQLite; every answer is written when it is known.

    A process that is killed loses none of those; two that write at once wait for each other.
    """

    database: sqlite3.Connection

    def known(self, keys: Sequence[str]) -> dict[str, Any]:
        """The answers that there are, by key."""
        found: dict[str, Any] = {}
        for start in range(0, len(keys), _ASKED):
            part = keys[start : start + _ASKED]
            marks = ",".join("?" * len(part))
            rows = self.database.execute(f"SELECT key, answer FROM answers WHERE key IN ({marks})", part)
            found.update((key, json.loads(answer)) for key, answer in rows)
        return found

    def keep(self, key: str, answer: Any) -> None:
        """Writes one answer."""
        with self.database:
            self.database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, json.dumps(answer)))


@dataclass(frozen=True)
class KeptAnswers:
    """The answers of one model, or the verdicts of judges. ``size`` in bytes, with what SQLite keeps beside it."""

    path: Path
    size: int
    used: float

    @property
    def files(self) -> list[Path]:
        """The database and what belongs to it."""
        return sorted(self.path.parent.glob(f"{self.path.name}*"))


def stores() -> list[KeptAnswers]:
    """All kept answers, last used first."""
    found = []
    for path in kept_answers().glob("*.sqlite"):
        facts = [file.stat() for file in KeptAnswers(path, 0, 0.0).files]
        size, used = sum(one.st_size for one in facts), max(one.st_mtime for one in facts)
        found.append(KeptAnswers(path, size, used))
    return sorted(found, key=lambda one: -one.used)


@contextmanager
def opened(path: Path) -> Iterator[Store]:
    """The store in a file, which is made if it is not there.

    Raises:
        MachineError: the file is damaged or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fix = "set cache: false, or HF_HOME to a folder that can be written"
        raise MachineError(f"answers cannot be kept: {error.strerror}", where=str(path.parent), fix=fix) from error
    try:
        database = sqlite3.connect(path, timeout=60)
        try:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=NORMAL")
            database.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")
            yield Store(database)
        finally:
            database.close()
    except sqlite3.Error as error:
        fix = "remove the file: only time is lost; or set cache: false"
        raise MachineError(f"kept answers cannot be read or written: {error}", where=str(path), fix=fix) from error


@dataclass(frozen=True)
class KeepingEngine:
    """An engine that asks another one only for what is not in the store.

    Args:
        inner: computes.
        store: keeps.
        stop_ids: that the inner one ends answers at: an answer is another one with others.
    """

    inner: Engine
    store: Store
    stop_ids: tuple[int, ...] = ()

    @property
    def tokenizer(self) -> Any:
        """The inner engine's."""
        return self.inner.tokenizer

    @property
    def positions(self) -> int | None:
        """The inner engine's."""
        return self.inner.positions

    def likelihoods(
        self,
        requests: Sequence[Likelihood],
        screen: Screen,
        what: str,
        done: Callable[[int, Scored], None] = lambda index, answer: None,
    ) -> list[Scored]:
        """As the inner engine, computing what is not known."""
        keys = [sha256_json([r.ids, [at for at, scored in enumerate(r.scored) if scored]]) for r in requests]
        return self._answers(requests, keys, self.inner.likelihoods, Scored, screen, what, done)

    def generate(
        self,
        requests: Sequence[Prompt],
        screen: Screen,
        what: str,
        done: Callable[[int, Generated], None] = lambda index, answer: None,
    ) -> list[Generated]:
        """As the inner engine, computing what is not known."""
        keys = [sha256_json([asdict(request), self.stop_ids]) for request in requests]
        return self._answers(requests, keys, self.inner.generate, Generated, screen, what, done)

    def scores(
        self,
        requests: Sequence[Conversation],
        screen: Screen,
        what: str,
        done: Callable[[int, Score], None] = lambda index, answer: None,
    ) -> list[Score]:
        """As the inner engine, computing what is not known."""
        keys = [sha256_json(["score", request.ids]) for request in requests]
        return self._answers(requests, keys, self.inner.scores, Score, screen, what, done)

    def _answers(
        self,
        requests: Sequence[Request],
        keys: Sequence[str],
        ask: Callable[..., list[Answer]],
        kind: type[Answer],
        screen: Screen,
        what: str,
        done: Callable[[int, Answer], None],
    ) -> list[Answer]:
        found: dict[str, Answer] = {key: kind(**values) for key, values in self.store.known(keys).items()}
        first = {key: index for index, key in reversed(list(enumerate(keys)))}  # equal requests are asked once
        missing = [index for key, index in first.items() if key not in found]
        missing.sort()
        if found:
            screen.say(f"{what}: {len(first) - len(missing):,} of {len(first):,} answers are known from before")
        if missing:

            def keep(place: int, answer: Answer) -> None:
                key = keys[missing[place]]
                found[key] = answer
                self.store.keep(key, asdict(answer))

            ask([requests[index] for index in missing], screen, what, keep)
        answers = [found[key] for key in keys]
        for index, answer in enumerate(answers):
            done(index, answer)
        return answers
