"""A head start: a small network after the encoder, trained on features that are encoded once.

Sentence embeddings lie in a narrow cone, and ELSA's scores are sums of cosines: what all texts have in common
drowns what tells them apart. Whitening takes it away without looking at any interaction; a residual network after
it learns from interactions at a thousandth of the price of a step of the whole encoder. Fine-tuning then starts
from there ("LP-FT", Kumar et al., arXiv 2202.10054).

The head is made of sentence-transformers' own `Dense` modules, so an exported folder opens without beeray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from torch import Tensor, nn

from beeray.core.elsa import normalize_rows
from beeray.core.encoder import embedding_dim
from beeray.core.gather import average_gradients, copy_from_first_rank, rank, world_size
from beeray.core.optimizers import build_optimizer
from beeray.core.schedules import lr_factor
from beeray.core.step import StepSettings, TrainingStep
from beeray.core.user_items import UserItems

WHITENING_FLOOR = 0.1
"""Added to every variance, as a share of their mean: directions that texts hardly differ in stay small."""
WHITENING_ROWS = 8192
NO_VARIANCE = 1e-10
"""Variance, as a share of the mean's squared length, that is what rounding left of texts that are all alike."""
WARMUP_FRACTION = 0.1
CLIPPING = 1.0


@dataclass(frozen=True)
class HeadSettings:
    """How a head is trained; see `HeadConfig` for the meaning of each."""

    steps: int = 300
    batch_size: int = 128
    max_output: int = 1000
    lr: float = 1e-3
    dropout: float = 0.0
    seed: int = 42
    objective: StepSettings = field(default_factory=StepSettings)
    """What is to be learned; how items are drawn is the head's own."""


class Head(nn.Module):
    """The modules that `append_head` put behind an encoder, as one function of its embeddings.

    Args:
        model: a sentence transformer that ends in a head.
    """

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        dense = [module for module in model.children() if isinstance(module, Dense)]
        self.whitening, self.widen, self.narrow = dense[-3:]

    def forward(self, features: Tensor) -> Tensor:
        """(n, d) → (n, d), float32; not normalised."""
        values = {"sentence_embedding": features}
        for module in (self.whitening, self.widen, self.narrow):
            values = module(values)
        return values["sentence_embedding"]


def append_head(model: SentenceTransformer, num_units: int) -> None:
    """Append a head that changes nothing yet: each embedding comes out exactly as it went in.

    Three `Dense` modules: d → d, linear, for the whitening; d → 2 d + `num_units`, ReLU, whose first 2 d units
    hold x and −x; and back to d, where relu(x) − relu(−x) = x and the further units count nothing at first. A
    model that ended in `Normalize` ends in one again.

    Args:
        num_units: units beside those that carry the embedding itself.
    """
    dim = embedding_dim(model)
    normalized = isinstance(list(model.children())[-1], Normalize)
    eye, zeros = torch.eye(dim), torch.zeros(dim)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # all ranks alike, and again when a saved head is opened for its weights
        further = torch.randn(num_units, dim)
    widen = torch.cat([eye, -eye, further])
    narrow = torch.cat([eye, -eye, torch.zeros(dim, num_units)], dim=1)
    linear = nn.Identity
    modules: list[nn.Module] = [
        Dense(dim, dim, activation_function=linear(), init_weight=eye.clone(), init_bias=zeros.clone()),
        Dense(dim, len(widen), activation_function=nn.ReLU(), init_weight=widen, init_bias=torch.zeros(len(widen))),
        Dense(len(widen), dim, activation_function=linear(), init_weight=narrow, init_bias=zeros.clone()),
    ]
    for module in [*modules, *([Normalize()] if normalized else [])]:
        model.append(module.to(model.device))


def head_units(model: SentenceTransformer) -> int | None:
    """With how many units `append_head` put a head behind a model; None where it does not end in one."""
    modules = [module for module in model.children() if not isinstance(module, Normalize)][-3:]
    if len(modules) < 3 or not all(isinstance(module, Dense) for module in modules):
        return None
    shapes = [tuple(module.linear.weight.shape) for module in modules if isinstance(module, Dense)]
    (out, dim), (wide, _), last = shapes
    return wide - 2 * dim if out == dim and wide >= 2 * dim and last == (dim, wide) else None


