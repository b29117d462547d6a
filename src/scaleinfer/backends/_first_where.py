"""Where FIRST is, and which of its clusters a user means."""

from __future__ import annotations

import os

from scaleinfer.backends._first_listing import KNOWN
from scaleinfer.errors import ConfigError

__all__ = ["cluster_and_framework", "gateway_url"]

_GATEWAY = "https://inference-api.alcf.anl.gov/resource_server"


def gateway_url(base_url: str | None) -> str:
    """Return the gateway's URL: the one given, else `FIRST_BASE_URL`, else ALCF's."""
    return (base_url or os.environ.get("FIRST_BASE_URL") or _GATEWAY).rstrip("/")


def cluster_and_framework(where: str) -> tuple[str, str]:
    """Return what `sophia/vllm` names; the framework of a documented cluster may be left out.

    Raises:
        ConfigError: It names none.
    """
    cluster, _, framework = where.strip("/").partition("/")
    framework = framework or KNOWN.get(cluster, "")
    plain = all(part.replace("-", "").replace("_", "").isalnum() for part in (cluster, framework))
    if not cluster or not framework or not plain:
        raise ConfigError(
            f"{where!r} names no cluster and framework of FIRST.",
            hint="For example 'sophia/vllm'; `scaleinfer endpoints --backend first:` lists them.",
        )
    return cluster, framework
