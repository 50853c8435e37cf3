r"""Search hyper-parameters on the cluster that runs this job.

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml --entrypoint-num-cpus 1 \
        -- python jobs/tune.py --config goodlens.yaml \
        runs_dir=/shared/runs data.store=/shared/stores/goodlens [key=value …]

The same as `python -m beeray.tune`. The job's exit code is the verb's: 0 when the search is over, 2 where one line
says what is wrong (a mistake in config or data, lost workers), 1 for anything unforeseen. `ray job stop ID`
has trials that run save a checkpoint first, within RAY_JOB_STOP_WAIT_TIME_S. Stopped or killed, submit it again:
finished trials are kept, others go on.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from beeray.tune import main

if __name__ == "__main__":
    sys.exit(main())
