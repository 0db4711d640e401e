"""Waiting for the plots of a page in a browser."""

import time

from playwright.sync_api import Page

UNDRAWN = "[...document.querySelectorAll('.plot')].filter((plot) => !plot._fullLayout).length"


def wait_until_drawn(page: Page, seconds: float = 120) -> None:
    """Wait until every plot is drawn. Not with `wait_for_function`, which calls eval in the page: our pages forbid it."""
    until = time.monotonic() + seconds
    while page.evaluate(UNDRAWN):
        assert time.monotonic() < until, "plots are not drawn"
        page.wait_for_timeout(50)
