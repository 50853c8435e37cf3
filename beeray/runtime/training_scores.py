"""What a training run scores: the encoder as it began, validation after epochs, and the trained encoder at the end.

The last epoch's validation and the final scores are of the same weights, so at the end the catalog is embedded once for
both. Nothing of that is kept from one call to the next: an epoch before the end cannot lend its embeddings.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from beeray.core.encoder import Encoder
from beeray.core.gather import rank, sum_over_ranks
from beeray.data.report_items import ORIGINAL, TRAINED
from beeray.data.store import Store
from beeray.data.tokens import TokenStore
from beeray.errors import DivergedError, NotFiniteError
from beeray.runtime.checkpoints import Position
from beeray.runtime.finite_embeddings import check_finite
from beeray.runtime.original import Original
from beeray.runtime.report_sample import ReportSample
from beeray.runtime.scoring import embed_catalog, mean_over_ranks, needed_items, score_split
from beeray.runtime.task import WorkerTask
from beeray.runtime.worker import embedding_progress, score


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
        """Mean metrics of the validation users, which the driver is told; errors as `after`."""
        with self._of_trained(position):
            embeddings = embed_catalog(self.encode, self.config, self.store, self.tokens, self.device)
        return self._validate(position, embeddings)

    def _validate(self, position: Position, embeddings: Tensor) -> dict[str, float]:
        held_out = score_split(embeddings, self.config, self.store, "validation", full_catalog=False)
        means = {f"validation/{name}": value for name, value in mean_over_ranks(held_out, self.device).items()}
        if rank() == 0:
            self.task.send("epoch", epoch=position.epoch, step=position.step, metrics=means)
        return means

    def after(self, position: Position, original: Original) -> None:
        """Validate, if the config has it, and score every split by the trained encoder; keep what the report shows.

        Raises:
            DivergedError: embeddings of the trained encoder are no finite numbers; on every rank.
        """
        with self._of_trained(position):
            lent = self._validated_last(position, original) if self.config.train.evaluate_every_epochs else {}
            self._score("after", TRAINED, original=original.neighbours, **lent)
            lent.clear()  # a large catalog's table need not lie beside what comes
            if not self.config.evaluate.splits and original.neighbours is None:
                self.sample.embed(TRAINED, self.encode, self.config, self.tokens, self.device, check=self._check)
        if self.sample.items is not None and self._lacks_original():  # now, and not before the first step
            opened = Encoder(self.task.open_encoder(self.device), self.config.train.precision).eval()
            self.sample.embed(ORIGINAL, opened, self.config, self.tokens, self.device)

    def _validated_last(self, position: Position, original: Original) -> dict[str, Any]:
        """Validate; returns the embeddings and their seconds, or nothing where the final scores are of other batches.

        With `evaluate.domains` the final scores may need fewer items, and what a text is batched with moves the last
        bits of its embedding: then they are embedded again, as `beeray.evaluate` does.
        """
        kept = original.neighbours is not None or self.sample.items is not None
        if not kept and needed_items(self.config, self.store) is not None:
            self.validate(position)
            return {}
        started = time.perf_counter()
        progress = embedding_progress(self.task, "after")
        embeddings = embed_catalog(self.encode, self.config, self.store, self.tokens, self.device, progress)
        embed_s = time.perf_counter() - started
        self._validate(position, embeddings)
        return {"embeddings": embeddings, "embed_s": embed_s}

    def _lacks_original(self) -> bool:
        """Whether the report has no embeddings by the original encoder, which scoring before leaves. Collective."""
        missing = not (self.sample.folder / f"{ORIGINAL}.npy").is_file()
        return sum_over_ranks([float(missing)], self.device)[0] > 0

    def _check(self, embeddings: Tensor, items: NDArray[np.int32]) -> None:
        check_finite(embeddings, self.store, items)

    @contextmanager
    def _of_trained(self, position: Position) -> Iterator[None]:
        """What the encoder has become while it was trained is the training's fault."""
        try:
            yield
        except NotFiniteError as error:
            raise DivergedError(
                f"train.lr {self.config.train.lr:g}: {error.what}, after step {position.step:,}, so the run is not "
                "finished and its checkpoints are kept; start over with --fresh and a lower train.lr, or correct the "
                "texts of these items"
            ) from error

    def _score(self, when: str, keep_as: str | None, **given: Any) -> None:
        keep = partial(self.sample.keep, keep_as) if keep_as and self.sample.items is not None else None
        score(self.task, self.encode, self.store, self.tokens, self.device, when, keep=keep, **given)
