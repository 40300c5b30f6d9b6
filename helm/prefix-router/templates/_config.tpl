{{/* The router's configuration file, as docs/configuration.md has it. */}}
{{- define "prefix-router.config" -}}
{{- $router := .Values.router -}}
{{- $models := $router.models | default list -}}
{{- $known := list -}}
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
{{- $source := dict "service" $engine.fullname "port" "http" "engine" $engine.kind -}}
{{- with $engine.labels }}{{- $_ := set $source "labels" . -}}{{- end -}}
{{- $sources = append $sources $source -}}
{{- end -}}
{{- range .Values.existing -}}
{{- $sources = append $sources (omit . "podLabels") -}}
{{- end -}}
{{- /* "": every address, IPv4 and IPv6. */ -}}
{{- $listen := dict "host" "" "port" (int $router.port) -}}
{{- with include "prefix-router.tls" (list "listen" $router.tls) | fromYaml }}{{- $_ := set $listen "tls" . -}}{{- end -}}
{{- $admin := dict "host" "" "port" (int $router.adminPort) -}}
{{- with include "prefix-router.tls" (list "admin" $router.adminTls) | fromYaml }}{{- $_ := set $admin "tls" . -}}{{- end -}}
{{- if $router.adminToken.secretName }}{{- $_ := set $admin "token_file" "/etc/prefix-router-secrets/admin-token" -}}{{- end -}}
{{- $config := dict
  "listen" $listen
  "admin" $admin
  "shutdown" (dict "delay_s" (int $router.unreadySeconds) "grace_s" (int $router.drainSeconds))
-}}
{{- if $router.keys.secretName -}}
{{- $_ := set $config "keys" (dict "file" "/etc/prefix-router-secrets/keys.yaml" "isolation" $router.keys.isolation) -}}
{{- end -}}
{{- $tls := dict -}}
{{- with .Values.engineTls -}}
{{- if .caSecret.name }}{{- $_ := set $tls "ca_file" "/etc/prefix-router-secrets/engines/ca.crt" -}}{{- end -}}
{{- if .clientSecretName -}}
{{- $_ := set $tls "cert_file" "/etc/prefix-router-secrets/engines/tls.crt" -}}
{{- $_ := set $tls "key_file" "/etc/prefix-router-secrets/engines/tls.key" -}}
{{- end -}}
{{- with .serverName }}{{- $_ := set $tls "server_name" . -}}{{- end -}}
{{- end -}}
{{- $proxy := dict -}}
{{- if $tls }}{{- $_ := set $proxy "tls" $tls -}}{{- end -}}
{{- if .Values.engineApiKey.secretName }}{{- $_ := set $proxy "api_key_file" "/etc/prefix-router-secrets/engine-api-key" -}}{{- end -}}
{{- if $proxy }}{{- $_ := set $config "proxy" $proxy -}}{{- end -}}
{{- if $models }}{{- $_ := set $config "models" $models -}}{{- end -}}
{{- if .Values.replicas }}{{- $_ := set $config "replicas" .Values.replicas -}}{{- end -}}
{{- if $sources }}{{- $_ := set $config "discovery" (dict "kubernetes" $sources) -}}{{- end -}}
{{- if include "prefix-router.shared" . -}}
{{- $_ := set $config "index" (dict "backend" "redis" "lookup" .Values.redis.lookup) -}}
{{- $redis := dict "pool" .Values.redis.pool -}}
{{- /* EndpointSlices say when a pod leaves, leases don't: where pods are watched, only they make the fleet. */ -}}
{{- if $sources }}{{- $_ := set $redis "discover" false -}}{{- end -}}
{{- with include "prefix-router.redisUrl" . }}{{- $_ := set $redis "url" . -}}{{- end -}}
{{- with .Values.redis.external.username }}{{- $_ := set $redis "username" . -}}{{- end -}}
{{- if .Values.redis.external.passwordSecret.name }}{{- $_ := set $redis "password_file" "/etc/prefix-router-secrets/redis-password" -}}{{- end -}}
{{- if .Values.redis.external.caSecret.name }}{{- $_ := set $redis "ca_file" "/etc/prefix-router-secrets/redis-ca.crt" -}}{{- end -}}
{{- $_ := set $config "redis" $redis -}}
{{- end -}}
{{- toYaml (mergeOverwrite $config (deepCopy $router.config)) -}}
{{- end }}

