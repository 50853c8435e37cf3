"""A lease: a living holder is seen, a dead one does not hold, two at once are one, a lost one is noticed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from lease_holders import BEAT_S, LOST, Stalled, followed, ignore

from beeray.data import lease
from beeray.data.lease import LEASE, leased
from beeray.data.process_identity import is_provably_gone, this_process
from beeray.errors import DataError, RunError

HOLDER = """
import sys, time
from beeray.data.lease import leased
with leased(sys.argv[1], print):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_living_holder_on_another_machine_is_named(tmp_path: Path) -> None:
    said: list[str] = []
    with leased(str(tmp_path), said.append, beat_s=BEAT_S, host="north"):
        with (
            pytest.raises(RunError, match=r"is being worked on by another command \(process \d+ on north\); wait"),
            leased(str(tmp_path), said.append, beat_s=BEAT_S, host="south"),
        ):
            raise AssertionError("both at work")
        assert "north" in said[0] and len(said) == 1
    assert not (tmp_path / LEASE).exists()


def test_a_holder_that_is_gone_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / LEASE).write_text(json.dumps({"host": "north", "pid": 1, "token": "t", "beat": "b"}))
    said: list[str] = []
    started = time.monotonic()
    with leased(str(tmp_path), said.append, beat_s=BEAT_S, host="south"):
        assert json.loads((tmp_path / LEASE).read_text())["host"] == "south"
    assert time.monotonic() - started >= 4 * BEAT_S and len(said) == 1


@pytest.mark.parametrize("left", ["", "[1]"])
def test_what_nobody_can_read_is_not_waited_for(tmp_path: Path, left: str) -> None:
    (tmp_path / LEASE).write_text(left)
    said: list[str] = []
    with leased(str(tmp_path), said.append, beat_s=BEAT_S, host="south"):
        assert not said


def test_it_is_renewed_while_it_is_held(tmp_path: Path) -> None:
    with leased(str(tmp_path), lambda text: None, beat_s=BEAT_S, host="south"):
        beats = set()
        deadline = time.monotonic() + 90
        while len(beats) < 3 and time.monotonic() < deadline:
            beats.add(json.loads((tmp_path / LEASE).read_text())["beat"])
            time.sleep(0.02)
    assert len(beats) == 3


def test_of_two_that_begin_at_once_one_goes_on(tmp_path: Path) -> None:
    outcomes: list[str] = []
    barrier = threading.Barrier(2)
    at_work = threading.Event()

    def begin(host: str) -> None:
        barrier.wait()
        try:
            with leased(str(tmp_path), lambda text: None, beat_s=0.5, host=host):
                outcomes.append("at work")
                at_work.wait(20)
        except RunError:
            outcomes.append("refused")
            at_work.set()

    threads = [threading.Thread(target=begin, args=(host,)) for host in ("north", "south")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(outcomes) == ["at work", "refused"]


def test_two_with_one_host_name_are_not_both_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two users, or two containers that have the name of their node: no lock keeps them apart."""
    monkeypatch.setattr(lease, "SETTLE_S", 0.1)  # of five beats one, as in earnest
    with (
        leased(str(tmp_path), ignore, beat_s=0.5, host="node"),
        pytest.raises(RunError, match="is being worked on by another command"),
        leased(str(tmp_path), ignore, beat_s=0.5, host="node"),
    ):
        raise AssertionError("both at work")


def test_a_holder_that_was_followed_stops_and_leaves_the_others_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as inner, ExitStack() as outer:
        first, second = followed(str(tmp_path), Stalled(monkeypatch, "_read"), outer)
        with pytest.raises(RunError, match=LOST.format(r"process \d+ on south")):
            first.check()
        with pytest.raises(RunError, match=LOST.format(r"process \d+ on south")):
            first.check_known()
        with pytest.raises(RunError):
            first.claim.check()
        second.check(), second.claim.check(), second.check_known()
        inner.push(outer.pop_all())
    assert not (tmp_path / LEASE).exists(), "who holds it removes it"


def test_a_lost_lease_is_neither_renewed_nor_removed(tmp_path: Path) -> None:
    theirs = json.dumps({"host": "south", "pid": 7, "token": "theirs"})
    with leased(str(tmp_path), ignore, beat_s=BEAT_S):
        (tmp_path / LEASE).write_text(theirs)
        time.sleep(6 * BEAT_S)
        assert (tmp_path / LEASE).read_text() == theirs
    assert (tmp_path / LEASE).read_text() == theirs


def test_a_renewal_that_comes_late_leaves_one_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is written conditionally it replaces the other's lease: then it is the other that must stop."""
    with ExitStack() as stack:
        first, second = followed(str(tmp_path), Stalled(monkeypatch, "write_tagged"), stack)
        first.check()
        with pytest.raises(RunError, match=LOST.format(r"process \d+ on north")):
            second.check()
        first.check()


def test_a_lease_that_somebody_removed_is_lost(tmp_path: Path) -> None:
    with leased(str(tmp_path), ignore, beat_s=60) as held:
        held.check()
        (tmp_path / LEASE).unlink()
        with pytest.raises(RunError, match=LOST.format("nobody")):
            held.check()
    assert not (tmp_path / LEASE).exists()


def test_what_a_superseded_job_finds_wrong_is_told_as_that(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=LOST.format("nobody")), leased(str(tmp_path), ignore, beat_s=60):
        (tmp_path / LEASE).unlink()
        raise DataError("its files are gone")
    with pytest.raises(DataError, match="too long"), leased(str(tmp_path), ignore, beat_s=60):
        raise DataError("too long")


def test_a_store_that_does_not_answer_holds_up_a_check_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(path: str) -> None:
        raise DataError("does not answer")

    with leased(str(tmp_path), ignore, beat_s=BEAT_S) as held:
        with monkeypatch.context() as patched:
            patched.setattr(lease, "read_tagged", unreachable)
            with pytest.raises(DataError, match="does not answer"):
                held.check()
            time.sleep(3 * BEAT_S)
        held.check()


def killed_holder(folder: Path) -> dict[str, Any]:
    """What the lease of a process says that was killed while it held it."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process, process.stdout:
        assert process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGKILL)
    found: dict[str, Any] = json.loads((folder / LEASE).read_text())
    return found


def test_a_process_of_this_machine_that_was_killed_is_followed_at_once(tmp_path: Path) -> None:
    found = killed_holder(tmp_path)
    said: list[str] = []
    with leased(str(tmp_path), said.append, beat_s=BEAT_S, host="renamed since"):
        assert not said
    for name, other in {"pids": "pid:[1]", "boot": "another machine's"}.items():
        (tmp_path / LEASE).write_text(json.dumps({**found, name: other}))
        said = []
        with leased(str(tmp_path), said.append, beat_s=BEAT_S):
            assert len(said) == 1, f"{name} says nothing about a process here"


def test_a_process_is_gone_only_where_that_can_be_told() -> None:
    here = this_process()
    assert not is_provably_gone(here)
    assert is_provably_gone({**here, "started": 1}), "its number came again"
    assert not is_provably_gone({"pid": 2**22 + 1}), "an earlier version's"
    assert is_provably_gone({**here, "pid": 2**22 + 1})
    with subprocess.Popen([sys.executable, "-c", "pass"], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.read()
        deadline = time.monotonic() + 20
        while not is_provably_gone({**here, "pid": child.pid}) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert child.returncode is None, "nobody has waited for it, so it still has its number"
