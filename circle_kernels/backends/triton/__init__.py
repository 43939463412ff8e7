"""The fused operation as Triton kernels, for CUDA and ROCm tensors."""

from circle_kernels.backends.triton.backward_pass.backward import backward
from circle_kernels.backends.triton.backward_pass.scale import scale_gradients
from circle_kernels.backends.triton.forward_pass.forward import forward
from circle_kernels.backends.triton.forward_pass.known import save
from circle_kernels.backends.triton.reduction import row_losses
from circle_kernels.backends.triton.saved import saved_shape, saves_labels
from circle_kernels.backends.triton.self_check import status, unusable_reason

__all__ = [
    "backward",
    "forward",
    "row_losses",
    "save",
    "saved_shape",
    "saves_labels",
    "scale_gradients",
    "status",
    "unusable_reason",
]
