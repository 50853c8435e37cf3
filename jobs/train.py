r"""Train on the cluster that runs this job.

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml --entrypoint-num-cpus 1 \
        -- python jobs/train.py --config goodlens.yaml \
        runs_dir=/shared/runs data.store=/shared/stores/goodlens [key=value …]

The same as `python -m beeray.train`; a scheduler that must name a file names this one. The entrypoint's CPU is the
driver's; workers ask for theirs themselves. The job's exit code is the verb's: 0 when the model is there, 2 where
one line says what is wrong (a mistake in config or data, lost workers), 1 for anything unforeseen. `ray job stop ID`
has it end its step and save a checkpoint (143); submitted again under the same name it goes on from there.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from beeray.train import main

if __name__ == "__main__":
    sys.exit(main())
