"""Program of one rank: three optimizer steps from the same start, job after job; rank 0 writes the weights.

Started by `test_world_sizes.py` as `three_steps.py <encoder folder> <output folder> <job> …`; a job is
`<case>:<variant>` and the process group is told by the usual environment. Variants: a ZeRO stage; `plain` (torch
alone, no DeepSpeed, nothing recomputed); `ahead` (ZeRO-1, plans made in a thread); and two faults that must be found
out, under ZeRO-1: `muted` (the loss of rank 1 counts nothing) and `detached` (the rows of rank 1 carry no gradient).
Importing DeepSpeed takes longer than all jobs together, so one process runs them all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor

from beeray.config import TrainConfig
from beeray.core import gather
from beeray.core import step as step_module
from beeray.core.ahead import Ahead
from beeray.core.encoder import Encoder
from beeray.core.gather import gather_rows
from beeray.core.optimizers import build_optimizer
from beeray.core.plan import StepPlan, StepPlanner
from beeray.core.step import StepLoss, StepSettings, TrainingStep
from beeray.core.traffic import Traffic, counted_collectives
from beeray.core.user_items import UserItems
from beeray.runtime.adaptation import adapt
from beeray.runtime.engine import build_engine, full_state_dict

NUM_ITEMS = 60
NUM_STEPS = 3
MAX_SEQ_LENGTH = 12
# Adam divides by the gradient's own size: with the usual 1e-8, rounding noise in gradients that are zero in exact
# arithmetic (the key biases of attention) would become whole steps of lr, other ones in every world
EPSILON = 1e-5


@dataclass(frozen=True)
class Case:
    """What is trained, and the users of each global batch; the budget is of all ranks together."""

    train: TrainConfig
    settings: StepSettings
    num_users: tuple[int, ...]
    activation_budget_bytes: int = 300_000  # about half of what all would take
    domains: bool = False
    """Two halves of the catalog that users keep to; on two ranks each has the users of one."""


def _train(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"optimizer": "adamw", "lr": 3e-3, "epsilon": EPSILON, "gradient_clipping": 0.0, **changes})


def _settings(**changes: Any) -> StepSettings:
    return StepSettings(
        **{"max_output": 24, "max_seq_length": MAX_SEQ_LENGTH, "token_budget": 24, "seed": 3, **changes}
    )


CASES = {
    # the last batch leaves the fourth of four ranks without a user
    "bounded": Case(_train(weight_decay=0.01), _settings(), (16, 13, 3)),
    "clipped": Case(_train(optimizer="nadam", gradient_clipping=0.02), _settings(), (16, 16, 16), 0),
    "unclipped": Case(_train(optimizer="nadam"), _settings(), (16, 16, 16), 0),
    "catalog": Case(_train(optimizer="nadam"), _settings(items="catalog", catalog_refresh=2), (12, 13, 12)),
    "softmax": Case(
        _train(),
        _settings(loss="sampled_softmax", temperature=0.3, matryoshka_dims=(8, 16), distill_weight=0.7),
        (16, 13, 3),
    ),
    "adapted": Case(_train(lora={"rank": 4}, freeze_layers=1), _settings(loss="multinomial"), (16, 13, 3)),
    "within": Case(_train(), _settings(), (16, 13, 3), domains=True),
}


class Texts:
    """A catalog of texts of 3 to 14 tokens in memory, some longer than the step takes."""

    pad_token_id = 0

    def __init__(self) -> None:
        generator = np.random.default_rng(5)
        self.texts = [generator.integers(5, 125, size=size) for size in generator.integers(3, 15, size=NUM_ITEMS)]

    def lengths(self, max_seq_length: int) -> NDArray[np.int32]:
        return np.array([min(len(text), max_seq_length) for text in self.texts], dtype=np.int32)

    def gather(
        self, item_indices: NDArray[np.int32], max_seq_length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        flat = [np.empty(0, np.int64), *(self.texts[item][:max_seq_length] for item in item_indices)]
        return np.concatenate(flat), self.lengths(max_seq_length)[item_indices]


def originals(case: Case) -> NDArray[np.float16] | None:
    """Embeddings of another encoder, which this one is held near to, if the case asks for it."""
    rows = np.random.default_rng(5).standard_normal((NUM_ITEMS, 16))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float16) if case.settings.distill_weight else None


def trainable_items() -> NDArray[np.int32]:
    """Three of four items; the others stand for held-out ones, so that indices are not positions."""
    return np.array([item for item in range(NUM_ITEMS) if item % 4], dtype=np.int32)


def item_domains() -> NDArray[np.int16]:
    """The domain of every item: the first third and the rest."""
    return (np.arange(NUM_ITEMS) >= NUM_ITEMS // 3).astype(np.int16)


def global_batch(num_users: int, step: int, *, domains: bool = False) -> list[NDArray[np.int32]]:
    """Users of one step over all ranks; every third has two items, and mostly drops out when items are thinned."""
    generator = np.random.default_rng([17, step])
    sizes = [2 if user % 3 == 0 else int(generator.integers(4, 10)) for user in range(num_users)]
    items = trainable_items()
    theirs = [items[item_domains()[items] == user % 2] if domains else items for user in range(num_users)]
    return [generator.choice(one, size=size, replace=False) for one, size in zip(theirs, sizes, strict=True)]


def users_of_rank(batch: list[NDArray[np.int32]], rank: int, world_size: int) -> UserItems:
    mine = batch[rank::world_size]
    indptr = np.cumsum([0] + [len(items) for items in mine], dtype=np.int64)
    return UserItems(indptr, np.concatenate([np.empty(0, np.int32), *mine]))


class PlainEngine(torch.nn.Module):
    """What a job uses of a DeepSpeed engine, in torch alone."""

    def __init__(self, encoder: Encoder, train: TrainConfig) -> None:
        super().__init__()
        self.module, self.clipping = encoder, train.gradient_clipping
        self.optimizer = build_optimizer(
            encoder,
            train.optimizer,
            lr=train.lr,
            betas=train.betas,
            epsilon=train.epsilon,
            weight_decay=train.weight_decay,
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.module(*inputs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        if self.clipping:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.clipping)
        self.optimizer.step()
        self.optimizer.zero_grad()


def _gather_detached(rows: Tensor, counts: Sequence[int]) -> Tensor:
    return gather_rows(rows.detach() + 0.0 * rows if dist.get_rank() == 1 else rows, counts)


def plans(case: Case, training: TrainingStep, variant: str) -> Iterator[StepPlan]:
    """Plans of all steps, made ahead in a thread with a group of its own if the variant says so."""
    rank, world_size = dist.get_rank(), dist.get_world_size()

    def of(planner: StepPlanner) -> Iterator[StepPlan]:
        for step, num_users in enumerate(case.num_users):
            users = users_of_rank(global_batch(num_users, step, domains=case.domains), rank, world_size)
            yield planner.plan(users, epoch=0, step=step)

    if variant != "ahead":
        yield from of(training.planner)
        return
    group = dist.new_group(backend="gloo")
    domains = training.planner.item_domains
    planner = StepPlanner(Texts(), trainable_items(), training.settings, group=group, item_domains=domains)
    with Ahead(of(planner), depth=2) as made:
        yield from made


def run(case: Case, variant: str, encoder_folder: str, everything: Traffic) -> dict[str, Any]:
    """Three steps: weights before and after (rank 0 only), and what each step took."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    model = SentenceTransformer(encoder_folder, device="cpu")
    adaptation = adapt(model, case.train, seed=3)
    frozen = None if variant == "3" else adaptation.frozen
    encoder = Encoder(model)
    start = {name: parameter.detach().clone() for name, parameter in encoder.named_parameters()}
    budget = 2**40 if variant == "plain" else case.activation_budget_bytes // world_size
    settings = replace(case.settings, activation_budget_bytes=budget)
    engine: Any
    if variant == "plain":
        engine = PlainEngine(encoder, case.train)
    else:
        engine = build_engine(encoder, case.train, int(variant) if variant.isdigit() else 1, NUM_STEPS)
    step_module.gather_rows = _gather_detached if variant == "detached" else gather_rows
    training = TrainingStep(
        engine,
        Texts(),
        trainable_items(),
        settings,
        item_domains=item_domains() if case.domains else None,
        originals=originals(case),
        frozen=frozen,
    )
    engine.train()
    gather.traffic.take()
    everything.take()
    work: list[dict[str, Any]] = []
    for plan in plans(case, training, variant):
        result: StepLoss = training.run(plan)
        engine.backward(result.loss * 0.0 if variant == "muted" and rank == 1 else result.loss)
        engine.step()
        sent = {"sent": gather.traffic.take(), "collectives": everything.take()}
        work.append({**asdict(replace(result, loss=result.loss.detach())), "loss": result.loss.item(), **sent})
    if variant == "plain":
        state = {name: parameter.detach().clone() for name, parameter in encoder.named_parameters()}
    else:
        state = full_state_dict(engine)
        engine.destroy()
    return {"start": start, "end": state, "work": work}


def main(encoder_folder: str, output_folder: str, *jobs: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
    with counted_collectives() as everything:
        for job in jobs:
            case, variant = job.split(":")
            result = run(CASES[case], variant, encoder_folder, everything)
            if dist.get_rank() == 0:
                torch.save(result, Path(output_folder) / f"{case}-{variant}-world{dist.get_world_size()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
