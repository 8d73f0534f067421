"""Engines that are not transformers': one file each. A module holds its help, a frozen `Config` and `open(...)`.

`open(config, name, screen)` is a context manager of an `Engine`; ``name`` is the model's name in the recipe.
"""
