"""Importing this skips the file where the packages of the recipes are not."""

import pytest

for package in ("numpy", "PIL", "pydantic", "rich", "scipy", "tqdm"):
    pytest.importorskip(package)
