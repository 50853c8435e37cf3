"""A lease between machines: a living holder is seen, a dead one does not hold, two at once are one."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from beeray.data.lease import LEASE, leased
from beeray.errors import RunError

BEAT_S = 0.1


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


@pytest.mark.parametrize("left", ["", "[1]", json.dumps({"host": "south", "pid": 1})])
def test_what_this_machine_left_or_nobody_can_read_is_not_waited_for(tmp_path: Path, left: str) -> None:
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
