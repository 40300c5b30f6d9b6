"""Starting each contender in front of a fleet, on a free loopback port."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.compare.contenders import CONFIG, Contender
from loadtest.compare.fleet import BLOCK, Fleet
from loadtest.compare.peers import VERSIONS, Unavailable, nginx_program, nginx_version, peer_program
from loadtest.processes import Child, free_port

SESSION_HEADER = "x-session-id"

NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log stderr crit;
events {{ worker_connections 16384; }}
http {{
  access_log off; client_max_body_size 0; client_body_buffer_size 1m; client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  map $http_x_session_id $session {{ "" $request_id; default $http_x_session_id; }}
  upstream fleet {{
    {method}
    {servers}
    keepalive 256; keepalive_timeout 4s;
  }}
  server {{
    listen 127.0.0.1:{port}; keepalive_requests 1000000;
    location / {{
      proxy_pass http://fleet; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""
NGINX_METHODS = {"round_robin": "", "least_conn": "least_conn;", "session": "hash $session consistent;"}


@dataclass(frozen=True, slots=True)
class Running:
    """A router that answers at `url`. replica_header: which answer header names the replica."""

    url: str
    pid: int
    replica_header: str | None


class Launcher:
    """Finds and installs the programs once; `start` runs one contender.

    skipped: contender -> why it cannot run here. versions: router -> version.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.skipped: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self._folder = folder
        self._say = say
        self._programs: dict[str, Path] = {}

    def prepare(self, contenders: Sequence[Contender]) -> list[Contender]:
        """Those that can run here; the others are said loudly and noted in `skipped`."""
        usable = []
        missing: dict[str, str] = {}
        for each in contenders:
            if not each.ours and each.router not in self._programs and each.router not in missing:
                try:
                    self._find(each.router)
                except Unavailable as error:
                    missing[each.router] = str(error)
                    self._say(f"SKIPPED: {error}")
            if each.router in missing:
                self.skipped[each.label] = missing[each.router]
            else:
                usable.append(each)
        return usable

    def _find(self, router: str) -> None:
        if router == "nginx":
            program = nginx_program()
            self.versions[router] = nginx_version(program)
        else:
            program = peer_program(router, self._folder, self._say)
            self.versions[router] = VERSIONS[router]
        self._programs[router] = program

    @contextlib.asynccontextmanager
    async def start(self, each: Contender, fleet: Fleet) -> AsyncIterator[Running]:
        """Raises StartError, with the router's last words."""
        if each.ours:
            run = _ours(each, fleet)
        elif each.router == "nginx":
            run = _nginx(each, self._programs["nginx"], fleet)
        else:
            run = _peer(each, self._programs[each.router], fleet)
        async with run as running:
            yield running


@contextlib.asynccontextmanager
async def _ours(each: Contender, fleet: Fleet) -> AsyncIterator[Running]:
    """Once /ready says that every replica's events are followed."""
    argv = [sys.executable, "-m", "router.cli", "serve", "--port=0", "--admin-port=0"]
    argv += [f"--replica={url}" for url in fleet.urls]
    argv += [f"--config={each.policy}"] if each.router == CONFIG else [f"--policy={each.policy}"]
    argv += [f"--model-files={fleet.model_files}"] if fleet.model_files else []
    argv += [f"--set={name}={value}" for name, value in each.settings.items()]
    async with Child(each.label, argv) as child:
        url = (await child.printed(r"listening on (\S+)"))[0]
        await child.answers(f"{url}/ready")
        yield Running(url, child.pid, fleet.replica_header or "x-prefix-router-replica")


@contextlib.asynccontextmanager
async def _nginx(each: Contender, program: Path, fleet: Fleet) -> AsyncIterator[Running]:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="prefix-router-nginx-") as folder:
        servers = " ".join(f"server {url.partition('://')[2]} max_fails=0;" for url in fleet.urls)
        text = NGINX.format(folder=folder, method=NGINX_METHODS[each.policy], servers=servers, port=port)
        path = await asyncio.to_thread(_write, folder, text)
        async with Child(each.label, [str(program), "-p", folder, "-c", path]) as child:
            url = f"http://127.0.0.1:{port}"
            await child.answers(f"{url}/v1/models")
            yield Running(url, child.pid, fleet.replica_header)


def _write(folder: str, text: str) -> str:
    path = Path(folder, "nginx.conf")
    path.write_text(text)
    return str(path)


@contextlib.asynccontextmanager
async def _peer(each: Contender, program: Path, fleet: Fleet) -> AsyncIterator[Running]:
    port, metrics = free_port(), free_port()
    argv = [str(program), *([] if each.router == "vllm-router" else ["launch"])]
    argv += ["--host", "127.0.0.1", "--port", str(port), "--prometheus-host", "127.0.0.1"]
    argv += ["--prometheus-port", str(metrics), "--worker-urls", *fleet.urls, "--policy", each.policy]
    argv += [part for name, value in each.settings.items() for part in (f"--{name}", value)]
    if each.router == "vllm-router" and each.policy == "kv_aware":
        argv += ["--kv-event-block-size", str(BLOCK), "--kv-event-model", fleet.model]
        argv += [part for url, at in fleet.events.items() for part in ("--kv-event-source", f"{url}={at}")]
        argv += [part for url, at in fleet.replays.items() for part in ("--kv-event-replay-source", f"{url}={at}")]
    async with Child(each.label, argv) as child:
        url = f"http://127.0.0.1:{port}"
        await child.answers(f"{url}/health")
        await child.answers(f"{url}/v1/models")
        yield Running(url, child.pid, fleet.replica_header)
