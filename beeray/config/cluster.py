"""What is asked of Ray, DeepSpeed and MLflow."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from beeray.config.credentials import refuse_passwords
from beeray.config.section import Section


class ClusterConfig(Section):
    """What is asked of Ray."""

    num_workers: int = Field(1, ge=1)
    """Workers of Ray Train that train or evaluate; `train.batch_size` is a multiple of it."""
    use_gpu: bool = False
    """Train, evaluate and embed on GPUs; otherwise on CPUs."""
    cpus_per_worker: float = Field(0.5, ge=0)
    """CPUs reserved for a training worker; what is left streams its data."""
    gpus_per_worker: float = Field(1.0, gt=0)
    """GPUs of a worker where `use_gpu` is set; a fraction shares a card."""
    threads_per_worker: int | None = Field(None, ge=1)
    """Compute threads of a worker; the node's cores divided by its workers unless set."""
    address: str | None = None
    """Ray address to join; unset joins the cluster that started the command, or starts Ray here."""
    object_store_mib: int = Field(512, ge=80)
    """Object store of a Ray that is started here."""
    max_failures: int = Field(2, ge=0)
    """Losses of workers survived within one command: training goes on from its last checkpoint, embedding with what is
    not done."""
    placement_timeout_s: float = Field(60, gt=0)
    """How long an autoscaling cluster may take to offer the resources asked for."""
    peak_tflops: float | None = Field(None, gt=0)
    """Peak of a worker's device at the precision trained in, TFLOP/s, which MFU is a share of; unless set, the rate of
    a large matrix product is measured when a worker starts."""


class DeepSpeedConfig(Section):
    """What is asked of DeepSpeed."""

    stage: Literal[0, 1, 2, 3] = 1
    """ZeRO: 0 shards nothing over workers, 1 the optimizer's state, 2 gradients too, 3 weights too."""


class TrackingConfig(Section):
    """Where MLflow records go.

    The config is written to the run folder and to MLflow, so a URI with a password does not stand here:
    it comes from `MLFLOW_TRACKING_URI` (or `MLFLOW_TRACKING_USERNAME` …) in the environment.
    """

    uri: str | None = None
    """MLflow tracking URI; unless set `MLFLOW_TRACKING_URI`, and without that a sqlite file in the runs folder."""
    experiment: str = "beeray"
    """MLflow experiment that runs are logged to; made where it is missing."""
    log_model: bool = True
    """Log the trained encoder as an MLflow model."""
    registered_model: str | None = None
    """Name under which a logged model is registered (a night's: once it is published); none unless set."""

    @field_validator("uri", mode="before")
    @classmethod
    def _holds_no_password(cls, value: Any) -> Any:
        refuse_passwords(value, "tracking.uri")
        return value
