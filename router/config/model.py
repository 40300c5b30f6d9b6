"""Every setting, with its type, default, bounds and meaning. docs/configuration.md is generated from this file."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
Name = Annotated[str, Meta(min_length=1)]
ZmqAddress = Annotated[str, Meta(pattern=r"^(tcp|ipc)://")]
Port = Annotated[int, Meta(ge=0, le=65535)]


def _d(description: str) -> Meta:
    return Meta(description=description)


class Section(Struct, forbid_unknown_fields=True, kw_only=True):
    """A group of settings; an unknown key is an error."""


class Tls(Section):
    """Certificate of a listener. Changed files are taken up without a restart; connections that stand go on."""

    cert_file: Annotated[Name, _d("Certificate chain (PEM).")]
    key_file: Annotated[Name, _d("Its private key (PEM, no passphrase).")]
    client_ca_file: Annotated[
        Name | None, _d("Only clients with a certificate of this CA are let in (mTLS). Unset: anyone.")
    ] = None


class Listen(Section):
    """Where agents connect."""

    host: Annotated[str, _d("Address to listen on; `::` for IPv6, empty for every address of both.")] = "127.0.0.1"
    port: Annotated[Port, _d("Port to listen on; 0 takes a free one and logs it.")] = 8000
    tls: Annotated[Tls | None, _d("Serve https. Unset: http.")] = None


class Admin(Section):
    """The operators' listener: /metrics, /ready with its details, /replicas. Keep it off the public network."""

    enabled: Annotated[bool, _d("Whether the admin listener is opened at all.")] = True
    host: Annotated[str, _d("Address of the admin listener.")] = "127.0.0.1"
    port: Annotated[Port, _d("Port of the admin listener; 0 takes a free one and logs it.")] = 9000
    tls: Annotated[Tls | None, _d("Serve https. Unset: http.")] = None
    token_file: Annotated[
        Name | None,
        _d(
            "File with the token that changes through the admin API need. With a token, reading needs it too, except "
            "/metrics, /health and /ready. Without one nothing can be changed there."
        ),
    ] = None
    token_env: Annotated[Name | None, _d("Environment variable with that token.")] = None


class Keys(Section):
    """API keys of the public port. Neither `file` nor `env`: everyone is let in."""

    file: Annotated[Name | None, _d("YAML or JSON list of keys (prefix-router keys new --file FILE adds one).")] = None
    env: Annotated[Name | None, _d("Environment variable that holds such a list.")] = None
    isolation: Annotated[
        Literal["shared", "salt"],
        _d(
            "shared: tenants share the engines' caches, and receipts say nothing of matches once there are several. "
            "salt: requests get a cache_salt of their tenant's, so that engines keep tenants' blocks apart."
        ),
    ] = "shared"


class Model(Section):
    """A model served by the fleet, and where its tokenizer and chat template are."""

    name: Annotated[Name, _d("The name replicas serve it under (the first id in their /v1/models).")]
    files: Annotated[
        str | None,
        _d(
            "Directory or hub id with tokenizer.json and the chat template. Without it, prompts of this model are "
            "matched by approximate text keys."
        ),
    ] = None
    revision: Annotated[str | None, _d("Hub revision of `files`.")] = None
    token_env: Annotated[
        str | None,
        _d("Environment variable that holds the hub's token. Unset: HF_TOKEN, or the hub client's own login."),
    ] = None
    tokenizer_class: Annotated[
        str | None,
        _d(
            "Name of the transformers class whose pipeline the engine puts in the file's place, for example "
            "Qwen2Tokenizer; needed only where tokenizer.json and that class disagree."
        ),
    ] = None
    block_size: Annotated[
        Count | None,
        _d("Canonical block size in tokens. Unset: the smallest block size among the model's replicas, at least 16."),
    ] = None
    chat_template: Annotated[
        str | None, _d("File with the template of the engines' --chat-template, where they are given one.")
    ] = None
    content_format: Annotated[
        Literal["auto", "string", "openai"], _d("The engines' --chat-template-content-format.")
    ] = "auto"
    exclude_tools_when_none: Annotated[
        bool, _d("Whether the engines run with --exclude-tools-when-tool-choice-none (vLLM).")
    ] = False
    chat_template_kwargs: Annotated[
        dict[str, object],
        _d("The engines' --default-chat-template-kwargs, so that the router renders as they do."),
    ] = field(default_factory=dict)


