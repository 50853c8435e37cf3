"""What the driver makes of its workers' events: bars, MLflow metrics, step lines, collected scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from beeray.console import Console, Progress
from beeray.errors import RunError
from beeray.runtime.results import NOBODY, merge_ranks
from beeray.runtime.run_folder import RunFolder
from beeray.runtime.startup import Startup
from beeray.runtime.tracking import Tracker

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from beeray.runtime.split_scores import SplitScores

STEP_METRICS = (
    *("loss", "lr", "items", "users", "tokens", "padded_tokens", "recomputed_tokens", "step_s", "wait_s"),
    *("plan_s", "mfu", "sent_bytes", "forgetting"),
)
UNPLACED_TOLD = 10
"""Of so many times that workers find no place, a minute each, one is told."""
LABELS = {
    "before": "score before",
    "after": "score after",
    "model": "score",
    "original": "embed original",
    "untouched": "score untouched",
    "frozen_head": "score frozen_head",
}


def step_rates(step: dict[str, Any]) -> dict[str, float]:
    """What follows from a step's counts and seconds.

    Returns:
        items and real tokens per second; the share of padded tokens that is padding, and that is computed twice; the
        share of the time that was spent waiting for the step.
    """
    padded = max(1, step["padded_tokens"])
    return {
        "items_per_s": step["items"] / step["step_s"],
        "tokens_per_s": step["tokens"] / step["step_s"],
        "padding_share": 1 - step["tokens"] / padded,
        "recomputed_share": step["recomputed_tokens"] / padded,
        "wait_share": step["wait_s"] / (step["wait_s"] + step["step_s"]),
    }


class EventHandler:
    """Handles the events of `runtime.worker`, one method a kind; call it with each event.

    Args:
        console: takes bars and lines.
        num_items: of the catalog, for the bar of an embedding pass.
        folder: takes step lines; None where nothing is trained.
        tracker: takes MLflow metrics; None where nothing is tracked.
        scored: called with the label of a scoring pass when every rank's scores have come.
        startup: takes when workers were there and when the first step was done.

    Attributes:
        failure: why all workers gave up, where trying again would be no use.
        diverged: whether that is because of what they trained.
        not_finite: of the step whose loss is no number: item and user indices that made it so, and how many it had.
        refused: why workers would not begin; the first that said so.
        saves_when_stopped: whether workers that are asked to stop have something to save: they are at their steps.
        stopped_after: steps done when the workers stopped because they were asked to, with a checkpoint; or None.
    """

    def __init__(
        self,
        console: Console,
        num_items: int,
        num_ranks: int,
        *,
        folder: RunFolder | None = None,
        tracker: Tracker | None = None,
        scored: Callable[[str], None] = lambda when: None,
        startup: Startup | None = None,
    ) -> None:
        self.console, self.num_items, self.num_ranks = console, num_items, num_ranks
        self.folder, self.tracker, self.scored = folder, tracker, scored
        self.failure: str | None = None
        self.diverged = False
        self.refused: str | None = None
        self.not_finite: dict[str, Any] | None = None
        self.stopped_after: int | None = None
        self.saves_when_stopped = False
        self.profile: str | None = None
        self.startup = startup or Startup()
        self.timings: dict[str, dict[str, float]] = {}
        self.head: dict[str, Any] | None = None
        self._workers: dict[int, dict[str, Any]] = {}
        self._scores: dict[str, dict[int, list[SplitScores]]] = {}
        self._kept: dict[int, NDArray[np.float64]] = {}
        self._bar: Progress | None = None
        self._bar_label = ""
        self._num_steps = 0
        self._told_of_nobody = False

    def __call__(self, event: dict[str, Any]) -> None:
        """Handle one event."""
        event = dict(event)
        getattr(self, f"_on_{event.pop('kind')}")(event)

    def close(self) -> None:
        """Close the bar that is open."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._bar_label = None, ""

    def scores(self, when: str) -> list[SplitScores]:
        """All ranks' scores of one scoring pass; empty if it was not asked for.

        Raises:
            RunError: some ranks' scores are missing: they were lost with a node.
        """
        if self._scores.get(when) and len(self._scores[when]) < self.num_ranks:
            raise RunError(f"{LABELS[when]}: a worker's scores were lost with its node; run the same command again")
        return merge_ranks(one for rank in sorted(self._scores.get(when, {})) for one in self._scores[when][rank])

    def neighbours_kept(self) -> NDArray[np.float64] | None:
        """Of each sampled item, the share of its original neighbours that it has now; None where it is not measured."""
        if not self._kept:
            return None
        if len(self._kept) < self.num_ranks:
            raise RunError("neighbours: a worker's were lost with its node; run the same command again")
        import numpy as np

        return np.concatenate([self._kept[rank] for rank in sorted(self._kept)])

    def workers(self) -> list[dict[str, Any]]:
        """What each worker of the last attempt used."""
        return [self._workers[rank] for rank in sorted(self._workers)]

    def track(self, steps: Iterable[dict[str, Any]]) -> None:
        """Hand steps to the tracker, which leaves out those that it has; a resumed run hands over all it did."""
        if self.tracker is None:
            return
        for event in steps:
            metrics = {name: event[name] for name in STEP_METRICS if name in event} | step_rates(event)
            self.tracker.log_step(event["step"], {f"train/{name}": value for name, value in metrics.items()})

    def _on_start(self, event: dict[str, Any]) -> None:
        self._num_steps, self.saves_when_stopped = event["num_steps"], True
        self.startup.reached("engine", event["at"])
        if event["step"]:
            self.close()
            self.console.line(f"resumed from the checkpoint after step {event['step']:,} of {self._num_steps:,}")
        self._show("train", event["step"], self._num_steps, "step")

    def _on_head(self, event: dict[str, Any]) -> None:
        self._show("train head", event["step"], event["num_steps"], "step", f"loss {event['loss']:.4f}")

    def _on_head_done(self, event: dict[str, Any]) -> None:
        self.head = event

    def _on_steps(self, event: dict[str, Any]) -> None:
        for step in event["steps"]:
            self._on_step(step)

    def _on_step(self, event: dict[str, Any]) -> None:
        self.startup.reached("first_step", event["at"])
        rate = event["tokens"] / event["step_s"]
        note = f"loss {event['loss']:.4f}  {event['items'] / event['step_s']:,.0f} items/s  {rate:,.0f} tokens/s"
        if self.folder is not None:
            self.folder.log_step(event)
        self._show("train", event["step"] + 1, self._num_steps, "step", note)
        if not event["users"] and not self._told_of_nobody:
            self._told_of_nobody = True
            self.close()
            self.console.line(
                f"warning: step {event['step'] + 1:,} had no user with enough of the items that were drawn, so nothing "
                "was learned from it; raise train.max_output, or lower train.batch_size"
            )
        self.track([event])

    def _on_epoch(self, event: dict[str, Any]) -> None:
        if self.folder is not None:
            self.folder.log_validation({"epoch": event["epoch"], "step": event["step"], **event["metrics"]})
        metrics = event["metrics"]
        shown = "  ".join(f"{name.removeprefix('validation/')} {value:.4f}" for name, value in metrics.items())
        self.close()
        self.console.line(f"epoch {event['epoch']}, step {event['step']:,}: validation {shown or NOBODY}")
        if self.tracker is not None:
            self.tracker.log_metrics(event["metrics"], event["step"])

    def _on_embed(self, event: dict[str, Any]) -> None:
        self.saves_when_stopped = False  # what was trained is in the last checkpoint, or nothing is trained yet
        self._show(LABELS[event["when"]], min(event["items"], self.num_items), self.num_items, "item")

    def _on_scores(self, event: dict[str, Any]) -> None:
        self._scores.setdefault(event["when"], {})[event["rank"]] = event["scores"]
        self.timings[event["when"]] = event["timings"]
        if len(self._scores[event["when"]]) == self.num_ranks:
            self.scored(event["when"])

    def _on_neighbours(self, event: dict[str, Any]) -> None:
        self._kept[event["rank"]] = event["kept"]

    def _on_worker(self, event: dict[str, Any]) -> None:
        self._workers[event["rank"]] = event

    def _on_ready(self, event: dict[str, Any]) -> None:
        if event["rank"] == 0:  # a new attempt, whose workers have nothing yet
            self.saves_when_stopped = False
        self.startup.reached("worker", event["at"])

    def _on_unplaced(self, event: dict[str, Any]) -> None:
        if event["tries"] % UNPLACED_TOLD == 1:
            self.close()
            workers = "the worker" if self.num_ranks == 1 else f"the {self.num_ranks} workers"
            self.console.line(
                f"no place for {workers} since {event['tries']} min: other work holds what they need (see ray status); "
                "waiting"
            )

    def _on_lost(self, event: dict[str, Any]) -> None:
        self.saves_when_stopped = False

    def _on_profile(self, event: dict[str, Any]) -> None:
        self.profile = event["path"]

    def _on_notice(self, event: dict[str, Any]) -> None:
        self.close()
        nodes = "a node is" if event["nodes"] == 1 else f"{event['nodes']} nodes are"
        self.console.line(f"{nodes} being taken away: saved after step {event['step']:,}, training goes on meanwhile")

    def _on_stopped(self, event: dict[str, Any]) -> None:
        self.stopped_after = event["step"]

    def _on_not_finite(self, event: dict[str, Any]) -> None:
        earlier = self.not_finite["users"] if self.not_finite is not None else []
        self.not_finite = event | {"users": sorted({*earlier, *event["users"]})}

    def _on_failed(self, event: dict[str, Any]) -> None:
        self.failure, self.diverged = event["message"], event.get("diverged", True)

    def _on_refused(self, event: dict[str, Any]) -> None:
        self.refused = self.refused or event["message"]

    def _show(self, label: str, done: int, total: int, unit: str, note: str = "") -> None:
        if label != self._bar_label:
            self.close()
            self._bar, self._bar_label = self.console.progress(label, total, unit), label
        assert self._bar is not None
        self._bar.update_to(done, note)
