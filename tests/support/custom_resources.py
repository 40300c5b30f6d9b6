"""JSON schemas of the parts of other projects' resources that the chart uses, written from their API references.

Kubernetes has no schema of them. Strict: what isn't listed here the chart may not render.
prometheus-operator v1 (https://prometheus-operator.dev/docs/api-reference/api/), Gateway API v1
(https://gateway-api.sigs.k8s.io/reference/spec/), KEDA v1alpha1 (https://keda.sh/docs/latest/reference/scaledobject-spec/).
"""

from __future__ import annotations

from typing import Any

TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
# Gateway API's Duration (GEP-2257), and Prometheus'.
DURATION = {"type": "string", "pattern": r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"}
SPAN = {"type": "string", "pattern": r"^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$", "minLength": 2}
LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
SELECTOR = {"type": "object"}


def fields(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": list(required)}


def some(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


SECRET_KEY = fields("name", "key", name=TEXT, key=TEXT, optional={"type": "boolean"})
TLS = fields(
    ca=fields(secret=SECRET_KEY, configMap=SECRET_KEY), cert=fields(secret=SECRET_KEY, configMap=SECRET_KEY),
    keySecret=SECRET_KEY, serverName=TEXT, insecureSkipVerify={"type": "boolean"},
)  # fmt: skip
ENDPOINT = fields("port", port=TEXT, path=TEXT, interval=SPAN, scheme={"enum": ["http", "https"]}, tlsConfig=TLS)
RULE = fields("expr", alert=TEXT, record=TEXT, expr=TEXT, keep_firing_for=SPAN, labels=LABELS, annotations=LABELS)
RULE["properties"]["for"] = SPAN
RULE["oneOf"] = [{"required": ["alert"]}, {"required": ["record"]}]
PATH = fields("type", "value", type={"enum": ["Exact", "PathPrefix"]}, value={"type": "string", "pattern": "^/"})
TRIGGER = fields(
    "type", "metadata", type={"enum": ["cpu", "prometheus"]}, metadata=LABELS,
    metricType={"enum": ["AverageValue", "Value", "Utilization"]},
)  # fmt: skip

SPECS: dict[str, dict[str, Any]] = {
    "monitoring.coreos.com/v1 ServiceMonitor": fields(
        "selector", "endpoints", selector=SELECTOR, endpoints=some(ENDPOINT)
    ),
    "monitoring.coreos.com/v1 PodMonitor": fields(
        "selector", "podMetricsEndpoints", selector=SELECTOR, podMetricsEndpoints=some(ENDPOINT)
    ),
    "monitoring.coreos.com/v1 PrometheusRule": fields(
        "groups", groups=some(fields("name", "rules", name=TEXT, interval=SPAN, rules=some(RULE)))
    ),
    "gateway.networking.k8s.io/v1 HTTPRoute": fields(
        "parentRefs", "rules",
        parentRefs=some(fields("name", name=TEXT, namespace=TEXT, sectionName=TEXT, port=COUNT, group=TEXT, kind=TEXT)),
        hostnames=some({"type": "string", "pattern": r"^(\*\.)?[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"}),
        rules=some(
            fields(
                matches=some(fields(path=PATH)),
                backendRefs=some(fields("name", "port", name=TEXT, port=COUNT, weight=COUNT)),
                timeouts=fields(request=DURATION, backendRequest=DURATION),
            )
        ),
    ),
    "keda.sh/v1alpha1 ScaledObject": fields(
        "scaleTargetRef", "triggers",
        scaleTargetRef=fields("name", name=TEXT, apiVersion=TEXT, kind=TEXT),
        minReplicaCount=COUNT, maxReplicaCount=COUNT, cooldownPeriod=COUNT, pollingInterval=COUNT,
        advanced=fields(horizontalPodAutoscalerConfig=fields(behavior={"type": "object"})),
        triggers=some(TRIGGER),
    ),
}  # fmt: skip


def schema_of(found: dict[str, Any]) -> dict[str, Any]:
    """The schema of a rendered resource's `spec`. KeyError for a kind or version that isn't here."""
    return SPECS[f"{found['apiVersion']} {found['kind']}"]
