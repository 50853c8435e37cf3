"""The objectives against values worked out by hand in NumPy, and each beside a formula that it must not be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from beeray.core import blockwise
from beeray.core.elsa import elsa_scores, nmse_per_user
from beeray.core.losses import LOSSES, StepUsers, over_prefixes, user_loss

Matrix = NDArray[np.float64]

DRAW = np.random.default_rng(4)
ITEMS = DRAW.standard_normal((7, 4))
ITEMS /= np.linalg.norm(ITEMS, axis=1, keepdims=True)
USERS = np.array([[1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0], [1, 0, 0, 0, 1, 1, 1.0]])
ELSEWHERE = DRAW.standard_normal((3, 4))
SHARP = 0.3


def of(
    name: str, embeddings: Matrix = ITEMS, users: Matrix = USERS, elsewhere: Matrix | None = None, **choices: Any
) -> list[float]:
    """Losses of all users, in float64."""
    table = None if elsewhere is None else torch.from_numpy(elsewhere)
    step_users = StepUsers(torch.from_numpy(users), None if table is None else lambda width: table[:, :width])
    losses: list[float] = user_loss(name, **choices)(torch.from_numpy(embeddings), step_users).tolist()
    return losses


def softmax_by_hand(
    elsewhere: Matrix | None, *, leave_out: bool = True, mask: bool = True, temperature: float = SHARP
) -> list[float]:
    """Item by item: which of the step's items belongs to the rest of the user?"""
    losses = []
    for user, row in enumerate(USERS):
        liked = np.flatnonzero(row)
        of_items = []
        for positive in liked:
            vector = ITEMS[[item for item in liked if item != positive or not leave_out]].sum(axis=0)
            vector = vector + (0.0 if elsewhere is None else elsewhere[user])
            cosines = ITEMS @ vector / np.linalg.norm(vector)
            kept = [item for item in range(len(ITEMS)) if item == positive or not mask or item not in liked]
            chances = np.exp(cosines[kept] / temperature)
            of_items.append(-np.log(np.exp(cosines[positive] / temperature) / chances.sum()))
        losses.append(float(np.mean(of_items)))
    return losses


@pytest.mark.parametrize("elsewhere", [None, ELSEWHERE])
def test_sampled_softmax_is_the_loss_worked_out_item_by_item(elsewhere: Matrix | None) -> None:
    found = of("sampled_softmax", elsewhere=elsewhere, temperature=SHARP)
    assert found == pytest.approx(softmax_by_hand(elsewhere), abs=1e-9)
    for wrong in ({"leave_out": False}, {"mask": False}, {"temperature": 2 * SHARP}):
        assert min(np.abs(np.subtract(found, softmax_by_hand(elsewhere, **wrong))[:1])) > 1e-3, wrong  # type: ignore[arg-type]


def test_sampled_softmax_of_orthogonal_items_is_a_plain_number() -> None:
    # items 0 and 1 alike, 2 and 3 elsewhere: given one of the pair, the other has cosine 1 and the rest have 0
    embeddings = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
    found = of("sampled_softmax", embeddings, np.array([[1, 1, 0, 0.0]]), temperature=0.5)
    assert found == pytest.approx([-np.log(np.e**2 / (np.e**2 + 2))])


def test_of_a_user_with_one_item_nothing_is_learned_from_what_is_left_of_it() -> None:
    items = torch.from_numpy(ITEMS).float().requires_grad_()
    alone = torch.tensor([[0, 1, 0, 0, 0, 0, 0.0]])
    loss = user_loss("sampled_softmax")(items, StepUsers(alone, lambda width: torch.full((1, width), 1e-9)))
    loss.sum().backward()
    assert loss.item() == pytest.approx(np.log(len(ITEMS)), abs=1e-6)
    assert items.grad is not None and float(items.grad.abs().max()) < 1e-6


