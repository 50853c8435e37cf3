"""Baselines on matrices with known answers, against their closed forms in dense NumPy, and one contract for all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import sparse

from beeray.core.baselines import ease, item_knn
from beeray.core.baselines.ease import Ease, check_size
from beeray.core.baselines.elsa import Elsa, elsa_losses, first_embeddings
from beeray.core.baselines.item_knn import ItemKnn
from beeray.core.baselines.model import ScoringModel
from beeray.core.baselines.popularity import Popularity
from beeray.errors import RunError

MODELS: dict[str, Callable[[], ScoringModel]] = {
    "popularity": Popularity,
    "item_knn": lambda: ItemKnn(neighbours=5, shrink=1.0),
    "ease": lambda: Ease(l2=1.0),
    "elsa": lambda: Elsa(dim=8, epochs=60, batch_size=4, lr=0.05),
}
PERSONAL = ["item_knn", "ease", "elsa"]


def csr(dense: NDArray[np.float64] | list[list[int]]) -> sparse.csr_matrix:
    return sparse.csr_matrix(np.asarray(dense, dtype=np.float32))


def checkerboard(num_users: int = 12, num_items: int = 8) -> sparse.csr_matrix:
    """Even users have even items, odd users odd ones, each all but one."""
    dense = (np.arange(num_users)[:, None] + np.arange(num_items)) % 2 == 0
    for user in range(num_users):
        dense[user, (user % 2 + 2 * (user // 2)) % num_items] = False
    return csr(dense)


def random_users(num_users: int = 80, num_items: int = 25) -> sparse.csr_matrix:
    draw = np.random.default_rng(3)
    popular = 0.05 + 0.45 * draw.random(num_items)
    dense = draw.random((num_users, num_items)) < popular
    dense[:, -1] = False  # an item that nobody has
    return csr(dense)


def fitted(name: str, user_items: sparse.csr_matrix) -> ScoringModel:
    model = MODELS[name]()
    model.fit(user_items)
    return model


@pytest.mark.parametrize("name", PERSONAL)
def test_on_a_checkerboard_the_item_left_out_comes_first(name: str) -> None:
    user_items = checkerboard()
    model = fitted(name, user_items)
    scores = model.scores(user_items)
    scores[user_items.toarray() > 0] = -np.inf
    left_out = [(user % 2 + 2 * (user // 2)) % 8 for user in range(12)]
    assert scores.argmax(axis=1).tolist() == left_out


def test_popularity_cannot_tell_the_two_colours_apart() -> None:
    model = Popularity()
    model.fit(csr([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0]]))
    assert model.scores(csr([[0, 0, 0, 1], [1, 0, 0, 0]])).tolist() == [[3, 1, 1, 0]] * 2


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_the_callers_and_say_nothing_of_an_unknown_item(name: str) -> None:
    user_items = random_users()
    model = fitted(name, user_items)
    first = model.scores(user_items[:5])
    assert first.dtype == np.float32 and first.shape == (5, 25)
    assert np.abs(first[:, -1]).max() == 0.0
    kept = first.copy()
    first[:] = -np.inf
    np.testing.assert_array_equal(model.scores(user_items[:5]), kept)


@pytest.mark.parametrize("name", PERSONAL)
def test_a_history_scores_alike_alone_and_among_others(name: str) -> None:
    user_items = random_users()
    model = fitted(name, user_items)
    together = model.scores(user_items)
    np.testing.assert_allclose(model.scores(user_items[7]), together[7:8], rtol=1e-5, atol=1e-6)


def test_item_knn_by_hand() -> None:
    # users: {0, 1}, {0, 1, 2}, {0}; items 0, 1, 2 have 3, 2, 1 users; shrink 1
    user_items = csr([[1, 1, 0], [1, 1, 1], [1, 0, 0]])
    model = ItemKnn(neighbours=1, shrink=1.0)
    model.fit(user_items)
    common = 2 / (np.sqrt(6) + 1)  # of 0 and 1; the others: 1 / (√3 + 1) = 0.366 and 1 / (√2 + 1) = 0.414
    expected = [[0, common, 0], [common, 0, 0], [0, 1 / (np.sqrt(2) + 1), 0]]
    np.testing.assert_allclose(model.similarities.toarray(), expected, rtol=1e-6)
    np.testing.assert_allclose(model.scores(csr([[1, 0, 1]])), [[0, common + 1 / (np.sqrt(2) + 1), 0]], rtol=1e-6)


@pytest.mark.parametrize("neighbours", [3, 24])
def test_item_knn_equals_dense_cosines(neighbours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    user_items = random_users()
    dense = user_items.toarray().astype(np.float64)
    counts = dense.sum(axis=0)
    cosines = dense.T @ dense / (np.sqrt(np.outer(counts, counts)) + 2.0)
    np.fill_diagonal(cosines, 0.0)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :neighbours]
    kept = np.zeros_like(cosines)
    np.put_along_axis(kept, order, np.take_along_axis(cosines, order, axis=1), axis=1)
    monkeypatch.setattr(item_knn, "SIMILARITIES_AT_ONCE", 60)  # two rows a block
    model = ItemKnn(neighbours=neighbours, shrink=2.0)
    model.fit(user_items)
    np.testing.assert_allclose(model.scores(user_items), dense @ kept, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("l2", [0.5, 20.0])
def test_ease_equals_its_closed_form(l2: float, monkeypatch: pytest.MonkeyPatch) -> None:
    user_items = random_users()
    dense = user_items.toarray().astype(np.float64)
    inverse = np.linalg.inv(dense.T @ dense + l2 * np.eye(25))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    monkeypatch.setattr(ease, "ROWS_AT_ONCE", 7)
    model = Ease(l2)
    model.fit(user_items)
    np.testing.assert_allclose(model.scores(user_items), dense @ weights, rtol=1e-3, atol=1e-4)


def test_ease_is_the_ridge_regression_of_each_item_on_the_others() -> None:
    user_items = random_users()
    dense = user_items.toarray().astype(np.float64)
    model = Ease(3.0)
    model.fit(user_items)
    others = np.arange(24) != 4
    inputs = dense[:, :24][:, others]
    ridge = np.linalg.solve(inputs.T @ inputs + 3.0 * np.eye(23), inputs.T @ dense[:, 4])
    np.testing.assert_allclose(model.weights[others, 4], ridge, rtol=1e-3, atol=1e-4)
    assert np.abs(np.diag(model.weights)).max() == 0.0


def test_ease_refuses_what_does_not_fit_and_what_cannot_be_inverted() -> None:
    with pytest.raises(RunError, match=r"baselines.ease.max_items is 10: 24 items .* dense matrix of 0.0 GiB; raise"):
        check_size(random_users(), 10)
    check_size(random_users(), 24)
    twins = csr(np.ones((9, 3)))
    with pytest.raises(RunError, match=r"baselines.ease.l2 is 1e-09: .* raise it"):
        Ease(1e-9).fit(twins)


def test_elsa_losses_equal_dense_numpy_with_and_without_relu() -> None:
    user_items = random_users()
    table = first_embeddings(25, 6, seed=1)
    dense = user_items.toarray().astype(np.float64)
    embeddings = table.double().numpy()
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    scores = dense @ (embeddings @ embeddings.T - np.eye(25))
    observed = dense / np.maximum(np.linalg.norm(dense, axis=1, keepdims=True), 1e-12)
    for relu in (False, True):
        kept = np.maximum(scores, 0.0) if relu else scores
        predicted = kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-12)
        expected = ((predicted - observed) ** 2).sum(axis=1)
        np.testing.assert_allclose(elsa_losses(table, user_items, relu=relu).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_elsa_finds_the_optimum_of_two_communities() -> None:
    # users have all of their community: equal embeddings within and none in common give loss 0, the least there is;
    # with relu, anything negative between the communities would do as well
    user_items = csr(np.kron(np.eye(2), np.ones((6, 4))))
    losses: list[float] = []
    model = Elsa(dim=4, epochs=200, batch_size=12, lr=0.05, relu=False, progress=lambda _, loss: losses.append(loss))
    model.fit(user_items)
    assert len(losses) == 200 and losses[0] > 0.5 and losses[-1] < 1e-3
    cosines = (model.embeddings @ model.embeddings.T).numpy()
    assert np.abs(cosines - np.kron(np.eye(2), np.ones((4, 4)))).max() < 0.2


def test_elsa_in_pieces_takes_the_same_steps_and_a_seed_fixes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(seed: int) -> torch.Tensor:
        model = Elsa(dim=6, epochs=3, batch_size=20, seed=seed)
        model.fit(random_users())
        return model.embeddings

    whole = trained(1)
    assert torch.equal(trained(1), whole)
    assert not torch.equal(trained(2), whole)
    monkeypatch.setattr("beeray.core.baselines.elsa.SCORES_AT_ONCE", 25 * 7)
    torch.testing.assert_close(trained(1), whole, rtol=1e-3, atol=1e-4)


def test_an_elsa_whose_training_ends_in_no_numbers_is_refused() -> None:
    with pytest.raises(RunError, match=r"baselines\.elsa\.lr is 1e\+30: training ended in no finite numbers; lower it"):
        Elsa(dim=8, epochs=2, batch_size=4, lr=1e30).fit(checkerboard())
