"""Of the rows of a class, the share that is answered rightly."""

from __future__ import annotations

from tunekit.evaluate.contract import SumStatistic
from tunekit.evaluate.metrics._shared import classes

HIGHER_IS_BETTER = True


class Config(classes.AverageConfig):
    """Options of the metric."""


check, totals, shown = classes.check_positive, classes.averaged_totals, classes.rightness


def statistic_of(config: Config) -> SumStatistic:
    """Recall by class, averaged, as scikit-learn's recall_score."""
    return classes.averaged("recall", config)
