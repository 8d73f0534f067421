"""Packages that come with an extra of tunekit: imported where they are used, asked for in words where they are not."""

from __future__ import annotations

import importlib
from types import ModuleType

from tunekit.core.errors import UserError


def need(module: str, extra: str, what: str) -> ModuleType:
    """Imports ``module``, which the extra ``extra`` of tunekit installs, for ``what``, such as "metric 'bleu'".

    Raises:
        UserError: the module, or one that it imports, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).split(".")[0]
        raise UserError(
            f"{what} needs the package '{missing}', which is not installed", fix=f"pip install 'tunekit[{extra}]'"
        ) from error
