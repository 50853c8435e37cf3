"""Users asked for old items or new ones only, and rankings by prefixes."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

from beeray.runtime.further_rankings import asked_for, item_groups, prefixes

OLD = np.array([True, True, False, False])
HISTORY = sparse.csr_matrix(np.array([[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]], dtype=np.float32))
TARGETS = sparse.csr_matrix(np.array([[0, 1, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0]], dtype=np.float32))
BLOCK = (np.array([10, 11, 12]), HISTORY, TARGETS)


def test_targets_are_those_of_the_group_and_users_without_one_are_left_out() -> None:
    groups = item_groups(OLD)
    assert list(groups) == ["old_items", "new_items"]
    ((users, history, targets),) = asked_for(iter([BLOCK]), groups["old_items"])
    assert users.tolist() == [10, 12]
    assert targets.toarray().tolist() == [[0, 1, 0, 0], [0, 1, 0, 0]]
    assert history.toarray().tolist() == [[1, 0, 0, 0], [0, 0, 1, 0]], "what a user is known to like stays whole"
    ((users, _, targets),) = asked_for(iter([BLOCK]), groups["new_items"])
    assert users.tolist() == [10, 11]
    assert targets.indices.tolist() == [2, 3]


def test_a_block_that_no_user_is_left_of_is_dropped_and_a_fresh_run_has_no_groups() -> None:
    assert list(asked_for(iter([BLOCK]), np.zeros(4, dtype=bool))) == []
    assert item_groups(None) == {}


def test_a_prefix_is_cut_and_scaled_and_one_that_cuts_nothing_is_left_out() -> None:
    table = torch.tensor([[0.6, 0.0, 0.8], [0.0, 0.6, 0.8]])
    ((name, cut),) = prefixes(table, (2, 3), "held_out")
    assert name == "held_out@2"
    torch.testing.assert_close(cut, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
