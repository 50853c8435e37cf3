"""What a check found: one line with a status, and the figures behind it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from beeray.errors import BeerayError

Status = Literal["ok", "warning", "FAILED", "skipped"]
OK: Status = "ok"
WARNING: Status = "warning"
FAILED: Status = "FAILED"
SKIPPED: Status = "skipped"
GRAVITY: tuple[Status, ...] = (OK, SKIPPED, WARNING, FAILED)
SHOWN_CHARACTERS = 400


@dataclass(frozen=True)
class Finding:
    """The end of a check.

    Attributes:
        status: `warning` is worth reading and stops nothing; `skipped`: something it needs failed.
        said: one line; of anything but `ok` with what to do.
        measured: figures for the record.
    """

    status: Status
    said: str
    measured: Mapping[str, Any] = field(default_factory=dict)


def found(work: Callable[[], Finding], remedy: str) -> Finding:
    """The finding of some work; what it raises becomes one that failed.

    Args:
        remedy: what to do about an error that is not beeray's own and so names no remedy.
    """
    try:
        return work()
    except BeerayError as error:
        return Finding(FAILED, str(error))
    except Exception as error:
        traceback.print_exc()
        return Finding(FAILED, f"{in_one_line(error)}; {remedy}")


def in_one_line(error: BaseException) -> str:
    """Type and first line of an exception."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {(lines or ['no message'])[0][:SHOWN_CHARACTERS]}"


def together(findings: Mapping[str, Finding]) -> Finding:
    """One finding of several places that made the same check.

    Args:
        findings: by the name of the place, e.g. `worker 1 on node 10.0.0.7`.

    Returns:
        the first one where all say the same or all are well; otherwise the gravest, with its places named.
    """
    worst = max((one.status for one in findings.values()), key=GRAVITY.index)
    gravest = {name: one for name, one in findings.items() if one.status == worst}
    name, first = next(iter(gravest.items()))
    alike = len({one.said for one in findings.values()}) == 1
    if worst == OK or alike:
        return first
    others = f" (and on {len(gravest) - 1} more)" if len(gravest) > 1 else ""
    return Finding(worst, f"{name}{others}: {first.said}", first.measured)
