"""Memory and disk against what a run of this encoder takes at least."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from beeray.config import Config
from beeray.runtime.doctor.facts import NodeFacts
from beeray.runtime.doctor.finding import FAILED, OK, WARNING, Finding

GIB = 2.0**30
PROCESS_BYTES = int(0.8 * GIB)
"""A worker with torch, DeepSpeed and transformers imported, before it holds any weight."""
ROOM = 1.25
"""Below so many times the need is a warning: texts, batches and the libraries' own buffers are not counted."""
WEIGHT_BYTES = 4
"""Of a parameter in memory, in a checkpoint and in an export: fp32."""
MOMENTS_BYTES = 8
"""Of a trained parameter in a checkpoint beside its weight: two moments (`runtime/engine_state.py`)."""
RAY_STOPS_AT = 0.95
"""Share of its disk from which on Ray refuses to create objects."""


@dataclass(frozen=True)
class Parameters:
    """How many an encoder has as training sets it up: with its head and adapters.

    Attributes:
        held: all of them; each has a weight.
        trained: those that training moves; they alone have gradients and an optimizer's state.
    """

    held: int
    trained: int

    def __str__(self) -> str:
        """In millions; those that are trained where they are not all."""
        of_them = f", {self.trained / 1e6:.1f} M of them trained" if self.trained < self.held else ""
        return f"{self.held / 1e6:.0f} M parameters{of_them}"


def state_bytes(parameters: Parameters, stage: int, num_workers: int) -> int:
    """Weights, gradients and an Adam optimizer's state of one worker (ZeRO, Rajbhandari et al. 2020), all in fp32.

    Args:
        parameters: of the encoder.
        stage: ZeRO stage; 1 shards the optimizer's state and its copy of the weights, 2 gradients, 3 weights.
        num_workers: they are sharded over.
    """
    whole = {0: 16, 1: 8, 2: 4, 3: 0}[stage]
    sharded = {0: 0, 1: 12, 2: 16, 3: 20}[stage]
    frozen = WEIGHT_BYTES / (num_workers if stage == 3 else 1)
    return int(parameters.trained * (whole + sharded / num_workers) + (parameters.held - parameters.trained) * frozen)


def worker_bytes(config: Config, parameters: Parameters) -> int:
    """Least memory of one training worker's device: its state and the activations that it may keep."""
    state = state_bytes(parameters, config.deepspeed.stage, config.cluster.num_workers)
    return state + int(config.train.activation_budget_gib * GIB)


def judge_memory(
    config: Config, parameters: Parameters, nodes: Sequence[NodeFacts], gpu_free_bytes: Sequence[tuple[str, int]] = ()
) -> Finding:
    """Compare free memory with the need: of each node, and of the GPUs when they do the work.

    Args:
        parameters: of the encoder.
        nodes: all that workers may be placed on; workers are counted as spread evenly.
        gpu_free_bytes: name and free memory of the GPUs that were seen; empty on CPUs.
    """
    cluster = config.cluster
    of_device = worker_bytes(config, parameters)
    if gpu_free_bytes:
        each = PROCESS_BYTES + WEIGHT_BYTES * parameters.held  # the encoder is read through the machine's own memory
        places = [(f"GPU of {name}", free, of_device) for name, free in gpu_free_bytes]
    else:
        each, places = PROCESS_BYTES + of_device, []
    per_node = math.ceil(cluster.num_workers / len(nodes))
    places += [(f"node {node.name}", node.free_memory_bytes, per_node * each) for node in nodes]
    name, free, need = min(places, key=lambda place: place[1] / place[2])
    counts = {"parameters": parameters.held, "trained_parameters": parameters.trained}
    measured = {"need_bytes": need, "free_bytes": free, **counts, "where": name}
    said = f"{name} has {free / GIB:.1f} GiB free, and training takes at least {need / GIB:.1f} GiB there"
    if free >= ROOM * need:
        return Finding(OK, said, measured)
    workers = f"{per_node} worker{'s' if per_node > 1 else ''} of {parameters}"
    return Finding(
        FAILED if free < need else WARNING,
        f"{said} ({workers}, ZeRO-{config.deepspeed.stage}, train.activation_budget_gib "
        f"{config.train.activation_budget_gib:g}); lower train.activation_budget_gib, raise deepspeed.stage, lower "
        "cluster.num_workers or give larger machines",
        measured,
    )


def judge_disk(config: Config, parameters: Parameters, nodes: Sequence[NodeFacts], runs_free_bytes: int) -> Finding:
    """Compare free disk with the need: checkpoints in `runs_dir`, into which workers write them.

    Args:
        parameters: of the encoder.
        nodes: all that workers may be placed on.
        runs_free_bytes: of the disk of `runs_dir`.
    """
    checkpoint = WEIGHT_BYTES * parameters.held + MOMENTS_BYTES * parameters.trained
    export = WEIGHT_BYTES * parameters.held
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
