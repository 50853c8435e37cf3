"""The config that a sweep goes by: its trials can be measured, none is run twice, and they differ."""

from __future__ import annotations

from typing import Any

from beeray.config import Config, num_points, search_space
from beeray.console import Console
from beeray.data.growth import said_of, said_without_note, trained_on_before
from beeray.data.store import Store
from beeray.errors import ConfigError
from beeray.inputs import open_encoder
from beeray.runtime.sweep.demand import token_variants
from beeray.runtime.sweep.stopping import longest_epochs
from beeray.runtime.warm_start import WarmStart

USERS_AT_ONCE = 4096
HEAD, UNITS = "train.head", "train.head.units"


def measurable(config: Config, console: Console) -> Config:
    """The config with validation held out and scored after every epoch, and no more trials than points.

    Raises:
        ConfigError: the config wants validation data trained on.
    """
    if config.train.with_validation:
        raise ConfigError(
            "train.with_validation is true, but a sweep is measured on validation data; set it to false here, and to "
            "true for the last training of what was found"
        )
    update: dict[str, Any] = {}
    if config.trains_on_validation:
        console.line("validation data is held out in this sweep (split.reproduce would train on it)")
        update["with_validation"] = False
    if config.train.evaluate_every_epochs is None:
        update["evaluate_every_epochs"] = 1
    points = num_points(search_space(config)) or config.tune.num_trials
    if points < config.tune.num_trials:
        console.line(f"the space has {points} points, so there are as many trials, not {config.tune.num_trials}")
    num_trials = min(points, config.tune.num_trials)
    config = config.model_copy(
        update={
            "train": config.train.model_copy(update=update),
            "tune": config.tune.model_copy(update={"num_trials": num_trials}),
        }
    )
    if config.tune.asha is not None and longest_epochs(config) <= config.tune.asha.grace_epochs:
        console.line(
            f"no trial can be stopped early: train.epochs is {longest_epochs(config)}, and tune.asha.grace_epochs "
            f"{config.tune.asha.grace_epochs}"
        )
    return config


def check_searched_head(config: Config, warm: WarmStart | None) -> None:
    """Refuse to search over how a head is trained where `train.init_from` brings one, which is kept: nothing differs.

    `train.head.units` is let through: all values but the units of that head make invalid trials. Opens the encoder, if
    there is something to refuse.

    Raises:
        ConfigError: names the key.
        EncoderError: it cannot be opened.
    """
    searched = {key: one for key, one in search_space(config).items() if key == HEAD or key.startswith(f"{HEAD}.")}
    if warm is None or not searched.keys() - {UNITS}:
        return
    from beeray.core.head import head_units  # imports torch

    opened = next(iter(token_variants(config).values()))  # at a text length of the space: the config's may be too long
    units = head_units(open_encoder(warm.start_of(opened)))
    if units is None:
        return
    for key, dimension in searched.items():
        if key == UNITS:
            continue
        if key == HEAD and sum(one is None or one["units"] == units for one in dimension.probes) < 2:
            continue  # the others do not fit
        raise ConfigError(
            f"tune.space has {key!r}, but train.init_from {warm.given!r} brings a head, which is gone on with and "
            "not trained alone again, so trials that differ in this would train the same model; leave the key out, or "
            "begin with an encoder without a head"
        )


def check_validation_users(config: Config, store: Store) -> None:
    """Refuse to rank trials by the figures of nobody.

    Raises:
        ConfigError: no user has something to go by and a target in validation.
    """
    from beeray.runtime.scoring import scored_domains  # imports torch

    domains = scored_domains(config, store)
    if all(next(store.evaluation_users("validation", USERS_AT_ONCE, domain=one), None) is None for one in domains):
        raise ConfigError(
            f"tune: no user of store {store.path!r} has a history and a target in validation, so trials cannot be told "
            f"apart (split.kind {store.meta.split_kind!r}, split.validation, evaluate.domains); hold out more, or "
            "split by something else"
        )


def check_held_out(warm: WarmStart | None, store: Store, console: Console) -> None:
    """Refuse to rank trials by what the encoder that they begin with was trained on; says so where that is not known.

    Args:
        warm: what `train.init_from` names.

    Raises:
        ConfigError: some of the store's validation data was trained on.
    """
    if warm is None:
        return
    kind = store.meta.split_kind
    counts, growth = trained_on_before(store, warm.items)
    if growth is not None and growth.strange:
        console.line(f"train.init_from {warm.given}: {growth.said_of_strange(kind)}")
        if counts is None and len(growth.strange) == len(store.meta.domains):
            return
    if counts is None:
        console.line(
            f"train.init_from {warm.given}: it {said_without_note(kind)}, and a sweep would be measured on those of "
            "validation"
        )
        return
    seen = said_of({"validation": counts["validation"]}, kind)
    if seen:
        raise ConfigError(
            f"train.init_from {warm.given!r}: {seen}, and a sweep ranks its trials by them; name a "
            "run that held them out (train.with_validation: false, on this store), or leave train.init_from out"
        )
