"""tunekit's metrics as modules of the `evaluate` library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunekit.core.registry import METRICS
from tunekit.evaluate.scoring import config_of, score


def module(name: str, **options: Any) -> Any:
    """A metric of tunekit as an `evaluate.Metric`: with `compute`, `add`, `add_batch`, and fit for `evaluate.combine`.

    Nothing is downloaded, and no file is written but an empty folder in the library's cache. ``references`` is a text
    a row, or a list of texts; `compute` gives ``{name: number}``.

    Args:
        name: the metric.
        options: its options.

    Raises:
        UserError: there is no such metric, or its options are wrong.
    """
    metric = METRICS.load(name)
    config_of(name, options)
    from datasets import Features, List, Value

    import evaluate

    text = Value("string")
    answers: dict[str, Any] = {"predictions": List(text) if getattr(metric, "NEEDS_SAMPLES", False) else text}
    if getattr(metric, "NEEDS_PROBABILITY", False):
        answers["probabilities"] = Value("float64")
    features = [Features(answers | {"references": kind}) for kind in (text, List(text))]

    class TunekitMetric(evaluate.Metric):
        """One metric of tunekit."""

        def _info(self) -> Any:
            return evaluate.MetricInfo(
                description=metric.__doc__ or "", citation="", inputs_description="", features=features
            )

        def _compute(self, **columns: Any) -> dict[str, float]:
            return {name: _number(name, options, columns)}

    TunekitMetric.__name__ = TunekitMetric.__qualname__ = name  # what evaluate calls the module by
    return TunekitMetric(keep_in_memory=True)


def _number(name: str, options: dict[str, Any], columns: dict[str, Any]) -> float:
    """The metric of columns as the library hands them over."""
    right = [(found,) if isinstance(found, str) else tuple(found) for found in columns["references"]]
    given: Sequence[Any] = columns["predictions"]
    samples = None if all(isinstance(answer, str) for answer in given) else given
    return score(name, options, given, right, probabilities=columns.get("probabilities"), samples=samples).number()
