"""Checkpoints: DeepSpeed's own state and the place in the data, saved and reported by every rank.

Random state needs no saving: every step seeds its own generators from (seed, epoch, step, rank), so a
resumed run draws what it would have drawn.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
from sentence_transformers import SentenceTransformer
from torch import Tensor

from beeray.core.encoder import save_encoder
from beeray.runtime.engine import full_state_dict

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

TAG = "state"
MODEL_FOLDER = "model"


@dataclass(frozen=True)
class Position:
    """Where in the data a run is.

    Attributes:
        epoch: epoch that the next step belongs to, from 0.
        step_in_epoch: next step inside it.
        step: steps done in the whole run.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0

    def after(self, steps_per_epoch: int) -> Position:
        """The position when one more step is done."""
        last = self.step_in_epoch + 1 == steps_per_epoch
        return Position(self.epoch + last, 0 if last else self.step_in_epoch + 1, self.step + 1)


def save_checkpoint(
    engine: DeepSpeedEngine,
    position: Position,
    metrics: Mapping[str, Any],
    *,
    export: Callable[[dict[str, Tensor]], SentenceTransformer] | None = None,
) -> None:
    """Save every rank's state and report it to Ray Train. Every rank must call.

    Args:
        position: where to go on from.
        metrics: what to report with it.
        export: makes a model of the trained weights, named as in the model that was trained; given, it is also written
            as a SentenceTransformer folder.
    """
    with tempfile.TemporaryDirectory(prefix="beeray-checkpoint-") as folder:
        engine.save_checkpoint(folder, tag=TAG, client_state={"position": asdict(position)})
        if export is not None:
            _export(engine, export, Path(folder) / MODEL_FOLDER)
        ray.train.report(dict(metrics), checkpoint=ray.train.Checkpoint.from_directory(folder))


def load_checkpoint(engine: DeepSpeedEngine) -> Position:
    """Restore the newest whole checkpoint of this run, if there is one. Every rank must call."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return Position()
    with checkpoint.as_directory() as folder:
        path, client_state = engine.load_checkpoint(folder, tag=TAG)
    assert path is not None, f"no DeepSpeed state in {folder}"
    return Position(**client_state["position"])


def _export(engine: DeepSpeedEngine, export: Callable[[dict[str, Tensor]], SentenceTransformer], folder: Path) -> None:
    state = full_state_dict(engine)
    if engine.global_rank == 0:
        save_encoder(export({name.removeprefix("model."): value for name, value in state.items()}), folder)
