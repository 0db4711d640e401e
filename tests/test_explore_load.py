"""The explorer under load: many pages, abandoned questions, endless prompts. Memory stays where it was."""

import asyncio
import sys
import time
import tracemalloc

import pytest
from explorer_client import PageClient, clients, config_functions, entered, explorer, resident

from depthscope.explore import prompt as prompts
from depthscope.explore.answers import Answers
from depthscope.explore.prompt import MOST_CHARACTERS, Session

pytest.importorskip("gradio")
from depthscope.explore.open_pages import GIVEN_BACK_EVERY, GRACE, MOST_PAGES, MOST_WAITING

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads memory from /proc")
GROWS = 1.10
"""Most that memory may be after a load, as a multiple of memory after the same load before it."""
PAGES = 50


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(process, address, {function: number}) of an explorer of the embedded model."""
    with explorer(tmp_path_factory.mktemp("load"), 7971) as (process, address):
        with entered(address) as client:
            names = config_functions(client)
        yield process, address, names


async def read_all(page, names, text, surgery):
    """What the page asks when a prompt is read, apart from what takes longest."""
    await page.ask(names["lens"], text, "probability", ["logit"])
    await page.ask(names["heads"], text)
    if surgery:
        await page.ask(names["surgery"], text, "last token")


async def many(address, names, pages, prompts_each, first):
    """Pages opened side by side, each reading its prompts one after the other, no two the same."""

    async def one(client, number):
        async with PageClient(client) as page:
            for turn in range(prompts_each):
                text = f"It was the {first + number * prompts_each + turn} best of times, " + "it was so " * (turn % 8)
                await read_all(page, names, text, surgery=turn % 5 == 0)

    async with clients(address) as client:
        await asyncio.gather(*(one(client, number) for number in range(pages)))


@pytest.mark.fault(
    "50 pages read prompts side by side", "all are answered; the second half of them takes less than 10 % more memory"
)
def test_memory_stays_flat_however_many_prompts_are_read(served, tries):
    process, address, names = served
    prompts_in_all = tries(20, of=2000)
    pages = min(PAGES, prompts_in_all // 5)
    each = prompts_in_all // pages // 2
    asyncio.run(many(address, names, pages, each, 0))
    before = resident(process.pid)
    asyncio.run(many(address, names, pages, each, 10**6))
    settled(process.pid, GROWS * before)
    assert resident(process.pid) < GROWS * before


def settled(pid: int, below: float) -> None:
    """Wait until memory is below some bytes, at most for as long as it takes that pages which are closed are forgotten."""
    until = time.monotonic() + GRACE + 2 * GIVEN_BACK_EVERY
    while resident(pid) >= below and time.monotonic() < until:
        time.sleep(0.5)


async def abandon(address, names, count):
    """Questions whose askers leave at once: (accepted, refused)."""
    async with clients(address) as client:
        found = [
            (await PageClient(client).join(names["lens"], f"abandoned {i}", "entropy", ["logit"])).status_code
            for i in range(count)
        ]
    return found.count(200), found.count(503)


@pytest.mark.fault(
    "questions are asked and never fetched",
    "refused beyond a number of pages; memory does not grow; others are answered later",
)
def test_abandoned_questions_are_bounded_and_forgotten(served, tries):
    process, address, names = served
    before, began = resident(process.pid), time.monotonic()
    count = tries(MOST_PAGES + 16, of=3000)
    accepted, refused = asyncio.run(abandon(address, names, count))
    assert accepted + refused == count
    assert 0 < accepted <= MOST_PAGES * (1 + (time.monotonic() - began) / GRACE)
    assert refused > 0
    assert resident(process.pid) < GROWS * before

    async def asked_again():
        async with clients(address) as client, PageClient(client) as page:
            await asyncio.wait_for(page.ask(names["lens"], "after the flood", "entropy", ["logit"]), 10 * GRACE)

    asyncio.run(asked_again())


@pytest.mark.fault("a prompt of 100 MB", "cut in characters before anything is computed; no memory is taken")
def test_a_prompt_is_cut_before_it_is_tokenized(gpt2, tries):
    answers = Answers(Session(gpt2))
    answers.lens("x" * MOST_CHARACTERS, "entropy")
    for number in range(tries(1, of=20)):
        text = chr(ord("a") + number) * 100_000_000
        tracemalloc.start()
        note, table = answers.lens(text, "entropy")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert "The text is too long" in note
        assert table.count("<tr>") == 257
        assert peak < 20_000_000
    assert all(len(text) <= MOST_CHARACTERS for text, _ in answers.session._prompts)


def test_results_are_cached_within_their_bounds(gpt2, monkeypatch):
    session = Session(gpt2)
    with session.reading("one") as first:
        assert first.held < 10_000
        assert first.lens("logit").height > 0
        _ = first.baseline
        held = first.held
    streams = {id(one): one.nbytes for one in first.baseline.residuals}
    assert held >= sum(streams.values()) + first.lens("logit").estimated_size()
    monkeypatch.setattr(prompts, "MOST_KEPT", 3 * held)
    for text in ("two", "ten", "six", "red", "big"):
        with session.reading(text) as prompt:
            assert prompt.lens("logit").height > 0
            _ = prompt.baseline
        assert sum(session._held.values()) <= 3 * held
    assert list(session._prompts)[-1] == ("big", False)
    assert 1 < len(session._prompts) <= 3
    monkeypatch.setattr(prompts, "MOST_KEPT", 0)
    with session.reading("end") as prompt:
        _ = prompt.baseline
    assert list(session._prompts) == [("end", False)], "the prompt being read is always kept"


def test_bounds_fit_together():
    assert MOST_PAGES >= PAGES
    assert MOST_WAITING >= 6
