"""Metrics: one file each, with its help, `HIGHER_IS_BETTER`, a frozen `Config`, and `score` or `totals`.

``score(predictions, references, config)`` gives a number a row; the metric is their mean. ``totals(...)`` gives C
totals a row, and ``statistic(sums)`` or ``statistic_of(config)(sums)`` the corpus number of their sums, for many
resamples at once: (R, C) -> (R,). Beside totals there may be ``shown(totals, config)``, what a row shows by itself
(else: the statistic of the row alone). Of either kind there may be ``check(references, config)``, which is asked
before any model is loaded, and ``note(references, config)``, how the number was made. Flags: ``NEEDS_REFERENCE =
False``, ``NEEDS_SAMPLES = True`` (several answers a row), ``NEEDS_PROBABILITY = True`` (a keyword ``probabilities``),
``PACKAGE`` (what is imported, of the extra ``eval``).
"""
