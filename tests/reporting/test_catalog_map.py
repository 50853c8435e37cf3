"""The 2-D map keeps neighbours together, and groups are those of the embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from two_writers import second_writer

from beeray.reporting.catalog_map import Table, group, kept_layout, lay_out, principal_components


def clusters(each: int = 20) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Three tight clusters of 16 dimensions, interleaved."""
    draw = np.random.default_rng(0)
    centres = np.eye(16)[:3]
    rows = centres[np.arange(3 * each) % 3] + 0.02 * draw.normal(size=(3 * each, 16))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_items_of_a_cluster_lie_nearer_to_each_other_than_to_others(method: str) -> None:
    layout = lay_out(clusters(), method, seed=1)
    assert layout.shape == (60, 2) and np.abs(layout).max() == pytest.approx(1.0)
    distances = np.linalg.norm(layout[:, None] - layout[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (distances.argmin(axis=1) % 3 == np.arange(60) % 3).all()
    assert lay_out(clusters(), method, seed=1).tolist() == layout.tolist()


def test_a_layout_is_turned_towards_the_one_beside_it() -> None:
    alone = lay_out(clusters(), "pca", seed=0)
    mirrored = (alone[:, ::-1] * [1, -1]).astype(np.float32)
    np.testing.assert_allclose(lay_out(clusters(), "pca", seed=0, beside=mirrored), mirrored, atol=1e-4)
    assert np.abs(alone - mirrored).max() > 0.5


@pytest.mark.parametrize("number", [2, 3, 13])
def test_few_items_are_laid_out_too(number: int) -> None:
    layout = lay_out(clusters()[:number], "tsne", seed=0)
    assert layout.shape == (number, 2) and np.isfinite(layout).all()


def test_equal_embeddings_have_places_all_the_same() -> None:
    assert np.isfinite(lay_out(np.ones((20, 4), dtype=np.float32), "tsne", seed=0)).all()


def test_components_are_those_of_largest_variance() -> None:
    table = np.array([[-3.0, 1.0, 0.0], [3.0, 1.0, 0.1], [0.0, 1.0, -0.1]], dtype=np.float32)
    first = principal_components(table, 2)[:, 0]
    np.testing.assert_allclose(np.abs(first), [3, 3, 0], atol=0.01)
    assert principal_components(table, 5).shape == (3, 5)


def test_groups_are_the_clusters() -> None:
    groups = group(np.concatenate([clusters(), clusters()[:1]]), seed=0)
    assert groups.min() == 0
    by_cluster = [set(groups[:60][np.arange(60) % 3 == one].tolist()) for one in range(3)]
    assert all(not (one & other) for one in by_cluster for other in by_cluster if one is not other)
    assert group(clusters()[:3], seed=0).tolist() == [0, 0, 0]


def test_a_layout_is_made_once_for_the_same_embeddings_settings_and_neighbour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def counted(embeddings: Table, method: str, seed: int, beside: Table | None = None) -> Table:
        made.append(seed)
        return lay_out(embeddings, method, seed, beside)

    monkeypatch.setattr("beeray.reporting.catalog_map.lay_out", counted)
    draw = np.random.default_rng(5)
    embeddings, other = draw.normal(size=(2, 30, 6)).astype(np.float32)
    file = tmp_path / "map.npz"
    first = kept_layout(file, embeddings, "pca", 1, None)
    assert np.array_equal(kept_layout(file, embeddings.copy(), "pca", 1, None), first) and made == [1]
    kept_layout(file, other, "pca", 1, None)
    kept_layout(file, other, "pca", 2, None)
    kept_layout(file, other, "tsne", 2, None)
    kept_layout(file, other, "tsne", 2, first)
    assert len(made) == 5
    assert [one.name for one in tmp_path.iterdir()] == ["map.npz"]


def test_two_reports_that_keep_a_layout_at_once_leave_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, embeddings = tmp_path / "map.npz", np.random.default_rng(5).normal(size=(30, 6)).astype(np.float32)
    came = second_writer(monkeypatch, np, "savez", lambda: kept_layout(file, embeddings, "pca", 1, None))
    first = kept_layout(file, embeddings, "pca", 1, None)
    monkeypatch.setattr("beeray.reporting.catalog_map.lay_out", None)  # so it is what was kept
    assert came and np.array_equal(kept_layout(file, embeddings, "pca", 1, None), first)
    assert [one.name for one in tmp_path.iterdir()] == ["map.npz"]
