"""What a signal does to a command: at once, or when there is something to save; and what exit code it ends with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from beeray.interruption import Interrupted, StopRequest, hang_up_blocked, interrupt, signals_handled, signals_kept

VERB = """
import signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may have been begun with nohup
from beeray.console import run_verb, verb_parser

def execute(config, arguments, console):
    console.line("at work")
    try:
        time.sleep(60)
    except Exception:
        console.line("swallowed")
    return {}

sys.exit(run_verb("demo", verb_parser("demo", "a verb"), execute, exit_code=lambda record: 3))
"""


def test_the_first_signal_waits_where_there_is_something_to_save_and_a_second_ctrl_c_does_not() -> None:
    stop = StopRequest(lambda: True)
    assert not stop.asked
    stop(signal.SIGTERM, None)
    stop(signal.SIGTERM, None)  # Kubernetes and Ray may both send one
    assert (stop.asked, stop.signum) == (True, signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        stop(signal.SIGINT, None)
    assert caught.value.exit_code == 130


def test_a_signal_ends_the_command_at_once_where_there_is_nothing_to_save() -> None:
    stop = StopRequest(lambda: False)
    with pytest.raises(Interrupted) as caught:
        stop(signal.SIGTERM, None)
    assert (caught.value.exit_code, caught.value.said, stop.asked) == (143, "stopped by SIGTERM", False)


def test_no_except_exception_swallows_it_and_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted), signals_handled(interrupt):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:
            pytest.fail("swallowed")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_handler_that_something_sets_meanwhile_does_not_stay() -> None:
    with signals_handled(interrupt):
        with signals_kept():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) is interrupt


def test_a_hang_up_does_not_reach_what_is_started_to_outlive_the_terminal_and_is_not_lost() -> None:
    mask = "import signal; print(signal.SIGHUP in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    with hang_up_blocked():
        started = subprocess.run([sys.executable, "-c", mask], capture_output=True, text=True, check=True)
    assert started.stdout == "True\n", "what is started does not hear it"
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with pytest.raises(Interrupted) as caught, signals_handled(interrupt), hang_up_blocked():
            os.kill(os.getpid(), signal.SIGHUP)  # another thread of this process may take it
    finally:
        signal.signal(signal.SIGHUP, before)
    assert caught.value.exit_code == 129, "it is not lost"
    assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_command_that_was_begun_with_nohup_goes_on_when_the_terminal_is_gone() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_handled(interrupt):
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("signum", "code", "said"),
    [
        (signal.SIGTERM, 143, "stopped by SIGTERM"),
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGHUP, 129, "stopped by SIGHUP"),
    ],
)
def test_a_verb_that_gets_a_signal_ends_in_one_line_and_a_shells_exit_code(
    tmp_path: Path, signum: int, code: int, said: str
) -> None:
    (tmp_path / "shop.yaml").write_text("data: {source: shop}\n", encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-c", VERB, "--config", "shop.yaml"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None and process.stderr.readline() == "at work\n"
    process.send_signal(signum)
    out, err = process.communicate(timeout=150)
    assert (process.returncode, out) == (code, "")
    assert err == f"beeray demo: {said}; run the same command again to go on\n"


def test_a_verb_that_went_well_ends_with_the_exit_code_of_its_record(tmp_path: Path) -> None:
    (tmp_path / "shop.yaml").write_text("data: {source: shop}\n", encoding="utf-8")
    code = VERB.replace("time.sleep(60)", "time.sleep(0)")
    done = subprocess.run([sys.executable, "-c", code, "--config", "shop.yaml"], cwd=tmp_path, check=False)
    assert done.returncode == 3
