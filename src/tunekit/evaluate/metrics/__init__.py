"""Metrics: one file each, with its help, `HIGHER_IS_BETTER`, a frozen `Config` and `score(...)`: a value a row."""
