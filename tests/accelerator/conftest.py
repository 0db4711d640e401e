import pytest

from accelerator.simulated import require_accelerators


@pytest.fixture(autouse=True, scope="session")
def _devices() -> None:
    require_accelerators()
