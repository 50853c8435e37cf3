"""Checkpoints are read as tensors and numbers: what DeepSpeed writes comes back, what would run does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from beeray.errors import RunError
from beeray.runtime.plain_checkpoints import PlainCheckpointEngine


class Runs:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_what_deepspeed_keeps_comes_back(tmp_path: Path) -> None:
    """The kinds of values in the files of ZeRO stages 0 to 3."""
    state = {
        "single_partition_of_fp32_groups": [torch.arange(4.0)],
        "loss_scaler": LossScaler(scale=2.0),
        "zero_stage": ZeroStageEnum.optimizer_states,
        "param_slice_mappings": [{"weight": fragment_address(numel=3, start=1)}],
        "position": {"epoch": 1, "step": 2},
    }
    engine = PlainCheckpointEngine()
    engine.save(state, str(tmp_path / "state.pt"))
    found = engine.load(str(tmp_path / "state.pt"), map_location="cpu")
    assert torch.equal(found["single_partition_of_fp32_groups"][0], torch.arange(4.0))
    assert (found["loss_scaler"].cur_scale, found["zero_stage"]) == (2.0, ZeroStageEnum.optimizer_states)
    assert found["param_slice_mappings"] == state["param_slice_mappings"]
    assert found["position"] == {"epoch": 1, "step": 2}


def test_what_would_run_is_refused_and_does_not(tmp_path: Path) -> None:
    ran, path = tmp_path / "ran", tmp_path / "state.pt"
    torch.save({"position": Runs(ran)}, path)
    with pytest.raises(RunError, match=r"state\.pt is damaged or holds more than tensors and numbers \(.*remove that"):
        PlainCheckpointEngine().load(str(path))
    assert not ran.exists()
    torch.load(path, weights_only=False)  # so would DeepSpeed's own
    assert ran.exists()


@pytest.mark.parametrize("left", [0, 1, 100, -1, -100])
def test_a_file_that_is_cut_off_is_one_line(tmp_path: Path, left: int) -> None:
    path = tmp_path / "state.pt"
    PlainCheckpointEngine().save({"weight": torch.zeros(100)}, str(path))
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(RunError) as caught:
        PlainCheckpointEngine().load(str(path))
    assert str(caught.value).startswith(f"checkpoint {path}: ") and str(caught.value).isprintable()
