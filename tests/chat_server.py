"""A real HTTP server that speaks the chat-completions protocol, well or badly, and what runs against it."""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lightning import Trainer

from lgclip.batch import Subject
from lgclip.prompts.server import ServerLLM
from lgclip.stages import StageBar, Stages, quiet
from lgclip.store import PromptStore
from lgclip.writing import Writing

KEY = "sk-test-0123456789-very-secret"
NAMES = ("red fox", "barn owl", "sea otter", "pine marten")
SUBJECTS = [Subject(i, name, "a kind of animal") for i, name in enumerate(NAMES)]
Handler = Any
Answer = Callable[["Model", Handler, dict[str, Any], str, int], None]


class Model(ThreadingHTTPServer):
    """Answers as it is told to, and remembers what it was asked: by class, the bodies of the requests."""

    daemon_threads = True

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.asked: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
        self.keys: set[str | None] = set()
        self.lock = threading.Lock()
        self.busy = self.most_busy = 0
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away is part of the test."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Model  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the screen."""

    def do_GET(self) -> None:
        send(self, 200, {"object": "list", "data": [{"id": "good-model", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        said = body["messages"][-1]["content"]
        name = next(name for name in NAMES if name in said)
        with self.server.lock:
            self.server.keys.add(self.headers["authorization"])
            self.server.asked[name].append(body)
            turn = len(self.server.asked[name])
            self.server.busy += 1
            self.server.most_busy = max(self.server.most_busy, self.server.busy)
        try:
            self.server.answer(self.server, self, body, name, turn)
        finally:
            with self.server.lock:
                self.server.busy -= 1


def send(handler: Handler, status: int, body: Any, headers: dict[str, str] | None = None, kind: str = "json") -> None:
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    handler.send_response(status)
    for key, value in {"Content-Type": f"application/{kind}", **(headers or {})}.items():
        handler.send_header(key, value)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def completion(content: Any, finish: str = "stop", **message: Any) -> dict[str, Any]:
    said = {"role": "assistant", "content": content, **message}
    choice = {"index": 0, "message": said, "finish_reason": finish, "logprobs": None}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "good-model", "choices": [choice]}


def good(name: str, turn: int = 1, count: int = 4) -> list[str]:
    return [f"a {name} seen from side {i} in light {turn}" for i in range(count)]


def good_reply(name: str, turn: int = 1, count: int = 4) -> dict[str, Any]:
    return completion(json.dumps({"prompts": good(name, turn, count)}))


def always(reply: Callable[[str, int], Any]) -> Answer:
    return lambda model, handler, body, name, turn: send(handler, 200, reply(name, turn))


def first(bad: Callable[[Handler, str], None]) -> Answer:
    """Badly the first time for each class, then well."""

    def answer(model: Model, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
        if turn == 1:
            bad(handler, name)
        else:
            send(handler, 200, good_reply(name, turn))

    return answer


def reset(handler: Handler, name: str) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def cut_body(handler: Handler, name: str) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    handler.wfile.write(b'{"id": "x", "choi')
    handler.close_connection = True


def slow(handler: Handler, name: str) -> None:
    time.sleep(0.6)
    send(handler, 200, good_reply(name))


def error(status: int, message: str, **more: Any) -> Callable[[Handler, str], None]:
    headers = more.pop("headers", None)
    return lambda handler, name: send(handler, status, {"error": {"message": message, **more}}, headers)


def says(content: Callable[[str], Any], finish: str = "stop", **message: Any) -> Callable[[Handler, str], None]:
    return lambda handler, name: send(handler, 200, completion(content(name), finish, **message))


HTML = "<!DOCTYPE html><html><body><h1>502 Bad Gateway</h1></body></html>"


def refusing(status: int, message: str, **more: Any) -> Answer:
    return lambda model, handler, body, name, turn: error(status, message, **more)(handler, name)


BAD_FIRST: dict[str, Callable[[Handler, str], None]] = {
    "refusal": says(lambda name: f"I'm sorry, but I can't describe a {name}."),
    "refusal in its own field": says(lambda name: None, refusal="I can't help with that."),
    "empty": says(lambda name: ""),
    "blank": says(lambda name: " \n"),
    "null": says(lambda name: None),
    "thinking without an end": says(lambda name: f"<think>Let me think of a {name}: 1. a {name} on a log", "length"),
    "wrong schema": says(lambda name: json.dumps({"animal": name, "legs": 4})),
    "schema with an error": says(lambda name: json.dumps({"error": f"cannot write of {name}"})),
    "wrong language": says(lambda name: json.dumps({"prompts": [f"一只在雪地里的动物,红色的 {i}" for i in range(9)]})),
    "not about the class": says(lambda name: json.dumps({"prompts": [f"a grey dog on mat {i}" for i in range(9)]})),
    "content filter": says(lambda name: f"a {name} that was cut by the", "content_filter"),
    "error text": says(lambda name: f"Error: the model is overloaded, no {name} today"),
    "html with 200": lambda handler, name: send(handler, 200, HTML, kind="html"),
    "no json": lambda handler, name: send(handler, 200, '{"id": "x", "choices": ['),
    "no choices": lambda handler, name: send(handler, 200, {**completion(""), "choices": []}),
    "error with 200": lambda handler, name: send(handler, 200, {"error": {"message": f"no {name}", "code": 502}}),
    "429": error(429, "rate limit", headers={"Retry-After": "0.05"}),
    "429 without a header": error(429, "rate limit"),
    "500": error(500, "internal error"),
    "503": lambda handler, name: send(handler, 503, HTML, kind="html"),
    "reset": reset,
    "cut body": cut_body,
    "slow": slow,
}


def llm(model: Model, **settings: Any) -> ServerLLM:
    quick = {"timeout_s": 0.3, "deadline_s": 5.0, "backoff_s": 0.01, "concurrency": 4, "max_rounds": 3}
    return ServerLLM("good-model", base_url=model.url, **{"api_key_env": "TEST_KEY", **quick, **settings})


def stage(root: Path, writer: ServerLLM, wanted: int = 4) -> Writing:
    return Writing(writer, PromptStore(root), SUBJECTS, wanted, 0)


def run(writing: Writing) -> None:
    quiet()
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[StageBar()], enable_model_summary=False
    )
    Stages(trainer).complete("prompts", writing, len(writing.subjects))


def calls(model: Model) -> list[int]:
    return [len(model.asked[name]) for name in NAMES]
