"""Training methods: one file each.

A module holds its help (the docstring's first line), `ISOLATED` (whether packed examples must not see each other),
`RECIPE` (what `tunekit init` writes), a frozen `Config` (its block) and `build(...)`, which returns the trainer.
"""
