"""The contenders of `step_cpu.py`, each in a process of its own: an encoder, an optimizer, and one step when asked.

All train the same encoder by the same clipped, fused AdamW; a step is drawing its items, gathering and padding
tokens, the encoder's passes, the loss and the optimizer. Of the bare encoder the first two are done beforehand.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import torch

from baselines.bare_encoder import BareEncoder
from baselines.cached_loss import CachedLoss
from baselines.two_pass_padded import TwoPassPadded, pad_catalog
from baselines.workload import Workload, load_workload
from beeray.core.batching import deal_by_tokens, micro_batches
from beeray.core.encoder import Encoder, embedding_dim, load_encoder
from beeray.core.optimizers import build_optimizer
from beeray.core.step import StepSettings, TrainingStep

SEED = 42
CLIPPING = 1.0
EVERYTHING = 2**40


@dataclass(frozen=True)
class Contest:
    """What all contenders share."""

    data: Path
    model: str
    num_items: int
    num_users: int
    max_seq_length: int
    token_budget: int
    dropout: float
    precision: str
    threads: int
    mini_batch_size: int


Step = Callable[[int], dict[str, float]]
"""Does the gradient of a numbered step; tells its padded and recomputed tokens."""


class Contender:
    """Prepares what is not timed, then adds a step's gradient to the encoder."""

    def __init__(self, contest: Contest) -> None:
        self.contest = contest
        self.workload: Workload = load_workload(
            contest.data,
            contest.model,
            num_items=contest.num_items,
            num_users=contest.num_users,
            max_seq_length=contest.max_seq_length,
        )
        self.model = load_encoder(contest.model, max_seq_length=contest.max_seq_length, dropout=contest.dropout)
        self.encoder = Encoder(self.model, contest.precision).train()
        self.set_up()

    def set_up(self) -> None:
        """What is made once."""

    def prepare(self, step: int) -> None:
        """What is made before each step and not timed."""

    def backward(self, step: int) -> dict[str, float]:
        """The step's gradient; returns padded and recomputed tokens, and the loss where there is one."""
        raise NotImplementedError


class Published(Contender):
    """`two_pass_padded`."""

    def set_up(self) -> None:
        """As `Contender`."""
        self.catalog = pad_catalog(self.workload.texts, self.workload.tokens.pad_token_id)
        self.algorithm = TwoPassPadded(self.encoder, *self.catalog)

    def backward(self, step: int) -> dict[str, float]:
        """As `Contender`."""
        items = self.workload.items_of(step, SEED)
        loss = self.algorithm.backward(items, self.workload.matrix_of(step, items))
        padded = len(items) * self.catalog[0].shape[1]
        return {"loss": loss.item(), "padded_tokens": padded, "recomputed_tokens": padded}


class Cached(Contender):
    """`cached_loss`: another loss over as many texts."""

    def set_up(self) -> None:
        """As `Contender`."""
        self.algorithm = CachedLoss(self.model, self.contest.precision, self.contest.mini_batch_size)

    def backward(self, step: int) -> dict[str, float]:
        """As `Contender`."""
        texts = [self.workload.texts[item] for item in self.workload.items_of(step, SEED)]
        loss = self.algorithm.backward(texts, self.workload.tokens.pad_token_id)
        half = len(texts) // 2
        padded = sum(half * max(map(len, column)) for column in (texts[:half], texts[half : 2 * half]))
        return {"loss": loss.item(), "padded_tokens": padded, "recomputed_tokens": padded}


class Bare(Contender):
    """`bare_encoder`."""

    def set_up(self) -> None:
        """As `Contender`."""
        self.algorithm = BareEncoder(self.encoder)

    def prepare(self, step: int) -> None:
        """As `Contender`."""
        contest, tokens = self.contest, self.workload.tokens
        items = self.workload.items_of(step, SEED)
        shares = deal_by_tokens(tokens.lengths(contest.max_seq_length)[items], 1, contest.token_budget)
        self.batches = list(
            micro_batches(tokens, items[shares.order], shares.cuts, max_seq_length=contest.max_seq_length)
        )
        self.gradient = (
            torch.randn(len(items), embedding_dim(self.model), generator=torch.Generator().manual_seed(step)) * 1e-3
        )

    def backward(self, step: int) -> dict[str, float]:
        """As `Contender`."""
        self.algorithm.backward(self.batches, self.gradient)
        return {"padded_tokens": sum(batch.num_padded_tokens for batch in self.batches), "recomputed_tokens": 0}


class Beeray(Contender):
    """`beeray.core.step` with an activation budget."""

    budget_bytes = EVERYTHING

    def set_up(self) -> None:
        """As `Contender`."""
        contest = self.contest
        settings = StepSettings(
            max_output=contest.num_items,
            max_seq_length=contest.max_seq_length,
            token_budget=contest.token_budget,
            activation_budget_bytes=self.budget_bytes,
            seed=SEED,
        )
        self.step = TrainingStep(self.encoder, self.workload.tokens, self.workload.trainable, settings)

    def backward(self, step: int) -> dict[str, float]:
        """As `Contender`."""
        result = self.step.loss(self.workload.users_of(step), epoch=0, step=step)
        result.loss.backward()
        return {
            "loss": result.loss.item(),
            "padded_tokens": result.num_padded_tokens,
            "recomputed_tokens": result.num_recomputed_tokens,
        }


class BeerayRecomputed(Beeray):
    """The same with nothing kept."""

    budget_bytes = 0


CONTENDERS: dict[str, type[Contender]] = {
    "two_pass_padded": Published,
    "cached_loss": Cached,
    "bare_encoder": Bare,
    "beeray_recomputed": BeerayRecomputed,
    "beeray_kept": Beeray,
}


def serve(name: str, contest: Contest, connection: Connection) -> None:
    """A contender's process: a step for every number received, until None; sends what each took."""
    torch.set_num_threads(contest.threads)
    torch.manual_seed(0)
    contender = CONTENDERS[name](contest)
    trained = [p for p in contender.encoder.parameters() if p.requires_grad]
    optimizer = build_optimizer(
        contender.encoder, "adamw", lr=1e-5, betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.01
    )
    before = psutil.Process().memory_info().rss
    connection.send({"tokens_of_catalog": int(contender.workload.tokens.lengths(contest.max_seq_length).sum())})
    while (step := connection.recv()) is not None:
        contender.prepare(step)
        started, cpu = time.perf_counter(), time.process_time()
        work = contender.backward(step)
        torch.nn.utils.clip_grad_norm_(trained, CLIPPING)
        optimizer.step()
        optimizer.zero_grad()
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
        items = contender.workload.items_of(step, SEED)
        tokens = int(contender.workload.tokens.lengths(contest.max_seq_length)[items].sum())
        growth = (peak_resident_bytes() - before) / 2**20
        connection.send({"seconds": seconds, "cpu_s": cpu_s, "tokens": tokens, "growth_mib": growth, **work})


def peak_resident_bytes() -> int:
    """The most memory that this process ever held."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
