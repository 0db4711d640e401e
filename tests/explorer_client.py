"""A running explorer for tests, and a client that asks it as the page does: heartbeat, question, stream of answers."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import httpx

TOKEN = "a-token-of-the-tests-0123456789"
SLOWEST = 300
"""Seconds that anything is waited for; a loaded machine is slow."""
COMMAND = "from depthscope.cli import main; main()"


@contextlib.contextmanager
def explorer(folder, port, *arguments, code=COMMAND):
    """(process, address) of `depthscope explore` started in a folder; what it printed must hold no traceback."""
    log = Path(folder) / "log"
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "200",
        "DEPTHSCOPE_EXPLORE_TOKEN": TOKEN,
        "GRADIO_TEMP_DIR": str(Path(folder) / "gradio"),
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code, "explore", *arguments, "--port", str(port)],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        until = time.monotonic() + SLOWEST
        while "token=" not in log.read_text() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        text = log.read_text()
        assert "token=" in text, text
        yield process, "http://" + text.split("http://")[1].split("/")[0]
    finally:
        process.terminate()
        process.wait(SLOWEST)
    assert "Traceback" not in log.read_text(), log.read_text()


@contextlib.contextmanager
def entered(address, **settings):
    """A client with the cookie."""
    with httpx.Client(base_url=address, timeout=SLOWEST, **settings) as client:
        client.get("/", params={"token": TOKEN}).raise_for_status()
        yield client


def functions(page):
    """{name of a page's function: its number, as a client gives it}; of several of one name the first."""
    found = {}
    for number, one in page.items():
        found.setdefault(one, number)
    return found


class PageClient:
    """One open page."""

    def __init__(self, client):
        self.client, self.name = client, uuid.uuid4().hex

    async def __aenter__(self):
        self._heart = asyncio.create_task(self._heartbeat())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_):
        self._heart.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._heart

    async def _heartbeat(self):
        async with self.client.stream("GET", f"/gradio_api/heartbeat/{self.name}", timeout=None) as response:
            async for _ in response.aiter_lines():
                pass

    async def join(self, function, *data):
        """The response to a question."""
        body = {"fn_index": function, "data": data, "session_hash": self.name, "event_data": None, "trigger_id": 1}
        return await self.client.post("/gradio_api/queue/join", json=body)

    async def ask(self, function, *data):
        """The output of a question; asked again as long as the queue is full."""
        while (response := await self.join(function, *data)).status_code == 503:
            await asyncio.sleep(0.5)
        response.raise_for_status()
        event = response.json()["event_id"]
        path = f"/gradio_api/queue/data?session_hash={self.name}"
        async with self.client.stream("GET", path, timeout=SLOWEST) as stream:
            async for line in stream.aiter_lines():
                message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                if message.get("msg") == "process_completed" and message["event_id"] == event:
                    assert message["success"], message
                    return message["output"]["data"]
        raise AssertionError("the stream ended without an answer")


@contextlib.asynccontextmanager
async def clients(address):
    """An asynchronous client with the cookie, for any number of pages."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=address, timeout=SLOWEST, limits=limits) as client:
        (await client.get("/", params={"token": TOKEN})).raise_for_status()
        yield client


def config_functions(client):
    """{name: number} of the functions that the page may ask for, from the page itself."""
    text = client.get("/").text
    config = json.JSONDecoder().raw_decode(text.split("window.gradio_config = ")[1])[0]
    return {(one["api_name"] or "").strip("/"): one["id"] for one in reversed(config["dependencies"])}


def resident(pid):
    """Resident memory of a process in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")
