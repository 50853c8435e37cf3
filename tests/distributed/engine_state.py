"""Run by every rank: train some steps under a ZeRO stage, keep the state, or go on with what another run kept.

engine_state.py STAGE OPTIMIZER FOLDER:FIRST:LAST …, one after the other
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import torch
import torch.distributed as dist
from torch import nn

from beeray.config import TrainConfig
from beeray.core.encoder import Encoder
from beeray.runtime.cores import keep_deepspeed_on_cpu
from beeray.runtime.engine import build_engine, full_state_dict, go_on_at
from beeray.runtime.engine_state import read_state, take_state, write_state

NUM_STEPS, NUM_ROWS = 12, 12


class Net(nn.Module):
    """Weights of several shapes, one of them frozen, one without a gradient, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(7, 5), nn.LayerNorm(5), nn.Linear(5, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.register_buffer("scale", torch.full((3,), 2.0))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.frozen(self.last(self.norm(torch.tanh(self.first(rows))))) * self.scale
        return output


def main() -> None:
    keep_deepspeed_on_cpu()
    dist.init_process_group("gloo")
    stage, optimizer, *parts = sys.argv[1:]
    for part in parts:
        folder, first, last = part.split(":")
        train(int(stage), optimizer, Path(folder), int(first), int(last))
    dist.destroy_process_group()


def train(stage: int, optimizer: str, folder: Path, first: int, last: int) -> None:
    """Steps `first` to `last` of the same run, which go on from the state in `folder` unless they are its first."""
    torch.manual_seed(first)  # a run that goes on must not begin with the right weights
    options = TrainConfig(lr=1e-2, optimizer=optimizer, scheduler="cosine", weight_decay=0.1, gradient_clipping=0.5)  # type: ignore[arg-type]
    engine = build_engine(cast(Encoder, Net()), options, stage, NUM_STEPS)
    if first:
        position = read_state(engine, folder / f"step-{first}")
        assert position == {"epoch": 0, "step_in_epoch": first, "step": first}
        go_on_at(engine, first)
    for step in range(first, last):
        torch.manual_seed(1000 + step)
        rows = torch.randn(NUM_ROWS, 7)[engine.global_rank :: engine.dp_world_size]
        loss = (engine(rows) - 1).square().mean()
        engine.backward(loss)
        engine.step()
    place = {"epoch": 0, "step_in_epoch": last, "step": last}
    write_state(take_state(engine), folder / f"step-{last}", engine.global_rank, engine.dp_world_size, place)
    state = full_state_dict(engine)
    if engine.global_rank == 0:
        torch.save(SimpleNamespace(state=state, lr=engine.get_lr()[0]).__dict__, folder / f"end-{last}.pt")
    dist.barrier()


if __name__ == "__main__":
    main()
