"""Multiply-adds, by the precision that a GPU would compute them in."""

from dataclasses import dataclass

PRECISIONS = ("bfloat16", "tf32", "float32")
"""Of products: on tensor cores in bfloat16 or TF32, or in IEEE float32."""


@dataclass(frozen=True)
class Work:
    """Multiply-adds of matrix products and convolutions, one number for each of ``PRECISIONS``."""

    bfloat16: float = 0
    tf32: float = 0
    float32: float = 0

    @property
    def total(self) -> float:
        """In all precisions."""
        return self.bfloat16 + self.tf32 + self.float32

    def __add__(self, other: "Work") -> "Work":
        return Work(self.bfloat16 + other.bfloat16, self.tf32 + other.tf32, self.float32 + other.float32)

    def __sub__(self, other: "Work") -> "Work":
        return self + other * -1

    def __mul__(self, times: float) -> "Work":
        return Work(self.bfloat16 * times, self.tf32 * times, self.float32 * times)
