"""Pictures for the documentation, taken from the page of a finished run.

    python docs/pictures.py RUN

Opens RUN/report.html in chromium, without network, and writes docs/images/report-*.png: the top of the page, and the figures
of each section without its tables and definitions, as they are. Needs the `dev` dependencies and a chromium.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
WIDTH, TOP = 1000, 1400
LARGEST = 300_000
"""Bytes of a picture at most, so that a clone stays small."""
UNDRAWN = "[...document.querySelectorAll('.plot')].filter((plot) => !plot._fullLayout).length"
FRAMED = "main section { border: 0 !important; padding: 8px 20px 12px !important }"
HIDDEN = "main section > :is(h3, .scroll, details, noscript)"


def main(run: Path) -> None:
    """Take every picture of one run."""
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        whole = _opened(browser, run)
        _keep(whole.screenshot(clip={"x": 0, "y": 0, "width": WIDTH, "height": TOP}), "top")
        figures = _opened(browser, run, f"{HIDDEN} {{ display: none !important }} {FRAMED}")
        for section in figures.query_selector_all("main section[id]:has(.plot)"):
            _keep(section.screenshot(), str(section.get_attribute("id")))
        browser.close()


def _opened(browser: Browser, run: Path, style: str = "") -> Page:
    """The run's page with all plots drawn; they are drawn when they come near."""
    page = browser.new_page(viewport={"width": WIDTH, "height": TOP}, color_scheme="light")
    page.goto((run / "report.html").resolve().as_uri(), wait_until="domcontentloaded")
    if style:
        page.add_style_tag(content=style)
    for plot in page.query_selector_all(".plot"):
        plot.scroll_into_view_if_needed()
    page.wait_for_function(f"{UNDRAWN} === 0")
    page.evaluate("scrollTo(0, 0)")
    return page


def _keep(picture: bytes, name: str) -> None:
    if len(picture) > LARGEST:
        raise SystemExit(f"report-{name}.png has {len(picture)} bytes: expected at most {LARGEST}")
    (IMAGES / f"report-{name}.png").write_bytes(picture)
    print(f"report-{name}.png {len(picture):,} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
