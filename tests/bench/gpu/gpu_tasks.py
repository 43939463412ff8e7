"""Tasks of ``python -m bench gpu`` for tests."""

from __future__ import annotations

from bench.gpu.tasks import Task
from bench.measuring.cases import Case

TINY = Case(32, 8)

# No verdict here depends on how long something takes: what is to end ends at once, and what is to
# hang does so for longer than a test may take.
FAR_AWAY = 1e6


class PatientTask(Task):
    """May take as long as a busy machine makes of it."""

    @property
    def longest_seconds(self) -> float:
        return FAR_AWAY


def statuses(rows: list[dict]) -> dict[str, str]:
    """How each variant ended."""
    return {row["variant"]: row["status"] for row in rows}
