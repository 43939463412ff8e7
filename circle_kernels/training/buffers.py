"""Buffers of a network that is run again for its backward pass: the second run changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import Tensor, nn

# Kernels of batch norm write to these without counting it as a change.
_STATISTICS = ("running_mean", "running_var")

_Place: TypeAlias = tuple[nn.Module, str]  # the module that has a buffer, and its name there


class Buffers:
    """Those of one network.

    A second run sees the buffers as the first one found them, and what it writes to them is thrown
    away: running statistics take in each chunk once, and layers that compute with what they update,
    such as ``spectral_norm``, compute the same twice.
    """

    def __init__(self, network: nn.Module) -> None:
        self._places = [(module, name) for module in network.modules() for name in module._buffers]

    def run_again(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """``run`` for one first call, and for others that are to do the same."""
        found: dict[_Place, Tensor] | None = None

        def called(*arguments: Any) -> Any:
            nonlocal found
            if found is not None:
                with self._as_found(found):
                    return run(*arguments)
            found = {}
            with self._finding(found):
                return run(*arguments)

        return called

    @contextmanager
    def _finding(self, found: dict[_Place, Tensor]) -> Iterator[None]:
        """Fills ``found`` with copies of the buffers that change, from before they do."""
        before = {
            place: (buffer, _version(buffer), buffer.detach().clone())
            for place, buffer in self._present()
        }
        yield
        for (module, name), (buffer, version, copy) in before.items():
            is_other = module._buffers.get(name) is not buffer or _version(buffer) != version
            if is_other or name in _STATISTICS:
                found[module, name] = copy

    @contextmanager
    def _as_found(self, found: dict[_Place, Tensor]) -> Iterator[None]:
        """Puts copies in the buffers' places: writing to a buffer itself, even what it has, would
        count as a change, which autograd reports to who saved it elsewhere."""
        present = dict(self._present())
        for (module, name), copy in found.items():
            module._buffers[name] = copy.clone()
        try:
            yield
        finally:
            for (module, name), buffer in present.items():
                module._buffers[name] = buffer

    def _present(self) -> Iterator[tuple[_Place, Tensor]]:
        for module, name in self._places:
            buffer = module._buffers.get(name)
            if buffer is not None:
                yield (module, name), buffer


def _version(buffer: Tensor) -> int:
    """A number that grows with every change; tensors of inference mode have none."""
    return 0 if buffer.is_inference() else buffer._version
