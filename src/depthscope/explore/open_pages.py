"""The pages that are open: how many there may be, how much each may ask at once, and the end of one that nobody looks at.

gradio keeps what a page showed last (up to 1.6 MB) for thousands of pages, and the answers nobody fetched for as long as the
process runs. Here a page lives as long as a stream to it is open, and GRACE seconds longer; then all of it is dropped.
"""

import asyncio
import json
import re
import time
from collections.abc import Coroutine, MutableMapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

from depthscope.allocator import give_back
from depthscope.explore.gate import App, Receive, Refusal, Scope, Send

MOST_PAGES = 64
MOST_WAITING = 16
"""Most questions of one page that wait for an answer or to be fetched. The page itself asks up to 6 at once."""
GRACE = 30.0
"""Seconds that a page is kept without a stream to it: a connection may break and be opened again."""
GIVEN_BACK_EVERY = 10.0
"""Seconds between two times that free memory is given back to the system."""
HEARTBEAT, ANSWERS, QUESTION = "/gradio_api/heartbeat/", "/gradio_api/queue/data", "/gradio_api/queue/join"
NAME = re.compile(r"[A-Za-z0-9]{1,64}")
ASKED = ("data", "event_data", "fn_index", "session_hash", "trigger_id")
"""What a question consists of. gradio would read more: oauth_token, batched, event_id …"""
MOST_VALUES = 32
DEEPEST = 3


@dataclass(slots=True)
class Page:
    """An open page."""

    streams: int = 0
    """Open responses: the heartbeat, and the stream of answers."""
    seen: float = field(default_factory=time.monotonic)
    """When it last asked for something."""
    timer: asyncio.TimerHandle | None = None


