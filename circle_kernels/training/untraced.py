"""What torch.compile has to call instead of looking into it.

Graphs cannot hold checkpointing of networks that were compiled already, and a number of rows that
grows at every step would be compiled anew each time. So a graph ends before such a call and another
begins after it.

Imported only where a compiler is at work: ``torch.compiler.disable`` loads it, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from circle_kernels.training import chunks, memory

_REASON = (
    "circle_kernels runs it outside of graphs: leave out fullgraph=True, or compile the network "
    "and the loss alone"
)


def _untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    try:
        return torch.compiler.disable(function, reason=_REASON)
    except TypeError:  # before PyTorch 2.8
        return torch.compiler.disable(function)


run_in_chunks_untraced: Callable[..., Any] = _untraced(chunks.run_in_chunks)
references_of_step_untraced: Callable[..., Any] = _untraced(memory.references_of_step)
enqueue_rows_untraced: Callable[..., Any] = _untraced(memory.enqueue_rows)
filled_part_untraced: Callable[..., Any] = _untraced(memory.filled_part)
