"""Call: any function of the value, for what no other edit says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from hooke.base.errors import ConfigError, ShapeError
from hooke.model.edits.edit import Edit, Place, Positions


@dataclass(frozen=True, eq=False)
class Call(Edit):
    """The escape hatch: `fn(x)` in the place of the site's tensor.

    Nothing is known of the function: it cannot be saved, and no run re-uses work across it.

    Args:
        fn: from `[batch, pos, ...]` (`[batch, head, query, key]` for attention maps; without the head dimension at the
            site of one head) to the same shape. Where tokens are generated it sees the new positions only. It must not
            change its argument in place.
    """

    fn: Callable[[Tensor], Tensor]
    positions: Positions = None

    @property
    def is_local(self) -> bool:
        return False

    def check(self, place: Place) -> None:
        if not callable(self.fn):
            raise ConfigError(f"{self.label}: fn is {self.fn!r}; expected a function from a tensor to a tensor")

    def change(self, x: Tensor) -> Tensor:
        value = self.fn(x)
        if not isinstance(value, Tensor) or value.shape != x.shape:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ShapeError(f"{self.label}: the function gave {found}; expected a tensor of shape {tuple(x.shape)}")
        return value.to(x)

    @property
    def label(self) -> str:
        return f"Call({getattr(self.fn, '__name__', 'fn')}) at {self.site}"
