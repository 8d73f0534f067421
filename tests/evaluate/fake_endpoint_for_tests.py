"""A server on this machine's loopback that answers like an OpenAI-compatible one, or fails as it is told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What goes back. ``cut``: the connection is dropped in the middle of the body."""

    body: Any = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    chunked: bool = False
    cut: bool = False
    wait_for: threading.Event | None = None

    @property
    def raw(self) -> bytes:
        return self.body.encode() if isinstance(self.body, str) else json.dumps(self.body).encode()


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class FakeServer:
    """Answers with ``answer(asked)``; the replies in ``script`` come first, one a request to a POST path."""

    def __init__(self, answer: Callable[[Asked], Reply]) -> None:
        self.answer = answer
        self.script: list[Reply] = []
        self.models = Reply({"data": [{"id": "m"}, {"id": "other"}]})
        self.asked: list[Asked] = []
        self.key: str | None = None
        self.under_way = self.most = 0
        self.lock = threading.Lock()
        self.url = ""

    @property
    def posts(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.method == "POST"]

    def reply(self, asked: Asked) -> Reply:
        with self.lock:
            self.asked.append(asked)
            if self.key is not None and asked.headers.get("authorization") != f"Bearer {self.key}":
                return failure(401, f"Incorrect API key provided: {asked.headers.get('authorization')}")
            if asked.method == "GET":
                return self.models
            if self.script:
                return self.script.pop(0)
        return self.answer(asked)


def chat(text: str | None, finish: str = "stop", tokens: int = 3) -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return Reply({"choices": [choice], "usage": {"completion_tokens": tokens}})


def completion(text: str, finish: str = "stop", tokens: int = 3, **more: Any) -> Reply:
    choice = {"index": 0, "text": text, "finish_reason": finish, **more}
    return Reply({"choices": [choice], "usage": {"completion_tokens": tokens}})


def failure(status: int, message: str, **headers: str) -> Reply:
    return Reply({"error": {"message": message}}, status, headers)


@contextmanager
def serving(answer: Callable[[Asked], Reply]) -> Iterator[FakeServer]:
    fake = FakeServer(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.handle_one("GET")

        def do_POST(self) -> None:
            self.handle_one("POST")

        def handle_one(self, method: str) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            with fake.lock:
                fake.under_way += 1
                fake.most = max(fake.most, fake.under_way)
            reply = fake.reply(Asked(method, self.path, headers, json.loads(raw or b"{}")))
            if reply.wait_for is not None:
                reply.wait_for.wait(5)
            with fake.lock:
                fake.under_way -= 1
            try:
                self.send(reply)
            except OSError:  # the client has gone
                self.close_connection = True

        def send(self, reply: Reply) -> None:
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name.replace("_", "-"), value)
            if reply.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.send_header("Content-Length", str(len(reply.raw)))
            self.send_header("Connection", "close")
            self.end_headers()
            body = reply.raw[: len(reply.raw) // 2] if reply.cut else reply.raw
            if not reply.chunked:
                self.wfile.write(body)
                return
            for start in range(0, len(body), 7):
                part = body[start : start + 7]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            if not reply.cut:
                self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *given: Any) -> None:
            """Says nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
