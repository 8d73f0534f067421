import pytest
from runs_for_tests import make_run


@pytest.fixture
def run(tmp_path):
    """A finished run's folder."""
    return make_run(tmp_path / "runs" / "support-bot")
