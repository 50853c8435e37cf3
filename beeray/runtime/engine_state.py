"""All that an engine has learned, as plain tensors by parameter: what any number of workers can go on with.

A checkpoint holds each parameter and its optimizer moments whole, under the parameter's name, and not as the ZeRO stage
happens to cut them. So a run may go on with other workers than it began with, and nothing of it is a pickle. Parameters
are dealt to ranks by size: a rank keeps and writes its own only.

    state.json                      where the run is, the optimizer's counters, how many files there are
    state-<rank>.safetensors        `weights/<name>`, `<moment>/<name>`

DeepSpeed's own accessors (`safe_get_full_optimizer_state` and its kin) do the gathering and the cutting.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from beeray.data.staging import staged_file
from beeray.errors import RunError
from beeray.runtime.checkpoint_names import STATE, part_name

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

FORMAT = 1
WEIGHTS = "weights"


@dataclass(frozen=True)
class EngineState:
    """A rank's part of it, on the CPU, detached from the engine.

    Attributes:
        tensors: by `weights/<name>` and `<moment>/<name>`.
        counters: the optimizer's numbers that are no tensors of a parameter, such as how many steps it did.
    """

    tensors: dict[str, Tensor]
    counters: dict[str, float]

    def is_finite(self) -> bool:
        """Whether all of it is numbers."""
        return all(bool(torch.isfinite(one).all()) for one in self.tensors.values() if one.is_floating_point())


def take_state(engine: DeepSpeedEngine) -> EngineState:
    """Copy this rank's part of what the engine has learned. Every rank must call."""
    _show_moments(engine)
    moments, counters = _moments(engine), _counters(engine)
    tensors: dict[str, Tensor] = {}
    for name, parameter, mine in _dealt(engine):
        with _whole(engine, parameter):
            if mine:
                tensors[f"{WEIGHTS}/{name}"] = _copied(parameter)
        if parameter.requires_grad:
            for moment, read in moments.items():
                value = read(parameter)
                if mine and value is not None:
                    tensors[f"{moment}/{name}"] = _copied(value)
    if engine.global_rank == 0:
        tensors |= {f"{WEIGHTS}/{name}": _copied(buffer) for name, buffer in _buffers(engine.module)}
    return EngineState(tensors, counters)


def write_state(state: EngineState, folder: Path, rank: int, num_ranks: int, position: Mapping[str, int]) -> None:
    """Write a rank's part into a checkpoint's folder; the file is whole or not there."""
    folder.mkdir(parents=True, exist_ok=True)
    with staged_file(folder / part_name(rank)) as partial:
        save_file(state.tensors, partial)
    if rank == 0:
        record = {"format": FORMAT, "position": dict(position), "counters": state.counters, "num_files": num_ranks}
        with staged_file(folder / STATE) as partial:
            partial.write_text(json.dumps(record, indent=2), encoding="utf-8")


