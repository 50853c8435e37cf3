"""What every training worker runs: the loop around `core.step`, under DeepSpeed, inside Ray Train."""

from __future__ import annotations

import gc
import math
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import get_device
from sentence_transformers import SentenceTransformer
from torch import nn

from beeray.config import Config
from beeray.core.encoder import Encoder, load_encoder
from beeray.core.gather import sum_over_ranks
from beeray.core.head import append_head
from beeray.core.step import StepLoss, StepSettings, TrainingStep, UserItems
from beeray.data.store import Store
from beeray.data.tokens import TokenStore
from beeray.errors import DivergedError
from beeray.runtime.checkpoints import Position, load_checkpoint, save_checkpoint
from beeray.runtime.engine import build_engine
from beeray.runtime.feed import UserFeed, steps_per_epoch
from beeray.runtime.head_start import start_with_head
from beeray.runtime.scoring import embed_catalog, mean_over_ranks, score_split, score_splits

MUST_ARRIVE = ("scores", "failed", "worker", "head_done")


@dataclass(frozen=True)
class WorkerTask:
    """What the driver hands every worker.

    Attributes:
        config: the resolved config.
        store_path: the prepared store.
        tokens_path: the token store of this encoder.
        num_users: training users of one rank in an epoch.
        monitor: actor that takes progress events.
        model: the encoder to open: a hub name, `package:…`, or a folder as an absolute path.
    """

    config: Config
    store_path: str
    tokens_path: str
    monitor: Any
    model: str
    num_users: int = 0

    def send(self, kind: str, **event: Any) -> None:
        """Tell the driver something; waits only for what must not be lost."""
        sent = self.monitor.send.remote({"kind": kind, **event})
        if kind in MUST_ARRIVE:
            ray.get(sent)

    def open_model(self, device: torch.device | str = "cpu") -> SentenceTransformer:
        """A model of the shape that training exports: the encoder, with a head that changes nothing if there is one."""
        model = self.open_encoder(device)
        if self.config.train.head is not None:
            append_head(model, self.config.train.head.units)
        return model

    def open_encoder(self, device: torch.device | str = "cpu") -> SentenceTransformer:
        """The encoder before training."""
        encoder = self.config.encoder
        return load_encoder(
            self.model,
            max_seq_length=self.config.served_seq_length,
            prefix=encoder.prefix,
            dropout=encoder.dropout,
            attention=encoder.attention,
            device=device,
        )


