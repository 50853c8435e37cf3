"""What a submitted job's own command holds of the cluster, where it is, and what that leaves to the job's work."""

from __future__ import annotations

import functools
import json
import os

from beeray.runtime.job_folder import JOB_CONFIG

ACTOR_NAME = "_ray_internal_job_actor_"
"""Of the actor that runs a submitted job's command, before its id: what `--entrypoint-num-cpus` asks for is its."""
ASSUMED = {"CPU": 1.0}
"""What a job's command is taken to hold where the cluster does not tell; as docs and scripts ask for."""
ANSWER_S = 10


def held_by_this_job() -> tuple[str, dict[str, float]]:
    """The node that this job's command runs on, and what it holds there; an empty name where it is not known.

    Returns:
        ("", {}) for a command that is no submitted job.
    """
    submitted = os.environ.get(JOB_CONFIG)
    return _held(submitted) if submitted else ("", {})


@functools.lru_cache(maxsize=1)
def _held(submitted: str) -> tuple[str, dict[str, float]]:
    from ray.util.state import list_actors

    try:
        job = json.loads(submitted)["metadata"]["job_submission_id"]
        found = list_actors(filters=[("name", "=", f"{ACTOR_NAME}{job}")], detail=True, timeout=ANSWER_S)
        return str(found[0].node_id), {name: float(number) for name, number in found[0].required_resources.items()}
    except Exception:  # another version's, or a dashboard that does not answer: a CPU too few is used at most
        return "", dict(ASSUMED)
