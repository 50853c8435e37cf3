"""What nights of nightly training did: one small file each, so that a job that was killed goes on with its night.

    runs/<name>/nights/<night>.json     the serving model it began with, the gate's verdict, what was published
    runs/<name>-<night>/                the night's training run; a night is called by its date, the second of a day
                                        2026-01-31-2

A night's file is written before it trains, so it continues from the model that served when it began whatever has been
published since; and the verdict before it publishes, so that a new model is never compared with itself.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from beeray.config import Config
from beeray.errors import ConfigError, RunError
from beeray.runtime.locks import locked_file
from beeray.runtime.run_folder import MODEL, NIGHTS
from beeray.runtime.whole_files import write_whole

NAME = re.compile(r"(\d{4}-\d{2}-\d{2})(?:-([2-9]|[1-9]\d+))?", re.ASCII)


@dataclass(frozen=True)
class Night:
    """One night.

    Attributes:
        name: its date, with a number from 2 on where it is not the first of the day.
        store_fingerprint: of the tables it trains on.
        serving: name and fingerprint of the model that served when it began; None where nothing was published.
        verdict: the gate's, once it has judged (a `Verdict.record()`; without `judged` where nothing served, and with
            the error as `diverged` instead where training did).
        published: versions that were published with the new model, by domain ("" where there is one); None before.
        refreshed: the same of a night that was refused: today's items, embedded with the model that serves on.
    """

    name: str
    store_fingerprint: str
    serving: dict[str, str] | None
    verdict: dict[str, Any] | None = None
    published: dict[str, str] | None = None
    refreshed: dict[str, str] | None = None

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do: today's items are published, with the new or with the serving model."""
        return self.published is not None or self.refreshed is not None

    @property
    def refused(self) -> bool:
        """Whether the gate refused the new model."""
        return self.verdict is not None and not self.verdict["publish"]


class Nights:
    """All nights of a config."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.folder = config.run_dir / NIGHTS

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other nightly commands of this name away; RunError where one is at work."""
        said = f"the nightly training of {self.config.name!r} is being done by another command"
        lock = self.config.run_dir.parent / "logs" / f"{self.config.name}-nightly.lock"
        with locked_file(lock, said, "wait for it, or stop it"):
            yield

    def kept(self, name: str) -> Night | None:
        """What a night did; None if it has not begun."""
        file = self.folder / f"{name}.json"
        if not file.is_file():
            return None
        try:
            return Night(**json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise RunError(f"{file} is damaged ({error}); remove it, and the night begins anew") from None

    def chosen(self, asked: str | None, today: str, store_fingerprint: str) -> str:
        """Which night is worked on: the one asked for; an unfinished one; today's, or another of today.

        An unfinished one that was judged goes on whatever its tables are now, since some domains may be served by its
        model already; one that was not, while they are the same. Where today's is finished and the tables have changed
        since, another one begins: what came in must not wait for tomorrow.

        Args:
            today: its date.
            store_fingerprint: of the store that the tables give now.

        Raises:
            ConfigError: the one asked for is no date, or of days to come, behind which no later night would be found.
        """
        if asked is not None:
            return _checked(asked, today)
        last = self._names()[-1:]
        night = self.kept(last[0]) if last else None
        if night is None or (night.finished and _order(night.name)[0] < today):
            return today
        if night.finished:
            day, number = _order(night.name)
            return night.name if night.store_fingerprint == store_fingerprint else f"{day}-{number + 1}"
        goes_on = night.verdict is not None or night.store_fingerprint == store_fingerprint
        return night.name if goes_on or _order(night.name)[0] >= today else today

    def keep(self, night: Night, **changes: Any) -> Night:
        """Write a night, with changes, and return it."""
        night = dataclasses.replace(night, **changes)
        write_whole(self.folder / f"{night.name}.json", json.dumps(asdict(night), indent=2))
        return night

    def forget(self, name: str) -> None:
        """Have a night begin anew."""
        (self.folder / f"{name}.json").unlink(missing_ok=True)

    def run_name(self, night: str) -> str:
        """Name of a night's training run."""
        return f"{self.config.name}-{night}"

    def run_dir(self, night: str) -> Path:
        """Folder of a night's training run."""
        return self.config.run_dir.with_name(self.run_name(night))

    def model(self, night: str) -> Path:
        """What a night trained."""
        return self.run_dir(night) / MODEL

    def published_model(self) -> Path | None:
        """The model of a night that was the last to be published; None where none was."""
        published = (name for name in reversed(self._names()) if (night := self.kept(name)) and night.published)
        last = next(published, None)
        return None if last is None else self.model(last)

    def prune(self, serving: Sequence[str], tell: Callable[[str], None]) -> list[str]:
        """Remove runs of older nights, but never one that a serving model is in; returns their names.

        An unfinished night goes when a later one is finished, since no command goes on with it unless named. It is
        forgotten, too, and begins anew if it is.

        Args:
            serving: folders of models that serve, by whatever name.
            tell: takes a line about each run that cannot be removed.
        """
        nights = [night for night in map(self.kept, self._names()) if night is not None]
        last_finished = max((_order(night.name) for night in nights if night.finished), default=("", 0))
        models, removed = [Path(model).resolve() for model in serving], []
        for night in nights[: -self.config.nightly.keep_runs]:
            run = self.run_dir(night.name)
            serves = any(model.is_relative_to(run.resolve()) for model in models)
            if _order(night.name) > last_finished or not run.is_dir() or serves:
                continue
            try:
                shutil.rmtree(run)
            except OSError as error:
                tell(
                    f"warning: {run} cannot be removed ({error.strerror}); remove it, or give this user the right to it"
                )
                continue
            if not night.finished:
                self.forget(night.name)
            removed.append(run.name)
        return removed

    def _names(self) -> list[str]:
        names = (file.stem for file in self.folder.glob("*.json") if NAME.fullmatch(file.stem))
        return sorted(names, key=_order)


def _order(name: str) -> tuple[str, int]:
    """A night's date, and which of that day it is."""
    matched = NAME.fullmatch(name)
    assert matched is not None
    return matched[1], int(matched[2] or 1)


def _checked(asked: str, today: str) -> str:
    matched = NAME.fullmatch(asked)
    try:
        day = date.fromisoformat(matched[1]) if matched else None
    except ValueError:
        day = None
    if day is None:
        raise ConfigError(f"--night {asked!r}: must be a date, e.g. {today}")
    if day > date.fromisoformat(today) + timedelta(days=1):  # a night may be called by the date of another time zone
        raise ConfigError(f"--night {asked!r}: is in the future (today is {today}); later nights would not be found")
    return asked
