"""The lowest layers of an encoder held fixed: no gradient, no dropout, and nothing of them computed twice.

Autograd by itself does not go back into layers that have nothing to train. But a micro-batch whose activations were
not kept is recomputed in backward from its token ids, through the fixed layers too; so what the last of these gave is
remembered (one number a token and hidden unit, where activations are dozens a layer) and given again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from beeray.core.encoder import set_dropout
from beeray.errors import EncoderError


class FrozenLayers:
    """Layers that are held fixed, and the memory of what they gave.

    Args:
        layers: of a transformer, from the lowest on, all frozen and free of dropout (so that leaving them out draws
            no random number less).
        width: hidden units.
    """

    def __init__(self, layers: Sequence[nn.Module], width: int) -> None:
        self.bytes_per_token = 4 * width
        self._store: list[Any] | None = None
        self._replaying = False
        for layer in layers:
            layer.forward = self._around(layer.forward, last=layer is layers[-1])

    def contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Contexts of a forward pass that remembers and of its recomputation, for `checkpoint(context_fn=…)`."""
        store: list[Any] = []
        return self._within(store, replaying=False), self._within(store, replaying=True)

    def _around(self, forward: Callable[..., Any], *, last: bool) -> Callable[..., Any]:
        def remembered(*args: Any, **kwargs: Any) -> Any:
            if self._replaying and self._store:
                return self._store[0]  # from every layer: what the ones before the last give is not looked at
            given = forward(*args, **kwargs)
            if last and self._store is not None:
                self._store.append(given)
            return given

        return remembered

    @contextmanager
    def _within(self, store: list[Any], *, replaying: bool) -> Iterator[None]:
        before = self._store, self._replaying
        self._store, self._replaying = store, replaying
        try:
            yield
        finally:
            self._store, self._replaying = before


def freeze_lower_layers(model: SentenceTransformer, number: int) -> FrozenLayers:
    """Freeze the lowest transformer layers and all that they depend on (embeddings, shared position biases).

    What that is, a forward pass tells: the parameters that the last of these layers' output has a gradient to, and
    the modules that have run by then.

    Raises:
        EncoderError: the encoder's layers are not to be found, or are not so many.
    """
    layers = transformer_layers(model)
    if number > len(layers):
        raise EncoderError(f"train.freeze_layers is {number}: the encoder has {len(layers)} layers; lower it")
    frozen = list(layers)[:number]
    for parameter in _needed_by(model, frozen[-1]):
        parameter.requires_grad_(False)
    network: Any = model[0].model
    return FrozenLayers(frozen, network.config.hidden_size)


def transformer_layers(model: SentenceTransformer) -> nn.ModuleList:
    """The layers of an encoder's transformer, lowest first.

    Raises:
        EncoderError: it has no list of as many modules as its config says that it has layers.
    """
    network = getattr(model[0], "model", None)
    depth = getattr(getattr(network, "config", None), "num_hidden_layers", None)
    modules = [] if network is None else network.modules()
    found = [module for module in modules if isinstance(module, nn.ModuleList) and len(module) == depth]
    if len(found) != 1:
        raise EncoderError(
            f"train.freeze_layers: the layers of {type(network).__name__} are not to be found (a list of as many "
            "modules as num_hidden_layers says); set it to 0, or train low-rank adapters with train.lora"
        )
    return found[0]


@contextmanager
def _attention_of_any_kind(network: Any) -> Iterator[None]:
    """Attend with a kernel for any device and precision; flash attention's is for half precision on GPUs alone."""
    chosen = getattr(network.config, "_attn_implementation", None) or ""
    if not chosen.startswith("flash"):
        yield
        return
    network.set_attn_implementation("eager")
    try:
        yield
    finally:
        network.set_attn_implementation(chosen)


def _needed_by(model: SentenceTransformer, last: nn.Module) -> list[nn.Parameter]:
    """Trainable parameters that a layer's output depends on; dropout is taken out of all that runs up to it."""
    done: list[nn.Module] = []
    outputs: list[Tensor] = []

    def finished(module: nn.Module, inputs: Any, output: Any) -> None:
        if not outputs:
            done.append(module)
        if module is last:
            outputs.append(output if isinstance(output, Tensor) else output[0])

    hooks = [module.register_forward_hook(finished) for module in model[0].modules()]
    try:
        with torch.enable_grad(), _attention_of_any_kind(model[0].model):
            ones = torch.ones((1, 2), dtype=torch.int64, device=model.device)
            model[0]({"input_ids": ones, "attention_mask": ones})
    finally:
        for hook in hooks:
            hook.remove()
    for module in done:
        set_dropout(module, 0.0)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    output = outputs[0]
    if not output.requires_grad:
        return []
    gradients = torch.autograd.grad(output.sum(), parameters, allow_unused=True)
    return [one for one, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
