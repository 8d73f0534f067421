"""What libraries log and warn goes to the run's log.txt, not over the screen."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def library_logs_to(path: Path) -> Iterator[None]:
    """Sends the root logger, library loggers and Python warnings to a file while the block runs."""
    from datasets import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    logging.captureWarnings(True)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        try:
            yield
        finally:
            logging.captureWarnings(False)
            transformers_logging.enable_default_handler()
            root.setLevel(before[0])
            root.handlers[:] = before[1]
            handler.close()
