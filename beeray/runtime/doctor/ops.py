"""DeepSpeed as training uses it: the right accelerator, and nothing that would have to be compiled first."""

from __future__ import annotations

import torch

from beeray.runtime.doctor.finding import FAILED, OK, Finding


def check_deepspeed(stage: int, device: torch.device) -> Finding:
    """Build and drop an engine of the config's ZeRO stage around one small layer, and let it step. Collective."""
    from beeray.config import TrainConfig
    from beeray.runtime.doctor.gradient import RATE
    from beeray.runtime.engine import build_engine, import_deepspeed

    deepspeed = import_deepspeed()
    get_accelerator = deepspeed.accelerator.get_accelerator

    found = str(get_accelerator().device_name())
    version = deepspeed.__version__
    if found != device.type:
        return Finding(
            FAILED,
            f"DeepSpeed {version} works on {found!r}, the workers on {device.type!r}; unset DS_ACCELERATOR on the "
            "nodes, or install the build of torch that the GPUs need",
        )
    layer: torch.nn.Module = torch.nn.Linear(4, 1, bias=False).to(device)
    with torch.no_grad():
        next(layer.parameters()).fill_(0.5)
    train = TrainConfig(lr=RATE, gradient_clipping=0.0)
    sgd = torch.optim.SGD(layer.parameters(), lr=RATE)
    engine = build_engine(layer, train, stage, num_steps=1, optimizer=sgd)  # type: ignore[arg-type]
    try:
        engine.backward(engine(torch.ones(2, 4, device=device)).mean())
        engine.step()
    finally:
        engine.destroy()
    return Finding(OK, f"DeepSpeed {version} on {found}: an engine of ZeRO-{stage} steps", {"deepspeed": version})
