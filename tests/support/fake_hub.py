"""A model hub on loopback: what huggingface_hub asks of the real one for a snapshot of a few files."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves `files` as the repository `repo`, at revision main and at its commit.

    `token`: what the client must send, if set. `failing`: so many requests from now on are answered with 503.
    """

    def __init__(self, repo: str, files: dict[str, bytes], *, token: str | None = None) -> None:
        self.repo = repo
        self.files = files
        self.token = token
        self.failing = 0
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub._answer(self, body=True)

            def do_HEAD(self) -> None:
                hub._answer(self, body=False)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = unquote(urlsplit(request.path).path)
        self.asked.append(f"{request.command} {path}")
        if self.failing > 0:
            self.failing -= 1
            self._send(request, 503, b"down", {}, body)
            return
        if self.token is not None and request.headers.get("authorization") != f"Bearer {self.token}":
            self._send(request, 401, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "accept the terms"}, body)
            return
        info = f"/api/models/{self.repo}"
        if path in (info, f"{info}/revision/main", f"{info}/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in self.files]
            said = {"id": self.repo, "modelId": self.repo, "sha": COMMIT, "private": False, "siblings": siblings}
            self._send(request, 200, json.dumps(said).encode(), {"Content-Type": "application/json"}, body)
        elif path.startswith(f"{info}/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                for name, data in self.files.items()
            ]
            self._send(request, 200, json.dumps(tree).encode(), {"Content-Type": "application/json"}, body)
        elif path.startswith(f"{info}/revision/"):
            self._send(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        elif path.startswith(f"/{self.repo}/resolve/") and (data := self.files.get(path.split("/", 5)[5])) is not None:
            self._send(request, 200, data, {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": COMMIT}, body)
        elif path.startswith(f"/{self.repo}/"):
            self._send(request, 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, body)
        else:
            self._send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            request.send_header(name, value)
        request.end_headers()
        if body:
            request.wfile.write(data)


def _etag(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()
