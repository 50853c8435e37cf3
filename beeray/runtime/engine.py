"""DeepSpeed around the encoder: ZeRO stage, optimizer, schedule, clipping."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from beeray.config import TrainConfig
from beeray.core.encoder import Encoder
from beeray.core.optimizers import build_optimizer
from beeray.core.schedules import lr_factor

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def import_deepspeed() -> ModuleType:
    """DeepSpeed without MLflow, whose import is half of its own and which its autotuner alone asks for.

    The driver tracks runs, so no worker needs MLflow. Where it is imported already nothing is done about it.
    """
    if "mlflow" not in sys.modules:
        sys.modules["mlflow"] = None  # type: ignore[assignment]  # importing it is an ImportError, which is expected
        try:
            import deepspeed
        finally:
            del sys.modules["mlflow"]
    import deepspeed

    module: ModuleType = deepspeed
    return module


def deepspeed_config(train: TrainConfig, stage: int) -> dict[str, Any]:
    """The DeepSpeed configuration of a run.

    Precision is not here: the encoder runs under autocast with fp32 weights and gradients.
    `gradient_clipping` is always set, since DeepSpeed's own default is 1.0, not off.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.gradient_clipping,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage},
        "steps_per_print": 10**9,
    }


def build_engine(
    encoder: Encoder,
    train: TrainConfig,
    stage: int,
    num_steps: int,
    optimizer: torch.optim.Optimizer | None = None,
) -> DeepSpeedEngine:
    """Wrap the encoder. Every rank must call, after the process group is up.

    Args:
        encoder: on its device, the same weights on every rank.
        train: optimizer, lr, schedule, clipping.
        stage: ZeRO stage, 0 to 3.
        num_steps: length of the lr schedule.
        optimizer: over the encoder's parameters; the one that `train` names unless given.
    """
    deepspeed = import_deepspeed()
    # without CUDA, DeepSpeed would compile a C++ all-reduce first: a minute, and a compiler that may not be there
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    optimizer = optimizer or build_optimizer(
        encoder,
        train.optimizer,
        lr=train.lr,
        betas=train.betas,
        epsilon=train.epsilon,
        weight_decay=train.weight_decay,
    )

    def schedule(wrapped: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        return torch.optim.lr_scheduler.LambdaLR(
            wrapped, lambda step: lr_factor(train.scheduler, step, num_steps, train.warmup_fraction)
        )

    engine, *_ = deepspeed.initialize(
        model=encoder,
        optimizer=optimizer,
        lr_scheduler=schedule,
        config=deepspeed_config(train, stage),
        dist_init_required=False,
    )
    return engine


def go_on_at(engine: DeepSpeedEngine, step: int) -> None:
    """Have the schedule be where it is after so many steps."""
    engine.lr_scheduler.last_epoch = step - 1
    engine.lr_scheduler.step()
    engine.global_steps = step


def full_state_dict(engine: DeepSpeedEngine) -> dict[str, torch.Tensor]:
    """The encoder's whole weights on the CPU, on rank 0 (empty elsewhere). Every rank must call.

    ZeRO-3's shards are gathered one parameter at a time, so that no rank holds the whole model twice.
    """
    import deepspeed

    sharded = engine.zero_optimization_stage() == 3
    state: dict[str, torch.Tensor] = {}
    for name, parameter in engine.module.named_parameters(remove_duplicate=False):  # tied weights, too
        with deepspeed.zero.GatheredParameters([parameter], enabled=sharded):
            if engine.global_rank == 0:
                state[name] = parameter.detach().cpu().clone()
    if engine.global_rank == 0:
        kept = engine.module.state_dict().keys()  # without the buffers that a module does not save
        buffers = {name: value for name, value in engine.module.named_buffers() if name in kept}
        state |= {name: value.detach().cpu().clone() for name, value in buffers.items()}
    return state
