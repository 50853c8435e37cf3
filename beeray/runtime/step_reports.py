"""What a worker tells the driver of its steps: one record a step, several at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from beeray.core import gather
from beeray.core.flops import EncoderFlops
from beeray.core.gather import rank, world_size
from beeray.core.plan import StepPlan
from beeray.core.step import StepLoss
from beeray.runtime.task import WorkerTask

TELL_EVERY_S = 0.2
"""Steps go to the driver in bundles, since a remote call takes as long as a short step's share of all waiting may."""


class StepReports:
    """Keeps records of steps until they are sent. Every rank has one, rank 0 alone tells.

    Args:
        flops: of the encoder.
        peak_tflops: what this device could do.
    """

    def __init__(self, task: WorkerTask, flops: EncoderFlops, peak_tflops: float) -> None:
        self.task, self.flops, self.peak_tflops = task, flops, peak_tflops
        self._untold: list[dict[str, Any]] = []
        self._told = 0.0

    def add(
        self, plan: StepPlan, step: StepLoss, totals: Sequence[float], lr: float, seconds: dict[str, float]
    ) -> float:
        """Take a step that was done.

        Args:
            totals: sums over ranks of loss, padded tokens, recomputed tokens and, where it is trained on, forgetting.
            seconds: `step_s`, `wait_s`, `plan_s`.

        Returns:
            the mean loss over ranks.
        """
        loss, num_padded, num_recomputed, *forgetting = totals
        loss /= world_size()
        sent = gather.traffic.take()
        if rank() != 0:
            return loss
        tflops = self.flops.of_step(plan.num_tokens, plan.num_token_pairs) / seconds["step_s"] / 1e12
        self._untold.append(
            {
                "step": plan.step,
                "epoch": plan.epoch,
                "loss": loss,
                "lr": lr,
                "items": step.num_items,
                "users": step.num_users,
                "tokens": plan.num_tokens,
                "padded_tokens": num_padded,
                "recomputed_tokens": num_recomputed,
                **seconds,
                "mfu": tflops / (self.peak_tflops * world_size()),
                "sent_bytes": sum(sent.values()),
                **({"forgetting": forgetting[0] / world_size()} if forgetting else {}),
                "at": time.time(),
            }
        )
        if time.monotonic() - self._told > TELL_EVERY_S:
            self.send()
        return loss

    def send(self) -> None:
        """Tell the driver of all that it was not told of yet."""
        if self._untold:
            self.task.send("steps", steps=self._untold)
        self._untold, self._told = [], time.monotonic()
