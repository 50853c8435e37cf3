"""Baselines that know interactions and no text: fitted and scored in one process, by the encoders' own protocol."""

from __future__ import annotations

import time
from typing import Any

from scipy import sparse

from beeray.config import Baseline, BaselinesConfig, Config
from beeray.console import Console
from beeray.core.baselines.ease import Ease, check_size
from beeray.core.baselines.elsa import Elsa
from beeray.core.baselines.item_knn import ItemKnn
from beeray.core.baselines.model import ScoringModel
from beeray.core.baselines.popularity import Popularity
from beeray.core.tied_ranking import TiedRanker
from beeray.data.store import Store
from beeray.errors import RunError
from beeray.runtime.scoring import ranking_candidates, ranking_metrics, score_ranking
from beeray.runtime.split_scores import SplitScores


def too_large(
    settings: BaselinesConfig, which: list[Baseline], user_items: sparse.csr_matrix
) -> dict[Baseline, RunError]:
    """What would not fit into memory, and why, before anything is fitted."""
    if "ease" in which:
        try:
            check_size(user_items, settings.ease.max_items)
        except RunError as error:
            return {"ease": error}
    return {}


def fit_and_score(
    name: Baseline, config: Config, store: Store, user_items: sparse.csr_matrix, console: Console
) -> tuple[list[SplitScores], dict[str, float]]:
    """Fit a baseline and score every split of `evaluate.splits`; with seconds taken.

    Args:
        user_items: what training may see, (users, items).
    """
    started = time.perf_counter()
    with console.progress(name, config.baselines.elsa.epochs if name == "elsa" else None, "epoch") as bar:
        model = _model(name, config, lambda epoch, loss: bar.update_to(epoch, f"loss {loss:.4f}"))
        model.fit(user_items)
        fitted = time.perf_counter()
        scores = [
            score_ranking(
                TiedRanker(model, one.items, ranking_metrics(config), one.kept),
                *(config, store, split, one.ranking, one.domain),
            ).with_figures()
            for split in config.evaluate.splits
            for one in ranking_candidates(config, store, split)
        ]
    return scores, {"fit_s": fitted - started, "rank_s": time.perf_counter() - fitted}


def _model(name: Baseline, config: Config, progress: Any) -> ScoringModel:
    settings = config.baselines
    if name == "popularity":
        return Popularity()
    if name == "item_knn":
        return ItemKnn(settings.item_knn.neighbours, settings.item_knn.shrink)
    if name == "ease":
        return Ease(settings.ease.l2)
    assert name == "elsa", name
    elsa = settings.elsa
    return Elsa(elsa.dim, elsa.epochs, elsa.batch_size, elsa.lr, seed=config.seed, progress=progress)
