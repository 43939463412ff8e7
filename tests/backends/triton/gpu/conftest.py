"""What every test on a device leaves behind."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _memory_for_others():
    """Several processes test on one device, and none may keep what it does not use."""
    yield
    torch.cuda.empty_cache()
