"""Program of one rank: looks for the driver's marker in a run folder of its own; writes what it found and said.

Started by `test_run_folder_ranks.py` as `look_for_marker.py <folder> <marker>`; rank 0 looks in `<folder>/0` and so on.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from beeray.config import validate_config
from beeray.runtime.task import WorkerTask
from beeray.runtime.worker import folder_is_shared


class Task(WorkerTask):
    """Keeps what it would send."""

    def send(self, kind: str, **event: object) -> None:
        SENT.append({"kind": kind, **event})


SENT: list[dict[str, object]] = []


def main(folder: str, marker: str) -> None:
    rank = os.environ["RANK"]
    dist.init_process_group("gloo", rank=int(rank), world_size=int(os.environ["WORLD_SIZE"]))
    config = validate_config({"name": "run", "data": {"source": "shop"}})
    task = Task(config, "", "", None, "", run_dir=str(Path(folder) / rank), marker=marker)
    shared = folder_is_shared(task, torch.device("cpu"), patience_s=0.0)
    Path(folder, f"{rank}.json").write_text(json.dumps({"shared": shared, "sent": SENT}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
