"""Ways into a running explorer: everything that the page itself does not need is closed, to everyone."""

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
from itertools import count
from pathlib import Path

import httpx
import pytest

from depthscope.errors import DepthscopeError
from depthscope.explore.gate import MOST_BYTES, Gate
from depthscope.explore.open_pages import MOST_WAITING

serve = pytest.importorskip("depthscope.explore.serve")

TOKEN = "a-token-of-the-tests-0123456789"
NEEDED = {
    ("GET", "/"),
    ("GET", "/assets/{path:path}"),
    ("GET", "/static/{path:path}"),
    ("GET", "/theme.css"),
    ("GET", "/favicon.ico"),
    ("GET", "/gradio_api/heartbeat/{session_hash}"),
    ("GET", "/gradio_api/queue/data"),
    ("POST", "/gradio_api/queue/join"),
}
"""What a browser's session was seen to use."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
JOIN = "/gradio_api/queue/join"
QUESTION = {"fn_index": 0, "data": ["a"], "session_hash": "abc", "event_data": None, "trigger_id": None}
ATTACK = "depthscope explore is asked by someone else: "
REFUSED = "refused; nothing is computed or stored"


@pytest.fixture(scope="module")
def temporary(tmp_path_factory):
    """Where gradio would put uploaded files."""
    return tmp_path_factory.mktemp("gradio")


@pytest.fixture(scope="module")
def server(temporary):
    """What a running page says of itself: its address, and all routes behind the gate."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("small_page.py")), TOKEN],
        env=os.environ | {"GRADIO_TEMP_DIR": str(temporary)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield json.loads(line)
    finally:
        _, errors = process.communicate(timeout=60)
    assert errors == ""


@pytest.fixture(scope="module")
def address(server):
    return server["address"]


@pytest.fixture(scope="module")
def stranger(address):
    """A client without the cookie."""
    with httpx.Client(base_url=address, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def client(address):
    """A client with the cookie, as the page has it."""
    with httpx.Client(base_url=address, timeout=60) as client:
        client.get("/", params={"token": TOKEN}).raise_for_status()
        yield client


async def nothing(_scope, _receive, _send):
    """An application that does not answer."""


def stored(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def filled(path):
    """A path with something for each of its parameters."""
    return re.sub(r"\{\w+(:\w+)?\}", "abc", path)


@pytest.mark.fault(f"{ATTACK}any route of gradio that the page does not use", "404; nothing is computed or stored")
def test_only_the_routes_that_the_page_uses_exist(server, client, temporary, record_property):
    known = set(map(tuple, server["routes"]))
    assert known >= NEEDED
    assert {("POST", "/gradio_api/upload"), ("GET", "/gradio_api/proxy={url_path:path}"), ("POST", "/login")} <= known
    assert len(known) > 60, "gradio has many routes: are all of them listed?"
    tried = {(method, path) for _, path in known for method in METHODS} - NEEDED
    record_property("tries", len(tried))
    for method, path in sorted(tried):
        answer = client.request(method, filled(path), content=b"x" if method in ("POST", "PUT", "PATCH") else None)
        assert answer.status_code == 404, (method, path, answer.text)
    for path in (
        "/gradio_api/file=/etc/passwd",
        "/assets/../../../etc/passwd",
        "/static/%2e%2e/%2e%2e/etc/passwd",
    ):
        assert client.get(path).status_code in (403, 404), path
    assert stored(temporary) == []


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "0.0.0.0", "192.168.0.1", "[::]", "", "a b"]
)
@pytest.mark.fault(f"{ATTACK}under another host name (DNS rebinding)", REFUSED)
def test_another_host_name_is_refused(client, host):
    for named in (host, f"{host}:7965"):
        for path in ("/", f"/?token={TOKEN}", "/gradio_api/queue/data?session_hash=abc"):
            assert client.get(path, headers={"host": named}).status_code in (400, 403)


def test_a_request_without_a_host_name_or_with_two_is_refused(address):
    host = address.removeprefix("http://")
    name, port = host.split(":")
    for lines in ((), (f"Host: {host}", "Host: evil.example"), ("Host: evil.example", f"Host: {host}")):
        with socket.create_connection((name, int(port)), timeout=60) as raw:
            raw.sendall("\r\n".join((f"GET /?token={TOKEN} HTTP/1.0", *lines, "", "")).encode())
            assert raw.recv(64).split()[1] in (b"400", b"403")


def test_this_machine_by_any_of_its_names_and_a_forwarded_port_is_answered(client):
    for host in ("localhost:9000", "LOCALHOST", "127.0.0.1", "[::1]:7860"):
        assert client.get("/theme.css", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": "http://localhost"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
    ],
)
@pytest.mark.fault(f"{ATTACK}by another site, in a browser that has the cookie", REFUSED)
def test_another_site_is_refused(client, headers):
    assert client.post(JOIN, json=QUESTION, headers=headers).status_code == 403
    for path in ("/gradio_api/queue/data?session_hash=abc", "/gradio_api/heartbeat/abc", "/theme.css"):
        assert client.get(path, headers=headers).status_code == 403