class Events(Section):
    """Where a replica publishes its KV events. Unset: asked of the engine (vLLM >= 0.31, SGLang >= 0.5.14)."""

    endpoint: Annotated[ZmqAddress, _d("ZMQ PUB address, for example tcp://10.0.0.7:5557.")]
    replay_endpoint: Annotated[ZmqAddress | None, _d("ZMQ ROUTER address that replays missed batches.")] = None
    topic: Annotated[str, _d("ZMQ topic prefix to subscribe to; empty takes all.")] = ""
    bind: Annotated[bool, _d("Bind here instead of connecting, for an engine whose endpoint connects out.")] = False


class Replica(Section):
    """One engine endpoint."""

    url: Annotated[str, Meta(pattern=r"^https?://[^/]+/?$"), _d("Base URL, for example http://10.0.0.7:8000.")]
    id: Annotated[Name | None, _d("Name in receipts and metrics. Unset: host:port of the URL.")] = None
    engine: Annotated[Literal["auto", "vllm", "sglang", "tgi"], _d("Engine kind; auto asks the engine.")] = "auto"
    events: Annotated[
        Events | None,
        _d("KV event source. Unset: discovered from the engine; without any, its cache is modelled (approximate)."),
    ] = None
    labels: Annotated[dict[str, str], _d("Free labels, shown in /replicas.")] = field(default_factory=dict)


class EventPorts(Section):
    """KV event ports of discovered engines that don't tell them."""

    port: Annotated[Port, _d("ZMQ PUB port.")]
    replay_port: Annotated[Port | None, _d("ZMQ ROUTER port that replays missed batches.")] = None
    topic: Annotated[str, _d("ZMQ topic prefix; empty takes all.")] = ""


class FileDiscovery(Section):
    """A YAML or JSON list of replicas, read again when it changes."""

    path: Annotated[Name, _d("The file.")]
    interval_s: Annotated[Seconds, _d("Time between looks at the file.")] = 1.0


class DnsDiscovery(Section):
    """A name with one address per replica, such as a headless service."""

    host: Annotated[Name, _d("Name to resolve.")]
    port: Annotated[Port, _d("HTTP port of the engines.")]
    scheme: Annotated[Literal["http", "https"], _d("Scheme of the replicas' URLs.")] = "http"
    interval_s: Annotated[Seconds, _d("Time between resolutions.")] = 5.0
    engine: Annotated[Literal["auto", "vllm", "sglang", "tgi"], _d("Engine kind; auto asks.")] = "auto"
    events: Annotated[EventPorts | None, _d("Event ports. Unset: asked of the engine.")] = None
    labels: Annotated[dict[str, str], _d("Free labels.")] = field(default_factory=dict)


class KubernetesDiscovery(Section):
    """Pods behind services, from EndpointSlices. Needs list and watch on endpointslices; give service or selector."""

    service: Annotated[Name | None, _d("Service name.")] = None
    selector: Annotated[Name | None, _d("Label selector over services.")] = None
    namespace: Annotated[Name | None, _d("Namespace. Unset: the router's own.")] = None
    port: Annotated[str | int | None, _d("Port name, or the pod's port number. Unset: the only port.")] = None
    scheme: Annotated[Literal["http", "https"], _d("Scheme of the replicas' URLs.")] = "http"
    engine: Annotated[Literal["auto", "vllm", "sglang", "tgi"], _d("Engine kind; auto asks.")] = "auto"
    events: Annotated[EventPorts | None, _d("Event ports. Unset: asked of the engine.")] = None
    labels: Annotated[dict[str, str], _d("Free labels.")] = field(default_factory=dict)


class Discovery(Section):
    """Where replicas are learned from, besides `replicas` and the agents' leases in Redis."""

    files: list[FileDiscovery] = field(default_factory=list)
    dns: list[DnsDiscovery] = field(default_factory=list)
    kubernetes: list[KubernetesDiscovery] = field(default_factory=list)


