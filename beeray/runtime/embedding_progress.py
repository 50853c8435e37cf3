"""What the driver makes of finished units: a bar, MLflow metrics over time, totals."""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from typing import Any

from beeray.console import Console
from beeray.runtime.tracking import Tracker

WINDOW_S = 60.0
"""Rates are over so many seconds, or over two units where those take longer."""


class UnitProgress:
    """Handles the `unit` events of `runtime.embedding_pipeline`; call it with each event.

    Args:
        num_rows: items of all units, repeated ids included.
        num_actors: of the job.
        rows_done: items of units that an earlier attempt finished.
    """

    def __init__(
        self,
        console: Console,
        tracker: Tracker,
        *,
        num_rows: int,
        num_actors: int,
        rows_done: int = 0,
        units_done: int = 0,
    ) -> None:
        self.tracker, self.num_actors = tracker, num_actors
        self.rows, self.units = rows_done, units_done
        self.totals: Counter[str] = Counter()
        self._seen: set[int] = set()
        self._busy: Counter[str] = Counter()
        self._started = time.time()
        self._written: list[tuple[float, int]] = []
        self._window: deque[tuple[float, int, int]] = deque([(self._started, self.rows, 0)])
        self._bar = console.progress("embed", num_rows, "rows")

    def __call__(self, event: dict[str, Any]) -> None:
        """Handle one event; a unit that was done twice counts once."""
        if event["range"] in self._seen:
            return
        self._seen.add(event["range"])
        timings = json.loads(event["timings"])
        self.units += 1
        self.rows += event["rows"]
        self.totals.update({"rows": event["rows"], "tokens": timings["tokens"]})
        self._written.append((timings["written_at"], timings["tokens"]))
        self._busy.update({name: timings[name] for name in ("encode_s", "encode_queue_s", "write_queue_s", "write_s")})
        now = time.time()
        self._window.append((now, self.rows, self.totals["tokens"]))
        while len(self._window) > 2 and now - self._window[0][0] > WINDOW_S:
            self._window.popleft()
        rates = self.rates(now)
        self.tracker.log_step(self.units, {**rates, "rows_done": self.rows, **self._means()})
        note = f"{rates['rows_per_s']:,.0f} rows/s  {rates['tokens_per_s']:,.0f} tokens/s"
        self._bar.update_to(self.rows, note)

    def rates(self, now: float) -> dict[str, float]:
        """Rows and tokens per second lately."""
        then, rows, tokens = self._window[0]
        elapsed = max(1e-9, now - then)
        return {
            "rows_per_s": (self.rows - rows) / elapsed,
            "tokens_per_s": (self.totals["tokens"] - tokens) / elapsed,
        }

    def close(self) -> None:
        """Close the bar."""
        self._bar.close()

    def summary(self) -> dict[str, float]:
        """Of this attempt: seconds, rows and tokens per second, utilisation and mean queue times.

        `steady_tokens_per_s` leaves out all until the first unit was written: starting actors, and that unit.
        """
        elapsed = max(1e-9, time.time() - self._started)
        return {
            "embed_s": elapsed,
            "mean_rows_per_s": self.totals["rows"] / elapsed,
            "mean_tokens_per_s": self.totals["tokens"] / elapsed,
            "steady_tokens_per_s": self._steady(),
            **self._means(),
        }

    def _steady(self) -> float:
        ordered = sorted(self._written)
        if len(ordered) < 2 or ordered[-1][0] <= ordered[0][0]:
            return 0.0
        return sum(tokens for _, tokens in ordered[1:]) / (ordered[-1][0] - ordered[0][0])

    def _means(self) -> dict[str, float]:
        units = max(1, len(self._seen))
        elapsed = max(1e-9, time.time() - self._started)
        return {
            "actor_utilisation": self._busy["encode_s"] / (elapsed * self.num_actors),
            "encode_queue_s": self._busy["encode_queue_s"] / units,
            "write_queue_s": self._busy["write_queue_s"] / units,
        }
