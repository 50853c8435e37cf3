"""What a training run scores: the encoder as it began, validation after epochs, and the trained encoder at the end."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from beeray.core.encoder import Encoder
from beeray.core.gather import rank
from beeray.data.report_items import ORIGINAL, TRAINED
from beeray.data.store import Store
from beeray.data.tokens import TokenStore
from beeray.runtime.checkpoints import Position
from beeray.runtime.original import Original
from beeray.runtime.report_sample import ReportSample
from beeray.runtime.scoring import embed_catalog, mean_over_ranks, score_split
from beeray.runtime.task import WorkerTask
from beeray.runtime.worker import score


class TrainingScores:
    """Scores the encoder that is being trained. Every rank has one, and calls it as the others do.

    Args:
        encode: the engine, with the weights of the moment.
        starts_with_head: whether training began by putting a head behind the encoder, so that what is scored before
            training is not the encoder as it was.
    """

    def __init__(
        self,
        task: WorkerTask,
        encode: nn.Module,
        store: Store,
        tokens: TokenStore,
        device: torch.device,
        *,
        starts_with_head: bool,
    ) -> None:
        self.task, self.encode, self.store, self.tokens, self.device = task, encode, store, tokens, device
        self.config = task.config
        self.sample = ReportSample(task.run_dir)
        evaluate = self.config.evaluate
        self._scores_original = evaluate.before and bool(evaluate.splits) and not starts_with_head

    def before(self, original: Original) -> None:
        """Score every split by the encoder that training begins with."""
        self._score("before", ORIGINAL if self._scores_original else None, embeddings=original.table)

    def validate(self, position: Position) -> dict[str, float]:
        """Mean metrics of the validation users, which the driver is told."""
        embeddings = embed_catalog(self.encode, self.config, self.tokens, self.device)
        held_out = score_split(embeddings, self.config, self.store, "validation", full_catalog=False)
        means = {f"validation/{name}": value for name, value in mean_over_ranks(held_out, self.device).items()}
        if rank() == 0:
            self.task.send("epoch", epoch=position.epoch, step=position.step, metrics=means)
        return means

    def after(self, original: Original) -> None:
        """Score every split by the trained encoder, and keep what the run's report shows of it and of the original."""
        self._score("after", TRAINED, original=original.neighbours)
        if not self.config.evaluate.splits and original.neighbours is None:
            self.sample.embed(TRAINED, self.encode, self.config, self.tokens, self.device)
        if not self._scores_original and self.sample.items is not None:  # now, and not before the first step
            opened = Encoder(self.task.open_encoder(self.device), self.config.train.precision).eval()
            self.sample.embed(ORIGINAL, opened, self.config, self.tokens, self.device)

    def _score(self, when: str, keep_as: str | None, **given: Any) -> None:
        keep = partial(self.sample.keep, keep_as) if keep_as and self.sample.items is not None else None
        score(self.task, self.encode, self.store, self.tokens, self.device, when, keep=keep, **given)