def read_state(engine: DeepSpeedEngine, folder: Path) -> dict[str, int]:
    """Give the engine what a checkpoint holds, cut as its own ZeRO stage and workers want it; returns the position.

    Every rank must call, after the engine was built as it was for the run that wrote it.

    Raises:
        RunError: a file is missing or damaged, or the checkpoint is another model's.
    """
    try:
        record = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"format is {record['format']}, this beeray reads {FORMAT}")
        with ExitStack() as files:
            opened = [
                files.enter_context(safe_open(folder / part_name(rank), framework="pt"))
                for rank in range(record["num_files"])
            ]
            _give(engine, {key: file for file in opened for key in file.keys()})  # noqa: SIM118
        _set_counters(engine, record["counters"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise RunError(
            f"checkpoint {folder}: cannot be read ({error}); remove that folder to go on from the one before, or start "
            "over with --fresh"
        ) from error
    return dict(record["position"])


def _give(engine: DeepSpeedEngine, files: Mapping[str, Any]) -> None:
    _make_moments(engine)
    _show_moments(engine)
    moments, kept = _moments(engine), {key.partition("/")[0] for key in files} - {WEIGHTS}
    if kept != moments.keys():
        raise ValueError(f"its optimizer kept {sorted(kept)}, this run's keeps {sorted(moments)}")
    for name, parameter, _ in _dealt(engine):
        value = _read(files, f"{WEIGHTS}/{name}")
        with _whole(engine, parameter, changed=True):
            _fill(parameter, value, name)
        if parameter.requires_grad:
            _set_sharded(engine, parameter, value)
            for moment in moments:
                if f"{moment}/{name}" in files:
                    _set_sharded(engine, parameter, _read(files, f"{moment}/{name}"), moment)
    for name, buffer in _buffers(engine.module):
        _fill(buffer, _read(files, f"{WEIGHTS}/{name}"), name)


def _set_sharded(engine: DeepSpeedEngine, parameter: nn.Parameter, value: Tensor, moment: str | None = None) -> None:
    """Give this rank its piece of a moment, or of the weights that the optimizer moves."""
    from deepspeed import utils

    stage, value = engine.zero_optimization_stage(), value.to(engine.device)
    if stage == 0:
        if moment is not None:
            _optimizer(engine).state[parameter][moment].copy_(value)
    elif stage == 3:  # what sets a whole one there takes none whose size the ranks do not divide
        size: int = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = nn.functional.pad(value.flatten(), (0, size * engine.dp_world_size - value.numel()))
        piece = padded.narrow(0, size * engine.global_rank, size)
        if moment is None:
            utils.safe_set_local_fp32_param(parameter, piece)
        else:
            utils.safe_set_local_optimizer_state(parameter, piece, moment)
    elif moment is None:
        utils.safe_set_full_fp32_param(parameter, value)
    else:
        utils.safe_set_full_optimizer_state(parameter, value, moment)


def _read(files: Mapping[str, Any], key: str) -> Tensor:
    if key not in files:
        raise KeyError(f"it has no {key}")
    tensor: Tensor = files[key].get_tensor(key)
    return tensor


def _fill(held: Tensor, value: Tensor, name: str) -> None:
    if held.numel() and held.shape != value.shape:
        raise ValueError(f"{name} is {tuple(value.shape)} there and {tuple(held.shape)} in this run")
    if held.numel():  # ZeRO-3 shows whole parameters to all ranks, and nothing of those it has not gathered
        held.data.copy_(value)


def _dealt(engine: DeepSpeedEngine) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """Every parameter once, by name, with whether it is this rank's: the largest first, to who has least."""
    parameters = list(engine.module.named_parameters())
    sizes = np.array([getattr(parameter, "ds_numel", parameter.numel()) for _, parameter in parameters])
    load = np.zeros(engine.dp_world_size, dtype=np.int64)
    owners = np.zeros(len(parameters), dtype=np.int64)
    for place in np.argsort(-sizes, kind="stable"):
        owners[place] = load.argmin()
        load[owners[place]] += sizes[place]
    for (name, parameter), owner in zip(parameters, owners, strict=True):
        yield name, parameter, owner == engine.global_rank


def _whole(engine: DeepSpeedEngine, parameter: nn.Parameter, *, changed: bool = False) -> Any:
    """A context in which all ranks see a whole parameter, also where ZeRO-3 has cut it."""
    import deepspeed

    sharded = engine.zero_optimization_stage() == 3
    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if changed else None, enabled=sharded)


def _optimizer(engine: DeepSpeedEngine) -> torch.optim.Optimizer:
    """Torch's own, inside of DeepSpeed's."""
    inner: torch.optim.Optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return inner


def _moments(engine: DeepSpeedEngine) -> dict[str, Callable[[nn.Parameter], Tensor | None]]:
    """What the optimizer keeps of each element of a parameter, e.g. `exp_avg`, and how to see it whole."""
    from deepspeed.utils import safe_get_full_optimizer_state

    optimizer = _optimizer(engine)
    names = {
        name
        for held, state in optimizer.state.items()
        for name, value in state.items()
        if torch.is_tensor(value) and value.shape == held.shape
    }

    def reader(name: str) -> Callable[[nn.Parameter], Tensor | None]:
        if engine.zero_optimization_stage() == 0:
            return lambda parameter: optimizer.state.get(parameter, {}).get(name)
        return lambda parameter: safe_get_full_optimizer_state(parameter, name)

    return {name: reader(name) for name in sorted(names)}


def _counters(engine: DeepSpeedEngine) -> dict[str, float]:
    """What the optimizer counts; the same for all parameters, which all step at once."""
    counters: dict[str, float] = {}
    for held, state in _optimizer(engine).state.items():
        for name, value in state.items():
            if not (torch.is_tensor(value) and value.shape == held.shape):
                counters[name] = float(value)
    return counters


def _set_counters(engine: DeepSpeedEngine, counters: Mapping[str, float]) -> None:
    for state in _optimizer(engine).state.values():
        for name, value in counters.items():
            if torch.is_tensor(state[name]):
                state[name].fill_(value)
            else:
                state[name] = type(state[name])(value)


def _make_moments(engine: DeepSpeedEngine) -> None:
    """Have the optimizer make its state, by a step that changes nothing: lr 0, gradients 0."""
    optimizer = _optimizer(engine)
    groups = [(group, group["params"], group["lr"]) for group in optimizer.param_groups]
    held = [one for _, parameters, _ in groups for one in parameters]
    if engine.zero_optimization_stage() == 3:  # which puts them there for a step only
        held = list(engine.optimizer.fp32_partitioned_groups_flat)
    for group, _, _ in groups:
        group["params"], group["lr"] = [], 0.0
    groups[0][0]["params"] = held
    for one in held:
        one.grad = torch.zeros_like(one)
    optimizer.step()
    for one in held:
        one.grad = None
    for group, parameters, rate in groups:
        group["params"], group["lr"] = parameters, rate


def _show_moments(engine: DeepSpeedEngine) -> None:
    """Have DeepSpeed's accessors see the optimizer's state; by itself it shows them that of the first group alone."""
    if engine.zero_optimization_stage() in (1, 2):
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        sharded = engine.optimizer
        for parameters, flat in zip(sharded.bit16_groups, sharded.single_partition_of_fp32_groups, strict=True):
            lazy_init_hp_params_optimizer_state(parameters, flat, sharded.optimizer.state)


def _buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Buffers that a module saves."""
    kept = module.state_dict().keys()
    return [(name, buffer) for name, buffer in module.named_buffers() if name in kept]


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
