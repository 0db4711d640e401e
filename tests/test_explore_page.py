"""The explorer in a browser: it answers, it breaks on nothing that is typed, and it asks nothing of any other host."""

import shutil

import pytest
from explorer_client import TOKEN, explorer
from playwright.sync_api import Page, expect, sync_playwright
from report_runs import all_tables, make_run

pytestmark = pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")

WATCHED = """
import sys

def watch(event, arguments):
    if event == "socket.connect" and arguments[1][0] not in ("127.0.0.1", "::1") or event == "socket.getaddrinfo":
        if arguments[0] not in ("127.0.0.1", "localhost"):
            print("ASKED", event, arguments, flush=True)

sys.addaudithook(watch)
from depthscope.cli import main
main()
"""
"""The command, printing when it would connect to another host or look one up."""
SLOWEST = 60
"""Seconds that anything is waited for; a loaded machine is slow."""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The address of a running explorer, started on a folder of runs; its output is checked when it is ended."""
    folder = tmp_path_factory.mktemp("explored")
    make_run(folder / "runs" / "full", tables=all_tables())
    make_run(folder / "runs" / "half", complete=False, experiments=("sweep",))
    (folder / "runs" / "broken").mkdir()
    (folder / "runs" / "broken" / "run.json").write_text("{")
    with explorer(folder, 7961, "runs", code=WATCHED) as (_, address):
        yield f"{address}/?token={TOKEN}"
    said = (folder / "log").read_text()
    assert "ASKED" not in said, said


@pytest.fixture(scope="module")
def troubles():
    """What went wrong in the browser: console errors, and requests to other hosts."""
    found: list[str] = []
    yield found
    assert found == []


@pytest.fixture(scope="module")
def page(served, troubles):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(SLOWEST * 1000)
        expect.set_options(timeout=SLOWEST * 1000)
        page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
        own = (served.partition("?")[0], "data:", "blob:")
        page.on("request", lambda request: None if request.url.startswith(own) else troubles.append(request.url))
        page.goto(served)
        expect(page.locator("#lens td.cell").first).to_be_visible(timeout=SLOWEST * 1000)
        yield page
        browser.close()


def read(page: Page, text: str) -> None:
    page.locator("#prompt textarea").fill(text)
    page.locator("#read").click()


def open_room(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def test_a_prompt_is_read_at_every_depth_and_coloured(page):
    read(page, "Call me Ishmael")
    expect(page.locator("#said")).to_contain_text("tokens; no special tokens are added")
    expect(page.locator("#lens tbody tr").first).to_contain_text("C")
    shades = page.locator("#lens td.cell").evaluate_all(
        "cells => cells.map(cell => getComputedStyle(cell).backgroundColor)"
    )
    assert len(set(shades)) > 10
    page.get_by_label("entropy").check()
    expect(page.locator("#lens figcaption")).to_contain_text("higher entropy")


def test_lenses_are_chosen_from_a_list(page):
    expect(page.locator("#lens figure")).to_have_count(1)
    page.get_by_label("Logit lens with the last scale").check()
    expect(page.locator("#lens figure")).to_have_count(2)
    expect(page.locator("#lens figcaption").last).to_contain_text("Logit lens with the last scale: the most likely")
    page.get_by_label("Logit lens with the last scale").uncheck()
    expect(page.locator("#lens figure")).to_have_count(1)


def test_a_changed_route_changes_what_follows(page):
    read(page, "It was the best of times, it was the")
    expect(page.locator("#routes .written").first).not_to_contain_text("writing")
    other = page.get_by_label("Other route")
    other.fill("0 1 3 2 4-11")
    other.press("Enter")
    expect(page.locator("#routes section").nth(1)).to_contain_text("0-1 3 2 4-11, KL to the unmodified model")
    other.fill("drop(0")
    page.locator("#compare").click()
    expect(page.locator("#routes .problem")).to_contain_text("cannot read the edit 'drop(0'")


def test_the_last_of_many_prompts_is_answered(page):
    written = page.locator("#routes .written").first
    read(page, "Marley was dead")
    expect(page.locator("#lens tbody tr").first).to_contain_text("M")
    expect(written).not_to_contain_text("writing")
    page.wait_for_timeout(1000)
    alone = written.inner_text()
    for text in ("Call me Ishmael", "It was a dark night", "Marley was dead"):
        read(page, text)
    expect(page.locator("#lens tbody tr").first).to_contain_text("M")
    expect(written).to_have_text(alone, use_inner_text=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Enter a text"),
        ("It was so. " * 909, "only its first 256 tokens are used (the context of bookshelf-gpt2)"),
        ("🙂🏽 and 👩‍🚀", "tokens; no special tokens"),
        ("שלום עולם مرحبا", "tokens; no special tokens"),
        ("<script>alert(1)</script><img src=x onerror=alert(2)> {{value}} ${alert(3)}", "tokens; no special tokens"),
    ],
)
def test_whatever_is_typed_has_an_answer(page, text, says):
    read(page, text)
    expect(page.locator("#said")).to_contain_text(says)
    if text:
        tokens = "".join(page.locator("#lens tbody th .token").all_inner_texts()).replace("␣", " ")
        assert "<0x" in tokens or text.startswith(tokens)
        assert page.locator("#lens tbody tr").count() <= 256
    assert page.locator("#lens img, #lens script").count() == 0


def test_surgery_shows_every_edit_and_what_is_behind_a_cell(page):
    read(page, "It was the best of times, it was the")
    open_room(page, "Surgery")
    expect(page.locator("#surgery td.cell")).to_have_count(47)
    page.locator("[data-cell='drop_mlp,3']").click()
    expect(page.locator("#edited")).to_contain_text("drop_mlp(3)")
    page.locator("#continue").click()
    expect(page.locator("#continued .written")).to_have_count(2)
    expect(page.locator("#continued")).to_contain_text("drop_mlp(3)")
    page.get_by_label("mean over tokens").check()
    expect(page.locator("#surgery figcaption")).to_contain_text("mean over tokens")
    own = page.locator("#own-route input, #own-route textarea").first
    own.fill("swap(77)")
    own.press("Enter")
    expect(page.locator("#own .problem")).to_contain_text("swap layer 77 is out of range")


def test_heads_and_neurons_can_be_chosen(page):
    read(page, "It was the best of times, it was the")
    open_room(page, "Heads")
    page.locator("#strongest button").nth(3).click()
    name = page.locator("#strongest button").nth(3).inner_text()
    expect(page.locator("#pattern .gtitle")).to_contain_text(f"Attention of head {name}")
    layer = page.locator("#head-layer input")
    for number, says in (("40", "has no layer 40: expected 0 … 11"), ("2.5", "whole number, 0 or more, got 2.5")):
        layer.fill(number)
        expect(page.locator("#no-pattern .problem")).to_contain_text(says)
        expect(page.locator("#pattern")).to_have_count(0)
    for number in range(7):  # faster than they can be answered: the last one counts
        layer.fill(str(number))
    expect(page.locator("#pattern .gtitle")).to_contain_text("Attention of head 6.")
    page.wait_for_timeout(1000)
    expect(page.locator("#pattern .gtitle")).to_contain_text("Attention of head 6.")
    open_room(page, "Neurons")
    page.locator("#layers button").nth(4).click()
    expect(page.locator("#sharpest")).to_contain_text("in layer 4")
    page.locator("#sharpest button").first.click()
    expect(page.locator("#neuron h3")).to_contain_text("Neuron 4.")
    expect(page.locator("#neuron .tokens .lit").first).to_be_visible()


def test_runs_are_listed_drawn_and_followed(page, served, tmp_path):
    open_room(page, "Runs")
    expect(page.locator("#runs")).to_contain_text("cannot be read")
    expect(page.locator("#runs .chosen")).to_contain_text("full")
    expect(page.locator("#run-plot .main-svg").first).to_be_visible()
    page.locator("[data-cell='half']").click()
    expect(page.locator("#status")).to_contain_text("Work units stored")
    page.locator("[data-cell='full']").click()
    expect(page.locator("#status")).not_to_contain_text("Work units stored")
    expect(page.locator("#status")).to_contain_text("complete")
    expect(page.locator("#run-plot .main-svg").first).to_be_visible()


def test_a_narrow_dark_window_scrolls_only_its_tables(page, served, troubles):
    narrow = page.context.browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
    narrow.on("pageerror", lambda error: troubles.append(str(error)))
    narrow.goto(served)
    expect(narrow.locator("#lens td.cell").first).to_be_visible(timeout=SLOWEST * 1000)
    assert narrow.evaluate("document.documentElement.scrollWidth") == 390
    assert "dark" in narrow.evaluate("document.body.className")
    narrow.close()
