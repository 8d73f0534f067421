"""Evaluation tasks: one file each. A module holds its help, a frozen `Config` and `run(...) -> list[TaskResult]`."""
