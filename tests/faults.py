"""How often each fault is tried: few times in `make test`, the whole number with `--torture`, and both in the report.

A test of a fault is marked with what is done and what must follow, and loops over as many tries as it is given:

    @pytest.mark.fault("a bit of a stored file is flipped", "noticed and computed again; the tables are the same bytes")
    def test_flipped_bits(tries):
        for seed in range(tries(20, of=1500)):
            ...

Each case of a parametrized test, and a test without `tries`, counts as one try. The marks and counts go to the JUnit file, from
which `python -m benchmarks.torture` writes docs/reliability.md.
"""

from collections.abc import Callable

import pytest

MARK = "fault"
OPTION = "--torture"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(OPTION, action="store_true", help="try every fault as often as docs/reliability.md states")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if (mark := item.get_closest_marker(MARK)) is not None:
            what, follows = mark.args
            item.user_properties += [("fault", what), ("follows", follows)]


@pytest.fixture
def tries(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Callable[..., int]:
    """`tries(few, of=many)`: how often to try the fault in this session."""

    def number(few: int, *, of: int) -> int:
        count = of if request.config.getoption(OPTION) else few
        record_property("tries", count)
        return count

    return number
