"""Serving the page on this machine only: a port of the loopback address, behind the gate, and no requests to other hosts."""

import logging
import os
import re
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

import fastapi
import gradio as gr
import uvicorn
from gradio.themes import Base

from depthscope.allocator import keep_compact
from depthscope.errors import DepthscopeError
from depthscope.explore.gate import Gate
from depthscope.explore.open_pages import MOST_PAGES, OpenPages

LOOPBACK = "127.0.0.1"
PORT = 7860
PORTS_TRIED = 100
MOST_CONNECTIONS = 1024
MOST_QUEUED = 4 * MOST_PAGES
"""Most questions waiting, of all pages together. They are answered in the order in which they came."""
THREADS = 4
"""Threads that compute answers: at most one uses the model, one reads runs, others convert values."""
STARTING, STOPPING = 120.0, 5.0
"""Seconds that the server may take to start, and to stop."""
TOKEN = "DEPTHSCOPE_EXPLORE_TOKEN"
SHORTEST = 16


def free_port(wanted: int) -> int:
    """The first free loopback port from `wanted` on. Raises DepthscopeError if 100 in a row are taken."""
    for port in range(wanted, min(wanted + PORTS_TRIED, 65536)):
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise DepthscopeError(
        f"no free port from {wanted} on: expected one of {PORTS_TRIED} to be free. Use another --port"
    )


def new_token() -> str:
    """The token that opens the page: that of $DEPTHSCOPE_EXPLORE_TOKEN, or else a random one.

    Raises DepthscopeError for one that is short enough to be guessed or would have to be escaped in an address.
    """
    given = os.environ.get(TOKEN)
    if given is None:
        return secrets.token_urlsafe(32)
    if not re.fullmatch(rf"[A-Za-z0-9_-]{{{SHORTEST},256}}", given):
        raise DepthscopeError(
            f"{TOKEN} has {len(given)} characters: expected {SHORTEST} to 256 of A-Z, a-z, 0-9, _ and -. "
            "Without it, every start has a random token"
        )
    return given


def mounted(page: gr.Blocks, port: int) -> fastapi.FastAPI:
    """gradio's application of the page with all of its routes, not guarded yet."""
    system = ["system-ui", "-apple-system", "Segoe UI", "Liberation Sans", "Arial", "sans-serif"]
    page.max_threads = THREADS
    page.queue(default_concurrency_limit=1, max_size=MOST_QUEUED)
    parent = fastapi.FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    gr.mount_gradio_app(
        parent,
        page,
        path="/",
        server_name=LOOPBACK,
        server_port=port,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        show_error=False,
        theme=Base(
            primary_hue="sky", neutral_hue="gray", font=system, font_mono=["ui-monospace", "Consolas", "monospace"]
        ),
        css=resources.files("depthscope.explore").joinpath("page.css").read_text(encoding="utf-8"),
    )
    return parent


def _gradio_app(parent: fastapi.FastAPI) -> Any:
    """gradio's own application, as mounted."""
    mounted = (getattr(route, "app", None) for route in parent.routes)
    return next(one for one in mounted if hasattr(one, "state_holder"))


class _Server(uvicorn.Server):
    """Ends the pages' streams when it stops: left to themselves they never end, and uvicorn would report each."""

    def __init__(self, config: uvicorn.Config, page: gr.Blocks, gradio: Any) -> None:
        super().__init__(config)
        self.page, self.gradio = page, gradio

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop, as uvicorn does."""
        self.page._queue.close()
        self.page.is_running = False
        self.gradio.stop_event.set()
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


@contextmanager
def running(page: gr.Blocks, token: str, port: int) -> Iterator[str]:
    """Serve the page in a thread as long as the context is open, and give its address, without the token.

    Raises DepthscopeError if the server does not start.
    """
    keep_compact()
    parent = mounted(page, port)
    gradio = _gradio_app(parent)
    server = _Server(
        uvicorn.Config(
            Gate(OpenPages(parent, gradio), token, name=f"depthscope-{port}"),
            host=LOOPBACK,
            port=port,
            ws="none",
            lifespan="on",
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=1,
        ),
        page,
        gradio,
    )
    thread = threading.Thread(target=server.run, name="explorer", daemon=True)
    thread.start()
    try:
        until = time.monotonic() + STARTING
        while not server.started:
            if not thread.is_alive() or time.monotonic() > until:
                raise DepthscopeError(f"the server did not start on port {port}: use another --port")
            thread.join(0.02)
        yield f"http://{LOOPBACK}:{port}/"
    finally:
        server.should_exit = True
        thread.join(STOPPING)


def serve(page: gr.Blocks, token: str, port: int, tell: Callable[[str], None]) -> None:
    """Serve the page until the process is interrupted; `tell` is called with its address once it can be opened."""
    with running(page, token, port) as address:
        # A shell or a library may have changed the handler: Ctrl+C must stop the server.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tell(f"{address}?token={token}")
        threading.Event().wait()
