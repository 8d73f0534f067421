"""A small Hub on localhost: repositories, branches, preupload, LFS and commits, over the real client's requests."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = 100_000  # bytes, from which a file goes by LFS


def blob_id(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub:
    """``trees``: commit -> path -> bytes. ``fault``: (method, part of the path) -> status, or "cut" to break off."""

    def __init__(self):
        self.repos, self.trees, self.lfs, self.large = {}, {}, {}, set()
        self.faults, self.asked, self.headers, self.answers = {}, [], [], {}
        self.verified, self.lose = [], None
        self.url = ""

    def commit(self, tree):
        name = hashlib.sha1(repr(sorted((k, blob_id(v)) for k, v in tree.items())).encode()).hexdigest()
        self.trees[name] = dict(tree)
        return name

    def make(self, name, *, private=True, **files):
        tree = {".gitattributes": b"*.safetensors filter=lfs\n"} | {k.replace("__", "."): v for k, v in files.items()}
        self.repos[name] = {"private": private, "branches": {"main": self.commit(tree)}, "messages": []}

    def files(self, name, branch="main"):
        tree = self.trees[self.repos[name]["branches"][branch]]
        return {path: data for path, data in tree.items() if path != ".gitattributes"}

    # each answer: (status, JSON value)
    def answer(self, method, path, body):
        if path == "/api/repos/create":
            value = json.loads(body)
            self.make(f"{value['organization']}/{value['name']}", private=value["visibility"] == "private")
            return 200, {"url": f"{self.url}/{value['organization']}/{value['name']}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.startswith("/lfs/") and method == "PUT":
            self.lfs[path.removeprefix("/lfs/")] = body
            return 200, {}
        if path == "/verify":
            value = json.loads(body)
            self.verified.append(value)
            whole = hashlib.sha256(self.lfs[value["oid"]]).hexdigest() == value["oid"]
            return (200 if whole and len(self.lfs[value["oid"]]) == value["size"] else 422), {}
        if found := re.fullmatch(r"/(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return 200, {"transfer": "basic", "objects": [self._order(one) for one in json.loads(body)["objects"]]}
        found = re.fullmatch(r"/api/models/(?P<name>[^/]+/[^/]+)(/(?P<what>\w+)(/(?P<rest>.+))?)?", path)
        if found is None or found["name"] not in self.repos:
            return 404, {"error": "Repository not found"}
        return self._of_repo(found["name"], found["what"], unquote(found["rest"] or "main"), body)

    def _order(self, one):
        upload = {"href": f"{self.url}/lfs/{one['oid']}", "header": {}}
        return one | {"actions": {"upload": upload, "verify": {"href": f"{self.url}/verify"}}}

    def _of_repo(self, name, what, rest, body):
        repo = self.repos[name]
        branches = repo["branches"]
        if what in (None, "revision"):
            return 200, {"id": name, "sha": branches[rest], "private": repo["private"], "tags": [], "siblings": []}
        if what == "refs":
            heads = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": sha} for b, sha in branches.items()]
            return 200, {"branches": heads, "converts": [], "tags": []}
        if what == "branch":
            branches[rest] = branches["main"]
            return 200, {}
        if what == "tree":
            return 200, [self._entry(path, data) for path, data in self.trees[branches.get(rest, rest)].items()]
        if what == "preupload":
            asked = json.loads(body)["files"]
            modes = [(one["path"], "lfs" if one["size"] >= LARGE else "regular") for one in asked]
            return 200, {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes]}
        assert what == "commit", what
        return self._commit(name, rest, [json.loads(line) for line in body.splitlines()])

    def _entry(self, path, data):
        entry = {"type": "file", "path": path, "size": len(data), "oid": blob_id(data)}
        if path in self.large:
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry

    def _commit(self, name, branch, lines):
        branches = self.repos[name]["branches"]
        tree = dict(self.trees[branches[branch]])
        head, *operations = lines
        if head["value"].get("parentCommit", branches[branch]) != branches[branch]:
            return 412, {"error": "the branch has moved"}
        for operation in operations:
            kind, value = operation["key"], operation["value"]
            if kind == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                tree[value["path"]] = self.lfs[value["oid"]]
                self.large.add(value["path"])
            else:
                assert kind == "deletedFile", kind
                del tree[value["path"]]
        if self.lose is not None:
            tree[self.lose] = b"lost"
        branches[branch] = self.commit(tree)
        self.repos[name]["messages"].append(head["value"]["summary"])
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{branches[branch]}", "commitOid": branches[branch]}


def _handler(hub):
    class Handler(BaseHTTPRequestHandler):
        def _serve(self):
            path = urlsplit(self.path).path
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.asked.append((self.command, path))
            hub.headers.append(dict(self.headers))
            fault = next((f for (m, part), f in hub.faults.items() if m == self.command and part in path), None)
            if fault == "cut":  # a reset, not an answer
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
                return
            status, value = (fault, {"error": "no"}) if fault else hub.answer(self.command, path, body)
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            if fault:  # a server that repeats what it was told
                self.send_header("X-Error-Message", f"refused: {self.headers.get('Authorization')}")
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_DELETE = _serve

        def log_message(self, *_):
            """Nothing."""

    return Handler


@contextmanager
def serving():
    """A Hub while the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
