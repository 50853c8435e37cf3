"""The space of a sweep is checked against the config tree: unknown keys, values a key does not take, what is fixed."""

from __future__ import annotations

from typing import Any

import pytest

from beeray.config import Config, at_point, epoch_metrics, own_point, search_space, validate_config
from beeray.errors import ConfigError


def a_config(space: dict[str, Any] | None = None, **others: Any) -> Config:
    tune = others.pop("tune", {}) | ({"space": space} if space is not None else {})
    tree = {"name": "a", "data": {"source": "shop"}, "train": {"batch_size": 32}, "cluster": {"num_workers": 2}}
    return validate_config({**tree, **others, "tune": tune})


def refusal(space: dict[str, Any] | None = None, **others: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        a_config(space, **others)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("train.lrr", "train.lr"),
        ("lr", "train.lr"),
        ("train.batchsize", "train.batch_size"),
        ("encoder.max_seq_len", "encoder.max_seq_length"),
        ("train.head.step", "train.head.steps"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, nearest: str) -> None:
    assert f"tune.space has unknown key {key!r}; did you mean {nearest!r}?" in refusal({key: {"choice": [1, 2]}})


@pytest.mark.parametrize(("kind", "instead"), [("uniform", "integer"), ("loguniform", "loginteger")])
def test_a_range_of_any_numbers_over_a_key_of_whole_ones_is_refused(kind: str, instead: str) -> None:
    said = refusal({"train.batch_size": {kind: [64, 2048]}})
    assert "train.batch_size takes no 695.5" in said
    assert said.endswith(f"; {kind} draws such numbers, use {instead} for whole ones")
    a_config({"train.batch_size": {instead: [64, 2048]}, "train.weight_decay": {"uniform": [0, 0.1]}})


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("split.kind", "different items"),
        ("data.min_value", "different data"),
        ("seed", "different ones"),
        ("evaluate.ndcg_at", "could not be compared"),
        ("tracking.uri", "does not change"),
        ("nightly.max_loss", "does not change"),
        ("name", "names the run"),
    ],
)
def test_what_would_make_trials_incomparable_is_refused_with_the_reason(key: str, reason: str) -> None:
    said = refusal({key: {"choice": [1, 2]}})
    assert f"tune.space has {key!r}" in said and reason in said


def test_of_data_the_weights_of_domains_alone_are_searched() -> None:
    domains = {one: {"source": "shop"} for one in ("films", "books")}
    key = "data.domains.books.weight"
    config = a_config({key: {"choice": ["0.5", 1, 4]}}, data={"domains": domains})
    found = search_space(config)
    assert found[key].probes == (0.5, 1.0, 4.0)
    assert own_point(config, found) == {key: 1.0}
    there = at_point(config, {key: 4.0})
    assert (there.data.weight_of("books"), there.data.weight_of("films")) == (4.0, 1.0)
    a_config({key: {"loguniform": [0.1, 10]}}, data={"domains": domains})

    def said(key: str, *values: Any) -> str:
        return refusal({key: {"choice": values}}, data={"domains": domains})

    assert f"{key} takes no 0" in said(key, 1, 0)
    assert "the domains of data are films, books; correct the name" in said("data.domains.games.weight", 1, 2)
    assert "would be measured on different data" in said("data.domains.books.min_value", 1, 2)
    assert "the domains of data are none: it is one source" in refusal({key: {"choice": [1, 2]}})


@pytest.mark.parametrize(
    ("dimension", "expected"),
    [
        ({"uniform": [-1, 1]}, "train.lr takes no -1.0: train.lr is -1.0: input should be greater than 0"),
        ({"choice": [1e-4, "fast"]}, "train.lr takes no 'fast'"),
        ({"loguniform": [0, 1]}, "train.lr loguniform is [0.0, 1.0]: a logarithmic range begins above 0"),
        ({"uniform": [2, 1]}, "the first must be below the second"),
        ({"uniform": [1, 2], "choice": [1]}, "exactly one of uniform, loguniform, integer, loginteger, choice"),
        ({}, "it has none"),
        ({"choice": []}, "choice is empty"),
        ({"choice": [0.1, 0.2, 0.1]}, "choice has 0.1 twice"),
        ({"normal": [1, 2]}, "unknown key 'tune.space.train.lr.normal'"),
        ({"uniform": ["low", 2]}, "tune.space.train.lr.uniform is 'low'"),
    ],
)
def test_a_dimension_that_the_key_does_not_take_is_refused(dimension: dict[str, Any], expected: str) -> None:
    assert expected in refusal({"train.lr": dimension})


