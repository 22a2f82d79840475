"""Tests that a server can hold a run neither by slow answers nor by large ones."""

import gzip
import json
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_server import (
    NAMES,
    Answer,
    ChatServer,
    Handler,
    generation_stage,
    good_reply,
    good_sentences,
    reject_with,
    run_stage,
    send,
    server_llm,
)

from lgclip.prompts import bounded_http
from lgclip.prompts.bounded_http import MAX_REPLY_BYTES
from lgclip.prompts.openai_client import ServerError
from lgclip.runtime.deadlines import OvertimeError, call_within

pytest_plugins = ("chat_fixtures",)
pytestmark = pytest.mark.usefixtures("key")


def drip(handler: Handler, content: bytes) -> None:
    """Sends a byte every 50 ms, so that no single read takes long."""
    try:
        for byte in content:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            time.sleep(0.05)
    except OSError:
        handler.close_connection = True


def drip_body(model: ChatServer, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.end_headers()
    drip(handler, b" " * 10_000)


def drip_error(model: ChatServer, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
    handler.send_response(500)
    handler.send_header("Content-Length", "10000")
    handler.end_headers()
    drip(handler, b" " * 10_000)


def drip_headers(model: ChatServer, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    drip(handler, b"x" * 10_000)


@pytest.mark.parametrize("answer", [drip_body, drip_error, drip_headers])
def test_dripping_server_is_given_up(answer: Answer, serve: Callable[..., ChatServer], tmp_path: Path) -> None:
    model = serve(answer)
    start = time.monotonic()
    with pytest.raises(ServerError, match=r"has stopped answering; no reply within llm\.deadline_s: no reply within"):
        run_stage(generation_stage(tmp_path, server_llm(model, timeout_s=0.3, deadline_s=0.8)))
    assert time.monotonic() - start < 6


def test_dripping_list_of_models_is_given_up(
    serve: Callable[..., ChatServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lgclip.prompts.openai_client._LIST_TIMEOUT_S", 0.3)
    monkeypatch.setattr("chat_server._Handler.do_GET", lambda self: drip_headers(self.server, self, {}, "", 0))
    model = serve(reject_with(404, "no such model"))
    start = time.monotonic()
    with pytest.raises(ServerError, match="does not know it"):
        run_stage(generation_stage(tmp_path, server_llm(model)))
    assert time.monotonic() - start < 6


def large_body(model: ChatServer, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
    send(handler, 200, " " * (MAX_REPLY_BYTES + 1))


def endless_body(model: ChatServer, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b" " * 65536)
    except OSError:
        handler.close_connection = True


def _encoded(content: bytes, encoding: str, status: int = 200, **headers: str) -> Answer:
    def answer(model: ChatServer, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Encoding", encoding)
        handler.send_header("Content-Length", str(len(content)))
        for key, value in headers.items():
            handler.send_header(key, value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


BOMB = gzip.compress(b" " * 50_000_000)
TOO_LARGE = {
    "plain": large_body,
    "endless": endless_body,
    "gzip": _encoded(BOMB, "gzip"),
    "deflate": _encoded(zlib.compress(b" " * 50_000_000), "deflate"),
    "gzip of an error": _encoded(BOMB, "gzip", 400),
    "gzip of a redirect": _encoded(BOMB, "gzip", 307, Location="/v1/other"),
}


@pytest.mark.parametrize("case", TOO_LARGE)
def test_large_answer_is_refused(case: str, serve: Callable[..., ChatServer], tmp_path: Path) -> None:
    model = serve(TOO_LARGE[case])
    with pytest.raises(ServerError, match=r"llm\.base_url=http://127\.0\.0\.1.*a reply is larger than 4 MB"):
        run_stage(generation_stage(tmp_path, server_llm(model, timeout_s=10, deadline_s=20)))


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "unknown"])
def test_unknown_encoding_is_refused(encoding: str, serve: Callable[..., ChatServer], tmp_path: Path) -> None:
    model = serve(_encoded(b"anything", encoding))
    with pytest.raises(ServerError, match=f"encodes its reply as '{encoding}'"):
        run_stage(generation_stage(tmp_path, server_llm(model)))


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_encoded_reply_is_read(encoding: str, serve: Callable[..., ChatServer], tmp_path: Path) -> None:
    compress = gzip.compress if encoding == "gzip" else zlib.compress

    def answer(model: ChatServer, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
        assert handler.headers["accept-encoding"] == "identity"
        _encoded(compress(json.dumps(good_reply(name)).encode()), encoding)(model, handler, body, name, turn)

    writing = generation_stage(tmp_path, server_llm(serve(answer)))
    run_stage(writing)
    assert writing.texts() == [good_sentences(name) for name in NAMES]


@pytest.mark.slow
def test_bomb_takes_no_memory(serve: Callable[..., ChatServer], tmp_path: Path) -> None:
    """Measures the decoding alone: the peak of a process that reads the answer through the client."""
    model = serve(_encoded(gzip.compress(b" " * 400_000_000, 1), "gzip"))
    code = (
        "import resource, openai\n"
        "from lgclip.prompts.bounded_http import UnsafeReplyError, make_client\n"
        f"client = openai.OpenAI(base_url={model.url!r}, api_key='k', max_retries=0,"
        f" http_client=make_client({model.url!r}, 'k'))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n"
        "    client.chat.completions.create(model='m', messages=[{'role': 'user', 'content': 'red fox'}])\n"
        "except (UnsafeReplyError, openai.APIConnectionError) as error:\n"
        "    print('refused', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    word, kilobytes = completed.stdout.split()
    assert word == "refused"
    assert int(kilobytes) < 60_000


def test_blocked_call_is_abandoned() -> None:
    release = threading.Event()
    with pytest.raises(OvertimeError):
        call_within(0.01, release.wait)
    release.set()
    assert call_within(5, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        call_within(5, lambda: 1 // 0)


def test_limit_is_far_above_a_reply() -> None:
    assert bounded_http.MAX_REPLY_BYTES == 4_000_000
