"""What a person sees: progress on stderr, one JSON line at the end of stdout, chatter in a log file.

Ray, DeepSpeed and transformers write to file descriptors 1 and 2 from several threads and from C++.
A verb therefore keeps the real descriptors to itself and points 1 and 2 at the run's log file while it
works; what it has to say goes through `Console`.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

from beeray.chatter import chatter_in
from beeray.config import Config, load_config
from beeray.errors import BeerayError
from beeray.interruption import Interrupted, interrupt, signals_handled
from beeray.stream import Stream

EXIT_USER_ERROR = 2
AGAIN, ANEW = "run the same command again", "run the same command again without --fresh"
"""What errors say of going on, and what is to be said where the same command would clear it again."""
SECONDS_BETWEEN_LINES = 10.0


class Console:
    """The two streams a person reads; what they cannot take is lost, but the record is missed.

    Attributes:
        again: what errors say of going on; `ANEW` once `--fresh` has cleared what was there.
    """

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self.out = Stream(out or sys.stdout)
        self.err = Stream(err or sys.stderr)
        self.again = AGAIN

    def line(self, text: str) -> None:
        """One line of information, on stderr."""
        self.err.line(text)

    def show(self, text: str) -> None:
        """Something to read, on stdout."""
        self.out.line(text)

    def result(self, record: dict[str, Any]) -> None:
        """The last line of stdout: what was made and measured, as one line of JSON.

        Raises:
            BeerayError: it could not be written; whoever left before it (`| head`) does not want it.
        """
        begun = "\n" if self.out.error else ""  # half a line may stand there
        error = self.out.line_on_disk(begun + json.dumps(record, default=str))
        if error is not None:
            raise BeerayError(
                f"stdout: the record could not be written ({error.strerror or error}); the work is done and what it "
                "made is kept: make room there, and run the same command again for the record"
            )

    def progress(self, label: str, total: int | None = None, unit: str = "it") -> Progress:
        """A bar on a terminal, now and then a line elsewhere."""
        return Progress(self.err, label, total, unit)


class Progress:
    """One bar; `update_to` may be called often."""

    def __init__(self, stream: TextIO | Stream, label: str, total: int | None, unit: str) -> None:
        self.stream = stream if isinstance(stream, Stream) else Stream(stream)
        self.label = label
        self.total = total
        self.done = 0
        self.note = ""
        self._started = self._last_line = time.monotonic()
        self._bar = (
            tqdm(total=total, desc=label, unit=unit, file=self.stream, dynamic_ncols=True, leave=True, mininterval=0.2)
            if self.stream.isatty()
            else None
        )

    def update_to(self, done: int, note: str = "", total: int | None = None) -> None:
        """Say how far the work is."""
        self.total = total if total is not None else self.total
        self.note = note
        if self._bar is not None:
            self._bar.total = self.total
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self.done)
        elif time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.stream.line(self._text(done))
        self.done = done

    def close(self) -> None:
        """Finish the bar, or say in one line what was done and how long it took."""
        if self._bar is not None:
            self._bar.close()
        else:
            elapsed = time.monotonic() - self._started
            self.stream.line(f"{self._text(self.done)} in {elapsed:.1f} s")

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _text(self, done: int) -> str:
        note = f"  {self.note}" if self.note else ""
        if not done and not self.total:  # nothing was counted
            return f"{self.label}{note}"
        of = f" of {self.total:,}" if self.total else ""
        return f"{self.label}: {done:,}{of}{note}"


Execute = Callable[[Config, argparse.Namespace, Console], dict[str, Any]]
"""What a verb does: with a config, the command's arguments and a console, returning the record that it prints."""
ExitCode = Callable[[dict[str, Any]], int]


class StageReporter:
    """Turns `report(stage, done, total)` calls into one bar per stage."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._stage = ""
        self._bar: Progress | None = None

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Say how far a stage is; a new stage closes the bar of the one before."""
        if stage != self._stage:
            self.close()
            self._stage, self._bar = stage, self.console.progress(stage, total)
        assert self._bar is not None
        self._bar.update_to(done, total=total)

    def close(self) -> None:
        """Close the bar of the last stage."""
        if self._bar is not None:
            self._bar.close()
        self._stage, self._bar = "", None

    def __enter__(self) -> StageReporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def quiet(log_path: Path) -> Iterator[Console]:
    """Point file descriptors 1 and 2 at a log file, and yield a console on the real ones."""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(log_path, "ab", buffering=0) as log,
        _written(1) as out,
        _written(2) as err,
        chatter_in(log.fileno()),
    ):
        yield Console(out, err)