{{/* The part of the configuration that pods are replaced for: what the router can't take up while it runs, or with
router.configChange=roll everything. */}}
{{- define "prefix-router.rollingConfig" -}}
{{- $config := include "prefix-router.config" . | fromYaml -}}
{{- if eq .Values.router.configChange "roll" -}}
{{- toYaml $config -}}
{{- else -}}
{{- range .Files.Get "files/restart-settings.yaml" | fromYamlArray -}}
{{- $at := splitList "." . -}}
{{- $value := $config -}}
{{- range $at }}{{- $value = ternary (dig . "" (ternary $value dict (kindIs "map" $value))) "" (kindIs "map" $value) -}}{{- end }}
{{ . }}: {{ toJson $value }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Section `tls` of a listener. Call with (list "listen" .Values.router.tls). */}}
{{- define "prefix-router.tls" -}}
{{- $folder := printf "/etc/prefix-router-secrets/%s" (index . 0) -}}
{{- with index . 1 -}}
{{- if .secretName -}}
cert_file: {{ $folder }}/tls.crt
key_file: {{ $folder }}/tls.key
{{- if .clientCaKey }}
client_ca_file: {{ $folder }}/clients.crt
{{- end }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* The server's URL; empty when it comes from a Secret. */}}
{{- define "prefix-router.redisUrl" -}}
{{- if .Values.redis.bundled.enabled -}}
redis://{{ include "prefix-router.fullname" . }}-valkey:6379/0
{{- else -}}
{{ .Values.redis.external.url }}
{{- end -}}
{{- end }}

{{/* Sources of the volume of secrets that router and agents share. */}}
{{- define "prefix-router.sharedSecrets" -}}
{{- $external := .Values.redis.external -}}
{{- if include "prefix-router.shared" . -}}
{{- with $external.passwordSecret }}{{ if .name }}
- secret: {name: {{ .name | quote }}, items: [{key: {{ .key | quote }}, path: redis-password}]}
{{- end }}{{ end }}
{{- with $external.caSecret }}{{ if .name }}
- secret: {name: {{ .name | quote }}, items: [{key: {{ .key | quote }}, path: redis-ca.crt}]}
{{- end }}{{ end }}
{{- end }}
{{- with .Values.engineApiKey }}{{ if .secretName }}
- secret: {name: {{ .secretName | quote }}, items: [{key: {{ .key | quote }}, path: engine-api-key}]}
{{- end }}{{ end }}
{{- end }}

{{/* Sources of the router's volume of secrets; empty: it needs none. Files are named as the configuration has them. */}}
{{- define "prefix-router.routerSecrets" -}}
{{- include "prefix-router.sharedSecrets" . }}
{{- with .Values.router.keys }}{{ if .secretName }}
- secret: {name: {{ .secretName | quote }}, items: [{key: {{ .key | quote }}, path: keys.yaml}]}
{{- end }}{{ end }}
{{- with .Values.router.adminToken }}{{ if .secretName }}
- secret: {name: {{ .secretName | quote }}, items: [{key: {{ .key | quote }}, path: admin-token}]}
{{- end }}{{ end }}
{{- range $folder, $tls := dict "listen" .Values.router.tls "admin" .Values.router.adminTls }}{{ if $tls.secretName }}
- secret:
    name: {{ $tls.secretName | quote }}
    items:
      - {key: tls.crt, path: {{ $folder }}/tls.crt}
      - {key: tls.key, path: {{ $folder }}/tls.key}
      {{- with $tls.clientCaKey }}
      - {key: {{ . | quote }}, path: {{ $folder }}/clients.crt}
      {{- end }}
{{- end }}{{ end }}
{{- with .Values.engineTls }}
{{- if .caSecret.name }}
- secret: {name: {{ .caSecret.name | quote }}, items: [{key: {{ .caSecret.key | quote }}, path: engines/ca.crt}]}
{{- end }}
{{- if .clientSecretName }}
- secret:
    name: {{ .clientSecretName | quote }}
    items: [{key: tls.crt, path: engines/tls.crt}, {key: tls.key, path: engines/tls.key}]
{{- end }}
{{- end }}
{{- end }}

{{/* Where kubelet asks how the router is: the public port, or the admin port where that wants client certificates. */}}
{{- define "prefix-router.probePort" -}}
{{- $router := .Values.router -}}
{{- if $router.tls.clientCaKey -}}
port: admin, scheme: {{ ternary "HTTPS" "HTTP" (not (empty $router.adminTls.secretName)) }}
{{- else -}}
port: http, scheme: {{ ternary "HTTPS" "HTTP" (not (empty $router.tls.secretName)) }}
{{- end -}}
{{- end }}
