r"""Embed a catalog and publish it, every night, on the cluster that runs this job.

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml --entrypoint-num-cpus 1 \
        -- python jobs/reembed_catalog.py --config goodlens.yaml \
        runs_dir=/shared/runs embed.path=/shared/embeddings/goodlens [key=value …]

The same as `python -m beeray.embed`; a scheduler that must name a file names this one. The job's exit code is
the verb's: 0 when a publication made from today's catalog is there (also when nothing had changed), 2 when
nothing was published for a reason that its one line names (a mistake in the config, too many bad rows, half of
the catalog gone, lost workers), 1 for anything unforeseen. Stopped, killed or failed, submit it again: it goes on
from where it was.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from beeray.embed import main

if __name__ == "__main__":
    sys.exit(main())