def test_the_page_itself_and_a_link_to_it_are_answered(client, address):
    for headers in (
        {"origin": address, "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none", "sec-fetch-mode": "navigate"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
    ):
        assert client.get("/", headers=headers).status_code == 200


@pytest.mark.fault(f"{ATTACK}another user of the machine, without the token", REFUSED)
def test_without_the_token_nothing_is_answered(stranger, client):
    name, value = next(iter(client.cookies.items()))
    for cookie in (
        None,
        "x=y",
        name,
        f"{name}=",
        f"{name}={TOKEN}",
        f"{name}={value}x",
        f"{name}={value.lower()}",
        "é",
    ):
        headers = {} if cookie is None else {"cookie": cookie.encode()}
        for method, path in sorted({(method, filled(path)) for method, path in NEEDED} | {("GET", "/upload")}):
            answer = stranger.request(method, path, headers=headers)
            assert answer.status_code == 403, (method, path, cookie)
            assert "token" in answer.text
    for token in (
        "",
        "x",
        TOKEN[:-1],
        f"{TOKEN}x",
        TOKEN.upper(),
        "é\udcff".encode("utf-8", "replace").decode(),
        value,
    ):
        answer = stranger.get("/", params={"token": token})
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers
    one, other = Gate(nothing, TOKEN), Gate(nothing, TOKEN)
    assert one._cookie[1] != other._cookie[1], "every start has a cookie of its own"


def test_the_token_is_exchanged_for_a_cookie_that_scripts_and_other_sites_do_not_get(stranger):
    answer = stranger.get("/", params={"token": TOKEN})
    cookie = answer.headers["set-cookie"]
    stranger.cookies.clear()
    assert answer.status_code == 200
    assert re.search(r"; HttpOnly(;|$)", cookie)
    assert "; SameSite=Strict" in cookie
    assert TOKEN not in cookie
    assert TOKEN not in answer.text
    assert "access-control-allow-origin" not in answer.headers


def test_a_token_of_ones_own_must_be_long_enough(monkeypatch):
    monkeypatch.delenv(serve.TOKEN, raising=False)
    assert serve.new_token() != serve.new_token()
    assert len(serve.new_token()) >= 40
    monkeypatch.setenv(serve.TOKEN, TOKEN)
    assert serve.new_token() == TOKEN
    for bad in ("", "short", "a token with spaces in it", "ä" * 20, "x" * 300):
        monkeypatch.setenv(serve.TOKEN, bad)
        with pytest.raises(DepthscopeError, match=f"{serve.TOKEN} has {len(bad)} characters: expected 16 to 256"):
            serve.new_token()


@pytest.mark.fault("another site or a program uploads files to depthscope explore", "refused; no file is written")
def test_nothing_can_be_uploaded(client, stranger, temporary, tries):
    body = b"x" * 20_000_000
    for number in range(tries(2, of=50)):
        sender = (client, stranger)[number % 2]
        headers = {"origin": "http://evil.example"} if number % 4 > 1 else {}
        try:
            answer = sender.post("/gradio_api/upload", files={"files": ("a.bin", body)}, headers=headers)
        except httpx.WriteError:  # the connection was closed while it was sent
            continue
        assert answer.status_code in (403, 404)
    assert stored(temporary) == []


def endless():
    yield from (b"x" * 65536 for _ in count())


@pytest.mark.fault("a request with a body too long or without an end", "413 before it is read; no memory is taken")
def test_a_body_too_long_is_not_read(client, address, record_property):
    host, port = address.removeprefix("http://").split(":")
    cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    lengths = (str(MOST_BYTES + 1), "9" * 12, "300000000")
    record_property("tries", len(lengths) + 1)
    for length in lengths:
        raw = http.client.HTTPConnection(host, int(port), timeout=60)
        raw.putrequest("POST", JOIN)
        for header in (("Cookie", cookie), ("Content-Length", length)):
            raw.putheader(*header)
        raw.endheaders()
        assert raw.getresponse().status == 413, "answered although nothing of the body was sent"
        raw.close()
    with contextlib.suppress(httpx.WriteError, httpx.RemoteProtocolError):  # closed while more was sent
        assert client.post(JOIN, content=endless()).status_code == 413


NOT_QUESTIONS = [
    b"",
    b"x",
    b"\xff\xfe",
    b"[]",
    b"null",
    b"[" * 100_000,
    b'{"a":' * 40_000,
    json.dumps(QUESTION | {"session_hash": None}).encode(),
    json.dumps(QUESTION | {"session_hash": "../x"}).encode(),
    json.dumps(QUESTION | {"session_hash": "x" * 65}).encode(),
    json.dumps(QUESTION | {"data": None}).encode(),
    json.dumps(QUESTION | {"data": ["a"] * 100}).encode(),
    json.dumps(QUESTION | {"data": [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]}).encode(),
    json.dumps(QUESTION | {"data": [{"url": "http://evil.example/x", "path": "x"}]}).encode(),
    json.dumps(QUESTION | {"data": [[{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]]}).encode(),
    json.dumps(QUESTION | {"data": [[["a"]]]}).encode(),
    json.dumps(QUESTION | {"data": [["a"] * 100]}).encode(),
    json.dumps(QUESTION | {"event_data": {"a": {"b": {"c": {"d": 1}}}}}).encode(),
    json.dumps(QUESTION | {"fn_index": "0"}).encode(),
    json.dumps(QUESTION | {"fn_index": 10**30}).encode(),
]


@pytest.mark.parametrize("body", NOT_QUESTIONS, ids=lambda body: body[:30].decode("latin-1"))
@pytest.mark.fault("a question that is no JSON, nested deeply, or names files or addresses", "400")
def test_what_is_no_question_is_refused(client, body):
    answer = client.post(JOIN, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["detail"].endswith(".")


def test_one_page_may_have_only_so_many_questions_waiting(client):
    found = [client.post(JOIN, json=QUESTION | {"data": [], "session_hash": "greedy"}) for _ in range(MOST_WAITING + 4)]
    assert [answer.status_code for answer in found] == [200] * MOST_WAITING + [503] * 4
    assert "waiting for an answer" in found[-1].json()["detail"]


def test_every_answer_forbids_other_sources_frames_and_sites(client, stranger):
    for answer in (client.get("/"), client.get("/theme.css"), client.get("/nothing"), stranger.get("/")):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "frame-ancestors 'none'" in policy
        assert "http" not in policy
        assert "script-src 'self' 'unsafe-inline'" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert "server" not in answer.headers
    page = client.get("/")
    inline = re.findall(r"<script(?![^>]*\bsrc=)[^>]*>", page.text)
    assert page.headers["content-security-policy"].count("'sha256-") == len(inline) > 0
    assert "<script>alert" not in page.text, "what components show is in the page as JSON, not as HTML"
