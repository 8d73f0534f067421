"""A client for servers that speak OpenAI's HTTP interface, with the standard library alone."""

from __future__ import annotations

import http.client
import json
import os
import queue
import random
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from tunekit.core.errors import MachineError, TunekitError, UserError

Path = Literal["/chat/completions", "/completions"]
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})  # answers that may be another a moment later
_LONGEST_WAIT = 60.0  # seconds between two tries, unless the server asks for more
_LARGEST = 64 << 20  # bytes of one answer
_SHOWN = 300  # characters of a server's words in an error


class Address(BaseModel):
    """Where a server is, and how it is asked."""

    # what was given is not repeated in errors: somebody may have written the key itself into `key_from`
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: str = Field(description="address up to the version, such as http://127.0.0.1:8000/v1")
    key_from: str | None = Field(None, description="name of the environment variable that holds the key")
    parallel: int = Field(8, ge=1, le=256, description="requests under way at one time")
    timeout: float = Field(120.0, gt=0, description="seconds that one answer may take")
    retries: int = Field(6, ge=0, description="further tries after 429, 5xx and broken connections")
    backoff: float = Field(1.0, ge=0, description="seconds before the second try; doubled with each further one")
    patience: float = Field(600.0, gt=0, description="seconds for one request with all its tries")
    omit: tuple[Literal["temperature", "top_p", "seed", "stop"], ...] = Field(
        (), description="fields that the server refuses: they are not sent, and its own defaults hold"
    )

    @field_validator("url")
    @classmethod
    def _address(cls, url: str) -> str:
        if not re.fullmatch(r"https?://[^/?#@\s]+(/[^?#@\s]*)?", url):
            raise ValueError("an address is http(s)://host/path, without login or query; the key comes by key_from")
        return url.rstrip("/")

    @field_validator("key_from")
    @classmethod
    def _name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
            raise ValueError("the NAME of an environment variable, in capitals; never the key itself")
        return name


def key_of(name: str | None) -> SecretStr | None:
    """The key in the environment variable ``name``; None when no name is given.

    Raises:
        UserError: the variable is not set, or holds what cannot be a key.
    """
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise UserError(f"the environment variable {name} is not set", fix=f"export {name}=<the server's key>")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"the environment variable {name} holds no key: blanks or special characters stand in it")
    return SecretStr(key)


class Refused(UserError):
    """The server understood the request and does not want it (400, 422), or does not offer its path. Exit code 2."""


class _Passing(Exception):
    """A failure that another try may not meet; ``after``: seconds to wait, None when nothing was there to ask it."""

    def __init__(self, text: str, after: float | None = None) -> None:
        super().__init__(text)
        self.after = after


