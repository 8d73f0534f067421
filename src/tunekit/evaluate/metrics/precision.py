"""Of the answers that name a class, the share that is right."""

from __future__ import annotations

from tunekit.evaluate.contract import SumStatistic
from tunekit.evaluate.metrics._shared import classes

HIGHER_IS_BETTER = True


class Config(classes.AverageConfig):
    """Options of the metric."""


check, totals, shown = classes.check_positive, classes.averaged_totals, classes.rightness


def statistic_of(config: Config) -> SumStatistic:
    """Precision by class, averaged, as scikit-learn's precision_score."""
    return classes.averaged("precision", config)
