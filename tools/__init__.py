"""What the lint counts beside ruff, clang-format and mypy."""
