"""Choose the hyper-parameters on the validation classes; the test classes are not looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from circle_kernels import CircleLoss
from glyphs.data import ClassSplit
from glyphs.metrics import RetrievalMetrics
from glyphs.training import Settings, new_network, train

MARGINS = (0.25, 0.4)  # the paper's two
SCALES = (4.0, 8.0, 16.0, 32.0)
LEARNING_RATES = (1e-3, 2e-3, 4e-3)
STEP_COUNTS = (150, 300, 600)  # what about a minute allows
FIRST_TRY = Settings(m=0.25, gamma=16.0, steps=300, learning_rate=2e-3)

Results = dict[Settings, RetrievalMetrics]


def validation_metrics(settings: Settings, split: ClassSplit) -> RetrievalMetrics:
    """Train on the training classes and evaluate on the validation classes."""
    network = new_network(settings.seed)
    criterion = CircleLoss(m=settings.m, gamma=settings.gamma)
    title = f"m={settings.m:g} gamma={settings.gamma:g} lr={settings.learning_rate:g}"
    history = train(
        network, split.train, split.validation, settings, criterion, validations=1, title=title
    )
    return history.validations[-1][1]


def choose_settings(
    score: Callable[[Settings], RetrievalMetrics],
    first_try: Settings = FIRST_TRY,
) -> tuple[Settings, Results]:
    """Largest MAP@R over m and gamma together, then the learning rate, then the step count.

    Args:
        score: metrics of a setting on the validation classes; called once per setting.
        first_try: gives what a stage does not vary, until a stage has chosen it.

    Returns:
        The chosen setting, and the metrics of every setting tried, in that order.
    """
    results: Results = {}

    def best(candidates: Iterable[Settings]) -> Settings:
        candidates = list(candidates)
        for settings in candidates:
            if settings not in results:
                results[settings] = score(settings)
        return max(candidates, key=lambda settings: results[settings].map_at_r)

    chosen = best(replace(first_try, m=m, gamma=gamma) for m in MARGINS for gamma in SCALES)
    chosen = best(replace(chosen, learning_rate=rate) for rate in LEARNING_RATES)
    chosen = best(replace(chosen, steps=steps) for steps in STEP_COUNTS)
    return chosen, results
