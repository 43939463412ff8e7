"""What torch.compile has to call instead of looking into it.

A collective in a graph would run on fake tensors, in one process and perhaps not in the others. Nor
is it made an op that a graph holds: a compiler may put two of them in another order in each
process, which mixes up their data. So the graph ends before the gather and another begins after it.

Imported only where a compiler is at work: ``torch.compiler.disable`` loads it, which takes seconds.
"""

from __future__ import annotations

import torch

from circle_kernels.distributed.gather import gather_batch_now

_REASON = (
    "group= waits for the other processes, which no graph may hold: leave out fullgraph=True, or "
    "compute the loss outside of what is compiled"
)

try:
    gather_from_all_processes = torch.compiler.disable(gather_batch_now, reason=_REASON)
except TypeError:  # before PyTorch 2.8
    gather_from_all_processes = torch.compiler.disable(gather_batch_now)
