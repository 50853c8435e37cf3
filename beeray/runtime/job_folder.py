"""What a submitted job may not leave in the folder that it works in.

Ray unpacks the job's copy of the checkout into a folder named after its contents, on each node: a changed checkout has
another one, and Ray may delete it when the job is over. A model, a store or embeddings would go with it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from beeray.config import Config
from beeray.config.paths import ROOT, placed
from beeray.data.file_tags import UNPACKED
from beeray.data.storage import is_local, local_path
from beeray.errors import ConfigError

JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Where Ray tells a submitted job's driver what it was submitted with; no other command has it."""


def check_outlives_job(config: Config, *keys: str) -> None:
    """Refuse paths that go with the job, if this command is one.

    Args:
        keys: those of `runs_dir`, `data.store`, `embed.path` and (where it is set) `index.path` that the command writes
            to.

    Raises:
        ConfigError: one lies in the job's own folder.
    """
    trouble = what_goes_with_the_job(config, *keys)
    if trouble:
        raise ConfigError(trouble)


def what_goes_with_the_job(config: Config, *keys: str, environment: Mapping[str, str] = os.environ) -> str:
    """What is wrong with the first of the keys whose path lies in the job's own folder; empty when none does."""
    if JOB_CONFIG not in environment:
        return ""
    given = {"runs_dir": config.runs_dir, "data.store": config.data.store, "embed.path": config.embed.path}
    written = {"runs_dir": str(config.run_dir), "data.store": config.store_path, "embed.path": config.embeddings_path}
    index = config.index.path
    if index is not None:
        given["index.path"], written["index.path"] = index, placed(index)
    for key in keys:
        if is_local(written[key]) and UNPACKED in Path(local_path(written[key])).resolve().parts:
            said = f"is {given[key]!r}" if given[key] is not None else "is not set"
            other = "" if key == "runs_dir" else " or an s3:// path"
            return (
                f"{key} {said}: in a submitted job that is {written[key]}, in the job's own copy of the folder, which "
                f"another checkout does not find and Ray may delete; give {key} an absolute path on a disk that all "
                f"nodes mount{other}, or have the cluster's nodes name that disk in {ROOT}"
            )
    return ""