class Index(Section):
    """The index of which replica holds which block."""

    backend: Annotated[
        Literal["memory", "redis"],
        _d("memory: this router follows the engines' events itself. redis: agents publish, routers share (see redis)."),
    ] = "memory"
    lookup: Annotated[
        Literal["mirror", "redis"],
        _d("Backend redis: mirror keeps a copy in memory (no network on the request path), redis asks every time."),
    ] = "mirror"
    max_blocks: Annotated[Count, _d("Upper bound on distinct blocks held; about 120 bytes each.")] = 10_000_000
    predicted_ttl_s: Annotated[
        Seconds, _d("How long a just-routed prompt counts as held before its KV events confirm it.")
    ] = 5.0
    shadow_blocks: Annotated[
        Count, _d("Size in blocks of the modelled cache of a replica whose KV capacity is unknown.")
    ] = 50_000


class Redis(Section):
    """The shared index's server (Redis or Valkey), used with index.backend: redis."""

    url: Annotated[str, _d("redis://, rediss:// (TLS), unix:// or redis+sentinel://host:port,host:port/service.")] = (
        "redis://127.0.0.1:6379"
    )
    pool: Annotated[Name, _d("Index of this fleet; agents name the same. One pool lives on one cluster shard.")] = (
        "default"
    )
    username: Annotated[str | None, _d("User name, if the server wants one.")] = None
    password_file: Annotated[str | None, _d("File that holds the password.")] = None
    password_env: Annotated[str | None, _d("Environment variable that holds the password.")] = None
    ca_file: Annotated[str | None, _d("CA certificate for rediss://.")] = None
    cert_file: Annotated[str | None, _d("Client certificate for rediss://.")] = None
    key_file: Annotated[str | None, _d("Key of the client certificate.")] = None
    cluster: Annotated[bool, _d("The server is a node of a Redis cluster.")] = False
    timeout_s: Annotated[Seconds, _d("Limit for one call, off the request path.")] = 1.0
    lookup_timeout_s: Annotated[
        Seconds, _d("Limit for one lookup with index.lookup: redis; then it counts as empty.")
    ] = 0.005
    discover: Annotated[bool, _d("Replicas that agents publish join the fleet by themselves.")] = True


class Routing(Section):
    """How a replica is chosen."""

    policy: Annotated[
        Literal["prefix", "round_robin", "random", "least_load", "session"],
        _d("prefix: least predicted work in uncached prefill tokens. session: consistent hash on the session key."),
    ] = "prefix"
    recompute_weight: Annotated[
        float,
        Meta(ge=1),
        _d("Policy prefix: what one token of this prompt to be recomputed costs, against one token of queue."),
    ] = 2.0
    decode_cost_tokens: Annotated[
        float,
        Meta(ge=0),
        _d("Policy prefix: what one running sequence costs a newcomer, in uncached prefill tokens."),
    ] = 64.0
    affinity_tokens: Annotated[
        float,
        Meta(ge=0),
        _d("Policy prefix: by how many uncached prefill tokens a session prefers the replica of its last step."),
    ] = 512.0
    session_header: Annotated[
        str,
        Meta(pattern=r"^[A-Za-z0-9-]+$"),
        _d("Request header that names the session. The headers of Claude Code, Codex and OpenCode are known as well."),
    ] = "x-session-id"
    session_cookie: Annotated[Name | None, _d("Cookie that names the session, for clients that keep one.")] = None
    max_sessions: Annotated[Count, _d("Sessions remembered, at most; 1 to 2 kB each.")] = 100_000
    warm_prefixes: Annotated[
        int,
        Meta(ge=0),
        _d("Shared prefixes, the hottest ones, that a replica is sent when it joins; 0 sends none."),
    ] = 4
    light_tokens: Annotated[
        int,
        Meta(ge=0),
        _d("A prompt with fewer tokens of its own that continues no session is light: little is lost when it moves."),
    ] = 512
    light_labels: Annotated[
        dict[str, str], _d("Light requests go to replicas with these labels while one is up. Empty: to any.")
    ] = field(default_factory=dict)
    heavy_labels: Annotated[
        dict[str, str], _d("All other requests go to replicas with these labels while one is up. Empty: to any.")
    ] = field(default_factory=dict)


