"""Why no Ray was joined or started, in one line with a remedy: Ray's own errors of connecting are of many types."""

from __future__ import annotations

import re

from beeray.errors import ClusterError

STARTS, TOO_SLOW = 3, "timed out during startup"
"""How often a Ray is started here, and what Ray says when that takes it too long."""


def no_cluster(named: str) -> ClusterError:
    """Nobody listens at an address.

    Args:
        named: the setting that names the cluster, and its value.
    """
    return ClusterError(f"{named}: no Ray cluster answers there; start one (ray start --head) or leave it unset")


def connection_error(error: Exception, address: str | None, setting: str) -> ClusterError | None:
    """What `ray.init` raised as an error for the user; None where it is none of theirs.

    Args:
        address: of the cluster that was to be joined; None or empty where a Ray was started here.
        setting: what the address is from, `cluster.address` or `RAY_ADDRESS`.
    """
    said = f"{error}\n{error.__cause__ or ''}"
    if TOO_SLOW in said:
        return ClusterError(
            f"cluster.address is unset, so a Ray was started here, {STARTS} times, but it did not come up in time: "
            "the machine is overloaded; run the same command again, or name a cluster"
        )
    if not address:
        return None
    named = f"{setting} {address!r}"
    if address.startswith(("http://", "https://")):
        return ClusterError(
            f"{named}: that is a dashboard, which ray job submits to, and no cluster to join; give the cluster's own "
            "address (HOST:6379) or leave it unset, and tell ray job the other in RAY_API_SERVER_ADDRESS"
        )
    if "no authentication token was found" in said:
        return ClusterError(
            f"{named}: RAY_AUTH_MODE is token and this command has none; set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to "
            "the cluster's, or put it into ~/.ray/auth_token"
        )
    if "AuthenticationError" in f"{type(error).__name__} {said}":
        return ClusterError(
            f"{named}: the cluster refuses this command's token; set RAY_AUTH_MODE and the token alike on both sides"
        )
    versions = re.findall(r"^\s*(?:Ray|Python): (\S+)", said, re.MULTILINE)
    if "Version mismatch" in said and len(versions) >= 4:
        return ClusterError(
            f"{named}: the cluster has Ray {versions[0]} on Python {versions[1]}, this command Ray {versions[2]} on "
            f"Python {versions[3]}; install the versions of constraints.txt on both (or use one image), or submit the "
            "command to the cluster with ray job"
        )
    if isinstance(error, ConnectionError):
        return no_cluster(named)
    if isinstance(error, ValueError | RuntimeError | OSError) or type(error).__module__ == "ray.exceptions":
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return ClusterError(
            f"{named}: cannot be joined ({first[:200]}); give HOST:6379 of a cluster, ray://HOST:10001, or leave it "
            "unset"
        )
    return None
