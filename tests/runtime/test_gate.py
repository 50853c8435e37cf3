"""The gate on scores written by hand: what is better, equal, worse or uncertain, of one domain and of several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from beeray.config import Config, validate_config
from beeray.data.scored import Scored
from beeray.errors import ConfigError, RunError
from beeray.runtime.gate import check_ranking, gate_split, judge

USERS = 400
METRIC = "ndcg@100"


def a_config(**nightly: Any) -> Config:
    return validate_config({"name": "shop", "data": {"source": "shop"}, "nightly": {"num_bootstrap": 2000, **nightly}})


def scored(name: str, ndcg: np.ndarray[Any, Any], *, domain: list[str] | None = None, store: str = "store-a") -> Scored:
    columns: dict[str, Any] = {
        "user_index": np.arange(len(ndcg)),
        "split": ["test"] * len(ndcg),
        "ranking": ["held_out"] * len(ndcg),
        METRIC: ndcg.astype(float),
        "recall@20": np.full(len(ndcg), 0.5),
    }
    if domain is not None:
        columns["domain"] = domain
    return Scored(name, "", Path(name), store, pa.table(columns))


def half(value: float) -> np.ndarray[Any, Any]:
    """Half of the users at 0.2, half at 0.6, all moved by a value: mean 0.4 + value."""
    return np.repeat([0.2, 0.6], USERS // 2) + value


def noise(spread: float) -> np.ndarray[Any, Any]:
    """Plus and minus a spread in turns: its mean is 0, of a paired difference's standard error spread / 20."""
    return spread * np.tile([1.0, -1.0], USERS // 2)


@pytest.mark.parametrize(
    ("new", "finding", "publish"),
    [
        (half(0.0), "not worse", True),  # the same: 0 [0, 0]
        (half(0.01), "not worse", True),  # every user better
        (half(-0.001), "worse", False),  # every user worse, if only by 0.25 %: a proven loss
        (half(-0.004) + noise(0.03), "worse", False),  # −0.004 ± 0.003
        (half(0.0) + noise(0.03), "not worse", True),  # 0 ± 0.003: a loss of 0.008 (2 %) is ruled out
        (half(0.0) + noise(0.3), "uncertain", False),  # 0 ± 0.03: it is not
        (half(0.05) + noise(0.3), "not worse", True),  # 0.05 ± 0.03: nothing below zero
    ],
)
def test_a_model_passes_if_it_is_not_worse_and_much_worse_is_ruled_out(
    new: np.ndarray[Any, Any], finding: str, publish: bool
) -> None:
    verdict = judge(scored("serving", half(0.0)), scored("new", new), a_config())
    (one,) = verdict.judged
    assert (one.finding, verdict.publish) == (finding, publish)
    assert one.serving == pytest.approx(0.4)
    assert one.difference == pytest.approx(float(np.mean(new - half(0.0))))
    assert one.allowed == pytest.approx(0.008)
    assert one.low <= one.difference <= one.high


def test_the_interval_is_that_of_the_paired_difference_and_not_of_the_means() -> None:
    verdict = judge(scored("serving", half(0.0)), scored("new", half(-0.001)), a_config())
    (one,) = verdict.judged
    assert one.high - one.low < 1e-9, "users differ by 0.4, their differences by nothing"


def test_the_line_names_both_means_the_difference_and_its_interval() -> None:
    verdict = judge(scored("serving", half(0.0)), scored("new", half(-0.01)), a_config())
    assert verdict.lines() == [
        "gate: ndcg@100 of test/held_out, 400 users: new 0.3900, serving 0.4000, "
        "difference -0.0100 [-0.0100, -0.0100]: worse: refused"
    ]
    assert verdict.record()["publish"] is False


def test_a_larger_tolerance_takes_more_doubt_but_never_a_proven_loss() -> None:
    doubtful, worse = half(0.0) + noise(0.3), half(-0.001)
    serving = scored("serving", half(0.0))
    assert judge(serving, scored("new", doubtful), a_config(max_loss=0.2)).publish
    assert not judge(serving, scored("new", worse), a_config(max_loss=0.2)).publish
    assert not judge(serving, scored("new", half(0.0) + noise(0.03)), a_config(max_loss=0)).publish


def test_a_loss_in_one_domain_is_not_outweighed_by_another() -> None:
    domains = ["films"] * (USERS // 2) + ["books"] * (USERS // 2)
    serving = scored("serving", half(0.0), domain=domains)
    new = half(0.0) + np.repeat([0.1, -0.01], USERS // 2)
    verdict = judge(serving, scored("new", new, domain=domains), a_config())
    assert {one.domain: one.finding for one in verdict.judged} == {"films": "not worse", "books": "worse"}
    assert not verdict.publish


def test_another_metric_is_judged_when_it_is_named() -> None:
    verdict = judge(scored("serving", half(0.0)), scored("new", half(-0.1)), a_config(metric="recall@20"))
    assert verdict.publish and verdict.metric == "recall@20"


@pytest.mark.parametrize(
    ("nightly", "said"),
    [
        ({"metric": "ndcg@7"}, "nightly.metric is 'ndcg@7': evaluate measures ndcg@100, recall@20, recall@50"),
        ({"ranking": "filtered"}, "'filtered': not measured of all systems"),
    ],
)
def test_what_was_not_measured_is_refused_in_a_line(nightly: dict[str, str], said: str) -> None:
    with pytest.raises((ConfigError, RunError), match=said):
        judge(scored("serving", half(0.0)), scored("new", half(0.0)), a_config(**nightly))


def test_models_that_were_scored_on_other_stores_are_not_compared() -> None:
    with pytest.raises(RunError, match="store-b"):
        judge(scored("serving", half(0.0)), scored("new", half(0.0), store="store-b"), a_config())


def test_validation_data_that_is_trained_on_does_not_judge() -> None:
    on_validation = {"evaluate": {"splits": ["validation"]}, "train": {"with_validation": True}}
    for sections in (on_validation, on_validation | {"nightly": {"split": "validation"}}):
        with pytest.raises(ConfigError, match="would compare on validation data, which is trained on"):
            gate_split(with_sections(**sections))
    assert gate_split(with_sections(train={"with_validation": True})) == "test"
    assert gate_split(with_sections(evaluate={"splits": ["validation"]})) == "validation"


@pytest.mark.parametrize(
    ("kind", "ranking", "said"),
    [
        ("item", "held_out", None),
        ("item", "held_out@64", None),
        ("item", "new_items", "could not judge; name one of held_out, catalog, held_out@64"),
        ("time", "old_items", "could not judge; name one of catalog, filtered, catalog@64"),
        ("item", "filtered", "with split.kind item evaluation makes held_out, catalog, held_out@64; name"),
        ("time", "filtered", None),
        ("time", "held_out", "with split.kind time evaluation makes catalog, filtered, catalog@64; name"),
        ("user", "filtered", "with split.kind user evaluation makes catalog, catalog@64; name"),
        ("item", "held_out@32", "nightly.ranking is 'held_out@32'"),
    ],
)
def test_a_ranking_that_evaluation_does_not_make_is_refused_before_training(
    kind: str, ranking: str, said: str | None
) -> None:
    config = with_sections(
        split={"kind": kind},
        nightly={"ranking": ranking},
        train={"matryoshka_dims": [64]},
        evaluate={"full_catalog": True, "filtered": True},
    )
    if said is None:
        check_ranking(config)
        return
    with pytest.raises(ConfigError, match=said):
        check_ranking(config)


def with_sections(**sections: Any) -> Config:
    return validate_config({"name": "shop", "data": {"source": "shop"}, **sections})
