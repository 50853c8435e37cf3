r"""Score an encoder on the cluster that runs this job.

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml --entrypoint-num-cpus 1 \
        -- python jobs/evaluate.py --config goodlens.yaml [--model PATH] \
        runs_dir=/shared/runs data.store=/shared/stores/goodlens [key=value …]

The same as `python -m beeray.evaluate`. The job's exit code is the verb's: 0 when metrics and scores are there, 2 where
one line says what is wrong (a mistake in config or data, a run that is not finished, lost workers), 1 for anything
unforeseen. Stopped, it leaves nothing; submit it again.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from beeray.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
