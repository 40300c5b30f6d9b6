"""The HTTP face of a simulated replica: routes, faults in front of them, and the /sim routes only a simulator has."""

from __future__ import annotations

import asyncio
import base64
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from .config import ReplicaConfig
from .engine import Engine
from .faults import Faults
from .generation import engine_died
from .http import Handler, HttpServer, Reply, Request
from .info import InfoRoutes
from .metrics import CONTENT_TYPE, metrics_text
from .native import NativeRoutes
from .openai import OpenAIRoutes
from .requests import EngineError, OutOfVocabulary
from .shapes import compact, error_body


class SimulatedServer:
    """One replica: an engine behind HTTP. `start`, `stop`; `kill` and `restart` imitate the process dying."""

    def __init__(self, config: ReplicaConfig) -> None:
        self.config = config
        self.engine = Engine(config)
        self.faults = Faults()
        self.requests: deque[Request] = deque(maxlen=config.record_requests)
        self.http = HttpServer(self._handle, config.host, config.port, config.keep_alive)
        self.running = False
        self._background: set[asyncio.Task[None]] = set()
        openai = OpenAIRoutes(config, self.engine, self.faults)
        native = NativeRoutes(config, self.engine, self.faults, openai.reader)
        info = InfoRoutes(config, self.engine)
        self._inference: dict[str, Handler] = {
            "/v1/chat/completions": openai.chat,
            "/v1/completions": openai.completions,
            "/v1/embeddings": openai.embeddings,
        }
        self._routes: dict[tuple[str, str], Handler] = {
            ("GET", "/v1/models"): info.models,
            ("GET", "/health"): info.empty,
            ("GET", "/ping"): info.empty,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/sim/requests"): self._sim_requests,
            ("GET", "/sim/truth"): self._sim_truth,
            ("POST", "/sim/faults"): self._sim_faults,
        }
        getattr(self, f"_add_{config.kind}")(openai, native, info)
        self._routes |= {("POST", path): handler for path, handler in self._inference.items()}
        self._paths = {path for _, path in self._routes}

    def _add_vllm(self, openai: OpenAIRoutes, native: NativeRoutes, info: InfoRoutes) -> None:
        self._routes |= {
            ("POST", "/tokenize"): openai.tokenize,
            ("POST", "/detokenize"): openai.detokenize,
            ("POST", "/v1/chat/completions/render"): openai.chat_render,
            ("POST", "/v1/completions/render"): openai.completion_render,
            ("POST", "/ping"): info.empty,
            ("GET", "/version"): info.version,
            ("GET", "/load"): info.load,
            ("GET", "/kv_event_sources"): info.kv_event_sources,
            ("GET", "/server_info"): info.server_info,
            ("POST", "/reset_prefix_cache"): info.reset_prefix_cache,
            ("POST", "/pause"): info.pause,
            ("POST", "/resume"): info.resume,
            ("GET", "/is_paused"): info.is_paused,
        }

    def _add_sglang(self, openai: OpenAIRoutes, native: NativeRoutes, info: InfoRoutes) -> None:
        self._inference["/generate"] = native.sglang_generate
        self._routes |= {
            ("GET", "/ready"): info.empty,
            ("GET", "/health_generate"): info.empty,
            ("GET", "/model_info"): info.model_info,
            ("GET", "/get_model_info"): info.model_info,
            ("GET", "/server_info"): info.server_info,
            ("GET", "/get_server_info"): info.server_info,
            ("GET", "/v1/loads"): info.loads,
            ("GET", "/flush_cache"): info.flush_cache,
            ("POST", "/flush_cache"): info.flush_cache,
        }
        for path in ("/tokenize", "/v1/tokenize"):
            self._routes["POST", path] = openai.tokenize
        for path in ("/detokenize", "/v1/detokenize"):
            self._routes["POST", path] = openai.detokenize

    def _add_tgi(self, openai: OpenAIRoutes, native: NativeRoutes, info: InfoRoutes) -> None:
        for path in ("/", "/generate", "/generate_stream"):
            self._inference[path] = native.tgi_generate
        self._routes |= {
            ("GET", "/info"): info.tgi_info,
            ("POST", "/tokenize"): native.tgi_tokenize,
            ("POST", "/chat_tokenize"): native.tgi_chat_tokenize,
        }

    @property
    def url(self) -> str:
        return f"http://{self.config.host}:{self.http.port}"

    async def start(self) -> None:
        """Raises OSError when a port is taken."""
        await self.engine.start()
        try:
            await self.http.start()
        except OSError:
            await self.engine.stop()
            raise
        self.running = True

    async def stop(self) -> None:
        await self._down(reset=False)

    async def kill(self) -> None:
        """As SIGKILL: the listener is gone, every connection is reset, the event sockets are closed."""
        await self._down(reset=True)

    async def restart(self) -> None:
        """A new process at the same addresses: cache empty, seq 0, another hash seed, no faults."""
        await self.kill()
        self.clear_faults()
        await self.start()

    async def _down(self, *, reset: bool) -> None:
        self.running = False
        await self.http.stop(reset=reset)
        await self.engine.stop()

    def fault(self, **values: Any) -> None:
        """Set fault switches (see Faults). Raises ValueError that names the field."""
        self.faults.change(values)
        if "slow" in values:
            self.engine.scheduler.slow = self.faults.slow
        if "paused" in values:
            self.engine.stall(self.faults.paused)
        if "drop_events" in values and self.engine.publisher is not None:
            self.engine.publisher.drop = self.faults.drop_events

    def clear_faults(self) -> None:
        self.fault(**{name: getattr(Faults(), name) for name in Faults.__slots__})

    def _handle(self, request: Request, reply: Reply) -> None:
        if not self.running:  # accepted by the kernel just before the process died
            reply.reset()
            return
        if self.config.replica_header:
            reply.extra = f"{self.config.replica_header}: {self.config.host}:{self.http.port}\r\n"
        path = request.path
        if not path.startswith("/sim/"):
            self.requests.append(request)
            if self.faults.hang or (path in self._inference and self._fault_before(reply)):
                return
        handler = self._routes.get((request.method, path))
        if handler is None:
            known = path in self._paths
            status, text = (405, "Method Not Allowed") if known else (404, "Not Found")
            reply.send(status, compact({"detail": text}))
            return
        try:
            handler(request, reply)
        except EngineError as error:
            reply.send(error.status, error.body)
        except OutOfVocabulary:
            self._later(self.kill)
        except Exception:
            reply.send(500, error_body(self.config.kind, 500, "Internal Server Error", "InternalServerError"))
            raise

    def _fault_before(self, reply: Reply) -> bool:
        """Faults of inference requests that come before any answer; True when the request is dealt with."""
        if self.faults.die:
            self.faults.die = False
            self._dying = asyncio.ensure_future(self.kill())
        elif self.faults.take_close():
            reply.reset()
        elif self.faults.take_half_head():
            reply.raw(b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-ty")
        elif status := self.faults.take_status():
            kind = self.config.kind
            text = "Service Unavailable" if status == 503 else "injected fault"
            reply.send(status, engine_died(kind) if status == 500 else error_body(kind, status, text, text))
        else:
            return False
        return True

    def _metrics(self, request: Request, reply: Reply) -> None:
        reply.send(200, metrics_text(self.engine), CONTENT_TYPE)

    def _sim_requests(self, request: Request, reply: Reply) -> None:
        reply.send(
            200,
            compact(
                [
                    {
                        "method": item.method,
                        "path": item.target,
                        "headers": [
                            [name.decode("latin-1"), value.decode("latin-1")] for name, value in item.raw_headers
                        ],
                        "body_base64": base64.b64encode(item.body).decode(),
                    }
                    for item in self.requests
                ]
            ),
        )

    def _sim_truth(self, request: Request, reply: Reply) -> None:
        reply.send(200, compact(self.engine.truth()))

    def _sim_faults(self, request: Request, reply: Reply) -> None:
        """A JSON object of Faults fields, or {"clear": true}, {"kill": true}, {"restart": true}."""
        try:
            values = msgspec.json.decode(request.body, type=dict[str, Any])
            actions = {name: bool(values.pop(name, False)) for name in ("clear", "kill", "restart")}
            if actions["clear"]:
                self.clear_faults()
            self.fault(**values)
        except (msgspec.DecodeError, ValueError, TypeError) as error:
            reply.send(400, compact({"error": str(error)}))
            return
        reply.send(200, compact({name: getattr(self.faults, name) for name in Faults.__slots__}))
        if actions["restart"]:
            self._later(self.restart)
        elif actions["kill"]:
            self._later(self.kill)

    def _later(self, action: Callable[[], Any]) -> None:
        """Run an action that closes this very connection, after the current callback."""
        task = asyncio.get_running_loop().create_task(action(), name="simulator-fault")
        self._background.add(task)
        task.add_done_callback(self._background.discard)