class _Here(threading.local):
    stopped = threading.Event()  # never set; a thread of `Client.each` has its own


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The standard handler would carry the key to wherever the server points."""

    def redirect_request(self, *given: Any) -> None:
        """Follows nothing."""


class Client:
    """Asks one model of one server; safe for threads. A UserError when the key is not in the environment."""

    def __init__(self, address: Address, model: str) -> None:
        self.address, self.model, self._key = address, model, key_of(address.key_from)
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._here = _Here()
        self._limit = "max_tokens"

    def reach(self) -> None:
        """Asks the server for anything at all, once. A MachineError when it is not there, or refuses the key."""
        try:
            self._once("/models", None)
        except _Passing as trouble:
            if trouble.after is None:
                what = f"no answer from {self.address.url}: {trouble}"
                raise MachineError(what, fix="start the server, or correct `url`") from None
        except urllib.error.HTTPError as error:
            if error.code == 401:
                raise self._refusal(error.code, self._words(error)) from None

    def models(self) -> tuple[str, ...]:
        """The names that the server offers; empty when it does not tell."""
        with suppress(_Passing, urllib.error.HTTPError):
            found = self._once("/models", None).get("data")
            return tuple(str(entry["id"]) for entry in found or () if isinstance(entry, dict) and "id" in entry)
        return ()

    def ask(self, path: Path, body: Mapping[str, Any]) -> dict[str, Any]:
        """The first choice of the answer, with the answer's ``usage``; ``body`` is the request without the model.

        Raises:
            Refused: the server does not take such a request, or has no such path.
            MachineError: it is not there, refuses the key, does not know the model, or fails again and again.
        """
        found = self._until(path, body)
        choices = found.get("choices")
        if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
            raise MachineError(f"{self.address.url} answered without `choices`", fix="see that `url` ends in /v1")
        return choices[0] | {"usage": found.get("usage") or {}}

    def _until(self, path: Path, body: Mapping[str, Any]) -> dict[str, Any]:
        started, tries = time.monotonic(), 0
        while True:
            limit = self._limit
            try:
                return self._once(path, self._body(path, body, limit))
            except urllib.error.HTTPError as error:
                words = self._words(error)
                # newer chat models know the limit by this name only; both mean the same
                if limit == "max_tokens" and "max_completion_tokens" in words and path == "/chat/completions":
                    self._limit = "max_completion_tokens"
                    continue
                raise self._refusal(error.code, words, path) from None
            except _Passing as trouble:
                tries += 1
                spread = random.uniform(0.5, 1.0)  # many threads do not come back at once
                wait = max(trouble.after or 0, min(self.address.backoff * 2 ** (tries - 1), _LONGEST_WAIT) * spread)
                if tries > self.address.retries or time.monotonic() - started + wait > self.address.patience:
                    asked = f"; it asks to wait {trouble.after:.0f} s" if trouble.after else ""
                    what = f"{self.address.url} failed {tries} times, at last: {trouble}{asked}"
                    fix = "`parallel` lowers the server's load; `retries`, `timeout` and `patience` wait longer"
                    raise MachineError(what, fix=fix) from None
            if self._here.stopped.wait(wait):
                raise MachineError("stopped while waiting for the server")

    def each(self, work: Callable[[int], Any], count: int) -> Iterator[tuple[int, Any]]:
        """``work(0)`` to ``work(count - 1)`` on ``address.parallel`` threads: (index, what it gave), as they end.

        The first failure is raised here, and what waits is not begun. Threads do not hold up the program's end.
        """
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in range(count):
            waiting.put(index)
        ended: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        stopped = threading.Event()

        def labour() -> None:
            self._here.stopped = stopped
            with suppress(queue.Empty):
                while not stopped.is_set():
                    index = waiting.get_nowait()
                    found: Any = AssertionError(f"request {index} ended without an answer")
                    try:
                        found = work(index)
                    except TunekitError as error:
                        found = error
                    finally:
                        ended.put((index, found))
                    if isinstance(found, TunekitError):
                        stopped.set()

        for _ in range(min(self.address.parallel, count)):
            threading.Thread(target=labour, daemon=True).start()
        try:
            for _ in range(count):
                index, found = ended.get()
                if isinstance(found, TunekitError | AssertionError):
                    raise found
                yield index, found
        finally:
            stopped.set()

    def _body(self, path: str, body: Mapping[str, Any], limit: str) -> dict[str, Any]:
        sent = {"model": self.model} | {name: value for name, value in body.items() if name not in self.address.omit}
        if path == "/chat/completions" and "max_tokens" in sent:
            sent[limit] = sent.pop("max_tokens")
        return sent

    def _once(self, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        """One request, once: the answer's JSON object."""
        headers = {"Content-Type": "application/json", "User-Agent": "tunekit"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        data = json.dumps(body).encode() if body else None
        seconds = self.address.timeout if body else min(self.address.timeout, 30.0)
        request = urllib.request.Request(self.address.url + path, data, headers)
        try:
            with self._opener.open(request, timeout=seconds) as response:
                found = json.loads(_read(response, seconds))
        except urllib.error.HTTPError as error:
            if error.code not in _PASSING:
                raise
            words = self._words(error)
            if "insufficient_quota" in words:  # a 429 that waiting does not heal
                raise MachineError(f"{self.address.url} has no quota left for this key: {words}") from None
            raise _Passing(f"{error.code} {words}".strip(), _after(error.headers.get("Retry-After"))) from None
        except ValueError:
            raise _Passing("its answer is not JSON", 0.0) from None
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise MachineError(f"the certificate of {self.address.url} is not trusted: {reason}") from None
            slow = isinstance(reason, TimeoutError)
            raise _Passing(f"nothing within {seconds:g} s" if slow else self._safe(str(reason))) from None
        if not isinstance(found, dict):
            raise _Passing("its answer is no JSON object", 0.0)
        return found

    def _refusal(self, code: int, words: str, path: str = "/models") -> TunekitError:
        """The error for an answer that another try would not change."""
        url, named = self.address.url, self.address.key_from
        if code in (401, 403):
            fix = f"correct the key in {named}" if named else "key_from: the environment variable that holds the key"
            return MachineError(f"{url} refuses the key ({code}): {words}", fix=fix)
        if code == 404:
            offered = self.models()
            if self.model in offered:
                return Refused(f"{url} does not offer {path} (404): {words}")
            known = f"it offers: {', '.join(offered[:20])}" if offered else "see `url` and the model's name"
            return MachineError(f"{url} does not know the model '{self.model}' (404): {words}", fix=known)
        if code < 400:
            return MachineError(f"{url} points elsewhere ({code}), which is not followed", fix="correct `url`")
        fix = "a field that this server does not know can be left out with `omit`"
        return Refused(f"{url} does not take the request ({code}): {words}", fix=fix)

    def _words(self, error: urllib.error.HTTPError) -> str:
        """What the server says of an error, short and without the key."""
        text, told = "", ""  # type: str, Any
        with suppress(OSError, http.client.HTTPException, ValueError):
            text = error.read(1 << 16).decode("utf-8", "replace")
            told = json.loads(text)
        told = told.get("error", told) if isinstance(told, dict) else told
        parts = [told.get(name) for name in ("message", "code")] if isinstance(told, dict) else [told]
        return self._safe(" ".join(str(part) for part in parts if part) or text)

    def _safe(self, text: str) -> str:
        if self._key is not None:
            text = text.replace(self._key.get_secret_value(), f"<{self.address.key_from}>")
        return " ".join(text.split())[:_SHOWN]


def text_of(choice: Mapping[str, Any]) -> str:
    """The text of a choice; empty where a model only thought, called a tool, or would not answer."""
    told = (choice.get("message") or choice).get("content" if "message" in choice else "text")
    return told if isinstance(told, str) else ""


def _read(response: http.client.HTTPResponse, seconds: float) -> bytes:
    """The whole body; a server that sends byte after byte is cut off, for each of them restarts the socket's clock."""
    deadline = time.monotonic() + seconds
    body = bytearray()
    while part := response.read1(1 << 16):
        body += part
        if time.monotonic() > deadline:
            raise TimeoutError
        if len(body) > _LARGEST:
            raise MachineError(f"a server's answer has more than {_LARGEST >> 20} MiB")
    return bytes(body)


def _after(header: str | None) -> float:
    """Seconds to wait by a Retry-After header (RFC 9110, 10.2.3): a number, or a date."""
    with suppress(ValueError):
        return max(0.0, float(header or 0))
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(header or "").timestamp() - time.time())
    return 0.0
