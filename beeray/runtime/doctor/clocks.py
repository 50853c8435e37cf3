"""Clocks: what is timed on two machines must mean the same time."""

from __future__ import annotations

from collections.abc import Sequence

from beeray.runtime.doctor.finding import FAILED, OK, WARNING, Finding

SEEN_S, REFUSED_S = 2.0, 300.0
"""From where a difference shows in records and leases, and where object stores are near to refusing what is signed
(S3 does at 15 minutes)."""


def judge_clocks(readings: Sequence[tuple[str, float, float, float]]) -> Finding:
    """Compare the nodes' clocks with this machine's.

    Args:
        readings: node, when it was asked and when it had answered by this machine's clock, and its own clock between;
            seconds since the epoch. A clock anywhere between the two is right.
    """
    skews = {name: max(asked - clock, clock - answered, 0.0) for name, asked, answered, clock in readings}
    name = max(skews, key=lambda one: skews[one])
    largest = skews[name]
    measured = {"largest_skew_s": round(largest, 3)}
    if largest <= SEEN_S:
        return Finding(OK, f"within {SEEN_S:g} s of each other", measured)
    why = "object stores refuse requests of a wrong clock" if largest > REFUSED_S else "records and leases go by it"
    return Finding(
        FAILED if largest > REFUSED_S else WARNING,
        f"the clock of node {name} is {largest:.1f} s off this machine's (at most {SEEN_S:g} s; {why}); "
        "run chrony or ntpd on every node",
        measured,
    )
