"""The one place that knows how each backend differentiates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

#: (parameters, state, batch) -> (loss, what else is computed on the way)
Function = Callable[[list[Any], list[Any], Any], tuple[Any, Any]]
#: The same arguments -> (loss, what else, gradients of the loss with respect to the parameters)
Step = Callable[[list[Any], list[Any], Any], tuple[Any, Any, list[Any]]]


def differentiated(function: Function, compiled: bool) -> Step:
    """The function with its gradients, one forward and one backward pass.

    Args:
        function: its loss is a scalar. Without parameters it is run forward alone.
        compiled: make a graph of it first (TensorFlow; JAX always does), which pays for more than a few batches.
    """
    return _BACKENDS[keras.backend.backend()](function, compiled)


def _tensorflow(function: Function, compiled: bool) -> Step:
    import tensorflow as tf

    def step(parameters: list[Any], state: list[Any], batch: Any) -> tuple[Any, Any, list[Any]]:
        if not parameters:
            return *function(parameters, state, batch), []
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(parameters)
            loss, rest = function(parameters, state, batch)
        gradients = tape.gradient(loss, parameters, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return loss, rest, [tf.convert_to_tensor(gradient) for gradient in gradients]

    # XLA compiles for minutes on CPUs.
    return tf.function(step, jit_compile=False) if compiled else step


def _jax(function: Function, compiled: bool) -> Step:
    import jax

    with_gradients = jax.value_and_grad(function, has_aux=True)

    def step(parameters: list[Any], state: list[Any], batch: Any) -> tuple[Any, Any, list[Any]]:
        if not parameters:
            return *function(parameters, state, batch), []
        (loss, rest), gradients = with_gradients(parameters, state, batch)
        return loss, rest, gradients

    return jax.jit(step)


def _torch(function: Function, compiled: bool) -> Step:
    import torch

    def step(parameters: list[Any], state: list[Any], batch: Any) -> tuple[Any, Any, list[Any]]:
        if not parameters:
            with torch.no_grad():
                return *function(parameters, state, batch), []
        # The model's own variables keep their requires_grad: these are others that share their memory.
        leaves = [parameter.detach().requires_grad_() for parameter in parameters]
        with torch.enable_grad():
            loss, rest = function(leaves, state, batch)
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        zeros = (torch.zeros_like(leaf) if one is None else one for leaf, one in zip(leaves, gradients, strict=True))
        return loss.detach(), [one.detach() for one in rest], list(zeros)

    return step


_BACKENDS: dict[str, Callable[[Function, bool], Step]] = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}


def tapped(z: Any, probe: Any, measure: Callable[[Any, Any], Any]) -> Any:
    """`z` itself; on the way back `measure(z, gradient)` becomes the gradient of `probe`, and has its shape.

    So what is measured of a feature map and its gradient is all that is kept of them.
    """

    @ops.custom_gradient
    def tap(z: Any, probe: Any) -> tuple[Any, Callable[..., Any]]:
        def gradient(*arguments: Any, upstream: Any = None) -> tuple[Any, Any]:
            upstream = arguments[0] if upstream is None else upstream
            return upstream, measure(z, upstream)

        return z, gradient

    return tap(z, probe)