@torch.no_grad()
def whiten(head: Head, features: Tensor) -> None:
    """Make the head's first module take away the features' mean and even out their variances (ZCA).

    The mean of the squared length of what comes out is 1; features that are all alike stay as they are.
    All ranks end with rank 0's values. Collective.

    Args:
        features: (n, d), the same on every rank.
    """
    mean = features.mean(dim=0, dtype=torch.float64)
    centred = (block.double() - mean for block in features.split(WHITENING_ROWS))  # float64 of all would be many GiB
    covariance = sum((rows.T @ rows for rows in centred), start=torch.zeros_like(mean).diag()) / len(features)
    variances, directions = torch.linalg.eigh(covariance)
    variances = variances.clamp_min(0.0)
    if float(variances.sum()) <= NO_VARIANCE * float(mean.square().sum()):
        return  # all alike but for rounding: there is nothing to even out
    evened = variances + WHITENING_FLOOR * variances.mean().clamp_min(1e-12)
    matrix = directions @ torch.diag(evened.rsqrt()) @ directions.T
    matrix /= (variances / evened).sum().clamp_min(1e-12).sqrt()
    head.whitening.linear.weight.copy_(matrix)
    head.whitening.linear.bias.copy_(-(matrix @ mean))
    for parameter in head.whitening.parameters():
        copy_from_first_rank(parameter)


def train_head(
    head: Head,
    features: Tensor,
    users: UserItems,
    settings: HeadSettings,
    progress: Callable[[int, float], None] = lambda step, loss: None,
    domains: NDArray[np.int16] | None = None,
) -> None:
    """Train all but the whitening on fixed features, with the loss of the training step itself.

    Collective: every rank calls with the same features and users and takes its share of each step's.

    Args:
        features: (n, d) on the head's device.
        users: rows of `features` as items; two or more each.
        progress: told steps done and this rank's loss after each.
        domains: domain of each row, ascending, where users are scored within their domains.
    """

    def encode(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        rows = features[input_ids[:, 0]]
        return head(nn.functional.dropout(rows, settings.dropout))  # dropout: new texts are not quite like these

    every_row = np.arange(len(features), dtype=np.int32)
    objective = _step_settings(settings)
    originals = normalize_rows(features).cpu().numpy() if objective.distill_weight else None
    step = TrainingStep(
        encode, _Rows(len(features)), every_row, objective, features.device, item_domains=domains, originals=originals
    )
    head.whitening.requires_grad_(False)
    optimizer = build_optimizer(head, "adamw", lr=settings.lr, betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.0)
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    for number, batch in enumerate(_batches(users, settings)):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * lr_factor("cosine", number, settings.steps, WARMUP_FRACTION)
        loss = step.loss(batch, epoch=0, step=number).loss
        optimizer.zero_grad()
        loss.backward()
        average_gradients(trained)
        nn.utils.clip_grad_norm_(trained, CLIPPING)
        optimizer.step()
        progress(number + 1, loss.item())
    head.whitening.requires_grad_(True)


def _step_settings(settings: HeadSettings) -> StepSettings:
    return replace(
        settings.objective,
        items="bounded",
        max_output=settings.max_output,
        max_seq_length=1,
        token_budget=2**16,
        activation_budget_bytes=2**40,
        seed=settings.seed,
    )


def _batches(users: UserItems, settings: HeadSettings) -> Iterator[UserItems]:
    """This rank's share of each step's users; the step's users are the same whatever the number of ranks."""
    for step in range(settings.steps):
        generator = np.random.default_rng([settings.seed, step])
        size = min(settings.batch_size, users.num_users)
        yield users.take(generator.choice(users.num_users, size=size, replace=False)[rank() :: world_size()])


class _Rows:
    """Rows of a table of features in the guise of token ids: one token each, the row's number."""

    pad_token_id = 0

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def lengths(self, max_seq_length: int) -> NDArray[np.int32]:
        """One each."""
        return np.ones(self.num_rows, dtype=np.int32)

    def gather(
        self, item_indices: NDArray[np.int32], max_seq_length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """The numbers of the rows asked for."""
        return item_indices.astype(np.int64), np.ones(len(item_indices), dtype=np.int32)
