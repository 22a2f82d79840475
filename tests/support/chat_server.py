"""Implements an HTTP server that follows or breaks the chat-completions protocol, and helpers to run against it."""

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

from lgclip.prompts.server_llm import ServerLLM
from lgclip.stages.prompts import PromptGenerationStage
from lgclip.stages.runner import StageBar, Stages, quiet
from lgclip.store.prompts import PromptStore
from lgclip.types import TargetClass

KEY = "sk-test-0123456789-very-secret"
NAMES = ("red fox", "barn owl", "sea otter", "pine marten")
SUBJECTS = [TargetClass(i, name, "a kind of animal") for i, name in enumerate(NAMES)]
Handler = Any
Answer = Callable[["ChatServer", Handler, dict[str, Any], str, int], None]


class ChatServer(ThreadingHTTPServer):
    """Answers as configured and records the request bodies by class."""

    daemon_threads = True

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.requests: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
        self.keys: set[str | None] = set()
        self.lock = threading.Lock()
        self.busy = self.most_busy = 0
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores disconnected clients, which are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChatServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing."""

    def do_GET(self) -> None:
        send(self, 200, {"object": "list", "data": [{"id": "good-model", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        instruction = body["messages"][-1]["content"]
        name = next((name for name in NAMES if name in instruction), "")  # empty for a class of the test's own
        with self.server.lock:
            self.server.keys.add(self.headers["authorization"])
            self.server.requests.setdefault(name, []).append(body)
            turn = len(self.server.requests[name])
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
    reply = {"role": "assistant", "content": content, **message}
    choice = {"index": 0, "message": reply, "finish_reason": finish, "logprobs": None}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "good-model", "choices": [choice]}


def good_sentences(name: str, turn: int = 1, count: int = 4) -> list[str]:
    return [f"a {name} seen from side {i} in light {turn}" for i in range(count)]


def good_reply(name: str, turn: int = 1, count: int = 4) -> dict[str, Any]:
    return completion(json.dumps({"prompts": good_sentences(name, turn, count)}))


def reply_always(reply: Callable[[str, int], Any]) -> Answer:
    return lambda model, handler, body, name, turn: send(handler, 200, reply(name, turn))


def fail_first(bad: Callable[[Handler, str], None]) -> Answer:
    """Answers badly the first time for each class, then well."""

    def answer(model: ChatServer, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
        if turn == 1:
            bad(handler, name)
        else:
            send(handler, 200, good_reply(name, turn))

    return answer


def reset_connection(handler: Handler, name: str) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def send_partial_body(handler: Handler, name: str) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    handler.wfile.write(b'{"id": "x", "choi')
    handler.close_connection = True


def reply_slowly(handler: Handler, name: str) -> None:
    time.sleep(0.6)
    send(handler, 200, good_reply(name))


def error_reply(status: int, message: str, **fields: Any) -> Callable[[Handler, str], None]:
    headers = fields.pop("headers", None)
    return lambda handler, name: send(handler, status, {"error": {"message": message, **fields}}, headers)


def reply_with(content: Callable[[str], Any], finish: str = "stop", **message: Any) -> Callable[[Handler, str], None]:
    return lambda handler, name: send(handler, 200, completion(content(name), finish, **message))


HTML = "<!DOCTYPE html><html><body><h1>502 Bad Gateway</h1></body></html>"


def reject_with(status: int, message: str, **fields: Any) -> Answer:
    return lambda model, handler, body, name, turn: error_reply(status, message, **fields)(handler, name)


BAD_FIRST: dict[str, Callable[[Handler, str], None]] = {
    "refusal": reply_with(lambda name: f"I'm sorry, but I can't describe a {name}."),
    "refusal in its own field": reply_with(lambda name: None, refusal="I can't help with that."),
    "empty": reply_with(lambda name: ""),
    "blank": reply_with(lambda name: " \n"),
    "null": reply_with(lambda name: None),
    "thinking without an end": reply_with(
        lambda name: f"<think>Let me think of a {name}: 1. a {name} on a log", "length"
    ),
    "wrong schema": reply_with(lambda name: json.dumps({"animal": name, "legs": 4})),
    "schema with an error": reply_with(lambda name: json.dumps({"error": f"cannot write of {name}"})),
    "wrong language": reply_with(
        lambda name: json.dumps({"prompts": [f"一只在雪地里的动物,红色的 {i}" for i in range(9)]})
    ),
    "not about the class": reply_with(
        lambda name: json.dumps({"prompts": [f"a grey dog on mat {i}" for i in range(9)]})
    ),
    "content filter": reply_with(lambda name: f"a {name} that was cut by the", "content_filter"),
    "error text": reply_with(lambda name: f"Error: the model is overloaded, no {name} today"),
    "html with 200": lambda handler, name: send(handler, 200, HTML, kind="html"),
    "no json": lambda handler, name: send(handler, 200, '{"id": "x", "choices": ['),
    "no choices": lambda handler, name: send(handler, 200, {**completion(""), "choices": []}),
    "error with 200": lambda handler, name: send(handler, 200, {"error": {"message": f"no {name}", "code": 502}}),
    "429": error_reply(429, "rate limit", headers={"Retry-After": "0.05"}),
    "429 without a header": error_reply(429, "rate limit"),
    "500": error_reply(500, "internal error"),
    "503": lambda handler, name: send(handler, 503, HTML, kind="html"),
    "reset": reset_connection,
    "cut body": send_partial_body,
    "slow": reply_slowly,
}


def server_llm(model: ChatServer, **settings: Any) -> ServerLLM:
    quick = {"timeout_s": 0.3, "deadline_s": 5.0, "backoff_s": 0.01, "concurrency": 4, "max_rounds": 3}
    return ServerLLM("good-model", base_url=model.url, **{"api_key_env": "TEST_KEY", **quick, **settings})


def generation_stage(root: Path, prompt_generator: ServerLLM, requested: int = 4) -> PromptGenerationStage:
    return PromptGenerationStage(prompt_generator, PromptStore(root), SUBJECTS, requested, 0)


def run_stage(writing: PromptGenerationStage) -> None:
    quiet()
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[StageBar()], enable_model_summary=False
    )
    Stages(trainer).complete("prompts", writing, len(writing.target_classes))


def count_requests(model: ChatServer) -> list[int]:
    return [len(model.requests[name]) for name in NAMES]