def test_multinomial_is_one_softmax_of_the_scores_without_the_items_themselves() -> None:
    vectors = USERS @ ITEMS + ELSEWHERE
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    assert lengths.min() > 1, "none is too short to be divided by"
    scores = (vectors @ ITEMS.T - USERS) / lengths / SHARP
    chances = np.log(np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True))
    expected = -(chances * USERS).sum(axis=1) / USERS.sum(axis=1)
    found = of("multinomial", elsewhere=ELSEWHERE, temperature=SHARP)
    assert found == pytest.approx(expected.tolist(), abs=1e-9)
    with_itself = scores + USERS / lengths / SHARP
    wrong = np.log(np.exp(with_itself) / np.exp(with_itself).sum(axis=1, keepdims=True))
    assert np.abs(-(wrong * USERS).sum(axis=1) / USERS.sum(axis=1) - found).min() > 1e-2


def test_multinomial_of_items_that_nearly_cancel_stays_of_order_one_over_temperature() -> None:
    items = torch.tensor([[1.0, 0.0], [-1.0, 1e-4], [0.0, 1.0]], dtype=torch.float64)
    users = StepUsers(torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64))
    assert float(user_loss("multinomial", temperature=SHARP)(items, users)) < 2 / SHARP


def test_nmse_under_its_name_is_elsas() -> None:
    items, users = torch.from_numpy(ITEMS), torch.from_numpy(USERS)
    expected = nmse_per_user(elsa_scores(users @ items, items, users), users, top_k=4)
    assert of("nmse", top_k=4) == expected.tolist()
    assert of("nmse") != of("nmse", top_k=4)


@pytest.mark.parametrize("name", LOSSES)
def test_prefixes_are_cut_scaled_again_and_averaged_with_the_whole(name: str) -> None:
    def cut(width: int) -> Matrix:
        return ITEMS[:, :width] / np.linalg.norm(ITEMS[:, :width], axis=1, keepdims=True)

    loss = over_prefixes(user_loss(name), (2, 3))
    found = loss(torch.from_numpy(ITEMS), StepUsers(torch.from_numpy(USERS))).tolist()
    alone = np.array([of(name, cut(2)), of(name, cut(3)), of(name)])
    assert found == pytest.approx(alone.mean(axis=0).tolist(), abs=1e-9)
    assert np.abs(alone[0] - alone[2]).max() > 1e-2
    whole = user_loss(name)
    assert over_prefixes(whole, ()) is whole


def gradient(name: str) -> torch.Tensor:
    items = torch.from_numpy(ITEMS).requires_grad_()
    user_loss(name)(items, StepUsers(torch.from_numpy(USERS))).sum().backward()
    assert items.grad is not None
    return items.grad


def test_pairs_in_many_blocks_give_the_loss_and_the_gradient_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, slope = of("sampled_softmax"), gradient("sampled_softmax")
    monkeypatch.setattr(blockwise, "NUMBERS_AT_ONCE", 2 * len(ITEMS))  # two pairs at a time
    assert of("sampled_softmax") == pytest.approx(whole, abs=1e-12)
    torch.testing.assert_close(gradient("sampled_softmax"), slope)
    assert float(slope.abs().max()) > 1e-2


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    items = torch.from_numpy(ITEMS).requires_grad_()
    users = StepUsers(torch.from_numpy(USERS), lambda width: torch.from_numpy(ELSEWHERE)[:, :width])
    assert torch.autograd.gradcheck(lambda embeddings: user_loss(name)(embeddings, users), items)


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_without_a_user_has_no_loss_and_a_gradient_of_zero(name: str) -> None:
    items = torch.from_numpy(ITEMS).requires_grad_()
    losses = user_loss(name)(items, StepUsers(torch.zeros(0, len(ITEMS), dtype=torch.float64)))
    losses.sum().backward()
    assert losses.shape == (0,)
    assert items.grad is not None and not items.grad.any()


def test_an_unknown_loss_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match="must be one of nmse, multinomial, sampled_softmax"):
        user_loss("bpr")
