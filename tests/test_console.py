"""What a person sees of a verb, run as a real process: two quiet streams, an exit code and a log file."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from tqdm import tqdm

from beeray import console as console_module
from beeray import doctor
from beeray.console import Console, Progress, StageReporter
from beeray.errors import BeerayError

VERB = """
import os, sys
from beeray.console import run_verb, verb_parser
from beeray.errors import DataError

def execute(config, arguments, console):
{body}

sys.exit(run_verb("demo", verb_parser("demo", "a verb"), execute, exit_code=lambda record: record.get("code", 0)))
"""


def run(tmp_path: Path, body: str, *arguments: str, **streams: Any) -> subprocess.CompletedProcess[str]:
    """Run a verb whose work is `body` in a process of its own, in `tmp_path`; streams are `stdout`, `stderr`."""
    (tmp_path / "shop.yaml").write_text("data: {source: shop}\n", encoding="utf-8")
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    command = [sys.executable, "-c", VERB.format(body=indented), "--config", "shop.yaml", *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.run(command, cwd=tmp_path, text=True, timeout=300, **streams)


def log_of(tmp_path: Path) -> str:
    return (tmp_path / "runs" / "logs" / "shop-demo.log").read_text(encoding="utf-8")


def test_the_last_line_of_stdout_is_the_result_as_json(tmp_path: Path) -> None:
    done = run(tmp_path, "console.show('a table')\nconsole.line('a remark')\nreturn {'seed': config.seed}", "seed=7")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "a table"
    assert json.loads(done.stdout.splitlines()[-1]) == {"seed": 7}
    assert done.stderr == "a remark\n"


def test_a_terminal_that_is_not_of_utf_8_has_letters_spelt_out(tmp_path: Path) -> None:
    body = "console.show('p ≤ 0.0002')\nconsole.line('goes on …')\nreturn {}"
    (tmp_path / "shop.yaml").write_text("data: {source: shop}\n", encoding="utf-8")
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    command = [sys.executable, "-c", VERB.format(body=indented), "--config", "shop.yaml", "--verbose"]
    surroundings = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=surroundings, check=False)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "p \\u2264 0.0002"), done.stderr
    assert "goes on \\u2026" in done.stderr


def test_a_stream_that_was_closed_takes_nothing_and_ends_nothing() -> None:
    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
        console = Console()
        console.show("a table")
        console.line("a remark")
        console.result({})


def test_a_command_that_would_start_over_is_told_how_to_go_on(tmp_path: Path) -> None:
    for fresh, said in ((False, "run the same command again"), (True, "run the same command again without --fresh")):
        error = BeerayError("a worker was lost; run the same command again to go on")
        console = Console(io.StringIO(), err := io.StringIO())

        def fail(console: Console, error: Exception = error) -> dict[str, Any]:
            raise error

        if fresh:
            console.again = console_module.ANEW
        assert console_module._guarded("demo", fail, console, None) == 2
        assert err.getvalue() == f"beeray demo: a worker was lost; {said} to go on\n"


def test_a_users_error_is_one_line_on_stderr_and_exit_code_2(tmp_path: Path) -> None:
    done = run(tmp_path, "raise DataError('ratings.csv: no such file; check data.path')")
    assert done.returncode == 2
    assert done.stderr == "beeray demo: ratings.csv: no such file; check data.path\n"
    assert done.stdout == ""


def test_a_config_that_is_not_valid_is_one_line_and_exit_code_2_before_any_work(tmp_path: Path) -> None:
    done = run(tmp_path, "open('worked', 'w').close()\nreturn {}", "train.epoch=3")
    assert done.returncode == 2
    assert done.stderr == "beeray demo: shop.yaml: unknown key 'train.epoch'; did you mean 'train.epochs'?\n"
    assert not (tmp_path / "worked").exists()


def test_a_defect_keeps_its_traceback_in_the_log_and_off_the_terminal(tmp_path: Path) -> None:
    done = run(tmp_path, "def deep():\n    raise RuntimeError('first line\\nsecond line')\ndeep()")
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "internal error: RuntimeError: first line; traceback in " in done.stderr
    assert str(tmp_path / "runs" / "logs" / "shop-demo.log") in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in log_of(tmp_path)
    assert "in deep" in log_of(tmp_path)


def test_a_log_that_cannot_be_written_leaves_the_line_of_a_defect(tmp_path: Path) -> None:
    full = "full = os.open('/dev/full', os.O_WRONLY)\nos.dup2(full, 2)\n"
    done = run(tmp_path, f"{full}raise RuntimeError('first line')")
    assert "internal error: RuntimeError: first line; traceback in " in done.stderr


PRINTS = """import logging
held = sys.stderr
for stream in (sys.stdout, sys.stderr, held, sys.__stdout__):
    print('a library ' * 3, file=stream)
