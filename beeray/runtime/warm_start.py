"""Beginning with what an earlier run learned: `train.init_from`."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

from beeray.config import Config
from beeray.config.paths import found
from beeray.errors import ConfigError, RunError
from beeray.runtime.lineage import run_of
from beeray.runtime.run_folder import CONFIG, ITEMS, METRICS, MODEL, RUN, TRIALS


@dataclass(frozen=True)
class WarmStart:
    """Where a run's encoder comes from.

    Attributes:
        given: what `train.init_from` says.
        model: absolute folder of the encoder, with its head if it has one.
        items: the list of items of the run that trained it; None where no run did, or none that left a list.
    """

    given: str
    model: str
    items: str | None

    def start_of(self, config: Config) -> Config:
        """The config with the encoder that is begun with in the encoder's place."""
        return config.model_copy(update={"encoder": config.encoder.model_copy(update={"name": self.model})})


def find_warm_start(config: Config) -> WarmStart | None:
    """What `train.init_from` names; None where it names nothing.

    Raises:
        RunError: a run that is not finished, or the run itself.
        ConfigError: neither a run nor an encoder is there, or it was trained with another prefix.
    """
    given = config.train.init_from
    if given is None:
        return None
    folder = found(given)
    run = run_of(str(folder)) or folder
    own = config.run_dir.resolve()
    kept = own / TRIALS  # of a sweep of the same name
    if folder.resolve().is_relative_to(own) and not folder.resolve().is_relative_to(kept):  # --fresh would delete it
        raise RunError(f"train.init_from {given!r} is this run's own folder; name another, or choose another name=…")
    if (run / RUN).is_file() or (run / CONFIG).is_file():
        if not ((run / METRICS).is_file() and (run / MODEL).is_dir()):
            raise RunError(f"train.init_from {given!r}: that run is not finished; finish it first, or name another")
        items = run / ITEMS
        _check_prefix(config, run / MODEL, f"train.init_from {given!r}", always=True)
        return WarmStart(given, str(run / MODEL), str(items) if items.is_file() else None)
    if not (folder / "modules.json").is_file():
        raise ConfigError(
            f"train.init_from {given!r}: neither a run nor an encoder is there; give the folder of a finished run "
            "(runs/<name>), or one written by SentenceTransformer.save"
        )
    _check_prefix(config, folder, f"train.init_from {given!r}", always=False)
    return WarmStart(given, str(folder), None)


def check_peft(config: Config) -> None:
    """Refuse `train.lora` where its library is missing, before anything is started."""
    if config.train.lora is not None and importlib.util.find_spec("peft") is None:
        raise ConfigError("train.lora needs peft, which is not installed: pip install 'beeray[lora]', or leave it out")


def check_model_prefix(config: Config, model: str, given: str) -> None:
    """A run's trained encoder is opened with the prefix that it was trained with; of any other nothing is known.

    Args:
        model: the run's folder, or the one of its encoder; any other is let through.
        given: how the model was asked for, e.g. `embed.model 'runs/a/model'`.

    Raises:
        ConfigError: `encoder.prefix` is another, or the model's settings are damaged.
    """
    run = run_of(model)
    if run is not None:
        _check_prefix(config, run / MODEL, given, always=True)


def _check_prefix(config: Config, model: Path, given: str, *, always: bool) -> None:
    """An encoder that learned with one prefix is to go on with it.

    Args:
        given: how it was asked for.
        always: having none is a prefix, too: so it is with what a run exported, while other folders may just not say.
    """
    saved = model / "config_sentence_transformers.json"
    try:
        record = json.loads(saved.read_text(encoding="utf-8")) if saved.is_file() else {}
        name = record.get("default_prompt_name")
        prefix = record.get("prompts", {}).get(name, "") if name else ""
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ConfigError(f"{given}: {saved} is damaged ({error}); save that encoder again") from error
    if prefix != config.encoder.prefix and (always or name):
        raise ConfigError(
            f"encoder.prefix is {config.encoder.prefix!r}: what {given} names was trained with "
            f"{prefix!r}; set encoder.prefix to that"
        )
