"""The configuration tree: YAML, overrides, one clear line for every mistake, frozen, and a stable digest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from beeray.config import Config, TrainConfig, config_digest, flatten_config, load_config, validate_config
from beeray.errors import ConfigError

USER_FACING_KEYS = [
    "train.lr",
    "train.max_output",
    "train.batch_size",
    "train.epochs",
    "train.scheduler",
    "train.optimizer",
    "train.top_k",
    "encoder.name",
    "encoder.max_seq_length",
    "encoder.prefix",
    "seed",
    "cluster.num_workers",
    "cluster.use_gpu",
    "deepspeed.stage",
]


@pytest.fixture
def written(tmp_path: Path) -> str:
    path = tmp_path / "books.yaml"
    path.write_text("data: {source: goodbooks, path: raw}\ntrain: {lr: 1e-5}\n", encoding="utf-8")
    return str(path)


def a_config(**sections: Any) -> Config:
    return validate_config({"name": "a", "data": {"source": "goodbooks", "path": "raw"}} | sections)


def refusal(tree: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        validate_config(tree, where="books.yaml")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("books.yaml: ")
    return message.removeprefix("books.yaml: ")


def with_section(**sections: Any) -> dict[str, Any]:
    return {"name": "a", "data": {"source": "goodbooks", "path": "raw"}} | sections


def test_a_number_that_yaml_reads_as_text_becomes_a_float(written: str) -> None:
    lr = load_config(written).train.lr
    assert isinstance(lr, float)
    assert lr == 1e-5


def test_the_name_is_the_files_unless_it_says_otherwise(written: str) -> None:
    assert load_config(written).name == "books"
    assert load_config(written, ["name=novels"]).name == "novels"


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.lr=2e-5", "train.lr", 2e-5),
        ("train.relu=false", "train.relu", False),
        ("data.min_value=null", "data.min_value", None),
        ("train.max_output=all", "train.max_output", "all"),
        ("train.betas=[0.8, 0.99]", "train.betas", [0.8, 0.99]),
        ("encoder.prefix=a=b", "encoder.prefix", "a=b"),
        ("deepspeed.stage=3", "deepspeed.stage", 3),
        ("seed=7", "seed", 7),
    ],
)
def test_an_override_is_laid_over_the_file_even_where_its_section_is_missing(
    written: str, override: str, key: str, value: object
) -> None:
    assert flatten_config(load_config(written))[key] != value
    assert flatten_config(load_config(written, [override]))[key] == value


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("runs_dir=/data/run #2", "runs_dir", "/data/run #2"),
        ("encoder.prefix=passage ", "encoder.prefix", "passage "),
        ("encoder.prefix='passage '", "encoder.prefix", "passage "),
        ('encoder.prefix="a # b"', "encoder.prefix", "a # b"),
        ("name=null-run", "name", "null-run"),
        ("embed.catalog={path: items.parquet, template: '{title}'}", "embed.catalog.template", "{title}"),
    ],
)
def test_text_behind_an_override_is_taken_as_it_was_typed(written: str, override: str, key: str, value: object) -> None:
    assert flatten_config(load_config(written, [override]))[key] == value


def test_a_template_needs_no_quotes_within_quotes(written: str) -> None:
    config = load_config(written, ["embed.catalog.path=items.parquet", "embed.catalog.template={title}"])
    assert config.embed.catalog is not None and config.embed.catalog.template == "{title}"
    assert load_config(written, ["train.head={}"]).train.head is not None, "an empty mapping is one"


def test_what_is_searched_can_be_given_key_by_key(written: str) -> None:
    lr = "tune.space.train.lr.loguniform=[1e-5, 1e-3]"
    config = load_config(written, [lr, "tune.space.train.max_output={choice: [50, 100]}"])
    assert {key: (one.kind, one.probes) for key, one in (config.tune.space or {}).items()} == {
        "train.lr": ("loguniform", (1e-5, 1e-3)),
        "train.max_output": ("choice", (50, 100)),
    }
    again = load_config(written, [lr, "tune.space.train.lr.choice=[1e-4, 1e-3]"])
    assert [one.kind for one in (again.tune.space or {}).values()] == ["choice"], "a form takes another's place"


def test_a_rule_for_all_domains_is_changed_for_all_in_a_file_that_a_run_left(tmp_path: Path) -> None:
    domains = {
        "films": {"source": "movielens", "path": "films"},
        "books": {"source": "goodbooks", "path": "books", "min_value": 5.0},
    }
    config = validate_config({"name": "both", "data": {"domains": domains, "min_user_interactions": 3}})
    left = tmp_path / "config.yaml"
    left.write_text(yaml.safe_dump(config.as_written()))
    assert load_config(str(left)) == config
    low = load_config(str(left), ["data.min_value=3", "data.min_user_interactions=2"])
    assert low.data.domains is not None
    assert {name: (one.min_value, one.min_user_interactions) for name, one in low.data.domains.items()} == {
        "films": (3.0, 2),
        "books": (5.0, 2),
    }


def test_a_prefix_with_a_colon_needs_no_quotes_within_quotes(written: str) -> None:
    assert load_config(written, ["encoder.prefix=query: "]).encoder.prefix == "query: "
    assert load_config(written, ['encoder.prefix="query: "']).encoder.prefix == "query: "


def test_an_override_leaves_the_rest_of_its_section_alone(written: str) -> None:
    config = load_config(written, ["train.epochs=2", "data.min_value=3"])
    assert (config.train.lr, config.train.epochs) == (1e-5, 2)
    assert (config.data.path, config.data.min_value) == ("raw", 3.0)


def test_the_last_of_two_overrides_wins(written: str) -> None:
    assert load_config(written, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize("override", ["train.lr", "=3", "lr 3"])
def test_an_override_of_another_form_is_refused_with_an_example(written: str, override: str) -> None:
    with pytest.raises(ConfigError, match=r"must be of the form key\.sub=value, e\.g\. train\.lr=2e-5") as caught:
        load_config(written, [override])
    assert repr(override) in str(caught.value)


@pytest.mark.parametrize(
    ("tree", "unknown", "nearest"),
    [
        (with_section(trian={}), "trian", "train"),
        (with_section(train={"learning_rat": 1}), "train.learning_rat", None),
        (with_section(train={"batchsize": 8}), "train.batchsize", "train.batch_size"),
        (with_section(cluster={"num_worker": 2}), "cluster.num_worker", "cluster.num_workers"),
        (with_section(deepspeed={"stag": 2}), "deepspeed.stag", "deepspeed.stage"),
        (with_section(data={"source": "goodbooks", "pth": "raw"}), "data.pth", "data.path"),
        (
            with_section(
                data={"source": "tables", "catalog": {"path": "c", "itemid": "i"}, "interactions": {"path": "i"}}
            ),
            "data.catalog.itemid",
            "data.catalog.item_id",
        ),
        (with_section(data={"source": "shop", "shop": {"num_user": 20}}), "data.shop.num_user", "data.shop.num_users"),
    ],
)
def test_an_unknown_key_at_any_level_names_the_nearest_valid_one(
    tree: dict[str, Any], unknown: str, nearest: str | None
) -> None:
    message = refusal(tree)
    assert message.startswith(f"unknown key {unknown!r}; ")
    if nearest:
        assert f"did you mean {nearest!r}?" in message
    else:
        assert "valid keys here: lr, optimizer, betas" in message


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (with_section(train={"lr": "fast"}), ["train.lr is 'fast': ", "valid number"]),
        (with_section(train={"lr": 0}), ["train.lr is 0: ", "greater than 0"]),
        (with_section(train={"optimizer": "sgd"}), ["train.optimizer is 'sgd': ", "'nadam' or 'adamw'"]),
        (with_section(train={"betas": [0.9, 1.5]}), ["train.betas is 1.5: ", "less than 1"]),
        (with_section(train={"max_output": "some"}), ["train.max_output is 'some': "]),
        (with_section(train=5), ["train is 5: "]),
        (with_section(deepspeed={"stage": 4}), ["deepspeed.stage is 4: ", "0, 1, 2 or 3"]),
        (with_section(data={"source": "amazon"}), ["data.source is 'amazon': ", "'goodbooks', 'movielens'"]),
        (with_section(name="a b/c"), ["name is 'a b/c': "]),
        (with_section(evaluate={"num_bootstrap": 10**11}), ["evaluate.num_bootstrap is 100000000000: ", "1000000"]),
        (with_section(nightly={"num_bootstrap": 10**11}), ["nightly.num_bootstrap is 100000000000: ", "1000000"]),
        ({"name": "a"}, ["data: required key is missing"]),
        (with_section(seed=-1, train={"epochs": 0}), ["(and 1 more)"]),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_named_with_its_rule(tree: dict[str, Any], expected: list[str]) -> None:
    message = refusal(tree)
    for piece in expected:
        assert piece in message


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (with_section(data={"source": "movielens"}), "data.path is required for source 'movielens'"),
        (
            with_section(data={"source": "tables"}),
            "data.catalog is required for source 'tables'",
        ),
        (with_section(train={"loss": "multinomial", "top_k": 5}), "train.top_k is an option of train.loss: nmse, not"),
        (with_section(train={"loss": "sampled_softmax", "relu": False}), "train.relu is an option of train.loss: nmse"),
        (
            with_section(train={"matryoshka_dims": [64, 32]}),
            "train.matryoshka_dims is [64, 32]: give each once",
        ),
        (with_section(evaluate={"splits": ["test", "test"]}), "evaluate.splits has 'test' twice; give each once"),
        (with_section(evaluate={"recall_at": [20, 50, 20]}), "evaluate.recall_at has 20 twice; give each once"),
        (with_section(evaluate={"ndcg_at": [10, 10]}), "evaluate.ndcg_at has 10 twice; give each once"),
        (with_section(index={"recall_at": [10, 10]}), "index.recall_at has 10 twice; give each once"),
        (with_section(baselines={"which": ["ease", "ease"]}), "baselines.which has 'ease' twice; give each once"),
        (with_section(split={"kind": "user", "reproduce": "beeformer"}), "split.reproduce: beeformer is an item split"),
        (
            with_section(split={"kind": "time", "test": 50}),
            "are fractions of the interactions",
        ),
        (with_section(split={"validation": 0.5, "test": 0.5}), "must leave something to train on (sum below 1)"),
    ],
)
def test_sections_that_contradict_themselves_say_what_to_change(tree: dict[str, Any], expected: str) -> None:
    assert expected in refusal(tree)


def test_fractions_just_below_one_and_counts_of_held_out_items_are_accepted() -> None:
    assert a_config(split={"validation": 0.5, "test": 0.49}).split.test == 0.49
    counted = a_config(split={"kind": "user", "validation": 3, "test": 1}).split
    assert (counted.validation, counted.test) == (3, 1)


def test_the_micro_batch_depends_on_device_and_precision_unless_it_is_set() -> None:
    unset = {precision: TrainConfig(precision=precision) for precision in ("fp32", "bf16")}
    assert [config.micro_batch_tokens(use_gpu=False) for config in unset.values()] == [2048, 4096]
    assert [config.micro_batch_tokens(use_gpu=True) for config in unset.values()] == [8192, 8192]
    assert TrainConfig(precision="bf16", token_budget=77).micro_batch_tokens(use_gpu=True) == 77


def test_the_tree_is_frozen() -> None:
    config = a_config()
    with pytest.raises(ValidationError):
        config.train.lr = 1.0  # type: ignore[misc]
    with pytest.raises(ValidationError):
        config.seed = 1  # type: ignore[misc]
    assert config.train.lr == 1e-5


def test_every_key_that_the_documentation_promises_exists() -> None:
    keys = flatten_config(a_config())
    assert [key for key in USER_FACING_KEYS if key not in keys] == []


def test_a_file_that_is_no_mapping_or_no_yaml_or_not_there_is_refused_in_one_line(tmp_path: Path) -> None:
    broken, listed = tmp_path / "broken.yaml", tmp_path / "listed.yaml"
    broken.write_text("train: {lr: [1\n", encoding="utf-8")
    listed.write_text("- a\n- b\n", encoding="utf-8")
    absent = tmp_path / "absent.yaml"
    for path, expected in (
        (broken, "not valid YAML"),
        (listed, "holds list, must be a mapping"),
        (absent, "no such file"),
    ):
        with pytest.raises(ConfigError, match=expected) as caught:
            load_config(str(path))
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: caf\xe9\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(str(path))


def test_a_key_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text("data: {source: shop}\n7: 8\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="7"):
        load_config(str(path))


def test_the_result_digest_ignores_where_a_run_runs_and_what_is_measured() -> None:
    elsewhere = a_config(
        runs_dir="/other/runs",
        evaluate={"num_bootstrap": 10, "neighbours": True},
        tracking={"experiment": "other"},
        cluster={
            "address": "ray://head:10001",
            "object_store_mib": 100,
            "max_failures": 9,
            "placement_timeout_s": 5,
            "threads_per_worker": 2,
            "cpus_per_worker": 1,
            "gpus_per_worker": 0.5,
        },
        train={"checkpoint_every_steps": 3, "keep_checkpoints": 5, "evaluate_every_epochs": 2},
    )
    assert elsewhere.result_digest() == a_config().result_digest()


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"lr": 2e-5}},
        {"train": {"max_steps": 10}},
        {"train": {"loss": "sampled_softmax"}},
        {"train": {"init_from": "runs/yesterday"}},
        {"train": {"lora": {}}},
        {"seed": 43},
        {"encoder": {"prefix": "query: "}},
        {"cluster": {"num_workers": 2}},
        {"deepspeed": {"stage": 2}},
        {"split": {"test": 0.2}},
        {"data": {"source": "goodbooks", "path": "raw", "min_value": 3}},
    ],
)
def test_the_result_digest_changes_with_what_training_computes(sections: dict[str, Any]) -> None:
    assert a_config(**sections).result_digest() != a_config().result_digest()


def test_the_result_digest_is_the_same_in_another_process() -> None:
    program = (
        "from beeray.config import validate_config\n"
        "print(validate_config({'data': {'path': 'raw', 'source': 'goodbooks'}, 'name': 'b'}).result_digest())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert run.stdout.strip() == a_config().result_digest()


def test_a_mappings_digest_does_not_depend_on_the_order_of_its_keys() -> None:
    assert config_digest({"a": 1, "b": [2]}) == config_digest({"b": [2], "a": 1})
    assert config_digest({"a": 1, "b": [2]}) != config_digest({"a": 1, "b": [3]})
    assert len(config_digest({})) == 16


def test_validation_data_is_trained_on_only_when_asked_or_under_the_papers_protocol() -> None:
    assert not a_config().trains_on_validation
    assert a_config(split={"reproduce": "beeformer"}).trains_on_validation
    assert not a_config(split={"reproduce": "beeformer"}, train={"with_validation": False}).trains_on_validation
    assert a_config(train={"with_validation": True}).trains_on_validation


def test_the_store_is_named_after_the_run_unless_it_has_a_place_of_its_own() -> None:
    assert Path(a_config().store_path) in (Path("stores/a"), Path.cwd() / "stores" / "a")
    assert a_config(data={"source": "shop", "store": "s3://bucket/x"}).store_path == "s3://bucket/x"


def test_profiling_and_the_peak_that_mfu_is_a_share_of_do_not_decide_what_training_computes() -> None:
    tree = {"name": "run", "data": {"source": "shop"}}
    plain = validate_config(tree)
    told = validate_config({**tree, "train": {"profile": True}, "cluster": {"peak_tflops": 989.0}})
    assert told.result_keys() == plain.result_keys()
    assert validate_config({**tree, "train": {"lr": 1.0}}).result_keys() != plain.result_keys()


@pytest.mark.parametrize(
    ("key", "path", "said"),
    [
        ("runs_dir", "~/runs", "runs_dir is '~/runs': ~ is not expanded; give the whole path"),
        ("runs_dir", "file:/shared/runs", "runs_dir is 'file:/shared/runs': it must be a folder on a disk that every"),
        ("data.store", "~me/store", "data.store is '~me/store': ~ is not expanded; give the whole path"),
        (
            "data.store",
            "s3:/b/store",
            "data.store is 's3:/b/store': a URI has two slashes after its scheme; give s3://…",
        ),
        ("embed.path", "~/e", "embed.path is '~/e': ~ is not expanded; give the whole path"),
        ("index.path", "file:/x", "index.path is 'file:/x': a URI has two slashes after its scheme; give file://…"),
    ],
)
def test_a_path_that_would_become_a_folder_of_its_name_here_is_refused_as_it_is_typed(
    key: str, path: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        a_config_of(key, path)


@pytest.mark.parametrize("path", ["store", "./~store", "a~b", "/x/~/y", "s3://b/store", "file:///x", "C:/x", "a:b/c"])
def test_other_paths_are_taken_as_they_are(path: str) -> None:
    assert a_config_of("data.store", path).data.store == path


def a_config_of(key: str, path: str) -> Config:
    section, _, inner = key.rpartition(".")
    tree: dict[str, Any] = {"name": "shop", "data": {"source": "shop"}}
    (tree.setdefault(section, {}) if section else tree)[inner] = path
    return validate_config(tree)
