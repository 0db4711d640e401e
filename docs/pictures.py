"""Pictures for the documentation, taken from what depthscope itself shows.

    python docs/pictures.py report RUN           the page of a finished run: its top, and the figures of each section
    python docs/pictures.py comparison PAGE      the top of what `depthscope compare` wrote
    python docs/pictures.py explorer ADDRESS     two tabs of a running `depthscope explore` (the address with its token)

Opens them in chromium and writes docs/images/*.png as they are; of a section's tables and definitions only the figures are
kept. Needs the `dev` dependencies and a chromium.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
WIDTH, TOP = 1000, 1400
LARGEST = 300_000
"""Bytes of a picture at most, so that a clone stays small."""
UNDRAWN = "[...document.querySelectorAll('.plot')].filter((plot) => !plot._fullLayout).length"
FRAMED = "main section { border: 0 !important; padding: 8px 20px 12px !important }"
HIDDEN = "main section > :is(h3, .scroll, details, noscript)"


def report(browser: Browser, run: str) -> None:
    """The page of one run."""
    address = (Path(run) / "report.html").resolve().as_uri()
    whole = _opened(browser, address)
    _keep(whole.screenshot(clip={"x": 0, "y": 0, "width": WIDTH, "height": TOP}), "report-top")
    figures = _opened(browser, address, f"{HIDDEN} {{ display: none !important }} {FRAMED}")
    for section in figures.query_selector_all("main section[id]:has(.plot)"):
        _keep(section.screenshot(), f"report-{section.get_attribute('id')}")


def comparison(browser: Browser, page: str) -> None:
    """The page that compares several runs."""
    _keep(_opened(browser, Path(page).resolve().as_uri()).screenshot(), "report-comparison")


def explorer(browser: Browser, address: str) -> None:
    """The explorer, with the prompt it begins with."""
    page = browser.new_page(viewport={"width": 1100, "height": 950}, color_scheme="light")
    page.goto(address)
    page.get_by_text("The most likely next token at each depth").wait_for()
    _keep(page.screenshot(), "report-explorer-prompt")
    page.get_by_role("tab", name="Surgery").click()
    page.get_by_text("The most likely next token after each edit").wait_for()
    _keep(page.screenshot(clip={"x": 0, "y": 0, "width": 1100, "height": 860}), "report-explorer-surgery")


def _opened(browser: Browser, address: str, style: str = "") -> Page:
    """A page with all plots drawn; they are drawn when they come near."""
    page = browser.new_page(viewport={"width": WIDTH, "height": TOP}, color_scheme="light")
    page.goto(address, wait_until="domcontentloaded")
    if style:
        page.add_style_tag(content=style)
    for plot in page.query_selector_all(".plot"):
        plot.scroll_into_view_if_needed()
    page.wait_for_function(f"{UNDRAWN} === 0")
    page.evaluate("scrollTo(0, 0)")
    return page


def _keep(picture: bytes, name: str) -> None:
    if len(picture) > LARGEST:
        raise SystemExit(f"{name}.png has {len(picture)} bytes: expected at most {LARGEST}")
    (IMAGES / f"{name}.png").write_bytes(picture)
    print(f"{name}.png {len(picture):,} bytes")


SHOWN: dict[str, Callable[[Browser, str], None]] = {"report": report, "comparison": comparison, "explorer": explorer}


def main(arguments: list[str]) -> None:
    """Take the pictures asked for."""
    if len(arguments) != 2 or arguments[0] not in SHOWN:
        raise SystemExit(__doc__)
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        SHOWN[arguments[0]](browser, arguments[1])
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