print('a library ' * 10_000)
logging.warning('a warning')
sys.stdout.write('the end of it')
sys.__stdout__.write('the end of it')
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("return {'done': 1}", 0, ""),
        ("raise DataError('ratings.csv: no such file')", 2, "beeray demo: ratings.csv: no such file\n"),
        ("raise KeyboardInterrupt", 130, "beeray demo: interrupted; run the same command again to go on\n"),
    ],
)
def test_a_log_on_a_full_disk_spoils_neither_work_nor_exit_code(
    unbuffered: str, end: str, code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    (tmp_path / "runs" / "logs").mkdir(parents=True)
    (tmp_path / "runs" / "logs" / "shop-demo.log").symlink_to("/dev/full")
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    done = run(tmp_path, PRINTS + end)
    assert (done.returncode, done.stderr) == (code, said)
    assert done.stdout == ('{"done": 1}\n' if code == 0 else "")


SPEAKS = """console.show('a table')
console.line('a line')
with console.progress('read', 3) as bar:
    bar.update_to(3)
open('worked', 'w').close()
"""


@pytest.mark.parametrize(
    ("end", "code", "verbose"),
    [
        ("return {'done': 1}", 0, []),
        ("return {'done': 1}", 0, ["--verbose"]),
        ("raise DataError('no such file')", 2, ["--verbose"]),
        ("raise KeyboardInterrupt", 130, []),
        ("1 / 0", 1, ["--verbose"]),
    ],
)
def test_a_stderr_on_a_full_disk_spoils_neither_work_nor_record_nor_exit_code(
    end: str, code: int, verbose: list[str], tmp_path: Path
) -> None:
    with full_disk() as full:
        done = run(tmp_path, SPEAKS + end, *verbose, stderr=full)
    assert (done.returncode, (tmp_path / "worked").exists()) == (code, True)
    assert done.stdout == 'a table\n{"done": 1}\n' if code == 0 else "a table\n"


@pytest.mark.parametrize(
    ("end", "code", "verbose"), [("return {}", 2, []), ("return {}", 2, ["--verbose"]), ("return {'code': 3}", 3, [])]
)
def test_a_record_that_cannot_be_written_is_no_success(end: str, code: int, verbose: list[str], tmp_path: Path) -> None:
    with full_disk() as full:
        done = run(tmp_path, SPEAKS + end, *verbose, stdout=full)
    assert (done.returncode, (tmp_path / "worked").exists()) == (code, True)
    *_, last = done.stderr.splitlines()
    assert last.startswith(
        "beeray demo: stdout: the record could not be written (No space left on device); the work is"
    )
    assert "Traceback" not in done.stderr


def test_a_mistake_in_the_config_keeps_its_exit_code_where_its_line_cannot_be_written(tmp_path: Path) -> None:
    with full_disk() as full:
        assert run(tmp_path, "return {}", "train.epoch=3", stderr=full).returncode == 2


@contextlib.contextmanager
def full_disk() -> Iterator[IO[str]]:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with open("/dev/full", "w", encoding="utf-8") as full:
        yield full


class Disk(io.StringIO):
    """A disk that is full after so many characters, and has room again later."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, text: str) -> int:
        taken = super().write(text[: self.room])
        self.room -= taken
        if taken < len(text):
            raise OSError(errno.ENOSPC, "No space left on device")
        return taken


def test_a_record_after_half_a_line_has_a_line_of_its_own() -> None:
    disk = Disk(5)
    console = Console(disk, disk)
    console.show("a long table")
    disk.room = 1000
    console.result({"made": 1})
    assert disk.getvalue() == 'a lon\n{"made": 1}\n'
    console.result({"made": 2})
    assert disk.getvalue().splitlines()[1:] == ['{"made": 1}', '{"made": 2}']


def test_a_record_that_the_disk_refuses_only_later_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def over_quota(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with open(tmp_path / "out", "w", encoding="utf-8") as out:
        Console(out, out).result({})
        monkeypatch.setattr(os, "fsync", over_quota)
        with pytest.raises(BeerayError, match=r"could not be written \(Disk quota exceeded\)"):
            Console(out, out).result({})


class Terminal(Disk):
    def isatty(self) -> bool:
        return True


def test_a_bar_that_cannot_be_drawn_ends_nothing_and_is_drawn_again() -> None:
    terminal = Terminal(0)
    with Progress(terminal, "read", 3, "items") as bar:
        bar.update_to(1)
        terminal.room = 1000
        bar.update_to(2, "a note")
    assert "2/3" in terminal.getvalue()
    locked = threading.Thread(target=lambda: tqdm(total=1, file=io.StringIO()).close(), daemon=True)
    locked.start()
    locked.join(20)
    assert not locked.is_alive()  # the lock that bars share was given back


def test_what_is_printed_before_and_after_a_verb_is_seen(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom beeray.console import quiet\nprint('before', end=' ')\n"
        "real = sys.__stdout__\n"
        "with quiet(Path('a.log')):\n    kept = sys.stdout\n    print('meanwhile', end='', file=sys.__stdout__)\n"
        "assert sys.__stdout__ is real\n"
        "print('after', end=' ')\nsys.stdout.flush()\nprint('by one who kept it', file=kept)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr) == ("before after by one who kept it\n", "")
    assert (tmp_path / "a.log").read_text() == "meanwhile"


def test_a_defect_without_a_message_is_reported_like_any_other(tmp_path: Path) -> None:
    done = run(tmp_path, "assert config.seed == -1")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "internal error: AssertionError" in done.stderr
    assert "Traceback" in log_of(tmp_path)


def test_an_interrupt_says_how_to_go_on(tmp_path: Path) -> None:
    done = run(tmp_path, "raise KeyboardInterrupt")
    assert done.returncode == 130
    assert done.stderr == "beeray demo: interrupted; run the same command again to go on\n"


CHATTER = """os.write(1, b'from C++ on 1\\n')
os.write(2, b'from C++ on 2\\n')
print('from print')
print('from print to stderr', file=sys.stderr)
os.system('echo from a child process')
return {'done': 1}"""


def test_chatter_on_the_file_descriptors_goes_to_the_log(tmp_path: Path) -> None:
    done = run(tmp_path, CHATTER)
    assert (done.returncode, done.stdout, done.stderr) == (0, '{"done": 1}\n', "")
    log = log_of(tmp_path)
    for line in ("from C++ on 1", "from C++ on 2", "from print", "from print to stderr", "from a child process"):
        assert f"{line}\n" in log


def test_verbose_leaves_the_chatter_on_the_terminal_and_the_result_last(tmp_path: Path) -> None:
    done = run(tmp_path, CHATTER, "--verbose")
    assert "from C++ on 1\n" in done.stdout
    assert "from C++ on 2\n" in done.stderr
    assert done.stdout.splitlines()[-1] == '{"done": 1}'
    assert not (tmp_path / "runs").exists()


def test_a_runs_folder_that_cannot_be_made_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    done = run(tmp_path, "return {}", "runs_dir=taken")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "runs_dir" in done.stderr


def test_overrides_and_options_may_be_mixed(tmp_path: Path) -> None:
    done = run(tmp_path, "return {'lr': config.train.lr, 'seed': config.seed}", "train.lr=2e-5", "--verbose", "seed=1")
    assert json.loads(done.stdout.splitlines()[-1]) == {"lr": 2e-5, "seed": 1}


def test_a_reader_that_has_gone_ends_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as out:
        console = Console(out, out)
        console.show("a table")
        console.line("a line")
        console.result({"made": 1})


def test_progress_off_a_terminal_says_in_one_line_what_was_done() -> None:
    stream = io.StringIO()
    with Progress(stream, "read catalog", 2000, "items") as progress:
        for done in range(0, 2001, 100):
            progress.update_to(done, note="3 parts")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("read catalog: 2,000 of 2,000  3 parts in ")
    assert lines[0].endswith(" s")


def test_progress_off_a_terminal_speaks_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "SECONDS_BETWEEN_LINES", -1.0)
    stream = io.StringIO()
    progress = Progress(stream, "embed", None, "items")
    progress.update_to(1500)
    assert stream.getvalue() == "embed: 1,500\n"


def test_every_stage_of_a_report_gets_its_own_finishing_line() -> None:
    stream = io.StringIO()
    reporter = StageReporter(Console(io.StringIO(), stream))
    reporter("read catalog", 5, None)
    reporter("read catalog", 9, None)
    reporter("write users", 3, 3)
    reporter.close()
    labels = [line.rpartition(" in ")[0] for line in stream.getvalue().splitlines()]
    assert labels == ["read catalog: 9", "write users: 3 of 3"]


@pytest.mark.parametrize("wrong", ["train.epoch=3", "--timeout-s=soon", "--help"])
def test_the_doctor_reads_its_arguments_once_and_leaves_nothing_where_it_cannot_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    (tmp_path / "shop.yaml").write_text("data: {source: shop}\n", encoding="utf-8")
    (tmp_path / "scratch").mkdir()
    read: list[str] = []
    parse = argparse.ArgumentParser.parse_intermixed_args

    def counted(parser: argparse.ArgumentParser, *given: object) -> object:
        read.append(parser.prog)
        return parse(parser, *given)  # type: ignore[call-overload]

    monkeypatch.setattr(argparse.ArgumentParser, "parse_intermixed_args", counted)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr(sys, "argv", ["doctor", "--config", str(tmp_path / "shop.yaml"), wrong])
    try:
        code: object = doctor.main()
    except SystemExit as end:
        code = end.code
    assert code == (0 if wrong == "--help" else 2)
    assert read == ["python -m beeray.doctor"] and list((tmp_path / "scratch").iterdir()) == []
