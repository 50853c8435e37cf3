"""What the trials of a space ask for, all of them together: workers, and token stores."""

from __future__ import annotations

import itertools

from beeray.config import Config, search_space


def largest_demand(config: Config) -> Config:
    """The config with the most that a point of the space asks of the cluster."""
    space = search_space(config)
    update = {}
    for key in ("num_workers", "cpus_per_worker", "gpus_per_worker"):
        dimension = space.get(f"cluster.{key}")
        if dimension is not None:
            update[key] = max(dimension.probes)
    return config.model_copy(update={"cluster": config.cluster.model_copy(update=update)})


def token_variants(config: Config) -> dict[tuple[str, str], Config]:
    """A config for each token store that trials need, by the encoder's name and prefix.

    One token store serves every text length up to its limit, so each is made for the longest of the space.
    """
    space = search_space(config)
    own = {"encoder.name": config.encoder.name, "encoder.prefix": config.encoder.prefix}
    names, prefixes = (space[key].probes if key in space else (value,) for key, value in own.items())
    lengths = {}
    for section in ("encoder", "evaluate"):
        dimension = space.get(f"{section}.max_seq_length")
        if dimension is not None:
            lengths[section] = max((value for value in dimension.probes if value is not None), default=None)
    variants = {}
    for name, prefix in itertools.product(names, prefixes):
        encoder = {"name": name, "prefix": prefix}
        encoder |= {"max_seq_length": lengths["encoder"]} if lengths.get("encoder") else {}
        evaluate = {"max_seq_length": lengths["evaluate"]} if lengths.get("evaluate") else {}
        variants[name, prefix] = config.model_copy(
            update={
                "encoder": config.encoder.model_copy(update=encoder),
                "evaluate": config.evaluate.model_copy(update=evaluate),
            }
        )
    return variants
