"""What one image costs a model: floating-point operations and weights."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Of one image.

    Attributes:
        mflops: millions of floating-point operations of convolutions and dense layers, two a
            multiply-add, as TensorFlow's profiler counts them.
        megabytes: of its weights in float32, millions of bytes.
    """

    mflops: float
    megabytes: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.mflops + other.mflops, self.megabytes + other.megabytes)

    @classmethod
    def of_kernels(cls, multiply_adds: int, n_weights: int) -> "Cost":
        """The cost of so many multiply-adds, with so many weights."""
        return cls(2 * multiply_adds / 1e6, 4 * n_weights / 1e6)
