"""A few rounds of `chaos.py`, and that it would notice: the long form is `make chaos`."""

from __future__ import annotations

import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from chaos import FAULTS, Chaos, chaos_in, foreseen, pairs
from cut_proxy import running_proxy
from s3_server import free_port
from typed_commands import VERBS, Typed, differences


@pytest.fixture(scope="module")
def chaos() -> Iterator[Chaos]:
    folder = Path(tempfile.mkdtemp(prefix="ch-"))
    with chaos_in(folder) as chaos:
        yield chaos
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("verb", "fault"),
    [
        ("prepare", "store"),
        pytest.param("prepare", "driver", marks=pytest.mark.long),
        pytest.param("train", "raylet", marks=pytest.mark.long),
        pytest.param("train", "store", marks=pytest.mark.long),
        pytest.param("tune", "worker", marks=pytest.mark.long),
        pytest.param("embed", "raylet", marks=pytest.mark.long),
    ],
)
def test_a_disturbed_command_leaves_what_an_undisturbed_one_leaves(chaos: Chaos, verb: str, fault: str) -> None:
    played = chaos.play(verb, fault, np.random.default_rng([7, VERBS.index(verb), FAULTS.index(fault)]))
    assert played.wrong == [], asdict(played)
    assert played.victim is not None, asdict(played)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_node_that_is_told_to_go_costs_no_step_though_no_checkpoint_was_due(chaos: Chaos) -> None:
    never = ("train.checkpoint_every_steps=1000000", "train.checkpoint_every_minutes=null")
    typed = chaos.place.type("train", "told", *never, "train.batch_size=2", "train.max_steps=900")  # within an epoch
    steps = chaos.place.folder / "runs" / "told" / "steps.jsonl"
    while not (steps.is_file() and steps.stat().st_size):
        assert not typed.ended, typed.said()
        time.sleep(0.05)
    chaos.cluster.give_notice(60)
    saved = wait_for(typed, r"a node is being taken away: saved after step (\d+)")
    chaos.cluster.replace_last()
    resumed = wait_for(typed, r"resumed from the checkpoint after step (\d+) of 900")
    typed.end()
    assert resumed == saved > 0


def wait_for(typed: Typed, pattern: str) -> int:
    """The number in the first line that a command says of this form."""
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        found = [int(match[1].replace(",", "")) for line in typed.said() if (match := re.search(pattern, line))]
        if found:
            return found[0]
        assert not typed.ended, typed.said()
        time.sleep(0.2)
    raise TimeoutError(f"nothing like {pattern!r} was said: {typed.said()}")


def test_twenty_rounds_have_every_verb_with_every_fault() -> None:
    assert len(set(pairs(20, list(VERBS), list(FAULTS)))) == 20
    assert [verb for verb, _ in pairs(5, list(VERBS), list(FAULTS))] == [*VERBS, VERBS[0]]


def test_a_disturbed_command_may_end_well_or_with_a_line_but_not_with_an_internal_error() -> None:
    for fault in FAULTS:
        assert foreseen(fault, 0) and foreseen(fault, 2)
        assert not foreseen(fault, 1) and not foreseen(fault, 143)
        assert foreseen(fault, -9) == (fault == "driver"), "nobody else kills it"


def test_what_differs_is_told() -> None:
    expected = {"steps": "0 1 2", "weight": np.array([1.0, 2.0]), "gone": "x", "same": np.array([3.0])}
    found = {"steps": "0 1", "weight": np.array([1.0, 2.1]), "same": np.array([3.0 + 1e-8]), "more": np.zeros(2)}
    assert differences(expected, found) == [
        "gone: nothing, not x",
        "more: numbers of shape (2,), not nothing",
        "steps: 0 1, not 0 1 2",
        "weight differs by 0.1",
    ]
    assert differences({"loss": np.array(np.nan)}, {"loss": np.array(1.0)}) == ["loss differs by nan"]


def test_what_is_cut_off_breaks_and_comes_back() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as server, running_proxy(server.getsockname()[1]) as proxy:

        def ask() -> bytes:
            with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client:
                client.sendall(b"a")
                accepted, _ = server.accept()
                with accepted:
                    answer = accepted.recv(1).upper()
                    accepted.sendall(answer)
                    return client.recv(1)

        server.settimeout(2)
        assert ask() == b"A"
        open_one = socket.create_connection(("127.0.0.1", proxy.port), timeout=5)
        open_one.sendall(b"b")
        held, _ = server.accept()
        assert held.recv(1) == b"b"
        proxy.cut()
        assert open_one.recv(1) == b"", "what was open is broken"
        with pytest.raises(OSError):
            ask()
        proxy.mend()
        assert ask() == b"A"
        open_one.close()
        held.close()
