"""The training loop of a worker: planned steps from a thread, one after the other through DeepSpeed.

The next step is planned (`core.plan`) in a thread while this one runs, across the ends of epochs too. A plan carries
its place in the data, and a checkpoint the place of the step that was *done*, so nothing that was only planned is lost.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from sentence_transformers import SentenceTransformer
from torch.profiler import record_function

from beeray.config import Config
from beeray.core.ahead import Ahead
from beeray.core.encoder import Encoder
from beeray.core.flops import count_flops, measure_peak_tflops
from beeray.core.gather import sum_over_ranks
from beeray.core.plan import StepPlan, StepPlanner
from beeray.core.step import SCOPE, TrainingStep
from beeray.data.tokens import TokenStore
from beeray.errors import DivergedError, RunError
from beeray.runtime.adaptation import adapt
from beeray.runtime.checkpoints import Checkpoints, Position
from beeray.runtime.engine import build_engine
from beeray.runtime.feed import UserFeed, UserStream
from beeray.runtime.head_start import start_with_head
from beeray.runtime.original import Original, keep_original
from beeray.runtime.profile import StepProfiler
from beeray.runtime.run_folder import CHECKPOINTS
from beeray.runtime.step_reports import StepReports
from beeray.runtime.step_settings import step_settings
from beeray.runtime.steps import parts_of_rank, plan_steps, scored_within
from beeray.runtime.task import WorkerTask
from beeray.runtime.training_scores import TrainingScores
from beeray.runtime.wishes import Wish, Wishes
from beeray.runtime.worker import embedding_progress, folder_is_shared, worker_ready

SETTLE_S = 10.0
"""How long a checkpoint waits for the driver, which may have been held up: `Ctrl-Z`, or a pipe that nobody reads."""


def train_worker(task: WorkerTask) -> None:
    """Train, checkpoint, export and score. Every rank runs this."""
    with worker_ready(task) as device:
        if not folder_is_shared(task, device):  # on every rank at once, so that no other worker is started for it
            return
        _Training(task, device).run()


class _Training:
    def __init__(self, task: WorkerTask, device: torch.device) -> None:
        self.task, self.device = task, device
        self.config = task.config
        self.rank = ray.train.get_context().get_world_rank()
        self.world_size = ray.train.get_context().get_world_size()
        self.store = task.open_store()
        self.tokens = TokenStore.open(task.tokens_path)
        self.steps_per_epoch, self.num_steps = plan_steps(self.config, task.shares, task.num_shards)
        trainable = self.store.trainable_items(self.config.trains_on_validation)
        settings = step_settings(self.config)
        group = dist.new_group(backend="gloo") if self.world_size > 1 else None  # the planning thread's own
        domains = scored_within(self.config, self.store)
        self.planner = StepPlanner(self.tokens, trainable, settings, device, group, domains)
        streams = _streams(task, self.rank, self.world_size)
        self.feed = UserFeed(streams, num_steps=self.steps_per_epoch, seed=self.config.seed)
        self.wishes = Wishes(task.monitor if self.rank == 0 else None, self.config.train.checkpoint_every_minutes)
        self.wish, self.nodes_going, self.save_is_due = Wish.NONE, set[str](), False
        self.start: Future[Position] = Future()
        if ray.train.get_checkpoint() is None:
            self.start.set_result(Position())
        self.plans = Ahead(self._plans())  # users stream and the first steps are planned while the encoder is opened
        self.original, self.starts_with_head = Original(), False
        model = self._open_model()
        adaptation = adapt(model, self.config.train, self.config.seed)
        encoder = Encoder(model, self.config.train.precision)
        flops = count_flops(encoder, device)
        self.peak_tflops = self.config.cluster.peak_tflops or measure_peak_tflops(device, _compute_type(self.config))
        self.reports = StepReports(task, flops, self.peak_tflops)
        self.engine = build_engine(encoder, self.config.train, self.config.deepspeed.stage, self.num_steps)
        frozen = None if self.config.deepspeed.stage == 3 else adaptation.frozen  # whose layers run collectives
        self.checkpoints = Checkpoints(self.engine, Path(task.run_dir) / CHECKPOINTS)
        self.step = TrainingStep(
            self.engine,
            self.tokens,
            trainable,
            settings,
            device,
            item_domains=domains,
            originals=self.original.embeddings,
            frozen=frozen,
        )
        self.scores = TrainingScores(
            task, self.engine, self.store, self.tokens, device, starts_with_head=self.starts_with_head
        )
        self.step_ended = time.perf_counter()

    def _open_model(self) -> SentenceTransformer:
        model = self.task.open_encoder(self.device)
        progress = embedding_progress(self.task, "original")
        run_dir = Path(self.task.run_dir)
        self.original = keep_original(self.config, run_dir, model, self.store, self.tokens, self.device, progress)
        if self.task.needs_head(model):
            self.starts_with_head = True
            if ray.train.get_checkpoint() is not None:
                return self.task.open_model(self.device)
            start_with_head(
                model, self.config, self.store, self.tokens, self.task.send, num_shards=self.task.num_shards
            )
            self.original = replace(self.original, table=None)  # that of what is scored before training is another
        return model

    def run(self) -> None:
        """From the last checkpoint, or the start, to the exported model."""
        position = self.checkpoints.load()
        if not self.start.done():
            self.start.set_result(position)
        if self.config.evaluate.before and position.step == 0:
            self.scores.before(self.original)
        self.original = replace(self.original, table=None)
        self.engine.train()
        if self.rank == 0:
            self.task.send(
                "start",
                step=position.step,
                num_steps=self.num_steps,
                steps_per_epoch=self.steps_per_epoch,
                peak_tflops=self.peak_tflops,
                at=time.time(),
            )
        if position.unvalidated:
            self.scores.validate(position)
        with self.plans as plans, self._profiler(self.num_steps - position.step) as profiler:
            self.step_ended = time.perf_counter()
            while position.step < self.num_steps:
                with record_function(f"{SCOPE}wait"):
                    plan, plan_s = next(plans)
                position = self._train_step(plan, position, plan_s)
                profiler.step_done()
                if position.step == self.num_steps:
                    break
                if position.step_in_epoch == 0:
                    self.reports.send()
                    self._end_epoch(position)
                elif self._must_save(position):
                    self._checkpoint(position, {"step": position.step})
                if Wish.STOP in self.wish:
                    return self._tell_stopped(position)
        self.reports.send()
        self._finish(position)

    def _plans(self) -> Iterator[tuple[StepPlan, float]]:
        """Plans of all steps that are to come, with the seconds that each took; runs in the planning thread."""
        position = self.start.result()
        if position.step_in_epoch >= self.steps_per_epoch:
            raise RunError(
                f"the checkpoint is of step {position.step_in_epoch:,} of an epoch, which has {self.steps_per_epoch:,} "
                "steps under this version of beeray; start over with --fresh"
            )
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # each thread has its own
        while position.step < self.num_steps:
            started = time.perf_counter()
            for users in self.feed.epoch(position.epoch, position.step_in_epoch):
                plan = self.planner.plan(
                    users, epoch=position.epoch, step=position.step, step_in_epoch=position.step_in_epoch
                )
                yield plan, time.perf_counter() - started
                position = position.after(self.steps_per_epoch)
                if position.step >= self.num_steps:
                    return
                started = time.perf_counter()

    def _profiler(self, num_steps: int) -> StepProfiler:
        wanted = self.config.train.profile and self.rank == 0
        return StepProfiler(
            Path(self.task.run_dir) / "profile" if wanted else None,
            num_steps,
            title=f"{self.config.name}: rank 0 of {self.world_size}, {self.config.encoder.name}",
            written=lambda path: self.task.send("profile", path=str(path)),
        )

    def _train_step(self, plan: StepPlan, position: Position, plan_s: float) -> Position:
        assert (plan.epoch, plan.step_in_epoch, plan.step) == (position.epoch, position.step_in_epoch, position.step)
        started = time.perf_counter()
        wait_s = started - self.step_ended
        step = self.step.run(plan)
        with record_function(f"{SCOPE}backward"):
            self.engine.backward(step.loss)
        lr = self.engine.get_lr()[0]
        with record_function(f"{SCOPE}optimizer"):
            self.engine.step()
        overflow = bool(getattr(self.engine.optimizer, "overflow", False))  # alike on all ranks: ZeRO left the step out
        with record_function(f"{SCOPE}report"):
            local = [step.loss.item(), step.num_padded_tokens, step.num_recomputed_tokens]
            local += [] if step.forgetting is None else [step.forgetting.item()]
            totals = self._sum(local)
        self.step_ended = time.perf_counter()
        seconds = {"step_s": self.step_ended - started, "wait_s": wait_s, "plan_s": plan_s}
        loss = self.reports.add(plan, step, totals, lr, seconds)
        if not math.isfinite(loss):
            self.reports.send()
            self._blame(plan)
            raise self._diverged(f"the loss became {loss} at step {plan.step}")
        if overflow:
            self.reports.send()
            raise self._diverged(f"the gradient was no longer a number at step {plan.step}")
        return position.after(self.steps_per_epoch)

    def _sum(self, local: list[float]) -> list[float]:
        """Sums over all ranks, which learn in the same call what rank 0 was asked. Every rank must call."""
        *totals, wish = sum_over_ranks([*local, float(self.wishes.now())], self.device)
        self.wish = Wish(int(wish))
        return totals

    def _must_save(self, position: Position) -> bool:
        """Whether a checkpoint is due beside those of epochs. Every rank must call.

        One by steps or by the clock waits until the catalog's table would be refreshed anyway, as it is when a run goes
        on; what cannot wait does not.
        """
        every = self.config.train.checkpoint_every_steps
        self.save_is_due |= Wish.SAVE in self.wish or (every is not None and position.step % every == 0)
        fresh = self.step.table is None or position.step_in_epoch % self.config.train.catalog_refresh == 0
        return self._cannot_wait(position) or (self.save_is_due and fresh)

    def _cannot_wait(self, position: Position) -> bool:
        return Wish.STOP in self.wish or self._loses_a_node(position)

    def _loses_a_node(self, position: Position) -> bool:
        """Whether a node of this run has been given notice since the last look: a preempted or drained one."""
        if Wish.LOOK not in self.wish:
            return False
        notice = ray.train.get_preemption_info()
        going = set() if notice is None else set(notice.preempted_node_ids)
        new, self.nodes_going = going - self.nodes_going, going
        if new and self.rank == 0:
            self.task.send("notice", step=position.step, nodes=len(new))
        return bool(new)

    def _tell_stopped(self, position: Position) -> None:
        self.checkpoints.wait()
        if self.rank == 0:
            self.task.send("stopped", step=position.step)

    def _diverged(self, what: str) -> DivergedError:
        return DivergedError(
            f"train.lr {self.config.train.lr:g}: {what}, so training stopped; start over with --fresh and a lower "
            "train.lr or a larger train.epsilon"
        )

    def _blame(self, plan: StepPlan) -> None:
        """Tell the driver which items and users made the loss no number. Every rank must call."""
        items, rows = self.step.not_finite()
        named = plan.users.user_index
        self.task.send(
            "not_finite",
            step=plan.step,
            items=items.tolist(),
            users=[] if named is None else named[rows].tolist(),
            num_items=len(plan.items),
            num_users=plan.num_users,
        )
        sum_over_ranks([], self.device)  # so that all have told before rank 0 ends the run

    def _end_epoch(self, position: Position) -> None:
        metrics: dict[str, Any] = {"step": position.step, "epoch": position.epoch}
        every = self.config.train.evaluate_every_epochs
        to_validate = every is not None and position.epoch % every == 0
        if to_validate and self._cannot_wait(position):  # nor for the whole catalog to be embedded
            self._checkpoint(replace(position, unvalidated=True), metrics)
            if Wish.STOP in self.wish:
                return
        if to_validate:
            metrics |= self.scores.validate(position)
        if self.config.train.checkpoint_every_steps is None or self._must_save(position):
            self._checkpoint(position, metrics)
        self.step_ended = time.perf_counter()

    def _checkpoint(self, position: Position, metrics: dict[str, Any]) -> None:
        self.reports.send()
        self.task.settle(SETTLE_S)  # who goes on from here tells nothing of these steps
        self.checkpoints.save(position, metrics, wait=Wish.STOP in self.wish)
        self.wishes.saved()
        self.save_is_due = False
        self.step_ended = time.perf_counter()  # a checkpoint is no waiting for data

    def _finish(self, position: Position) -> None:
        self.task.settle(SETTLE_S)
        self.checkpoints.save_last(position, {"step": position.step}, self._exported)
        self._sum([])
        if Wish.STOP in self.wish:
            return self._tell_stopped(position)
        self.scores.after(position, self.original)
        dist.barrier()
        gc.collect()

    def _exported(self, state: dict[str, torch.Tensor]) -> SentenceTransformer:
        model = self.task.open_model()  # the live module may hold ZeRO-3 shards, so the weights go into a fresh copy
        adaptation = adapt(model, self.config.train, self.config.seed)
        model.load_state_dict(state)
        adaptation.merge()
        return model


def _streams(task: WorkerTask, rank: int, world_size: int) -> list[UserStream]:
    several = len(task.shares) > 1
    return [
        UserStream(
            ray.train.get_dataset_shard(share.dataset_of(shard)),
            share.num_users,
            share.num_drawn,
            (share.domain,) if several or share.num_drawn != share.num_users else (),
            shard,
            part,
        )
        for shard, part in parts_of_rank(rank, world_size, task.num_shards).items()
        for share in task.shares
    ]


def _compute_type(config: Config) -> torch.dtype:
    return torch.bfloat16 if config.train.precision == "bf16" else torch.float32