class Prompt(Section):
    """The prompt stage: request to token ids."""

    parity_interval_s: Annotated[
        Seconds, _d("Time between comparisons of the router's token ids with each engine's; also done at every join.")
    ] = 300.0
    parity_generate: Annotated[
        bool,
        _d("At a comparison, let an engine that has no tokenize or render endpoint generate one token for each probe."),
    ] = False
    drift_alert: Annotated[
        float,
        Meta(gt=0, lt=1),
        _d(
            "Share of tokens by which a replica's predicted and actual cached tokens may differ, over its recent "
            "answers, before /ready and the log say so."
        ),
    ] = 0.25
    unreproducible: Annotated[
        Literal["approximate", "ask_engine"],
        _d(
            "Prompts whose token ids the router can't know (harmony, Mistral and other encoders of their own, "
            "templates in requests): matched by approximate text keys, or asked of an engine's render or tokenize "
            "endpoint, which then tokenizes them twice."
        ),
    ] = "approximate"
    ask_timeout_s: Annotated[
        Seconds, _d("How long a request waits for ids asked of an engine; then it gets approximate keys.")
    ] = 0.05
    ask_cache_mb: Annotated[Count, _d("Memory for ids asked of engines.")] = 32
    send_token_ids: Annotated[
        bool,
        _d(
            "Send the router's ids along with chat requests, so that the engine neither renders nor tokenizes again "
            "(vLLM >= 0.28, SGLang >= 0.5.14). The body then changes by one field. Done only for a replica whose ids "
            "were compared and are equal."
        ),
    ] = False
    message_cache_mb: Annotated[Count, _d("Memory for messages that were decoded before, of all models.")] = 64
    render_cache_mb: Annotated[Count, _d("Memory for rendered beginnings of chats, per chat template.")] = 32
    segment_cache_mb: Annotated[Count, _d("Memory for tokenized text segments, per model.")] = 64
    chain_cache_mb: Annotated[Count, _d("Memory for block chains of recent prompts, per model.")] = 64


class ReplicaTls(Section):
    """How replicas with https URLs are checked, and what they are shown."""

    ca_file: Annotated[Name | None, _d("CA of the replicas' certificates (PEM). Unset: the system's.")] = None
    cert_file: Annotated[Name | None, _d("Client certificate for replicas that ask for one (mTLS).")] = None
    key_file: Annotated[Name | None, _d("Its private key. Unset: in cert_file.")] = None
    server_name: Annotated[
        Name | None, _d("Name their certificates must have. Unset: the URL's host. For replicas known by address.")
    ] = None
    verify: Annotated[bool, _d("Whether certificates are checked at all.")] = True


