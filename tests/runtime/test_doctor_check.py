"""A check ends in one line whatever its work does: it fails, hangs, or has nothing to work with."""

from __future__ import annotations

import threading
import time

import pytest

from beeray.errors import ClusterError
from beeray.runtime.doctor.check import Check
from beeray.runtime.doctor.finding import FAILED, OK, SKIPPED, WARNING, Finding, found, together

FINE = Finding(OK, "fine")


def refuses() -> Finding:
    raise ClusterError("cluster.num_workers is 9: too many; lower it")


def breaks() -> Finding:
    raise RuntimeError("\n  boom at 10.0.0.7\nwith a second line")


def test_an_error_of_beeray_is_the_finding_and_another_one_gets_the_remedy_of_its_check() -> None:
    assert found(lambda: FINE, "mend it") is FINE
    assert found(refuses, "mend it") == Finding(FAILED, "cluster.num_workers is 9: too many; lower it")
    assert found(breaks, "mend it") == Finding(FAILED, "RuntimeError: boom at 10.0.0.7; mend it")


def test_a_check_that_hangs_is_told_by_name_in_time_and_what_needs_it_is_skipped() -> None:
    never = threading.Event()

    def hang() -> Finding:
        never.wait()
        return FINE

    hung = Check("storage", hang, who="the disk", remedy="is a mount mute?", limit_s=0.2)
    needy = Check("data", lambda: FINE, who="the tables", remedy="look", limit_s=5, needs=[hung])
    free = Check("mlflow", lambda: FINE, who="MLflow", remedy="look", limit_s=5, after=[hung])
    started = time.monotonic()
    finding, seconds = hung.wait()
    assert finding == Finding(
        FAILED, "no answer from the disk within 0.2 s; is a mount mute?; if it is merely slow give --timeout-s 0.4"
    )
    assert 0.2 <= seconds < 2
    assert needy.wait()[0] == Finding(SKIPPED, "needs storage, which did not pass")
    assert free.wait()[0] == FINE, "what only comes after it is done all the same"
    assert time.monotonic() - started < 3
    never.set()


def test_the_limit_of_a_check_counts_from_its_own_beginning_and_a_warning_hides_nothing() -> None:
    def slow() -> Finding:
        time.sleep(0.4)
        return Finding(WARNING, "so-so")

    first = Check("first", slow, who="it", remedy="look", limit_s=5)
    second = Check("second", lambda: FINE, who="it", remedy="look", limit_s=0.3, needs=[first])
    assert first.wait()[0].status == WARNING
    finding, seconds = second.wait()
    assert finding == FINE
    assert seconds < 0.3


@pytest.mark.parametrize(
    ("findings", "expected"),
    [
        ({"one": FINE, "two": Finding(OK, "fine too")}, FINE),
        ({"one": FINE, "two": Finding(FAILED, "bad")}, Finding(FAILED, "two: bad")),
        (
            {"one": Finding(WARNING, "so-so"), "two": Finding(FAILED, "bad"), "three": Finding(FAILED, "worse")},
            Finding(FAILED, "two (and on 1 more): bad"),
        ),
        ({"one": Finding(FAILED, "bad"), "two": Finding(FAILED, "bad")}, Finding(FAILED, "bad")),
    ],
)
def test_findings_of_several_places_become_the_gravest_with_its_place(
    findings: dict[str, Finding], expected: Finding
) -> None:
    assert together(findings) == expected
