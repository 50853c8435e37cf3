"""What workers write is whole also where one that was thought gone writes it, too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from two_writers import second_writer

from beeray.data.parts import write_part
from beeray.runtime import engine_state
from beeray.runtime.engine_state import EngineState, write_state
from beeray.runtime.report_sample import ReportSample


def test_a_part_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = EngineState({"weights/a": torch.arange(1000.0)}, {"step": 3.0})
    position = {"epoch": 0, "step_in_epoch": 3, "step": 3}
    came = second_writer(monkeypatch, engine_state, "save_file", lambda: write_state(state, tmp_path, 0, 1, position))
    write_state(state, tmp_path, 0, 1, position)
    assert came and load_file(tmp_path / "state-00000.safetensors")["weights/a"].tolist() == list(range(1000))
    assert json.loads((tmp_path / "state.json").read_text())["position"] == position
    assert sorted(one.name for one in tmp_path.iterdir()) == ["state-00000.safetensors", "state.json"]


def test_embeddings_for_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "report"
    folder.mkdir()
    write_part(pa.table({"item_index": pa.array([0, 2], pa.int32())}), str(folder / "items.parquet"))
    sample, catalog = ReportSample(str(tmp_path)), torch.eye(3)
    came = second_writer(monkeypatch, np, "save", lambda: sample.keep("trained", catalog))
    sample.keep("trained", catalog)
    assert came and np.load(folder / "trained.npy").tolist() == [[1, 0, 0], [0, 0, 1]]
    assert sorted(one.name for one in folder.iterdir()) == ["items.parquet", "trained.npy"]
