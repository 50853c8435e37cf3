"""The nightly job's Ray Data pipeline: plan → join and tokenise → encoder actors → files → reports.

Every row is one unit of work (`data/embedding_units.py`). Tokenising, encoding and writing overlap, since
Ray Data streams; what is in memory at a time is a few units. Ray Data's own checkpoint remembers finished
units: its folder belongs to one job, which is identified by model, encoding, catalog and previous publication.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data.checkpoint import CheckpointConfig

from beeray.config import Config
from beeray.data.embedding_units import RANGE, ROWS, UnitTask, prepare_unit, write_and_tell
from beeray.data.parts import write_part
from beeray.data.publishing import CHECKPOINT, PLAN, REPORTS
from beeray.data.storage import join, make_dir, remove_tree, resolve
from beeray.data.streaming import error_kind, find_cause, set_up_ray_data, what_it_says
from beeray.runtime.embedder import Embedder, EmbedderTask
from beeray.runtime.session import live_nodes

TASK_CPUS = 0.25
"""CPUs reserved by a task that reads, tokenises or writes."""
FILTER_CPUS = 1.0
"""CPUs of the actor with which Ray Data passes over what its checkpoint names."""
UNITS_PER_ACTOR = 2
"""Units handed to an actor at a time, so that the next one is there when one is done."""


@dataclass(frozen=True)
class Pipeline:
    """One job's pipeline.

    Attributes:
        units: what a unit is made from.
        embedder: what the actors load.
        plan: numbers of the units to do, and the rows that were dealt to each.
        monitor: actor that takes an event for every finished unit.
    """

    units: UnitTask
    embedder: EmbedderTask
    plan: list[tuple[int, int]]
    monitor: Any

    @property
    def work(self) -> str:
        """Folder of the job's own files."""
        return self.units.dealing.folder

    def run(self, config: Config) -> None:
        """Do all units that are not done yet, and wait for them. Ray must be running.

        Raises:
            BeerayError: what a task raised for the user.
            LostWorkersError: Ray gave up on a unit, since nodes or processes are gone.
            RunError: Ray gave up on a unit for another reason.
        """
        set_up_ray_data()
        context = ray.data.DataContext.get_current()
        before = context.checkpoint_config
        try:
            context.checkpoint_config = self._checkpoint(config)
            self._dataset(config).write_parquet(
                self._inside(REPORTS), filesystem=self._filesystem(), ray_remote_args={"num_cpus": TASK_CPUS}
            )
        except Exception as error:
            ours = find_cause(error)
            if ours is not None:
                ours.args = (str(ours).partition("\n")[0],)
                raise ours from None
            if not isinstance(error, ray.exceptions.RayError):
                raise
            raise error_kind(error)(
                f"embed: a unit of work failed ({what_it_says(error)}); run the same command again to go on from here"
            ) from error
        finally:
            context.checkpoint_config = before

    def _dataset(self, config: Config) -> ray.data.Dataset:
        embed = config.embed
        plan = join(self.work, PLAN)
        remove_tree(plan)
        make_dir(plan)
        numbers, rows = zip(*self.plan, strict=True)
        planned = pa.table({RANGE: pa.array(numbers, pa.int32()), ROWS: pa.array(rows, pa.int64())})
        write_part(planned, join(plan, "plan.parquet"))
        make_dir(join(self.work, REPORTS))
        listed = ray.data.read_parquet(self._inside(PLAN), filesystem=self._filesystem(), num_cpus=TASK_CPUS)
        units = listed.repartition(target_num_rows_per_block=1).map_batches(
            prepare_unit,
            batch_size=1,
            batch_format="pyarrow",
            fn_kwargs={"task": self.units},
            num_cpus=TASK_CPUS,
        )
        actors = self.embedder.num_actors
        pool = ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=UNITS_PER_ACTOR)
        encoded = units.map_batches(
            Embedder,
            fn_constructor_args=(self.embedder,),
            batch_size=1,
            batch_format="pyarrow",
            compute=pool,
            num_cpus=embed.cpus_per_actor,
            num_gpus=embed.gpus_per_actor if config.cluster.use_gpu else None,
        )
        return encoded.map_batches(
            write_and_tell,
            batch_size=1,
            batch_format="pyarrow",
            fn_kwargs={"task": self.units, "monitor": self.monitor},
            num_cpus=TASK_CPUS,
        )

    def _checkpoint(self, config: Config) -> CheckpointConfig:
        path = join(self.work, CHECKPOINT)
        reserved = self.embedder.num_actors * config.embed.cpus_per_actor + FILTER_CPUS + 2 * TASK_CPUS
        if reserved > sum(node.get("CPU", 0.0) for node in live_nodes()):
            remove_tree(path)  # its filter would wait for a CPU for ever; finished units are not in the plan anyway
        make_dir(path)
        filesystem, inside = resolve(path)
        return CheckpointConfig(
            RANGE, inside, delete_checkpoint_on_success=False, override_filesystem=filesystem, write_num_threads=1
        )

    def _filesystem(self) -> Any:
        return resolve(self.work)[0]

    def _inside(self, name: str) -> str:
        return resolve(join(self.work, name))[1]
