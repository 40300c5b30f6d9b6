{{- define "prefix-router.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "prefix-router.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "prefix-router.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "prefix-router.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Selector labels. Call with (list root component) */}}
{{- define "prefix-router.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "prefix-router.name" $root | quote }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* All labels. Call with (list root component) */}}
{{- define "prefix-router.labels" -}}
{{- $root := index . 0 -}}
{{ include "prefix-router.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels of Deployments' pods: without versions, which would replace the pods at each upgrade of the chart. Call with
(list root component) */}}
{{- define "prefix-router.podLabels" -}}
{{ include "prefix-router.selector" . }}
{{- with (index . 0).Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Image reference. Call with (dict "image" image "tag" default tag) */}}
{{- define "prefix-router.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .tag }}
{{- end }}
{{- end }}

{{- define "prefix-router.ownImage" -}}
{{ include "prefix-router.image" (dict "image" .Values.image "tag" .Chart.AppVersion) }}
{{- end }}

{{- define "prefix-router.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "prefix-router.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* "true" when there is a shared index. */}}
{{- define "prefix-router.shared" -}}
{{- $external := .Values.redis.external -}}
{{- if or .Values.redis.bundled.enabled $external.url $external.urlSecret.name }}true{{ end }}
{{- end }}

{{/* "true" when the router watches EndpointSlices. */}}
{{- define "prefix-router.watches" -}}
{{- if or .Values.existing .Values.engines }}true{{ end }}
{{- end }}

{{/* "true" on OpenShift: it gives each namespace users and groups of its own, and refuses pods that ask for others. */}}
{{- define "prefix-router.openshift" -}}
{{- if .Capabilities.APIVersions.Has "security.openshift.io/v1" }}true{{ end }}
{{- end }}

{{/* The security context of the project's own containers. */}}
{{- define "prefix-router.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
{{- if not (include "prefix-router.openshift" .) }}
runAsUser: 10001
runAsGroup: 10001
{{- end }}
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* One engine with its defaults. Call with (list root entry); gives YAML. */}}
{{- define "prefix-router.engine" -}}
{{- $root := index . 0 -}}
{{- $engine := mergeOverwrite (deepCopy $root.Values.engineDefaults) (deepCopy (index . 1)) -}}
{{- /* 57: Kubernetes cuts `NAME-HASH-` to 58 characters for the names of pods. */ -}}
{{- $_ := set $engine "fullname" (printf "%s-%s" (include "prefix-router.fullname" $root) $engine.name | trunc 57 | trimSuffix "-") -}}
{{- $_ := set $engine "component" (printf "engine-%s" $engine.name) -}}
{{- $_ := set $engine "servedName" ($engine.model.servedName | default $engine.model.id) -}}
{{- if not $engine.image.repository -}}
{{- $_ := set $engine.image "repository" (ternary "vllm/vllm-openai" "lmsysorg/sglang" (eq $engine.kind "vllm")) -}}
{{- $_ := set $engine.image "tag" ($engine.image.tag | default (ternary "v0.33.0" "v0.5.23" (eq $engine.kind "vllm"))) -}}
{{- end -}}
{{- $_ := set $engine "apiKeySecret" $root.Values.engineApiKey.secretName -}}
{{- $gpus := int $engine.gpus -}}
{{- $ranks := int $engine.dataParallel -}}
{{- $tensor := int $engine.tensorParallel -}}
{{- if not $tensor -}}{{- $tensor = max 1 (div $gpus $ranks) -}}{{- end -}}
{{- $_ := set $engine "tensor" $tensor -}}
{{- $blockSize := int $engine.blockSize -}}
{{- if and (eq $engine.kind "sglang") (not $blockSize) -}}{{- $blockSize = 16 -}}{{- end -}}
{{- $_ := set $engine "blockSize" $blockSize -}}
{{- toYaml $engine -}}
{{- end }}

{{/* Refuses values that would make a broken installation. */}}
{{- define "prefix-router.check" -}}
{{- $shared := include "prefix-router.shared" . -}}
{{- $external := .Values.redis.external -}}
{{- if not (or .Values.engines .Values.existing .Values.replicas $shared) -}}
{{- fail "no engines: give engines (the chart runs them), existing (Services that are there), replicas (URLs), or redis with agents that publish there; see examples/" -}}
{{- end -}}
{{- if and .Values.redis.bundled.enabled (or $external.url $external.urlSecret.name) -}}
{{- fail "redis.bundled.enabled and redis.external are both set: choose one" -}}
{{- end -}}
{{- if and $external.url $external.urlSecret.name -}}
{{- fail "redis.external.url and redis.external.urlSecret.name are both set: choose one" -}}
{{- end -}}
{{- if and (not $shared) (gt (int .Values.router.replicaCount) 1) -}}
{{- fail (printf "router.replicaCount is %d, but there is no shared index: routers without one each know only a part of the caches. Set redis.bundled.enabled=true, or redis.external.url, or router.replicaCount=1" (int .Values.router.replicaCount)) -}}
{{- end -}}
{{- if and (not $shared) (ne .Values.router.autoscaling.kind "none") -}}
{{- fail "router.autoscaling needs a shared index: set redis.bundled.enabled=true or redis.external.url, or router.autoscaling.kind=none" -}}
{{- end -}}
{{- if and (eq .Values.router.autoscaling.kind "keda") (not .Values.router.autoscaling.prometheusAddress) -}}
{{- fail "router.autoscaling.kind=keda needs router.autoscaling.prometheusAddress" -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- fail "httpRoute.enabled needs httpRoute.parentRefs: the Gateway to attach to" -}}
{{- end -}}
{{- if and .Values.router.tls.clientCaKey .Values.router.adminTls.clientCaKey -}}
{{- fail "router.tls.clientCaKey and router.adminTls.clientCaKey: kubelet has no client certificate; one of the two ports must do without, for the probes" -}}
{{- end -}}
{{- range $name, $tls := dict "tls" .Values.router.tls "adminTls" .Values.router.adminTls -}}
{{- if and $tls.clientCaKey (not $tls.secretName) -}}
{{- fail (printf "router.%s.clientCaKey needs router.%s.secretName" $name $name) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.monitoring.serviceMonitor.enabled .Values.router.adminTls.secretName (not .Values.monitoring.serviceMonitor.tlsConfig) -}}
{{- fail "monitoring.serviceMonitor with router.adminTls needs monitoring.serviceMonitor.tlsConfig: how Prometheus checks the certificate" -}}
{{- end -}}
{{- $config := .Values.router.config | default dict -}}
{{- range list
  (list "listen.port" "router.port") (list "admin.port" "router.adminPort")
  (list "shutdown.delay_s" "router.unreadySeconds") (list "shutdown.grace_s" "router.drainSeconds")
  (list "index.backend" "redis") (list "redis.url" "redis.external")
  (list "models" "router.models") (list "replicas" "replicas")
-}}
{{- $at := splitList "." (first .) -}}
{{- $section := ternary $config (get $config (first $at) | default dict) (eq (len $at) 1) -}}
{{- if hasKey $section (last $at) -}}
{{- fail (printf "router.config.%s: use %s, from which the chart makes the rest of the installation too" (first .) (last .)) -}}
{{- end -}}
{{- end -}}
{{- $scaling := .Values.router.autoscaling -}}
{{- if and (ne $scaling.kind "none") (gt (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
{{- fail (printf "router.autoscaling: minReplicas (%d) is above maxReplicas (%d)" (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
{{- end -}}
{{- $described := list -}}
{{- range .Values.router.models }}{{- $described = append $described .name -}}{{- end -}}
{{- $fullname := include "prefix-router.fullname" . -}}
{{- $taken := list (printf "%s-admin" $fullname) (printf "%s-valkey" $fullname) -}}
{{- $names := list -}}
{{- range .Values.engines -}}
{{- $engine := include "prefix-router.engine" (list $ .) | fromYaml -}}
{{- if has $engine.name $names -}}{{- fail (printf "engines: %s is given twice" $engine.name) -}}{{- end -}}
{{- $names = append $names $engine.name -}}
{{- if has $engine.fullname $taken -}}{{- fail (printf "engines: %s: %s is the name of something else in this release (names are cut to 57 characters): choose another name, or a shorter fullnameOverride" $engine.name $engine.fullname) -}}{{- end -}}
{{- $taken = append $taken $engine.fullname -}}
{{- if not $engine.model.id -}}{{- fail (printf "engines: %s: model.id is required" $engine.name) -}}{{- end -}}
{{- if and (hasPrefix "/" $engine.model.id) (not $engine.model.routerFiles) (not (has $engine.servedName $described)) -}}
{{- fail (printf "engines: %s: model.id is a path, but the router does not have the engine's volume: set model.routerFiles to a hub id, to a path that router.extraVolumes mounts, or to none" $engine.name) -}}
{{- end -}}
{{- if and $engine.events.enabled (lt (sub (int $engine.events.replayPort) (int $engine.events.port) | int) (int $engine.dataParallel)) -}}
{{- fail (printf "engines: %s: events.replayPort must be at least dataParallel (%d) above events.port: rank r uses port + r of both" $engine.name (int $engine.dataParallel)) -}}
{{- end -}}
{{- if and (gt (int $engine.gpus) 0) (ne (mul (int $engine.tensor) (int $engine.dataParallel) | int) (int $engine.gpus)) -}}
{{- fail (printf "engines: %s: tensorParallel x dataParallel (%d x %d) must be the pod's gpus (%d)" $engine.name (int $engine.tensor) (int $engine.dataParallel) (int $engine.gpus)) -}}
{{- end -}}
{{- if and (eq $engine.cache.kind "pvc") (ne $engine.cache.accessMode "ReadWriteMany") (or (gt (int $engine.replicaCount) 1) $engine.autoscaling.enabled) -}}
{{- fail (printf "engines: %s: more than one pod on one claim needs cache.accessMode=ReadWriteMany" $engine.name) -}}
{{- end -}}
{{- if and (eq $engine.cache.kind "existingClaim") (not $engine.cache.claimName) -}}
{{- fail (printf "engines: %s: cache.kind=existingClaim needs cache.claimName" $engine.name) -}}
{{- end -}}
{{- if and $engine.autoscaling.enabled (gt (int $engine.autoscaling.minReplicas) (int $engine.autoscaling.maxReplicas)) -}}
{{- fail (printf "engines: %s: autoscaling: minReplicas (%d) is above maxReplicas (%d)" $engine.name (int $engine.autoscaling.minReplicas) (int $engine.autoscaling.maxReplicas)) -}}
{{- end -}}
{{- if and $engine.autoscaling.enabled (not $engine.autoscaling.prometheusAddress) -}}
{{- fail (printf "engines: %s: autoscaling needs autoscaling.prometheusAddress" $engine.name) -}}
{{- end -}}
{{- end -}}
{{- end }}
