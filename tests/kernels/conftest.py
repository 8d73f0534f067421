"""One thread: models this small are slower on several, by far when the machine is busy."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def note():
    """Leaves a measured value for the reader: shown with `pytest -rP` or `-s`."""
    return lambda text: print(f"measured: {text}")
