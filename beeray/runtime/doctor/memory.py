"""Memory and disk against what a run of this encoder takes at least."""

from __future__ import annotations

import math
from collections.abc import Sequence

from beeray.config import Config
from beeray.runtime.doctor.facts import NodeFacts
from beeray.runtime.doctor.finding import FAILED, OK, WARNING, Finding

GIB = 2.0**30
PROCESS_BYTES = int(0.8 * GIB)
"""A worker with torch, DeepSpeed and transformers imported, before it holds any weight."""
ROOM = 1.25
"""Below so many times the need is a warning: texts, batches and the libraries' own buffers are not counted."""
CHECKPOINT_BYTES_PER_PARAMETER = 12  # weights and two moments, in fp32 (`runtime/engine_state.py`)
EXPORT_BYTES_PER_PARAMETER = 4
RAY_STOPS_AT = 0.95
"""Share of its disk from which on Ray refuses to create objects."""


def state_bytes(num_parameters: int, stage: int, num_workers: int) -> int:
    """Weights, gradients and an Adam optimizer's state of one worker (ZeRO, Rajbhandari et al. 2020), all in fp32.

    Args:
        num_parameters: of the encoder.
        stage: ZeRO stage; 1 shards the optimizer's state and its copy of the weights, 2 gradients, 3 weights.
        num_workers: they are sharded over.
    """
    whole = {0: 16, 1: 8, 2: 4, 3: 0}[stage]
    sharded = {0: 0, 1: 12, 2: 16, 3: 20}[stage]
    return int(num_parameters * (whole + sharded / num_workers))


def worker_bytes(config: Config, num_parameters: int) -> int:
    """Least memory of one training worker's device: its state and the activations that it may keep."""
    state = state_bytes(num_parameters, config.deepspeed.stage, config.cluster.num_workers)
    return state + int(config.train.activation_budget_gib * GIB)


def judge_memory(
    config: Config, num_parameters: int, nodes: Sequence[NodeFacts], gpu_free_bytes: Sequence[tuple[str, int]] = ()
) -> Finding:
    """Compare free memory with the need: of each node, and of the GPUs when they do the work.

    Args:
        num_parameters: of the encoder.
        nodes: all that workers may be placed on; workers are counted as spread evenly.
        gpu_free_bytes: name and free memory of the GPUs that were seen; empty on CPUs.
    """
    cluster = config.cluster
    of_device = worker_bytes(config, num_parameters)
    if gpu_free_bytes:
        each = PROCESS_BYTES + 4 * num_parameters  # the encoder is read through the machine's own memory
        places = [(f"GPU of {name}", free, of_device) for name, free in gpu_free_bytes]
    else:
        each, places = PROCESS_BYTES + of_device, []
    per_node = math.ceil(cluster.num_workers / len(nodes))
    places += [(f"node {node.name}", node.free_memory_bytes, per_node * each) for node in nodes]
    name, free, need = min(places, key=lambda place: place[1] / place[2])
    measured = {"need_bytes": need, "free_bytes": free, "parameters": num_parameters, "where": name}
    said = f"{name} has {free / GIB:.1f} GiB free, and training takes at least {need / GIB:.1f} GiB there"
    if free >= ROOM * need:
        return Finding(OK, said, measured)
    workers = f"{per_node} worker{'s' if per_node > 1 else ''} of {num_parameters / 1e6:.0f} M parameters"
    return Finding(
        FAILED if free < need else WARNING,
        f"{said} ({workers}, ZeRO-{config.deepspeed.stage}, train.activation_budget_gib "
        f"{config.train.activation_budget_gib:g}); lower train.activation_budget_gib, raise deepspeed.stage, lower "
        "cluster.num_workers or give larger machines",
        measured,
    )


def judge_disk(config: Config, num_parameters: int, nodes: Sequence[NodeFacts], runs_free_bytes: int) -> Finding:
    """Compare free disk with the need: checkpoints in `runs_dir`, into which workers write them.

    Args:
        num_parameters: of the encoder.
        nodes: all that workers may be placed on.
        runs_free_bytes: of the disk of `runs_dir`.
    """
    checkpoint = CHECKPOINT_BYTES_PER_PARAMETER * num_parameters
    export = EXPORT_BYTES_PER_PARAMETER * num_parameters
    in_runs = (config.train.keep_checkpoints + 1) * checkpoint + 2 * export
    full = [node for node in nodes if node.disk_used > RAY_STOPS_AT]
    name, free, need = f"runs_dir {config.runs_dir!r}", runs_free_bytes, in_runs
    measured = {"need_bytes": need, "free_bytes": free, "where": name}
    if full and free >= need:
        return Finding(
            FAILED,
            f"the disk of node {full[0].name}'s temporary folder is {full[0].disk_used:.0%} full: Ray creates no "
            f"objects from {RAY_STOPS_AT:.0%} on; free some of it, or give Ray another disk (ray start --temp-dir, "
            "RAY_TMPDIR)",
            measured,
        )
    said = f"{name} has {free / GIB:.1f} GiB free, and a run takes {need / GIB:.1f} GiB there"
    if free >= ROOM * need:
        return Finding(OK, said, measured)
    return Finding(
        FAILED if free < need else WARNING,
        f"{said} for checkpoints; free some of it, lower train.keep_checkpoints, or choose another disk (runs_dir)",
        measured,
    )
