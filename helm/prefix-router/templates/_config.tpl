{{/* The router's configuration file, as docs/configuration.md has it. */}}
{{- define "prefix-router.config" -}}
{{- $models := .Values.router.models | default list -}}
{{- $known := list -}}
{{- $ranked := false -}}
{{- range $models }}{{- $known = append $known .name -}}{{- end -}}
{{- $sources := list -}}
{{- range .Values.engines -}}
{{- $engine := include "prefix-router.engine" (list $ .) | fromYaml -}}
{{- if not (has $engine.servedName $known) -}}
{{- $known = append $known $engine.servedName -}}
{{- $model := dict "name" $engine.servedName -}}
{{- $files := $engine.model.routerFiles | default $engine.model.id -}}
{{- if ne $files "none" -}}
{{- $_ := set $model "files" $files -}}
{{- with $engine.model.revision }}{{- $_ := set $model "revision" . -}}{{- end -}}
{{- end -}}
{{- $models = append $models $model -}}
{{- end -}}
{{- if include "prefix-router.ranked" (list $ $engine) -}}
{{- $ranked = true -}}
{{- else -}}
{{- $sources = append $sources (dict "service" $engine.fullname "port" "http" "engine" $engine.kind) -}}
{{- end -}}
{{- end -}}
{{- range .Values.existing -}}
{{- $sources = append $sources (omit . "podLabels") -}}
{{- end -}}
{{- $config := dict
  "listen" (dict "host" "0.0.0.0" "port" (int .Values.router.port))
  "admin" (dict "host" "0.0.0.0" "port" (int .Values.router.adminPort))
  "shutdown" (dict "grace_s" (int .Values.router.drainSeconds))
-}}
{{- if $models }}{{- $_ := set $config "models" $models -}}{{- end -}}
{{- if .Values.replicas }}{{- $_ := set $config "replicas" .Values.replicas -}}{{- end -}}
{{- if $sources }}{{- $_ := set $config "discovery" (dict "kubernetes" $sources) -}}{{- end -}}
{{- if include "prefix-router.shared" . -}}
{{- $_ := set $config "index" (dict "backend" "redis" "lookup" .Values.redis.lookup) -}}
{{- $redis := dict "pool" .Values.redis.pool -}}
{{- /* EndpointSlices say when a pod leaves, leases don't: where pods are watched, only they make the fleet. */ -}}
{{- if and $sources (not $ranked) }}{{- $_ := set $redis "discover" false -}}{{- end -}}
{{- with include "prefix-router.redisUrl" . }}{{- $_ := set $redis "url" . -}}{{- end -}}
{{- with .Values.redis.external.username }}{{- $_ := set $redis "username" . -}}{{- end -}}
{{- if .Values.redis.external.passwordSecret.name }}{{- $_ := set $redis "password_file" "/etc/prefix-router-redis/password" -}}{{- end -}}
{{- if .Values.redis.external.caSecret.name }}{{- $_ := set $redis "ca_file" "/etc/prefix-router-redis/ca.crt" -}}{{- end -}}
{{- $_ := set $config "redis" $redis -}}
{{- end -}}
{{- toYaml (mergeOverwrite $config (deepCopy .Values.router.config)) -}}
{{- end }}

{{/* The server's URL; empty when it comes from a Secret. */}}
{{- define "prefix-router.redisUrl" -}}
{{- if .Values.redis.bundled.enabled -}}
redis://{{ include "prefix-router.fullname" . }}-valkey:6379/0
{{- else -}}
{{ .Values.redis.external.url }}
{{- end -}}
{{- end }}

{{/* "true" when password or authority are mounted. */}}
{{- define "prefix-router.redisSecrets" -}}
{{- $external := .Values.redis.external -}}
{{- if and (include "prefix-router.shared" .) (or $external.passwordSecret.name $external.caSecret.name) }}true{{ end }}
{{- end }}

{{- define "prefix-router.redisVolume" -}}
{{- $external := .Values.redis.external -}}
- name: redis-secrets
  projected:
    defaultMode: 0444
    sources:
      {{- if $external.passwordSecret.name }}
      - secret:
          name: {{ $external.passwordSecret.name }}
          items: [{key: {{ $external.passwordSecret.key | quote }}, path: password}]
      {{- end }}
      {{- if $external.caSecret.name }}
      - secret:
          name: {{ $external.caSecret.name }}
          items: [{key: {{ $external.caSecret.key | quote }}, path: ca.crt}]
      {{- end }}
{{- end }}