class Proxy(Section):
    """Forwarding to replicas."""

    tls: ReplicaTls = field(default_factory=ReplicaTls)
    api_key_file: Annotated[
        Name | None,
        _d(
            "File with the engines' own API key (vllm serve --api-key): used by probes, and sent in the place of the "
            "clients' keys where `keys` are configured. Without `keys` clients' headers pass unchanged."
        ),
    ] = None
    api_key_env: Annotated[Name | None, _d("Environment variable with that key.")] = None
    trust_client_routing: Annotated[
        bool,
        _d(
            "Pass on clients' headers that steer an engine's own routing (X-Data-Parallel-Rank, X-Override-*). "
            "They are dropped otherwise."
        ),
    ] = False

    connect_timeout_s: Annotated[Seconds, _d("Limit for opening a connection to a replica.")] = 2.0
    first_byte_timeout_s: Annotated[Seconds, _d("Limit for a replica's first response byte, per try.")] = 600.0
    idle_timeout_s: Annotated[Seconds, _d("Limit between two pieces of an answer.")] = 300.0
    total_timeout_s: Annotated[Seconds, _d("Limit from a request's arrival to its first response byte, all tries.")] = (
        900.0
    )
    max_attempts: Annotated[Count, _d("Replicas tried for one request, at most.")] = 5
    max_connections: Annotated[
        Count, _d("Open connections to one replica; requests beyond it go elsewhere, or wait.")
    ] = 4096
    max_idle_connections: Annotated[Count, _d("Idle ones kept for one replica.")] = 256
    retry_budget_ratio: Annotated[
        Share, _d("Retries that failed too, within 10 s: at most this share of the requests begun in that time, plus:")
    ] = 0.2
    retry_budget_per_s: Annotated[float, Meta(ge=0), _d("so many a second. Beyond it nothing is retried.")] = 10.0
    poison_losses: Annotated[
        Count,
        _d("A request is refused once so many replicas were lost while they worked on it: it may have crashed them."),
    ] = 2
    poison_refuse_s: Annotated[Seconds, _d("For how long it is refused.")] = 60.0
    keepalive_s: Annotated[
        Seconds, _d("Idle connections to replicas are closed after this; engines close theirs after 5 s.")
    ] = 4.0
    blocked_paths: Annotated[
        list[str],
        _d("Path prefixes that are never forwarded: the engines' control endpoints."),
    ] = field(
        default_factory=lambda: [
            "/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/sleep", "/wake_up", "/collective_rpc",
            "/pause", "/resume", "/abort_request", "/abort_requests", "/inference/v1/abort_requests", "/flush_cache",
            "/server_info", "/get_server_info", "/release_memory_occupation", "/resume_memory_occupation",
            "/release_kv_cache_memory", "/pause_generation", "/continue_generation", "/v1/load_lora_adapter",
            "/v1/unload_lora_adapter", "/load_lora_adapter", "/unload_lora_adapter", "/hicache", "/start_profile",
            "/stop_profile", "/metrics", "/kv_event_sources", "/scale_elastic_ep", "/fault_tolerance", "/init_weights",
            "/init_weight", "/update_weights", "/update_weight", "/start_weight_update", "/start_draft_weight_update",
            "/finish_weight_update", "/begin_weight_update", "/end_weight_update", "/destroy_weights_update_group",
            "/shutdown_weight_transfer_engine", "/weight_checker", "/weights_checker", "/get_weights_by_name",
            "/send_weights_to_remote_instance", "/register_transfer_engine_info", "/start_expert_distribution_record",
            "/stop_expert_distribution_record", "/dump_expert_distribution_record", "/set_internal_state",
            "/set_trace_level", "/configure_logging", "/freeze_gc", "/slow_down", "/dumper", "/pd_role_switch",
            "/add_external_corpus", "/remove_external_corpus",
        ]
    )  # fmt: skip


class Admission(Section):
    """Requests are sent only where there is room; the others wait in the router, tenants taking turns."""

    max_queue: Annotated[
        Count, _d("Requests that may wait. Beyond it: 429 for the tenant with the most of them, 503 if it is alone.")
    ] = 4096
    timeout_s: Annotated[Seconds, _d("How long a request waits for room before it gets 503.")] = 300.0
    max_running: Annotated[
        Count | None,
        _d("Sequences a replica has at once, at most. Unset: what its engine says or shows that it can run."),
    ] = None
    engine_queue: Annotated[
        Count, _d("So many sequences may wait inside an engine that runs as many as it can; more wait in the router.")
    ] = 32
    wait_for_replica_s: Annotated[
        float, Meta(ge=0), _d("While all replicas of a model are down, how long a request waits for one to come up.")
    ] = 5.0


class Limits(Section):
    """What a client may send."""

    max_body_mb: Annotated[Count, _d("Largest request body.")] = 64
    max_header_kb: Annotated[Count, _d("Largest request head.")] = 64
    max_connections: Annotated[Count, _d("Client connections, at most.")] = 20_000
    max_buffered_mb: Annotated[
        Count, _d("Request bodies in memory, all together, until they are answered; beyond it 503.")
    ] = 1024
    write_timeout_s: Annotated[
        Seconds, _d("A client that reads nothing for so long, while an answer waits for it, is dropped.")
    ] = 120.0
    keepalive_s: Annotated[Seconds, _d("Idle client connections are closed after this.")] = 75.0
    header_timeout_s: Annotated[Seconds, _d("Limit for receiving a request's head.")] = 10.0
    body_timeout_s: Annotated[
        Seconds, _d("Limit for a request's body; its size at 4096 bytes a second comes on top.")
    ] = 30.0


