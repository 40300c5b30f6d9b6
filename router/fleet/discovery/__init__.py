"""Which replicas exist, learned from outside: a file, DNS, or Kubernetes."""

from router.fleet.discovery.dns import DnsSource
from router.fleet.discovery.endpoint import Endpoint, EventPorts, Source, Update
from router.fleet.discovery.file import FileSource
from router.fleet.discovery.kubernetes import KubernetesSource
from router.fleet.discovery.roster import Changes, Roster

__all__ = [
    "Changes",
    "DnsSource",
    "Endpoint",
    "EventPorts",
    "FileSource",
    "KubernetesSource",
    "Roster",
    "Source",
    "Update",
]
