"""Who may ask the server what: every request passes here before it reaches gradio. Plain ASGI; knows nothing of gradio's code.

A request is answered only if it names this machine (against DNS rebinding), carries the cookie that the token in the printed
address was exchanged for (against other users and other programs), comes from the page itself (against other sites, which a
browser's cookie does not tell apart on localhost), and asks for one of the few routes that the page uses. Everything else of
gradio (upload, file, proxy, login …) does not exist here.
"""

import asyncio
import base64
import hashlib
import html.parser
import json
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

THIS_MACHINE = frozenset({"127.0.0.1", "localhost", "[::1]"})
"""Host names by which a page may be asked for. Any port: a forwarded one (`ssh -L`) differs from the server's."""
ADMITTED: tuple[tuple[str, str], ...] = (
    ("GET", r"/"),
    ("GET", r"/assets/.+"),
    ("GET", r"/static/.+"),
    ("GET", r"/theme\.css"),
    ("GET", r"/favicon\.ico"),
    ("GET", r"/gradio_api/heartbeat/[A-Za-z0-9]{1,64}"),
    ("GET", r"/gradio_api/queue/data"),
    ("POST", r"/gradio_api/queue/join"),
)
"""(method, path) of every route that the page uses, as recorded in a browser."""
PASSED_ON = frozenset({b"host", b"accept", b"content-type", b"content-length", b"if-none-match", b"user-agent"})
"""Request headers that gradio sees. Without Accept-Encoding nothing is compressed, which on one machine only costs time;
without Origin, Cookie and X-Forwarded-… it has nothing to trust."""
MOST_BYTES = 256 * 1024
"""Most bytes of a request's body. The longest prompt is 32,768 characters of up to 4 bytes."""
MOST_REQUESTS = 512
"""Most requests answered at once, open streams included."""
BODY_SECONDS = 30.0
"""How long a body may take to arrive."""

POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-eval'{hashes}; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; manifest-src 'self'; "
    "base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page may load and run: nothing from elsewhere, and of scripts in the page only gradio's own, by their hashes.

Two entries are wider than they should be. 'unsafe-eval': gradio compiles every HTML part of the page and the handlers of clicks
on cells from text (`new Function`), and shows none of them without it. 'unsafe-inline' for styles: gradio, plotly and the
tables set style attributes."""
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
NO_TOKEN = (
    "This explorer answers only to whoever has its token: open the address that `depthscope explore` printed, "
    "with ?token=… at its end."
)
# Not a redirect: on one that began at another site, a browser would not send the cookie yet.
ENTERED = "<!doctype html><meta charset='utf-8'><meta http-equiv='refresh' content='0;url=./'><title>depthscope</title>"


class Refusal(Exception):  # noqa: N818 - an answer, not a failure
    """A request that is not passed on, and what is answered to its sender."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class Gate:
    """Passes on what the page itself asks, and refuses everything else. `token` opens it; `name` distinguishes its cookie."""

    def __init__(self, app: App, token: str, name: str = "depthscope") -> None:
        self.app = app
        self._token = token.encode()
        self._cookie = name, secrets.token_urlsafe(32)
        self._routes = [(method, re.compile(path)) for method, path in ADMITTED]
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            try:
                await self._answer(scope, receive, send)
            except Refusal as refusal:
                await _refuse(refusal, scope, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._check_host(scope)
        query = _query(scope)
        if scope["path"] == "/" and scope["method"] == "GET" and "token" in query:
            await self._enter(query["token"], send)
            return
        self._check_cookie(scope)
        if not any(method == scope["method"] and path.fullmatch(scope["path"]) for method, path in self._routes):
            raise Refusal(HTTPStatus.NOT_FOUND, "There is nothing here.")
        _check_origin(scope)
        if self._open >= MOST_REQUESTS:
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, f"{MOST_REQUESTS} requests are open: close some pages.")
        self._open += 1
        try:
            body = await _body(scope, receive)
            await self.app(_passed_on(scope), _replayed(body, receive), _secured(scope, send))
        finally:
            self._open -= 1

    def _check_host(self, scope: Scope) -> None:
        hosts = _header(scope, b"host")
        if len(hosts) != 1 or re.sub(r":\d{1,5}$", "", hosts[0]).lower() not in THIS_MACHINE:
            raise Refusal(
                HTTPStatus.FORBIDDEN, "The explorer is served to this machine only, as 127.0.0.1 or localhost."
            )

    async def _enter(self, token: str, send: Send) -> None:
        if not secrets.compare_digest(token.encode("utf-8", "replace"), self._token):
            raise Refusal(HTTPStatus.FORBIDDEN, f"That is not the token of this explorer. {NO_TOKEN}")
        name, value = self._cookie
        cookie = f"{name}={value}; Path=/; HttpOnly; SameSite=Strict"
        policy = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
        await _say(send, HTTPStatus.OK, "text/html", ENTERED, policy, (b"set-cookie", cookie.encode()))

    def _check_cookie(self, scope: Scope) -> None:
        name, value = self._cookie
        given = [part.strip().partition("=") for line in _header(scope, b"cookie") for part in line.split(";")]
        found = [
            secrets.compare_digest(theirs.encode("latin-1", "replace"), value.encode())
            for own, _, theirs in given
            if own == name
        ]
        if not any(found):
            raise Refusal(HTTPStatus.FORBIDDEN, NO_TOKEN)