@contextmanager
def _written(descriptor: int) -> Iterator[TextIO]:
    """A stream of its own on a descriptor; what is wrong with it was told when it was written to."""
    stream = open(os.dup(descriptor), "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    try:
        yield stream
    finally:
        with suppress(OSError):
            stream.close()


def verb_parser(verb: str, description: str) -> argparse.ArgumentParser:
    """The arguments every verb takes: `--config C`, `--verbose`, and dotted overrides."""
    parser = argparse.ArgumentParser(prog=f"python -m beeray.{verb}", description=description)
    parser.add_argument("--config", required=True, help="a YAML file, or the name of one under configs/")
    parser.add_argument("--verbose", action="store_true", help="leave the libraries' own output on the terminal")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="e.g. train.lr=2e-5 seed=7")
    return parser


def run_verb(
    verb: str,
    parser: argparse.ArgumentParser,
    execute: Execute | None = None,
    argv: Sequence[str] | None = None,
    exit_code: ExitCode = lambda record: 0,
) -> int:
    """Parse the command line and do as `run_parsed`; returns the exit code."""
    return run_parsed(verb, parser.parse_intermixed_args(argv), execute, exit_code)


def run_parsed(
    verb: str,
    arguments: argparse.Namespace,
    execute: Execute | None = None,
    exit_code: ExitCode = lambda record: 0,
    log: Path | None = None,
) -> int:
    """Load the config, execute quietly, print the result; returns the exit code.

    Torch, Ray and MLflow take seconds to import, and a mistake in the config is told before that: what a verb does
    is imported from `beeray.verbs` when the config has been found valid.

    Args:
        arguments: of `verb_parser`.
        execute: what the verb does; `beeray.verbs.<verb>.execute` unless given.
        exit_code: of a verb that went well, by its record.
        log: file of the libraries' chatter; one under `runs_dir` unless given.

    A `BeerayError` becomes one line on stderr and exit code 2, SIGINT and SIGTERM one line and 130 and 143. Anything
    else is a defect: its traceback goes to the log and its last line, with the log's path, to stderr; exit code 1.
    Where the record cannot be printed the code is 2 instead of 0; lines and bars that cannot be are lost.
    """
    try:
        config = load_config(arguments.config, arguments.overrides)
    except BeerayError as error:
        Console().line(f"beeray {verb}: {error}")
        return EXIT_USER_ERROR
    work = execute or functools.partial(_execute, verb)
    if arguments.verbose:
        return _guarded(verb, functools.partial(work, config, arguments), Console(), None, exit_code)
    log_path = log or config.run_dir.parent / "logs" / f"{config.name}-{verb}.log"
    try:
        log_path.parent.mkdir(parents=True, exist_ok=True)
        log_path.open("ab").close()
    except OSError as error:
        Console().line(
            f"beeray {verb}: runs_dir {config.runs_dir!r}, name {config.name[:80]!r}: {error.strerror}; "
            "give a folder and a name that a log can be written under"
        )
        return EXIT_USER_ERROR
    with quiet(log_path) as console:
        return _guarded(verb, functools.partial(work, config, arguments), console, log_path, exit_code)


def run_without_config(verb: str, parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> int:
    """Parse, execute `beeray.verbs.<verb>.execute(arguments, console)`, print the result; as `run_verb` otherwise."""
    arguments = parser.parse_intermixed_args(argv)

    def work(console: Console) -> dict[str, Any]:
        execute = importlib.import_module(f"beeray.verbs.{verb}").execute
        return dict(execute(arguments, console))

    return _guarded(verb, work, Console(), None)


def _execute(verb: str, config: Config, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    execute: Execute = importlib.import_module(f"beeray.verbs.{verb}").execute
    return execute(config, arguments, console)


def _guarded(
    verb: str,
    execute: Callable[[Console], dict[str, Any]],
    console: Console,
    log_path: Path | None,
    exit_code: ExitCode = lambda record: 0,
) -> int:
    try:
        with signals_handled(interrupt):
            record = execute(console)
    except BeerayError as error:
        console.line(f"beeray {verb}: {str(error).replace(AGAIN, console.again)}")
        return EXIT_USER_ERROR
    except KeyboardInterrupt as error:
        stopped = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        console.line(f"beeray {verb}: {stopped.said.replace(AGAIN, console.again)}; {console.again} to go on")
        return stopped.exit_code
    except Exception as error:
        with suppress(OSError):  # the log's disk may be full
            traceback.print_exc()
        where = f"; traceback in {log_path}" if log_path else ""
        said = (str(error).splitlines() or ["no message"])[0]
        console.line(f"beeray {verb}: internal error: {type(error).__name__}: {said}{where}")
        return 1
    try:
        console.result(record)
    except BeerayError as error:
        console.line(f"beeray {verb}: {error}")
        return exit_code(record) or EXIT_USER_ERROR
    return exit_code(record)