class Health(Section):
    """Probing replicas, and what their answers to requests say about them."""

    interval_s: Annotated[Seconds, _d("Time between probes of one replica.")] = 2.0
    timeout_s: Annotated[Seconds, _d("Limit for one probe.")] = 5.0
    failures: Annotated[Count, _d("Consecutive failed probes before a replica gets no more requests.")] = 2
    load_interval_s: Annotated[Seconds, _d("Time between reads of a replica's load metrics.")] = 1.0
    eject_failures: Annotated[Count, _d("Requests that fail in a row before a replica is ejected.")] = 5
    eject_error_ratio: Annotated[
        Share, _d("Share of failures among 20 or more requests in 10 s, well above the others' share, that ejects it.")
    ] = 0.5
    eject_s: Annotated[Seconds, _d("For how long, the first time; doubled each further time.")] = 5.0
    eject_max_s: Annotated[Seconds, _d("For how long at most.")] = 300.0
    max_ejected_share: Annotated[
        Share, _d("At most this share of a model's replicas is ejected; with more of them unusable, all are used.")
    ] = 0.5
    slow_start_s: Annotated[
        Seconds,
        _d("A replica that is new to a fleet at work, or was away for as long, takes so long to its full share."),
    ] = 30.0


class Observe(Section):
    """What is remembered of requests and sessions, for reports and the dashboard (docs/observability.md)."""

    prompts: Annotated[
        Literal["auto", "always"],
        _d(
            "auto: prompts are read where the policy looks at caches. always: under every policy, so that sessions, "
            "prefix breaks and causes of computed tokens are known there too, at the cost of policy prefix."
        ),
    ] = "auto"
    recent_requests: Annotated[Count, _d("Requests whose records are kept for /requests; about 3 kB each.")] = 2000
    sessions_mb: Annotated[Count, _d("Memory for session records; the longest unused are forgotten.")] = 64
    causes_mb: Annotated[
        Count, _d("Memory for which blocks were sent where and evicted when: what computed tokens are explained by.")
    ] = 64
    break_text: Annotated[
        bool, _d("Show real text at prefix breaks, not only its shape (aaa 000): keeps beginnings of texts in memory.")
    ] = False
    traces: Annotated[
        bool,
        _d(
            "Send OpenTelemetry traces (pip install 'prefix-router[otel]'); OTEL_EXPORTER_OTLP_ENDPOINT and such say "
            "where to."
        ),
    ] = False


class Shutdown(Section):
    """Stopping."""

    delay_s: Annotated[
        float,
        Meta(ge=0),
        _d(
            "After SIGTERM /ready says no, but connections are still taken for so long, until load balancers have "
            "noticed. Then running requests get their grace."
        ),
    ] = 0.0
    grace_s: Annotated[Seconds, _d("How long running requests may finish after SIGTERM.")] = 30.0


class Reload(Section):
    """Taking up a changed configuration. SIGHUP asks for it at any time."""

    watch: Annotated[
        bool, _d("Look at the configuration file, and the files it names for keys and certificates, for changes.")
    ] = True
    interval_s: Annotated[Seconds, _d("Time between looks.")] = 1.0


class Log(Section):
    """Logging to standard error."""

    level: Annotated[Literal["debug", "info", "warning", "error"], _d("Least severe level written.")] = "info"
    access: Annotated[bool, _d("One line a request: what was decided and what came of it; never the prompt.")] = False
    blocks: Annotated[
        bool, _d("The access log names each prompt's block hashes as well (no text), for `loadtest replay`.")
    ] = False


class Config(Section):
    """prefix-router's configuration file."""

    workers: Annotated[
        Count,
        _d(
            "Processes that share the port, one CPU core each; one more looks after them. They see each other's work. "
            "Limits of memory, connections and queues are for each (docs/operations.md)."
        ),
    ] = 1
    listen: Listen = field(default_factory=Listen)
    admin: Admin = field(default_factory=Admin)
    keys: Keys = field(default_factory=Keys)
    models: list[Model] = field(default_factory=list)
    replicas: list[Replica] = field(default_factory=list)
    discovery: Discovery = field(default_factory=Discovery)
    index: Index = field(default_factory=Index)
    redis: Redis = field(default_factory=Redis)
    routing: Routing = field(default_factory=Routing)
    prompt: Prompt = field(default_factory=Prompt)
    proxy: Proxy = field(default_factory=Proxy)
    admission: Admission = field(default_factory=Admission)
    limits: Limits = field(default_factory=Limits)
    health: Health = field(default_factory=Health)
    shutdown: Shutdown = field(default_factory=Shutdown)
    observe: Observe = field(default_factory=Observe)
    reload: Reload = field(default_factory=Reload)
    log: Log = field(default_factory=Log)
