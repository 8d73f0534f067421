"""Fixtures for all tests."""

import gc
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"the real data is not on this machine: {SHARED}")
    return SHARED


@pytest.fixture(scope="module", autouse=True)
def old_objects_are_not_looked_at():
    """What earlier files imported stays: each run looks for garbage three times, among millions of objects."""
    gc.collect()
    gc.freeze()
