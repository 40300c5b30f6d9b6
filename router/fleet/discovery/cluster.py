"""Where the Kubernetes API is and how to be let in: what every pod finds in its own file system."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(slots=True, frozen=True)
class Cluster:
    """An API server. `token_file`: read before every request, since the kubelet replaces it (tokens live an hour).

    `ca_file`: the only authority the server's certificate is checked against; None: the system's.
    """

    url: str
    namespace: str = "default"
    token_file: Path | None = None
    ca_file: Path | None = None

    @classmethod
    def from_pod(cls, env: Mapping[str, str] | None = None, mount: Path = MOUNT) -> Cluster:
        """The cluster this process runs in. Raises ValueError outside a pod, or when it has no ServiceAccount token."""
        env = os.environ if env is None else env
        host, port = env.get("KUBERNETES_SERVICE_HOST"), env.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            raise ValueError("not in a Kubernetes pod (KUBERNETES_SERVICE_HOST is not set); give `api_url`")
        token, namespace = mount / "token", mount / "namespace"
        if not token.exists():
            raise ValueError(f"{token} is missing; set automountServiceAccountToken: true on the pod")
        return cls(
            url=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
            namespace=namespace.read_text(encoding="utf-8").strip() if namespace.exists() else "default",
            token_file=token,
            ca_file=mount / "ca.crt",
        )

    def headers(self) -> dict[str, str]:
        """The headers of a request, with the token as it is now. Raises OSError."""
        headers = {"accept": "application/json"}
        if self.token_file is not None:
            headers["authorization"] = f"Bearer {self.token_file.read_text(encoding='utf-8').strip()}"
        return headers

    def tls(self) -> ssl.SSLContext | bool:
        """How the server's certificate is checked. Raises OSError when the CA file can't be read."""
        if not self.url.startswith("https://"):
            return True
        return ssl.create_default_context(cafile=str(self.ca_file) if self.ca_file else None)
