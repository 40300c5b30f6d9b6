{{/* The engine's command and arguments. Call with an engine as prefix-router.engine gives it. */}}
{{- define "prefix-router.engineCommand" -}}
{{- $topic := "kv-events" -}}
{{- $events := dict "publisher" "zmq" "endpoint" (printf "tcp://*:%d" (int .events.port)) "replay_endpoint" (printf "tcp://*:%d" (int .events.replayPort)) "buffer_steps" (int .events.bufferSteps) "topic" $topic -}}
{{- if eq .kind "vllm" -}}
command: [vllm, serve]
args:
  - {{ .model.id | quote }}
  - --served-model-name={{ .servedName }}
  - --host=0.0.0.0
  - --port={{ .port }}
  - --enable-prefix-caching
  # Lets the router compare what it expected with what was cached.
  - --enable-prompt-tokens-details
  {{- if .events.enabled }}
  - {{ merge $events (dict "enable_kv_cache_events" true) | toJson | printf "--kv-events-config=%s" | quote }}
  {{- end }}
  {{- with .model.revision }}
  - --revision={{ . }}
  {{- end }}
  {{- if gt (int .tensor) 1 }}
  - --tensor-parallel-size={{ .tensor }}
  {{- end }}
  {{- if gt (int .dataParallel) 1 }}
  - --data-parallel-size={{ .dataParallel }}
  {{- end }}
  {{- if .blockSize }}
  - --block-size={{ .blockSize }}
  {{- end }}
  {{- if .maxModelLen }}
  - --max-model-len={{ int .maxModelLen }}
  {{- end }}
{{- else -}}
command: [python3, -m, sglang.launch_server]
args:
  - --model-path={{ .model.id }}
  - --served-model-name={{ .servedName }}
  - --host=0.0.0.0
  - --port={{ .port }}
  # Off by default in SGLang: the router's load figures, and its check of what was cached.
  - --enable-metrics
  - --enable-cache-report
  # The default of 1 makes one event entry for every token.
  - --page-size={{ .blockSize }}
  {{- if .events.enabled }}
  - {{ $events | toJson | printf "--kv-events-config=%s" | quote }}
  {{- end }}
  {{- with .model.revision }}
  - --revision={{ . }}
  {{- end }}
  {{- if gt (int .tensor) 1 }}
  - --tp-size={{ .tensor }}
  {{- end }}
  {{- if gt (int .dataParallel) 1 }}
  - --dp-size={{ .dataParallel }}
  {{- end }}
  {{- if .maxModelLen }}
  - --context-length={{ int .maxModelLen }}
  {{- end }}
{{- end }}
  {{- if and .apiKeySecret (eq .kind "sglang") }}
  # SGLang has no variable for it; Kubernetes puts the Secret's value here.
  - --api-key=$(ENGINE_API_KEY)
  {{- end }}
  {{- range .args }}
  - {{ . | quote }}
  {{- end }}
{{- end }}

{{/* Probes by engine kind. SGLang's /health generates unless it is told not to; with an API key it is the only path
that is open. */}}
{{- define "prefix-router.engineProbes" -}}
{{- $health := or (eq .kind "vllm") (not (empty .apiKeySecret)) -}}
{{- $ready := ternary "/health" "/ready" $health -}}
{{- $live := ternary "/health" "/model_info" $health -}}
startupProbe:
  httpGet: {path: {{ $ready }}, port: http}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: {{ max 1 (div (int .startupSeconds) 10) }}
readinessProbe:
  httpGet: {path: {{ $ready }}, port: http}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 3
livenessProbe:
  httpGet: {path: {{ $live }}, port: http}
  periodSeconds: 15
  timeoutSeconds: 10
  # A restart loses the whole cache and takes minutes: only for an engine that is surely dead.
  failureThreshold: 8
{{- end }}

{{/* The replica agent as a native sidecar. Call with (list root engine). */}}
{{- define "prefix-router.agent" -}}
{{- $root := index . 0 -}}
{{- $engine := index . 1 -}}
{{- $external := $root.Values.redis.external -}}
{{- /* What the router is told, router.config included: both must look at one place. */ -}}
{{- $redis := (include "prefix-router.config" $root | fromYaml).redis -}}
- name: agent
  image: {{ include "prefix-router.ownImage" $root }}
  imagePullPolicy: {{ $root.Values.image.pullPolicy }}
  # A native sidecar: started before the engine, stopped after it.
  restartPolicy: Always
  args:
    - agent
    - --engine-url=http://127.0.0.1:{{ $engine.port }}
    - --replica-id=$(POD_NAME)
    # Without it routers would be told to reach the engine at 127.0.0.1.
    - --advertise-url=http://$(POD_IP):{{ $engine.port }}
    - --redis-url=$(REDIS_URL)
    - --pool={{ $redis.pool }}
    {{- with $redis.username }}
    - --redis-username={{ . }}
    {{- end }}
    {{- if $redis.cluster }}
    - --redis-cluster
    {{- end }}
    {{- if $external.passwordSecret.name }}
    - --redis-password-file=/etc/prefix-router-secrets/redis-password
    {{- end }}
    {{- if $external.caSecret.name }}
    - --redis-ca-file=/etc/prefix-router-secrets/redis-ca.crt
    {{- end }}
    {{- if $engine.apiKeySecret }}
    - --engine-api-key-file=/etc/prefix-router-secrets/engine-api-key
    {{- end }}
    {{- range $engine.agent.args }}
    - {{ . | quote }}
    {{- end }}
  env:
    - name: POD_NAME
      valueFrom: {fieldRef: {fieldPath: metadata.name}}
    - name: POD_IP
      valueFrom: {fieldRef: {fieldPath: status.podIP}}
    - name: REDIS_URL
      {{- if and $external.urlSecret.name (not $root.Values.redis.bundled.enabled) }}
      valueFrom:
        secretKeyRef: {name: {{ $external.urlSecret.name | quote }}, key: {{ $external.urlSecret.key | quote }}}
      {{- else }}
      value: {{ $redis.url | quote }}
      {{- end }}
  resources:
    {{- toYaml $engine.agent.resources | nindent 4 }}
  securityContext:
    {{- include "prefix-router.securityContext" $root | nindent 4 }}
  {{- if include "prefix-router.sharedSecrets" $root | trim }}
  volumeMounts:
    - {name: secrets, mountPath: /etc/prefix-router-secrets, readOnly: true}
  {{- end }}
{{- end }}
