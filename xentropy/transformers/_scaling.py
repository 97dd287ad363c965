"""What models put on top of their logits, as the two options of the linear loss."""

import dataclasses
import math
from dataclasses import dataclass

from torch import Tensor

from .._kernels import LARGEST_SCALE, LEAST_SCALE


@dataclass(frozen=True)
class Scaling:
    """x = z * multiplied / divided or, with a cap, x = cap * tanh(z * multiplied / divided).

    Factor and divisor are kept separately: 1 / 30 * 30 is to be 1, not nearly 1.
    """

    multiplied: float = 1.0
    divided: float = 1.0
    cap: float | None = None

    def times(self, number: float) -> "Scaling":
        if self.cap is None:
            return dataclasses.replace(self, multiplied=self.multiplied * number)
        return dataclasses.replace(self, cap=self.cap * number)

    def over(self, number: float) -> "Scaling":
        if self.cap is None:
            return dataclasses.replace(self, divided=self.divided * number)
        return dataclasses.replace(self, cap=self.cap / number)

    def tanh(self) -> "Scaling":
        return dataclasses.replace(self, cap=1.0)

    def options(self) -> dict[str, float] | None:
        """`logit_scale` and `softcap`: softcap * tanh(logit_scale * z / softcap).

        None if the loss does not take such numbers.
        """
        if self.cap is None:
            found = {"logit_scale": self.multiplied / self.divided}
        elif 0 < self.cap < math.inf:
            found = {"logit_scale": self.multiplied * self.cap / self.divided, "softcap": self.cap}
        else:
            return None
        return found if LEAST_SCALE <= found["logit_scale"] <= LARGEST_SCALE else None

    def apply(self, z: Tensor) -> Tensor:
        z = z if self == Scaling() else z * (self.multiplied / self.divided)
        return z if self.cap is None else z.tanh() * self.cap
