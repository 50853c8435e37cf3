"""Checkpoints: what the engine has learned and the place in the data, written while training goes on.

Saving has two halves. A copy of the state is taken at once, on every rank; it is written, and reported to Ray Train,
in a thread. Ray Train knows of a checkpoint when every rank has written its part, so the newest that it knows is whole.
At most one is being written: the next save waits for it.

Random state needs no saving: every step seeds its own generators from (seed, epoch, step, rank), so a
resumed run draws what it would have drawn.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
from ray.train import CheckpointUploadMode
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from torch import Tensor

from beeray.core.encoder import save_encoder
from beeray.core.gather import sum_over_ranks
from beeray.errors import DivergedError, RunError
from beeray.runtime.engine import full_state_dict, go_on_at
from beeray.runtime.engine_state import EngineState, read_state, take_state, write_state

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

MODEL_FOLDER = "model"


@dataclass(frozen=True)
class Position:
    """Where in the data a run is.

    Attributes:
        epoch: epoch that the next step belongs to, from 0.
        step_in_epoch: next step inside it.
        step: steps done in the whole run.
        unvalidated: the epoch that has just ended is still to be validated, as where there was no time for that.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    unvalidated: bool = False

    def after(self, steps_per_epoch: int) -> Position:
        """The position when one more step is done."""
        last = self.step_in_epoch + 1 == steps_per_epoch
        return Position(self.epoch + last, 0 if last else self.step_in_epoch + 1, self.step + 1)


class Checkpoints:
    """Saves and loads an engine's checkpoints. Every rank has one, and calls it as the others do.

    Args:
        folder: what Ray Train keeps this run's checkpoints in; every node can write to it.
    """

    def __init__(self, engine: DeepSpeedEngine, folder: Path) -> None:
        self.engine, self.folder = engine, folder
        self._written = threading.Event()
        self._written.set()
        self._failed: RunError | None = None

    def load(self) -> Position:
        """Restore the newest whole checkpoint of this run, if there is one; errors as `read_state`."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return Position()
        with checkpoint.as_directory() as folder:
            record = read_state(self.engine, Path(folder))
        unvalidated = bool(record.pop("unvalidated", 0))
        position = Position(**record, unvalidated=unvalidated)
        go_on_at(self.engine, position.step)
        return position

    def save(self, position: Position, metrics: Mapping[str, Any], *, wait: bool = False) -> None:
        """Take the state and write it while training goes on.

        Args:
            position: where to go on from.
            metrics: what to report with it.
            wait: return when it is written, and Ray Train knows.

        Raises:
            DivergedError: there are weights that are no numbers; nothing is written, the one before is kept.
            RunError: the one before could not be written (or this one, with `wait`).
        """
        state = self._taken(position)
        self._report(state, position, metrics, CheckpointUploadMode.SYNC if wait else CheckpointUploadMode.ASYNC)

    def save_last(
        self,
        position: Position,
        metrics: Mapping[str, Any],
        export: Callable[[dict[str, Tensor]], SentenceTransformer],
    ) -> None:
        """Save, and write the trained weights as a SentenceTransformer folder beside; waits for both. Errors as `save`.

        Args:
            export: makes a model of the trained weights, named as in the model that was trained.
        """
        state, weights = self._taken(position), full_state_dict(self.engine)
        model = None
        if self.engine.global_rank == 0:
            model = export({name.removeprefix("model."): value for name, value in weights.items()})
        self._report(state, position, metrics, CheckpointUploadMode.SYNC, model)

    def wait(self) -> None:
        """Wait until what is being written is written; errors as `save`."""
        self._written.wait()
        if self._failed is not None:
            raise self._failed

    def _taken(self, position: Position) -> EngineState:
        self.wait()
        state = take_state(self.engine)
        bad = 0.0 if state.is_finite() else 1.0
        if sum_over_ranks([bad], self.engine.device)[0]:
            raise DivergedError(
                f"weights are no longer numbers after step {position.step:,}, so training stopped; the checkpoint "
                "before is kept: start over with --fresh and a lower train.lr, or train.gradient_clipping"
            )
        return state

    def _report(
        self,
        state: EngineState,
        position: Position,
        metrics: Mapping[str, Any],
        mode: CheckpointUploadMode,
        model: SentenceTransformer | None = None,
    ) -> None:
        rank, num_ranks = self.engine.global_rank, self.engine.dp_world_size
        self._written.clear()

        def write(_: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
            folder = self.folder / name
            try:
                if model is not None:
                    save_encoder(model, folder / MODEL_FOLDER)
                write_state(state, folder, rank, num_ranks, asdict(position))
            except (OSError, SafetensorError) as error:
                self._failed = _not_written(folder, position, error)
                raise self._failed from error
            finally:
                self._written.set()
            return ray.train.Checkpoint.from_directory(str(folder))

        ray.train.report(
            dict(metrics),
            checkpoint=ray.train.Checkpoint.from_directory(str(self.folder)),  # a name only: `write` has the state
            checkpoint_upload_mode=mode,
            checkpoint_upload_fn=write,
            delete_local_checkpoint_after_upload=False,
        )


def _not_written(folder: Path, position: Position, error: Exception) -> RunError:
    reason = getattr(error, "strerror", None) or error
    return RunError(
        f"runs_dir: the checkpoint after step {position.step:,} could not be written to {folder} ({reason}); "
        "the one before it is kept: make room, or see that the nodes reach the folder, and run the same command again"
    )
