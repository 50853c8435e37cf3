"""The space of a sweep, checked against the config tree before anything starts; and a config at a point of it."""

from __future__ import annotations

import difflib
import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from beeray.config.data import DomainConfig
from beeray.config.explain import explain
from beeray.config.tune import Dimension, TuneConfig
from beeray.errors import ConfigError

if TYPE_CHECKING:
    from beeray.config.tree import Config

FIXED = {
    "name": "names the run",
    "runs_dir": "says where runs are",
    "seed": "decides which items are held out, so trials would be measured on different ones",
    "data": "decides what is in the store, so trials would be measured on different data",
    "split": "decides what is held out, so trials would be measured on different items",
    "storage": "does not change what training computes",
    "tracking": "does not change what training computes",
    "baselines": "does not change what training computes",
    "protocol": "does not change what training computes",
    "report": "does not change what training computes",
    "embed": "does not change what training computes",
    "index": "does not change what training computes",
    "nightly": "does not change what training computes",
    "evaluate": "decides how trials are measured, so they could not be compared",
    "tune": "is the sweep itself",
    "train.init_from": "is where every trial begins",
}
"""What cannot be searched over, and why: whole sections, and keys."""
SEARCHABLE = ("evaluate.max_seq_length",)
WEIGHT = re.compile(r"data\.domains\.([^.]+)\.weight")
"""Of `data` the one key that may be searched over: how often a domain's users come is not in the store."""
LR_PRESET = (1e-5, 1e-3)
MOST_COMBINATIONS = 200


def search_space(config: Config) -> dict[str, Dimension]:
    """The dimensions of a sweep by dotted key: presets, overlaid by `tune.space`; presets alone where it is empty."""
    tune = config.tune
    presets: tuple[str, ...] | None = tune.presets
    if presets is None:
        presets = () if tune.space else ("lr", "max_output", "batch_size")
        if config.train.max_output == "all":
            presets = tuple(one for one in presets if one != "max_output")
    space = {f"train.{one}": _preset(config, one) for one in presets} | dict(tune.space)
    return {key: _as_the_tree_has_it(type(config), key, dimension) for key, dimension in space.items()}


def noted_point(config: Config, values: Mapping[str, Any]) -> dict[str, Any]:
    """A point that a sweep noted, perhaps in an earlier version, with values as `search_space` has them now."""
    return {key: _normal(type(config), key, value) for key, value in values.items()}


def _as_the_tree_has_it(tree: type[BaseModel], key: str, dimension: Dimension) -> Dimension:
    """A dimension whose choices are what the tree makes of them: YAML reads `1e-5` as text, and 16 may stand for 16.0.

    Choices that the key does not take stay as they are.
    """
    if dimension.choice is None:
        return dimension
    return dimension.model_copy(update={"choice": tuple(_normal(tree, key, value) for value in dimension.choice)})


def _normal(tree: type[BaseModel], key: str, value: Any) -> Any:
    taken = _taken(tree, key)
    if taken is None:
        return value
    try:
        return taken.dump_python(taken.validate_python(value), mode="json")
    except ValidationError:
        return value


@functools.cache
def _taken(tree: type[BaseModel], key: str) -> TypeAdapter[Any] | None:
    """What a dotted key takes; None where there is no such key."""
    field = _field(tree, key)
    if field is None:
        return None
    taken: TypeAdapter[Any] = TypeAdapter(Annotated[(field.annotation, Field(), *field.metadata)])  # type: ignore[arg-type]
    return taken


def _field(model: type[BaseModel], key: str) -> FieldInfo | None:
    """The field of a dotted key; None where there is none."""
    if WEIGHT.fullmatch(key):
        return DomainConfig.model_fields["weight"]
    name, _, rest = key.partition(".")
    field = model.model_fields.get(name)
    if field is None or not rest:
        return field
    section = _section(field)
    return None if section is None else _field(section, rest)


