"""What workers keep for the run's report: embeddings of its items under the original and the trained encoder.

The items are in the run's folder before workers start (`data.report_items`); without them nothing is kept. Where the
whole catalog is embedded anyhow, rank 0 takes their rows; elsewhere all ranks embed just them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from beeray.config import Config
from beeray.core.elsa import normalize_rows_in_place
from beeray.core.gather import rank
from beeray.data.report_items import REPORT_FOLDER, item_indices
from beeray.data.staging import staged_file
from beeray.data.tokens import TokenStore
from beeray.runtime.scoring import embed_as_served


class ReportSample:
    """The items of a run's report, on a worker.

    Args:
        run_dir: the run's folder; empty: nothing is kept.
    """

    def __init__(self, run_dir: str) -> None:
        self.folder = Path(run_dir) / REPORT_FOLDER
        self.items = item_indices(self.folder) if run_dir else None

    def keep(self, name: str, catalog: Tensor) -> None:
        """Keep the items' rows of the whole catalog's normalised embeddings, (catalog, d). Not collective."""
        if self.items is not None and rank() == 0:
            self._write(name, catalog[torch.from_numpy(self.items.astype(np.int64)).to(catalog.device)])

    def embed(
        self,
        name: str,
        encode: nn.Module,
        config: Config,
        tokens: TokenStore,
        device: torch.device,
        *,
        check: Callable[[Tensor, NDArray[np.int32]], None] = lambda embeddings, items: None,
    ) -> None:
        """Embed the items and keep them. Every rank must call.

        Args:
            check: of the embeddings, with the items that they are of, before they are kept; called on every rank.
        """
        if self.items is None:
            return
        embeddings = embed_as_served(encode, config, tokens, device, self.items)
        check(embeddings, self.items)
        if rank() == 0:
            self._write(name, normalize_rows_in_place(embeddings))

    def _write(self, name: str, rows: Tensor) -> None:
        with staged_file(self.folder / f"{name}.npy") as partial, open(partial, "wb") as file:
            np.save(file, rows.float().cpu().numpy().astype(np.float16))
