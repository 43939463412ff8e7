"""Backends on the small problems that a kernel is tried on before its first use."""

from __future__ import annotations

import contextlib
import importlib

import pytest
import torch

from circle_kernels.backends import trial
from circle_kernels.backends.choice import BACKENDS
from tests.support.targets import Target, for_every_backend


@pytest.mark.backends
@for_every_backend
@pytest.mark.parametrize("order", ["any", "label"])
def test_right_backend_has_no_fault(target: Target, order: str) -> None:
    backend = importlib.import_module(BACKENDS[target.backend].module)
    limits = None
    if target.backend == "triton":
        from circle_kernels.backends.triton.conditions import Limits, assuming
        from tests.support.interpreter.device_tables import interpreted_table

        limits = assuming(
            limits=Limits(small_rows=0, sorted_tiles=0 if order == "label" else 24),
            table=interpreted_table("sm_90"),
        )
    elif order == "label":
        pytest.skip("only Triton kernels have more than one order")
    with limits or contextlib.nullcontext():
        for dtype in target.dtypes:
            if dtype != torch.float64:
                assert trial.fault(backend, torch.device(target.device), dtype) == ""