def _section(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field holds, or may hold."""
    options = [field.annotation, *getattr(field.annotation, "__args__", ())]
    return next((one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _preset(config: Config, name: str) -> Dimension:
    train, workers = config.train, config.cluster.num_workers
    if name == "lr":
        return Dimension(loguniform=LR_PRESET)
    if name == "max_output":
        own = train.max_output
        if own == "all":
            raise ValueError(
                "tune.presets has max_output, which is tried at half and twice the config's own, but train.max_output "
                "is 'all'; give it a number, or leave the preset out"
            )
        return Dimension(choice=(max(2, own // 2), own, 2 * own) if own > 2 else (own, 2 * own))
    half = max(workers, train.batch_size // 2 // workers * workers)
    return Dimension(choice=tuple(dict.fromkeys((half, train.batch_size, 2 * train.batch_size))))


def num_points(space: Mapping[str, Dimension]) -> int | None:
    """How many points a space has; None where there is no end of them."""
    numbers = [dimension.num_values for dimension in space.values()]
    return math.prod(number for number in numbers if number) if None not in numbers else None


def at_point(config: Config, point: Mapping[str, Any]) -> Config:
    """The config with some dotted keys at other values, validated anew.

    Raises:
        ConfigError: one line.
    """
    try:
        return _validated(config, point)
    except ValidationError as error:
        raise ConfigError(explain(error, type(config))) from None


def own_point(config: Config, space: Mapping[str, Dimension]) -> dict[str, Any] | None:
    """The config's own values, if they are a point of the space."""
    own = {key: _value(config, key) for key in space}
    return own if all(space[key].holds(value) for key, value in own.items()) else None


def check_space(config: Config) -> None:
    """Refuse a space with keys or values that the config tree does not take.

    Raises:
        ValueError: names the key, the value and the remedy.
    """
    space = search_space(config)
    for key, dimension in space.items():
        _check_key(config, key)
        mistake = dimension.mistake()
        if mistake is not None:
            raise ValueError(f"tune.space: {key} {mistake}")
    for key, dimension in space.items():
        for value in dimension.probes:
            _check_value(config, space, key, value)
        if dimension.within is not None:
            _check_within(config, space, key, dimension)
    names = epoch_metrics(config)
    if config.tune.metric is not None and config.tune.metric not in names:
        raise ValueError(f"tune.metric is {config.tune.metric!r}: an epoch reports {', '.join(names)}")


def searched_metric(config: Config) -> str:
    """The metric that the sweep goes by, as an epoch reports it."""
    return config.tune.metric or epoch_metrics(config)[0]


def epoch_metrics(config: Config) -> list[str]:
    """Names of what an epoch reports."""
    names = [f"ndcg@{k}" for k in config.evaluate.ndcg_at] + [f"recall@{k}" for k in config.evaluate.recall_at]
    return [f"validation/{name}" for name in names]


def _check_key(config: Config, key: str) -> None:
    weight = WEIGHT.fullmatch(key)
    if weight is not None:
        if weight[1] not in (config.data.domains or {}):
            there = ", ".join(config.data.domains or {}) or "none: it is one source"
            raise ValueError(f"tune.space has {key!r}; the domains of data are {there}; correct the name")
        return
    why = FIXED.get(key) or FIXED.get(key.partition(".")[0])
    if why is not None and key not in SEARCHABLE:
        raise ValueError(f"tune.space has {key!r}, which {why}; leave it out")
    if key == "encoder.name" and config.train.init_from is not None:
        raise ValueError(
            "tune.space has 'encoder.name', but train.init_from says which encoder every trial begins with"
        )
    known = sorted(_leaves(type(config)))
    if key in known:
        return
    within = sorted((one for one in known if one.rpartition(".")[2] == key.rpartition(".")[2]), key=len)
    near = (within or difflib.get_close_matches(key, known, n=1, cutoff=0.5))[:1]
    hint = f"did you mean {near[0]!r}?" if near else "give the dotted key of a value, e.g. train.lr"
    raise ValueError(f"tune.space has unknown key {key!r}; {hint}")


def _check_value(config: Config, space: Mapping[str, Dimension], key: str, value: Any) -> None:
    """Refuse a value that is valid neither with the config nor with any probe of the other keys."""
    try:
        _validated(config, {key: value})
        return
    except ValidationError as error:
        first = error
    others = [other for other in space if other != key]
    points = itertools.product(*(space[other].probes for other in others))
    for point in itertools.islice(points, MOST_COMBINATIONS if others else 0):
        try:
            _validated(config, {key: value, **dict(zip(others, point, strict=True))})
            return
        except ValidationError:
            continue
    raise ValueError(f"tune.space: {key} takes no {value!r}: {explain(first, type(config))}")


def _check_within(config: Config, space: Mapping[str, Dimension], key: str, dimension: Dimension) -> None:
    """Refuse a range of any numbers over a key that takes whole ones: its ends are valid, and hardly another."""
    try:
        _check_value(config, space, key, dimension.within)
    except ValueError as error:
        whole = "loginteger" if dimension.kind.startswith("log") else "integer"
        raise ValueError(f"{error}; {dimension.kind} draws such numbers, use {whole} for whole ones") from None


def _validated(config: Config, point: Mapping[str, Any]) -> Config:
    tree = config.model_dump(mode="json") | {"tune": TuneConfig().model_dump(mode="json")}
    for key, value in point.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node[parent] = node.get(parent) or {}
            node = node[parent]
        node[leaf] = list(value) if isinstance(value, tuple) else value
    return type(config).model_validate(tree)


def _value(config: Config, key: str) -> Any:
    node: Any = config.model_dump(mode="json")
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted keys of all values of a tree, those of sections that may be null too."""
    for name, field in model.model_fields.items():
        section = _section(field)
        if section is None or field.default is None:
            yield f"{prefix}{name}"
        if section is not None:
            yield from _leaves(section, f"{prefix}{name}.")
