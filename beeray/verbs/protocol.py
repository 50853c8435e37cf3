"""What `beeray.protocol` does: a whole experiment in one command, from raw tables to a table with intervals.

| protocol         | config                  | trained on          | ranked                       |
|------------------|-------------------------|---------------------|------------------------------|
| cold start       | `split.kind: item`      | the other items     | items never trained on       |
| time split       | `split.kind: time`      | what came before    | the whole catalog; filtered  |
| users never seen | `split.kind: user`      | the other users     | the whole catalog            |
| zero-shot        | `protocol.train_on: A`  | A, nothing of this  | as the split says            |

The steps are those of `train`, `evaluate`, `baselines` and `compare`, and each is skipped or resumed as it is there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from beeray.config import Config, load_config
from beeray.console import Console
from beeray.data.scored import Scored, open_scored
from beeray.errors import ConfigError
from beeray.runtime.job_folder import check_outlives_job
from beeray.runtime.session import ray_session
from beeray.runtime.whole_files import write_whole
from beeray.verbs import evaluate, train
from beeray.verbs.baselines import compared, ensure, kept, own_model
from beeray.verbs.evaluate import check_scored
from beeray.verbs.report import refresh_report

NAMES = {"item": "cold_start", "time": "time_split", "user": "new_users"}
RECORD = "protocol.json"


def execute(config: Config, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Train, score, fit baselines, compare; leaves `runs/<name>/protocol.json` beside what the steps leave."""
    check_outlives_job(config, "runs_dir", "data.store")
    source = source_config(config)
    check_scored(config)  # here, and not once everything is trained
    with ray_session(config.cluster, config.storage):
        if source is None:
            trained = train.execute(config, argparse.Namespace(fresh=arguments.fresh), console)
            model, first = trained["model"], []
        else:
            model = train.execute(source, argparse.Namespace(fresh=arguments.fresh), console)["model"]
            first = [_zero_shot(config, model, console)]
        fingerprint, which, _ = ensure(config, list(config.baselines.which), console, fresh=arguments.fresh)
    comparison = compared(config, which, [*first, *own_model(config, fingerprint, console)], console)
    record = {
        "protocol": NAMES[config.split.kind] if source is None else "zero_shot",
        "split": config.split.kind,
        "model": model,
        "trained_on": (source or config).name,
        "store_fingerprint": fingerprint,
        "baselines": {name: kept(name, config, fingerprint) for name in which},
        "comparison": comparison,
    }
    write_whole(config.run_dir / RECORD, json.dumps(record, indent=2))
    refresh_report(config, console)
    return record


def source_config(config: Config) -> Config | None:
    """The config that `protocol.train_on` names; None where the config trains its own.

    Raises:
        ConfigError: it is not valid, or its run would be this one's.
    """
    settings = config.protocol
    if settings.train_on is None:
        if settings.overrides:
            raise ConfigError("protocol.overrides are laid over the config of protocol.train_on, which is not set")
        return None
    source = load_config(settings.train_on, settings.overrides)
    if source.run_dir == config.run_dir:
        raise ConfigError(
            f"protocol.train_on {settings.train_on!r}: its run has the name of this one, {config.name!r}; give one of "
            "them another name"
        )
    if source.store_path == config.store_path:
        raise ConfigError(
            f"protocol.train_on {settings.train_on!r}: its store is this config's, {config.store_path}; give one of "
            "them another data.store"
        )
    return source


def _zero_shot(config: Config, model: str, console: Console) -> Scored:
    """Score an encoder that was trained elsewhere."""
    record = evaluate.execute(config, argparse.Namespace(model=model), console)
    return open_scored(str(Path(record["scores"]).parent))
