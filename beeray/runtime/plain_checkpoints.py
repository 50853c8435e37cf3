"""DeepSpeed's checkpoints read as tensors and numbers alone.

They are pickles, and DeepSpeed's own engine runs whatever they name. What it writes needs three classes of its own;
with these allowed, torch's reader of weights does, and nothing else in a file can be called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from beeray.errors import RunError

ALLOWED = [LossScaler, ZeroStageEnum, fragment_address]


class PlainCheckpointEngine(TorchCheckpointEngine):
    """Writes as DeepSpeed does, and reads without running anything."""

    def load(self, path: str, map_location: Any = None) -> Any:
        """The state in a file.

        Raises:
            RunError: the file is damaged, or names something to be called.
        """
        try:
            with torch.serialization.safe_globals(ALLOWED):
                return torch.load(path, map_location=map_location, weights_only=True)
        except Exception as error:  # what a damaged pickle raises is anything
            said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise RunError(
                f"checkpoint {path}: {Path(path).name} is damaged or holds more than tensors and numbers ({said[:200]}"
                "); remove that checkpoint, and run the same command again"
            ) from error