class OpenPages:
    """Passes requests on to gradio's app (`app`; `gradio` is its gradio.routes.App) as long as they are within the bounds."""

    def __init__(self, app: App, gradio: Any) -> None:
        self.app, self.gradio = app, gradio
        self._pages: dict[str, Page] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._given_back = 0.0
        self._giving_back: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection. Raises Refusal."""
        path = scope.get("path", "")
        if scope["type"] != "http" or not path.startswith((HEARTBEAT, ANSWERS, QUESTION)):
            await self.app(scope, receive, send)
        elif path == QUESTION:
            question = _question((await receive())["body"])
            await self._ask(question, scope, receive, send)
        elif path == ANSWERS:
            # As of ASGI 2.4 starlette leaves it to gradio to notice that the page is gone, which it does within 10 seconds and
            # then ends its tasks for the stream; cancelled from outside it would leave one running for ever.
            ours = {**scope, "asgi": {**scope["asgi"], "spec_version": "2.4"}}
            name = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[-1]
            await self._stream(name, ours, receive, send)
        else:
            await self._stream(path.removeprefix(HEARTBEAT), scope, receive, send)

    async def _ask(self, question: dict[str, Any], scope: Scope, receive: Receive, send: Send) -> None:
        name = question["session_hash"]
        page = await self._open(name)
        if self._waiting(name) >= MOST_WAITING:
            raise Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{MOST_WAITING} questions of this page are waiting for an answer: try again after the first of them.",
            )
        body = json.dumps(question).encode()
        headers = [
            (key, value) for key, value in scope["headers"] if key.lower() not in (b"content-length", b"content-type")
        ]
        headers += [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
        try:
            await self.app({**scope, "headers": headers}, _once(body, receive), send)
        finally:
            self._left(name, page)

    async def _stream(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        if not NAME.fullmatch(name):
            raise Refusal(HTTPStatus.BAD_REQUEST, "session_hash: expected up to 64 letters and digits.")
        page = await self._open(name)
        page.streams += 1
        try:
            await self.app(scope, receive, send)
        finally:
            page.streams -= 1
            self._left(name, page)

    async def _open(self, name: str) -> Page:
        """The page of that name, in place of one that is no longer used if there are too many."""
        if name not in self._pages:
            while len(self._pages) >= MOST_PAGES:
                unused = [other for other, page in self._pages.items() if not page.streams and not self._waiting(other)]
                if not unused:
                    raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, f"{MOST_PAGES} pages are open: close one of them.")
                await self._end(min(unused, key=lambda other: self._pages[other].seen))
            self._pages[name] = Page()
        page = self._pages[name]
        page.seen = time.monotonic()
        return page

    def _left(self, name: str, page: Page) -> None:
        """After a request: if no stream is left, the page ends unless it asks again in time."""
        if page.timer is not None:
            page.timer.cancel()
        if not page.streams:
            page.timer = asyncio.get_running_loop().call_later(GRACE, self._start, name)

    def _start(self, name: str) -> None:
        page = self._pages.get(name)
        if page is not None and not page.streams:
            self._run(self._end(name))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _waiting(self, name: str) -> int:
        return len(self.gradio.get_blocks()._queue.pending_event_ids_session.get(name, ()))

    async def _end(self, name: str) -> None:
        """Drop a page and what gradio keeps of it: waiting questions, answers, and the values it showed."""
        page = self._pages.pop(name, None)
        if page is not None and page.timer is not None:
            page.timer.cancel()
        blocks, states = self.gradio.get_blocks(), self.gradio.state_holder
        await blocks._queue.clean_events(session_hash=name)
        for kept in (
            blocks._queue.pending_messages_per_session,
            blocks._queue.pending_event_ids_session,
            blocks.pending_streams,
            blocks.pending_diff_streams,
        ):
            kept.pop(name, None)
        # A question that was being answered when its page ended may have stored values again: all such are dropped too.
        for gone in set(states.session_data) - set(self._pages):
            states.session_data.pop(gone, None)
            states.time_last_used.pop(gone, None)
        self._give_back_in_time()

    def _give_back_in_time(self) -> None:
        """Give memory back now or, if that was done a moment ago, later: the last page to end leaves memory too."""
        if self._giving_back is None:
            wait = max(0.0, self._given_back + GIVEN_BACK_EVERY - time.monotonic())
            self._giving_back = asyncio.get_running_loop().call_later(wait, lambda: self._run(self._give_back()))

    async def _give_back(self) -> None:
        self._giving_back, self._given_back = None, time.monotonic()
        await asyncio.to_thread(give_back)


def _once(body: bytes, receive: Receive) -> Receive:
    left = [body]

    async def again() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": left.pop(), "more_body": False} if left else await receive()

    return again


def _question(body: bytes) -> dict[str, Any]:
    """A question in the form in which the page asks: flat values, for a page with a name. Raises Refusal."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Refusal(HTTPStatus.BAD_REQUEST, "Expected a JSON object.")
    question = {key: found.get(key) for key in ASKED}
    name, data = question["session_hash"], question["data"]
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise Refusal(HTTPStatus.BAD_REQUEST, "session_hash: expected up to 64 letters and digits.")
    if not isinstance(data, list) or len(data) > MOST_VALUES or not all(map(_flat, data)):
        raise Refusal(
            HTTPStatus.BAD_REQUEST, f"data: expected a list of up to {MOST_VALUES} texts, numbers and lists of texts."
        )
    if not _shallow(question["event_data"], DEEPEST):
        raise Refusal(HTTPStatus.BAD_REQUEST, f"event_data: expected values nested at most {DEEPEST} levels.")
    for key in ("fn_index", "trigger_id"):
        if not isinstance(question[key], int | None) or abs(question[key] or 0) > 1_000_000:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"{key}: expected a whole number.")
    return question


def _flat(value: Any) -> bool:
    """Whether it is a text, a number, nothing, or what a group of checkboxes sends: a list of texts."""
    if isinstance(value, list):
        return len(value) <= MOST_VALUES and all(isinstance(one, str) for one in value)
    return value is None or isinstance(value, str | int | float)


def _shallow(value: Any, levels: int) -> bool:
    if isinstance(value, list | dict):
        members = value.values() if isinstance(value, dict) else value
        return levels > 0 and all(_shallow(member, levels - 1) for member in members)
    return True