def plan_steps(config: Config, num_users: int) -> tuple[int, int]:
    """Steps of an epoch and of the whole run, for `num_users` training users a rank."""
    per_epoch = steps_per_epoch(num_users, config.train.batch_size // config.cluster.num_workers)
    total = per_epoch * config.train.epochs
    return per_epoch, min(total, config.train.max_steps or total)


def train_worker(task: WorkerTask) -> None:
    """Train, checkpoint, export and score. Every rank runs this."""
    with worker_ready(task) as device:
        training = _Training(task, device)
        try:
            training.run()
        except DivergedError as error:  # on every rank at once, and again on every retry: so this is the end
            if training.rank == 0:
                task.send("failed", message=str(error))


def evaluate_worker(task: WorkerTask) -> None:
    """Score one encoder on every split asked for. Every rank runs this."""
    with worker_ready(task) as device:
        encoder = Encoder(task.open_encoder(device), task.config.train.precision)
        store, tokens = Store.open(task.store_path), TokenStore.open(task.tokens_path)
        _score(task, encoder, store, tokens, device, "model")
        ray.train.report({})


@contextmanager
def worker_ready(task: WorkerTask) -> Iterator[torch.device]:
    """Threads and device of this worker; tells the driver at the end what the worker used."""
    context = ray.train.get_context()
    cluster = task.config.cluster
    if cluster.use_gpu:
        device = get_device()
        torch.cuda.set_device(device)
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"  # before DeepSpeed is imported: it looks for CUDA's compiler otherwise
        device = torch.device("cpu")
        cores = os.cpu_count() or 1
        torch.set_num_threads(cluster.threads_per_worker or max(1, cores // context.get_local_world_size()))
    yield device
    usage = resource.getrusage(resource.RUSAGE_SELF)
    task.send(
        "worker",
        rank=context.get_world_rank(),
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_memory_bytes=usage.ru_maxrss * 1024,
        peak_gpu_memory_bytes=torch.cuda.max_memory_allocated() if cluster.use_gpu else 0,
    )


class _Training:
    def __init__(self, task: WorkerTask, device: torch.device) -> None:
        self.task, self.device = task, device
        self.config = task.config
        self.rank = ray.train.get_context().get_world_rank()
        world_size = ray.train.get_context().get_world_size()
        self.store = Store.open(task.store_path)
        self.tokens = TokenStore.open(task.tokens_path)
        self.steps_per_epoch, self.num_steps = plan_steps(self.config, task.num_users)
        encoder = Encoder(self._open_model(), self.config.train.precision)
        self.engine = build_engine(encoder, self.config.train, self.config.deepspeed.stage, self.num_steps)
        self.step = TrainingStep(
            self.engine,
            self.tokens,
            self.store.trainable_items(self.config.trains_on_validation),
            step_settings(self.config),
            device,
        )
        self.step_ended = time.perf_counter()
        self.feed = UserFeed(
            ray.train.get_dataset_shard("users"),
            num_users=task.num_users,
            batch_size=self.config.train.batch_size // world_size,
            seed=self.config.seed,
            rank=self.rank,
        )

    def _open_model(self) -> SentenceTransformer:
        if self.config.train.head is None or ray.train.get_checkpoint() is not None:
            return self.task.open_model(self.device)
        model = self.task.open_encoder(self.device)
        start_with_head(model, self.config, self.store, self.tokens, self.task.send)
        return model

    def run(self) -> None:
        """From the last checkpoint, or the start, to the exported model."""
        position = load_checkpoint(self.engine)
        self.step_ended = time.perf_counter()
        if self.config.evaluate.before and position.step == 0:
            self._score("before")
        self.engine.train()
        if self.rank == 0:
            self.task.send("start", step=position.step, num_steps=self.num_steps, steps_per_epoch=self.steps_per_epoch)
        while position.step < self.num_steps:
            for users in self.feed.epoch(position.epoch, position.step_in_epoch):
                position = self._train_step(users, position)
                if position.step >= self.num_steps or position.step_in_epoch == 0:
                    break
                if position.step % (self.config.train.checkpoint_every_steps or self.num_steps + 1) == 0:
                    save_checkpoint(self.engine, position, {"step": position.step})
            if position.step_in_epoch == 0 and position.step < self.num_steps:
                self._end_epoch(position)
        self._finish(position)

    def _train_step(self, users: UserItems, position: Position) -> Position:
        started = time.perf_counter()
        wait_s, self.step_ended = started - self.step_ended, started
        step = self.step.loss(users, epoch=position.epoch, step=position.step, step_in_epoch=position.step_in_epoch)
        self.engine.backward(step.loss)
        lr = self.engine.get_lr()[0]
        self.engine.step()
        self._tell(step, position, lr, started, wait_s)
        self.step_ended = time.perf_counter()
        last = position.step_in_epoch + 1 == self.steps_per_epoch
        return Position(
            epoch=position.epoch + last,
            step_in_epoch=0 if last else position.step_in_epoch + 1,
            step=position.step + 1,
        )

    def _tell(self, step: StepLoss, position: Position, lr: float, started: float, wait_s: float) -> None:
        local = [step.loss.item(), step.num_tokens, step.num_padded_tokens, step.num_recomputed_tokens]
        loss, num_tokens, num_padded, num_recomputed = sum_over_ranks(local, self.device)
        loss /= ray.train.get_context().get_world_size()
        if self.rank == 0:
            self.task.send(
                "step",
                step=position.step,
                epoch=position.epoch,
                loss=loss,
                lr=lr,
                items=step.num_items,
                users=step.num_users,
                tokens=num_tokens,
                padded_tokens=num_padded,
                recomputed_tokens=num_recomputed,
                step_s=time.perf_counter() - started,
                wait_s=wait_s,
            )
        if not math.isfinite(loss):
            raise DivergedError(
                f"train.lr {self.config.train.lr:g}: the loss became {loss} at step {position.step}, so training "
                "stopped; start over with --fresh and a lower train.lr or a larger train.epsilon"
            )

    def _end_epoch(self, position: Position) -> None:
        metrics: dict[str, Any] = {"step": position.step, "epoch": position.epoch}
        every = self.config.train.evaluate_every_epochs
        if every and position.epoch % every == 0:
            metrics |= self._validate(position)
        every_steps = self.config.train.checkpoint_every_steps
        if every_steps is None or position.step % every_steps == 0:
            save_checkpoint(self.engine, position, metrics)

    def _validate(self, position: Position) -> dict[str, float]:
        embeddings = embed_catalog(self.engine, self.config, self.tokens, self.device)
        held_out = score_split(embeddings, self.config, self.store, "validation", full_catalog=False)[0]
        means = {f"validation/{name}": value for name, value in mean_over_ranks(held_out, self.device).items()}
        if self.rank == 0:
            self.task.send("epoch", epoch=position.epoch, step=position.step, metrics=means)
        return means

    def _finish(self, position: Position) -> None:
        if self.config.train.evaluate_every_epochs:
            self._validate(position)
        save_checkpoint(self.engine, position, {"step": position.step}, export=self.task.open_model)
        self._score("after")
        dist.barrier()
        gc.collect()

    def _score(self, when: str) -> None:
        _score(self.task, self.engine, self.store, self.tokens, self.device, when)


def step_settings(config: Config) -> StepSettings:
    """The part of a config that `core` needs for a step."""
    train = config.train
    return StepSettings(
        items=train.items,
        max_output=None if train.max_output == "all" else train.max_output,
        max_seq_length=config.encoder.max_seq_length,
        relu=train.relu,
        top_k=train.top_k,
        token_budget=train.token_budget,
        activation_budget_bytes=int(train.activation_budget_gib * 2**30),
        catalog_refresh=train.catalog_refresh,
        seed=config.seed,
    )


def _score(
    task: WorkerTask, encode: nn.Module, store: Store, tokens: TokenStore, device: torch.device, when: str
) -> None:
    """Score every split asked for and send the driver this rank's users."""
    if not task.config.evaluate.splits:
        return
    rank = ray.train.get_context().get_world_rank()
    told = {"items": 0}

    def progress(num_items: int) -> None:
        told["items"] += num_items
        if rank == 0:
            task.send("embed", when=when, items=told["items"] * ray.train.get_context().get_world_size())

    scores, timings = score_splits(encode, task.config, store, tokens, device, progress)
    task.send("scores", when=when, rank=rank, scores=scores, timings=timings)
