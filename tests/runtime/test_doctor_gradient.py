"""The exact gradient that the sharded step is measured against, and how a difference is judged."""

from __future__ import annotations

import math

import pytest
import torch

from beeray.runtime.doctor import gradient
from beeray.runtime.doctor.gradient import (
    BOUND,
    all_users,
    catalog,
    judge_gradient,
    largest_relative_difference,
    plain_gradient,
    tiny_encoder,
)


def test_every_process_makes_the_same_problem_whatever_its_random_state() -> None:
    torch.manual_seed(1)
    first = tiny_encoder().state_dict()
    torch.manual_seed(2)
    second = tiny_encoder().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [text.tolist() for text in catalog()] == [text.tolist() for text in catalog()]
    assert {len(items) for items in all_users()} > {2}, "users differ in size"


def test_the_plain_gradient_is_the_slope_of_the_loss_by_central_differences() -> None:
    """The loss is written down here once more, through the encoder itself; one number of some weights is moved."""
    encoder = tiny_encoder()
    exact = plain_gradient(encoder)
    model = encoder.double()
    step = 1e-5
    for name in ("model.0.bert.embeddings.word_embeddings.weight", "model.0.bert.encoder.layer.1.output.dense.weight"):
        weight = dict(model.named_parameters())[name]
        place = int(exact[name].abs().argmax())
        slopes = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                weight.view(-1)[place] += sign * step
                slopes.append(loss_of(model))
                weight.view(-1)[place] -= sign * step
        slope = (slopes[0] - slopes[1]) / (2 * step)
        assert slope == pytest.approx(float(exact[name].view(-1)[place]), rel=1e-5)


def loss_of(model: torch.nn.Module) -> float:
    """Mean over users of 2 − 2 cos(relu(scores), items), user by user and text by text."""
    rows = []
    for text in catalog():
        ids = torch.from_numpy(text.astype("int64")).unsqueeze(0)
        features = model.model[0]({"input_ids": ids, "attention_mask": torch.ones_like(ids)})  # type: ignore[operator,index,union-attr]
        row = features["token_embeddings"][0].mean(dim=0)
        rows.append(row / row.norm())
    embeddings = torch.stack(rows)
    total = 0.0
    for items in all_users():
        of_user = torch.zeros(len(rows), dtype=torch.float64)
        of_user[torch.from_numpy(items.astype("int64"))] = 1.0
        scores = (embeddings @ (embeddings.T @ of_user) - of_user).relu()
        total += 2 - 2 * float(scores @ of_user) / float(scores.norm() * of_user.norm())
    return total / len(all_users())


def test_no_score_is_so_near_to_zero_that_rounding_could_turn_its_slope_on_or_off() -> None:
    model = tiny_encoder().double().requires_grad_(False)
    rows = []
    cut_off = 0
    for text in catalog():
        ids = torch.from_numpy(text.astype("int64")).unsqueeze(0)
        row = model.model[0]({"input_ids": ids, "attention_mask": torch.ones_like(ids)})["token_embeddings"][0].mean(0)
        rows.append(row / row.norm())
    embeddings = torch.stack(rows)
    for items in all_users():
        of_user = torch.zeros(len(rows), dtype=torch.float64)
        of_user[torch.from_numpy(items.astype("int64"))] = 1.0
        scores = embeddings @ (embeddings.T @ of_user) - of_user
        assert float(scores.abs().min()) > 1e-4
        cut_off += int((scores < 0).sum())
    assert cut_off > 10, "otherwise the comparison would say nothing about them"


def test_the_largest_difference_is_relative_to_its_own_tensor_and_rounding_noise_does_not_count() -> None:
    exact = {"big": torch.tensor([100.0, 1.0]), "small": torch.tensor([0.01, 0.0]), "noise": torch.tensor([1e-9])}
    found = {"big": torch.tensor([100.0, 1.5]), "small": torch.tensor([0.012, 0.0]), "noise": torch.tensor([1.0])}
    difference, name = largest_relative_difference(found, exact)
    assert (round(difference, 6), name) == (0.2, "small")
    found["big"][0] = math.nan
    assert largest_relative_difference(found, exact) == (math.inf, "big")


def test_a_difference_above_the_bound_fails_and_says_what_to_do() -> None:
    assert judge_gradient(BOUND, "w", stage=1, num_workers=2).status == "ok"
    finding = judge_gradient(0.5, "w", stage=2, num_workers=3)
    assert finding.status == "FAILED"
    assert finding.said == (
        "the gradient of 3 workers under ZeRO-2 is not the exact one: it differs by 5.0e-01 of its largest number in w "
        "(bound 2e-05, fp32); training here would be wrong without saying so: install the versions of constraints.txt "
        "on every node, try deepspeed.stage=0, and check the network between the workers"
    )
    assert set(gradient.FAULTS) == {"muted", "detached"}
