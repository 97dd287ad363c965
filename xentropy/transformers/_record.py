"""How deferred logits came to be, so that they can be computed when somebody asks."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from ._scaling import Scaling

CHANGED = (
    "logits were deferred by xentropy.transformers.patch, and {} has been changed in place since: "
    "read outputs.logits before that (an optimizer's step, say), or unpatch the model"
)
SPENT = (
    "{} on logits that were deferred by xentropy.transformers.patch: their loss was computed "
    "without them, so no gradient will pass through them; unpatch the model"
)
WRITTEN = (
    "{} writes to logits that were deferred by xentropy.transformers.patch: give it "
    "outputs.logits.clone(), or unpatch the model"
)


@dataclass(eq=False)
class Product:
    """hidden @ weight.T + bias, not computed."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    has_loss: bool = False  # a loss has been computed without the logits

    def __post_init__(self) -> None:
        self._versions = self._now()

    def _now(self) -> dict[str, int | None]:
        tensors = {"hidden states": self.hidden, "weight": self.weight, "bias": self.bias}
        return {f"the output layer's {k}": version(t) for k, t in tensors.items() if t is not None}

    def check(self) -> None:
        """The logits are those of the forward pass, or an error."""
        for name, now in self._now().items():
            if now != self._versions[name]:
                raise RuntimeError(CHANGED.format(name))

    def compute(self) -> Tensor:
        self.check()
        return functional.linear(self.hidden, self.weight, self.bias)


def version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


@dataclass(eq=False)
class Record:
    """Logits: a product, or a step from other logits.

    The loss is taken from `rows`, `weight`, `bias` and `scaling`. The logits themselves, if anybody
    asks, are computed by the operations that the model called, in their order: to the same bits.
    """

    product: Product
    rows: Tensor  # hidden states; in all but the last axis they have the shape of the logits
    bias: Tensor | None
    like: Tensor  # on the meta device: shape, strides, dtype
    scaling: Scaling = field(default_factory=Scaling)
    source: "Record | None" = None
    step: Callable[[Tensor], Tensor] | None = None
    view: bool = False  # the step shares the memory of its source
    value: Tensor | None = None
    version: int | None = None
    grad: bool = field(default_factory=torch.is_grad_enabled)
    inference: bool = field(default_factory=torch.is_inference_mode_enabled)

    @property
    def pending(self) -> bool:
        """Has nobody computed these logits, or those in whose memory they are?

        Computed ones may have been written to since, also where no version tells.
        """
        source = self.source if self.view else None
        return self.value is None and (source is None or source.pending)

    def real(self) -> Tensor:
        """The logits; computed once."""
        if self.value is None:
            self.value = self._computed()
            self.version = version(self.value)
        return self.value

    def values(self) -> Tensor:
        """The numbers alone, kept by nobody."""
        return self._unmodified().detach()

    def _computed(self) -> Tensor:
        source = self.source
        with self._modes():
            if source is None or self.step is None:
                return self.product.compute()
            return self.step(source.real() if self.view else source._unmodified())

    def _unmodified(self) -> Tensor:
        """As it was when the step was called, whatever has been written to it since."""
        if self.value is None or self.version is None or version(self.value) != self.version:
            return self._computed()
        return self.value

    @contextlib.contextmanager
    def _modes(self) -> Iterator[None]:
        """Those of the call: what asks for the logits later may be a metric under no_grad."""
        with (
            torch.inference_mode(self.inference),
            torch.set_grad_enabled(self.grad),
            torch.autocast("cpu", enabled=False),
        ):
            yield
