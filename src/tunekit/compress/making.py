"""The fresh process in which a backend makes an artefact: its library's changes to modules and memory end with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunekit.compress.contract import Making
from tunekit.core.registry import BACKENDS
from tunekit.model.quiet import hushed


def work(job: Mapping[str, Any]) -> dict[str, Any]:
    """Makes one artefact.

    Args:
        job: ``backend``, ``kind``, ``config``, ``source``, ``target``, ``rows`` (token ids), ``seed``, ``threads``.

    Raises:
        TunekitError: what the backend refuses.
    """
    import torch

    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    plugin = BACKENDS.load(job["backend"])
    making = Making(
        kind=job["kind"],
        config=plugin.Config.model_validate(job["config"], strict=False),  # lists of the job are tuples here
        source=Path(job["source"]),
        target=Path(job["target"]),
        rows=tuple(tuple(row) for row in job["rows"]),
        seed=job["seed"],
    )
    with hushed():
        plugin.make(making)
    return {}
