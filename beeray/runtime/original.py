"""The encoder before training, as far as it is needed later: its embeddings, and which items it held alike.

runs/<name>/original/embeddings.npy    float16 (items, d), row-normalised; mapped by every worker for distillation, of
                                       texts as long as those that are trained on
runs/<name>/original/neighbours-*.npy  int32 (sample, k), nearest items of a sample of items, nearest first

Both come of one pass over the catalog, or of two where texts are served at another length than they are trained on,
made once a run: a resumed run finds them. They are of the encoder that the run begins with: `encoder.name`, or what
`train.init_from` names; without a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor

from beeray.config import Config
from beeray.core.encoder import Encoder
from beeray.core.gather import rank, sum_over_ranks, world_size
from beeray.core.neighbours import nearest_items, sample_items, share_kept
from beeray.data.staging import staged_file
from beeray.data.store import Store
from beeray.data.tokens import TokenStore
from beeray.runtime.run_folder import ORIGINAL, ORIGINAL_EMBEDDINGS
from beeray.runtime.scoring import embed_catalog

NUM_SAMPLED = 2000
ROWS_AT_ONCE = 65_536


@dataclass(frozen=True)
class Original:
    """What is known of the encoder before training.

    Attributes:
        embeddings: float16 (items, d), mapped from the disk; None where nothing is distilled.
        neighbours: int32 (sample, k), of `sample_items`; None where they are not measured.
        table: float32 (items, d), if it was just embedded as served: what scoring before training needs.
    """

    embeddings: NDArray[np.float16] | None = None
    neighbours: NDArray[np.int32] | None = None
    table: Tensor | None = None


def keep_original(
    config: Config,
    folder: Path,
    model: SentenceTransformer,
    store: Store,
    tokens: TokenStore,
    device: torch.device,
    progress: Callable[[int], None],
) -> Original:
    """What a run needs of the encoder before training, embedded now unless it is in the folder. Every rank must call.

    Args:
        folder: of the run, which every rank can write to.
        model: the encoder before training.
        progress: told the number of items after each micro-batch.

    Raises:
        NotFiniteError: as `embed_catalog`.
    """
    wanted = {}
    if config.train.distill_weight:
        wanted["embeddings"] = folder / ORIGINAL / ORIGINAL_EMBEDDINGS
    if config.measures_neighbours:
        wanted["neighbours"] = folder / ORIGINAL / f"neighbours-{config.evaluate.neighbours_at}-{config.seed}.npy"
    if not wanted:
        return Original()
    lacking = sum_over_ranks([float(not path.is_file()) for path in wanted.values()], device)
    missing = {name: path for (name, path), ranks in zip(wanted.items(), lacking, strict=True) if ranks}
    table: Tensor | None = None
    if missing:
        embed = partial(embed_catalog, Encoder(model, config.train.precision), config, store, tokens, device, progress)
        whose, length = config.begins_with, config.encoder.max_seq_length
        if rank() == 0:
            (folder / ORIGINAL).mkdir(parents=True, exist_ok=True)
        if "embeddings" in missing:
            table = embed(whose=whose, max_seq_length=length)
            if rank() == 0:
                _write(table, missing["embeddings"])
            if length != config.served_seq_length:
                table = None
        if "neighbours" in missing:
            table = embed(whose=whose) if table is None else table
            if rank() == 0:
                _write(sampled_neighbours(table, config), missing["neighbours"])
        sum_over_ranks([0.0], device)  # nobody reads before all is written
    found = {name: np.load(path, mmap_mode="r") for name, path in wanted.items()}
    return Original(**found, table=table)


def sampled_neighbours(embeddings: Tensor, config: Config, *, shared: bool = False) -> NDArray[np.int32]:
    """Neighbours of the sampled items.

    Args:
        embeddings: (catalog, d), row-normalised.
        shared: only those of this rank's share, every `world_size`-th.
    """
    items = sample_items(len(embeddings), NUM_SAMPLED, config.seed)
    return nearest_items(
        embeddings,
        items[rank() :: world_size()] if shared else items,
        config.evaluate.neighbours_at,
        items_per_block=config.evaluate.items_per_block,
    )


def neighbours_kept(original: NDArray[np.int32], embeddings: Tensor, config: Config) -> NDArray[np.float64]:
    """Of each of this rank's sampled items, the share of its original neighbours that it has now; not collective."""
    return share_kept(np.asarray(original)[rank() :: world_size()], sampled_neighbours(embeddings, config, shared=True))


def _write(table: Tensor | NDArray[np.int32], path: Path) -> None:
    """Whole or not at all; a table as float16, block by block."""
    with staged_file(path) as partial:
        if isinstance(table, Tensor):
            mapped = np.lib.format.open_memmap(partial, "w+", dtype=np.float16, shape=tuple(table.shape))
            for start in range(0, len(table), ROWS_AT_ONCE):
                mapped[start : start + ROWS_AT_ONCE] = table[start : start + ROWS_AT_ONCE].half().cpu().numpy()
            mapped.flush()
        else:
            with open(partial, "wb") as file:
                np.save(file, table)
