"""A network that is run again for its backward pass: as it was, and without leaving a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import Tensor, nn

# Kernels of batch norm write to these without counting it as a change.
_STATISTICS = ("running_mean", "running_var")

_Place: TypeAlias = tuple[nn.Module, str]  # the module that has a buffer, and its name there


class _Found:
    """What a run found: the modes of modules, places of buffers, and copies of those buffers that
    it changed. A buffer that has several places has one copy."""

    def __init__(self, modes: list[bool], places: dict[_Place, bool]) -> None:
        self.modes = modes  # training or evaluation
        self.places = places  # and whether they had a buffer
        self.buffers: dict[_Place, Tensor] = {}


class SecondRuns:
    """Of one network.

    A second run sees the buffers as the first one found them, and what it writes to them is thrown
    away: running statistics take in each chunk once, and layers that compute with what they update,
    such as ``spectral_norm``, compute the same twice. It is also in the first one's mode.
    """

    def __init__(self, network: nn.Module) -> None:
        self._modules = list(network.modules())

    def prepared(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """``run`` for one first call, and for others that are to do the same."""
        found: _Found | None = None

        def called(*arguments: Any) -> Any:
            nonlocal found
            if found is not None:
                with self._as_found(found):
                    return run(*arguments)
            found = _Found([module.training for module in self._modules], self._places())
            with self._finding(found):
                return run(*arguments)

        return called

    @contextmanager
    def _finding(self, found: _Found) -> Iterator[None]:
        present = list(self._present())
        copies = {buffer: buffer.detach().clone() for _, buffer in present}
        before = {place: (buffer, _version(buffer), copies[buffer]) for place, buffer in present}
        yield
        for (module, name), (buffer, version, copy) in before.items():
            is_other = getattr(module, name, None) is not buffer or _version(buffer) != version
            if is_other or name in _STATISTICS:
                found.buffers[module, name] = copy

    @contextmanager
    def _as_found(self, found: _Found) -> Iterator[None]:
        """Puts copies in the buffers' places: writing to a buffer itself, even what it has, would
        count as a change, which autograd reports to who saved it elsewhere."""
        present = list(self._present())
        modes = [module.training for module in self._modules]
        copies = {copy: copy.clone() for copy in found.buffers.values()}
        self._set_modes(found.modes)
        for (module, name), _ in present:
            if (module, name) not in found.places:  # the first run registered it
                del module._buffers[name]
            elif not found.places[module, name]:
                setattr(module, name, None)
        for (module, name), copy in found.buffers.items():
            setattr(module, name, copies[copy])
        try:
            yield
        finally:
            self._set_modes(modes)
            for (module, name), buffer in present:
                if name in module._buffers:
                    setattr(module, name, buffer)
                else:
                    module._buffers[name] = buffer

    def _set_modes(self, modes: list[bool]) -> None:
        for module, mode in zip(self._modules, modes, strict=True):
            if module.training != mode:
                module.training = mode

    def _places(self) -> dict[_Place, bool]:
        return {
            (module, name): buffer is not None
            for module in self._modules
            for name, buffer in module._buffers.items()
        }

    def _present(self) -> Iterator[tuple[_Place, Tensor]]:
        for module in self._modules:
            # Each place, also of a buffer that is in several.
            for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
                yield (module, name), buffer


def _version(buffer: Tensor) -> int:
    """A number that grows with every change; tensors of inference mode have none."""
    return 0 if buffer.is_inference() else buffer._version
