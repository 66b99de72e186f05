"""Float32 as it is asked for: on GPUs frameworks multiply in TF32, of ten bits, by default."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Multiply float32 in float32 within this block, whichever backend Keras runs on."""
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        before = tf.config.experimental.tensor_float_32_execution_enabled()
        tf.config.experimental.enable_tensor_float_32_execution(False)
        try:
            yield
        finally:
            tf.config.experimental.enable_tensor_float_32_execution(before)
    elif backend == "jax":
        import jax

        with jax.default_matmul_precision("highest"):
            yield
    else:
        yield