def _check_origin(scope: Scope) -> None:
    """Refuse what another page asks for: other sites, and other ports of this machine, to which a browser sends the cookie."""
    (host,) = _header(scope, b"host")
    origins = _header(scope, b"origin")
    if any(origin not in (f"http://{host}", f"https://{host}") for origin in origins):
        raise Refusal(HTTPStatus.FORBIDDEN, "Another site asked for this.")
    # "none": typed or opened from a bookmark. A link from elsewhere to the page itself only shows the page.
    sites = _header(scope, b"sec-fetch-site")
    linked = scope["path"] == "/" and _header(scope, b"sec-fetch-mode") == ["navigate"]
    if not linked and any(site not in ("same-origin", "none") for site in sites):
        raise Refusal(HTTPStatus.FORBIDDEN, "Another site asked for this.")


async def _body(scope: Scope, receive: Receive) -> bytes:
    """The body of a request, of at most MOST_BYTES within BODY_SECONDS; a longer one is not read to its end."""
    too_long = Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A request may have at most {MOST_BYTES // 1024} KiB.")
    sizes = _header(scope, b"content-length")
    if any(not size.isascii() or not size.isdecimal() or len(size) > 9 or int(size) > MOST_BYTES for size in sizes):
        raise too_long
    body, more = bytearray(), True
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > MOST_BYTES:
                    raise too_long
    except TimeoutError:
        raise Refusal(HTTPStatus.REQUEST_TIMEOUT, "The request did not arrive in time.") from None
    return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body that was read, then whatever comes: the end of the connection."""
    left = [body]

    async def again() -> MutableMapping[str, Any]:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return again


def _passed_on(scope: Scope) -> Scope:
    """The request without the headers that gradio need not see, and for the page itself without a query: gradio would read
    which of its own pages or saved states to show."""
    headers = [(name, value) for name, value in scope["headers"] if name.lower() in PASSED_ON]
    return {**scope, "headers": headers, **({"query_string": b""} if scope["path"] == "/" else {})}


def _secured(scope: Scope, send: Send) -> Send:
    """Responses with our headers, without gradio's for other sites. The page is held back until its scripts are known."""
    start: dict[str, Any] = {}
    page = bytearray()

    async def secured(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
            if scope["path"] != "/":
                await send({**message, "headers": _headers(message, "")})
        elif message["type"] == "http.response.body" and scope["path"] == "/":
            page.extend(message.get("body", b""))
            if not message.get("more_body", False):
                await send({**start, "headers": _headers(start, _hashes(bytes(page)))})
                await send({"type": "http.response.body", "body": bytes(page)})
        else:
            await send(message)

    return secured


def _headers(start: MutableMapping[str, Any], hashes: str) -> list[tuple[bytes, bytes]]:
    own = [*HEADERS, (b"content-security-policy", POLICY.format(hashes=hashes).encode())]
    kept = [
        (name, value)
        for name, value in start.get("headers", [])
        if not name.lower().startswith(b"access-control-") and name.lower() not in dict(own)
    ]
    return [*kept, *own]


class _Scripts(html.parser.HTMLParser):
    """The scripts written in a page, as text. Those with a source are not in it."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.found: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a script."""
        if tag == "script" and "src" not in dict(attrs):
            self._inside = True
            self.found.append("")

    def handle_endtag(self, tag: str) -> None:
        """End it."""
        self._inside = self._inside and tag != "script"

    def handle_data(self, data: str) -> None:
        """Add to it."""
        if self._inside:
            self.found[-1] += data


def _hashes(page: bytes) -> str:
    scripts = _Scripts()
    scripts.feed(page.decode("utf-8", "replace"))
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts.found)
    return "".join(f" 'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


async def _refuse(refusal: Refusal, scope: Scope, send: Send) -> None:
    """As gradio's page reads errors; as text for a person who opens an address."""
    policy = "default-src 'none'; frame-ancestors 'none'"
    closing = (b"connection", b"close") if refusal.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE else None
    if scope["path"].startswith("/gradio_api/"):
        await _say(send, refusal.status, "application/json", json.dumps({"detail": refusal.why}), policy, closing)
    else:
        await _say(send, refusal.status, "text/plain", f"{refusal.why}\n", policy, closing)


async def _say(
    send: Send, status: HTTPStatus, kind: str, text: str, policy: str, more: tuple[bytes, bytes] | None = None
) -> None:
    body = text.encode()
    headers = [
        (b"content-type", f"{kind}; charset=utf-8".encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"content-security-policy", policy.encode()),
        *HEADERS,
        *([more] if more else []),
    ]
    await send({"type": "http.response.start", "status": status.value, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _header(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for given, value in scope["headers"] if given.lower() == name]


def _query(scope: Scope) -> dict[str, str]:
    """The last value of each name in a query; a malformed one has none."""
    try:
        found = parse_qs(scope.get("query_string", b"").decode("latin-1"), max_num_fields=20)
    except ValueError:
        return {}
    return {name: values[-1] for name, values in found.items()}
