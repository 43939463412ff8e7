"""The fused operation as Triton kernels, for CUDA and ROCm tensors."""

from circle_kernels.backends.triton.backward_pass.backward import backward
from circle_kernels.backends.triton.forward_pass.forward import forward
from circle_kernels.backends.triton.saved import saved_shape, saves_labels

__all__ = ["backward", "forward", "saved_shape", "saves_labels"]
