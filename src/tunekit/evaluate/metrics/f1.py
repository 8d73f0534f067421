"""The harmonic mean of precision and recall of each class."""

from __future__ import annotations

from tunekit.evaluate.contract import SumStatistic
from tunekit.evaluate.metrics._shared import classes

HIGHER_IS_BETTER = True


class Config(classes.AverageConfig):
    """Options of the metric."""


check, totals, shown = classes.check_positive, classes.averaged_totals, classes.rightness


def statistic_of(config: Config) -> SumStatistic:
    """F1 by class, averaged, as scikit-learn's f1_score."""
    return classes.averaged("f1", config)
