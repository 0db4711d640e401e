"""Which devices these tests take: two simulated ones, or with `--accelerator cuda` those of this machine."""

import pytest
import torch

from accelerator.simulated import NAME, require_accelerators

OPTION = "--accelerator"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(OPTION, default=NAME, help="the type of device to test, such as cuda")


@pytest.fixture(scope="session", autouse=True)
def devices(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Two devices of the type; twice the same one where there is only one."""
    kind = request.config.getoption(OPTION)
    if kind == NAME:
        require_accelerators()
    return f"{kind}:0", f"{kind}:{min(1, torch.accelerator.device_count() - 1)}"
