r"""Continue from the model that serves, evaluate both, and publish the new one if it is not worse: every night.

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml --entrypoint-num-cpus 1 \
        -- python jobs/continue_nightly.py --config goodlens.yaml \
        runs_dir=/shared/runs data.store=/shared/stores/goodlens \
        embed.path=/shared/embeddings/goodlens [key=value …]

The same as `python -m beeray.nightly`. The job's exit code is the verb's: 0 when the catalog is published with the new
model, 3 when the gate refused it and the catalog is published with the one that serves, 2 where one line says what is
wrong (a mistake in config or data, lost workers), 1 for anything unforeseen. Stopped, killed or failed, submit it
again: it goes on with the night that it was at.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from beeray.nightly import main

if __name__ == "__main__":
    sys.exit(main())
