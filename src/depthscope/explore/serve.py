"""Serving the page on this machine only: a port of the loopback address, and no requests to other hosts."""

import signal
import socket
import threading
from collections.abc import Callable
from importlib import resources
from typing import Any

import gradio as gr
from gradio.themes import Base
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from depthscope.errors import DepthscopeError

LOOPBACK = "127.0.0.1"
PORT = 7860
PORTS_TRIED = 100
POLICY = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; frame-ancestors 'none'"
)
"""gradio's page needs inline scripts and styles; sources outside this server are blocked."""


class OnlyThisServer:
    """Adds the content security policy to every response."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle one ASGI request."""

        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [
                    *message.get("headers", []),
                    (b"content-security-policy", POLICY),
                    (b"referrer-policy", b"same-origin"),
                ]
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, with_policy)


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


def serve(page: gr.Blocks, port: int, tell: Callable[[str], None]) -> None:
    """Serve the page until the process is interrupted; `tell` is called with its address once it can be opened."""
    system = ["system-ui", "-apple-system", "Segoe UI", "Liberation Sans", "Arial", "sans-serif"]
    page.queue(default_concurrency_limit=4, max_size=64)
    _, address, _ = page.launch(
        server_name=LOOPBACK,
        server_port=port,
        share=False,
        quiet=True,
        inbrowser=False,
        prevent_thread_lock=True,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        strict_cors=True,
        footer_links=[],
        theme=Base(
            primary_hue="sky", neutral_hue="gray", font=system, font_mono=["ui-monospace", "Consolas", "monospace"]
        ),
        css=resources.files("depthscope.explore").joinpath("page.css").read_text(encoding="utf-8"),
        app_kwargs={
            "middleware": [
                Middleware(TrustedHostMiddleware, allowed_hosts=[LOOPBACK, "localhost"]),
                Middleware(OnlyThisServer),
            ]
        },
    )
    # A shell or a library may have changed the handler: Ctrl+C must stop the server.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tell(address)
    try:
        threading.Event().wait()
    finally:
        page.close(verbose=False)