def test_a_choice_that_fits_no_combination_is_refused_and_one_that_fits_some_is_let_through() -> None:
    batches = {"train.batch_size": {"choice": [32, 31]}}
    assert "takes no 31: train.batch_size is 31: it counts users over all workers" in refusal(batches)
    with_workers = a_config(batches | {"cluster.num_workers": {"choice": [1, 2]}})
    assert at_point(with_workers, {"train.batch_size": 31, "cluster.num_workers": 1}).train.batch_size == 31
    with pytest.raises(ConfigError, match=r"must be a multiple of cluster\.num_workers"):
        at_point(with_workers, {"train.batch_size": 31, "cluster.num_workers": 2})


def test_presets_are_searched_where_nothing_is_asked_for_and_overlaid_by_the_space() -> None:
    space = search_space(a_config(train={"max_output": 100, "batch_size": 6}))
    assert {key: one.probes for key, one in space.items()} == {
        "train.lr": (1e-5, 1e-3),
        "train.max_output": (50, 100, 200),
        "train.batch_size": (2, 6, 12),  # 3 is no multiple of the two workers
    }
    own = {"train.lr": {"choice": [1e-4]}}
    assert search_space(a_config(own))["train.lr"].probes == (1e-4,)
    assert len(search_space(a_config(own))) == 1
    assert len(search_space(a_config(own, tune={"presets": ["lr", "batch_size"]}))) == 2
    assert "train.max_output" not in search_space(a_config(train={"max_output": "all"}))
    assert "max_output is 'all'" in refusal(train={"max_output": "all"}, tune={"presets": ["max_output"]})
    assert "tune.presets has 'momentum'; there are lr, max_output, batch_size" in refusal(
        tune={"presets": ["momentum"]}
    )


def test_the_metric_must_be_one_that_epochs_report() -> None:
    assert epoch_metrics(a_config()) == ["validation/ndcg@100", "validation/recall@20", "validation/recall@50"]
    assert a_config(tune={"metric": "validation/recall@20"}).tune.metric == "validation/recall@20"
    assert "an epoch reports validation/ndcg@100" in refusal(tune={"metric": "validation/ndcg@10"})


def test_a_config_at_a_point_has_the_values_and_no_space() -> None:
    config = a_config({"train.head.lr": {"choice": [1e-3]}, "train.betas": {"choice": [[0.9, 0.99], [0.8, 0.9]]}})
    assert config.train.head is None
    there = at_point(config, {"train.head.lr": 1e-3, "train.betas": [0.8, 0.9]})
    assert there.train.head is not None and there.train.head.lr == 1e-3
    assert there.train.betas == (0.8, 0.9)
    assert there.tune.space == {} and config.tune.space != {}


def test_the_configs_own_values_are_a_point_only_where_the_space_holds_them() -> None:
    space = {"train.lr": {"loguniform": [1e-5, 1e-3]}, "train.betas": {"choice": [[0.9, 0.999], [0.8, 0.9]]}}
    inside = a_config(space, train={"lr": 1e-4, "batch_size": 32})
    assert own_point(inside, search_space(inside)) == {"train.lr": 1e-4, "train.betas": [0.9, 0.999]}
    outside = a_config(space, train={"lr": 1e-2, "batch_size": 32})
    assert own_point(outside, search_space(outside)) is None


def test_choices_are_what_the_tree_makes_of_them() -> None:
    space = {"train.lr": {"choice": ["1e-5", "3e-5"]}, "train.head": {"choice": [None, {"units": "8"}]}}
    config = a_config(space, train={"batch_size": 32, "lr": 1e-5})
    found = search_space(config)
    assert found["train.lr"].probes == (1e-5, 3e-5)
    assert found["train.head"].probes[0] is None and found["train.head"].probes[1]["units"] == 8
    assert own_point(config, found) == {"train.lr": 1e-5, "train.head": None}
    assert "train.lr choice has 1e-05 twice" in refusal({"train.lr": {"choice": ["1e-5", 0.00001]}})
    assert "train.lr takes no 'fast'" in refusal({"train.lr": {"choice": ["fast", 0.1]}})


def test_the_sweep_decides_nothing_of_a_run() -> None:
    assert a_config({"train.lr": {"choice": [1e-4]}}).result_digest() == a_config().result_digest()
