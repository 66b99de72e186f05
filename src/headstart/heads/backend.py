"""The two things that Keras 3 leaves to its backend: compiling a function, and gradients."""

from collections.abc import Callable
from typing import Any

import keras

from headstart.common.errors import SearchError

Tensor = Any
Tensors = dict[str, Tensor]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a pure function of tensors with XLA; one program per set of input shapes."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        # Keras's loops need no translation of Python's, which takes seconds a program.
        compiled_function: Callable[..., Any] = tf.function(
            function, jit_compile=True, reduce_retracing=False, autograph=False
        )
        return compiled_function
    if backend == "jax":
        import jax

        return jax.jit(function)
    raise SearchError(
        f"heads are trained with Keras on TensorFlow or JAX, but got {backend}: "
        "set KERAS_BACKEND to tensorflow or jax"
    )


def gradients(loss: Callable[[Tensors], Tensor], weights: Tensors) -> Tensors:
    """Gradients of a scalar loss with respect to each tensor of `weights`."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for weight in weights.values():
                tape.watch(weight)
            value = loss(weights)
        found: Tensors = tape.gradient(value, weights)
        return found
    import jax

    return dict(jax.grad(loss)(weights))
