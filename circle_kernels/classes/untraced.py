"""What torch.compile has to call instead of looking into it.

A collective in a graph would run on fake tensors, in one process and perhaps not in the others. So
the graph ends before a sharded loss and another begins after it.

Imported only where a compiler is at work: ``torch.compiler.disable`` loads it, which takes seconds.
"""

from __future__ import annotations

import torch

from circle_kernels.classes.shard_loss import sharded_class_loss

_REASON = (
    "a sharded class loss waits for the other processes, which no graph may hold: leave out "
    "fullgraph=True, or compute the loss outside of what is compiled"
)

try:
    sharded_class_loss_untraced = torch.compiler.disable(sharded_class_loss, reason=_REASON)
except TypeError:  # before PyTorch 2.8
    sharded_class_loss_untraced = torch.compiler.disable(sharded_class_loss)
