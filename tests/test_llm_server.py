"""`llm=server` against a real HTTP server that speaks the protocol, badly."""

import itertools
import json
import logging
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from lightning import Trainer
from omegaconf import OmegaConf
from worlds import tree

from lgclip.batch import Subject
from lgclip.identity import inputs_of
from lgclip.prompts.base import PromptError, Task, Written
from lgclip.prompts.endpoint import ServerError
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


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Model]]:
    models: list[Model] = []

    def start(answer: Answer) -> Model:
        models.append(Model(answer))
        threading.Thread(target=models[-1].serve_forever, args=(0.01,), daemon=True).start()
        return models[-1]

    yield start
    for model in models:
        model.shutdown()
        model.server_close()


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-service")


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


def test_a_good_server_is_asked_once_a_class(serve: Any, tmp_path: Path) -> None:
    model = serve(always(good_reply))
    writing = stage(tmp_path, llm(model, top_p=0.9, extra={"top_k": 7}, system="You draw."))
    run(writing)
    assert writing.texts() == [good(name) for name in NAMES]
    assert calls(model) == [1, 1, 1, 1]
    assert model.keys == {f"Bearer {KEY}"}
    body = model.asked["red fox"][0]
    assert {key: body[key] for key in ("model", "temperature", "top_p", "top_k", "max_tokens")} == {
        "model": "good-model", "temperature": 1.0, "top_p": 0.9, "top_k": 7, "max_tokens": 2048
    }  # fmt: skip
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["prompts"]
    assert body["messages"][0] == {"role": "system", "content": "You draw."}
    assert "red fox (a kind of animal)" in body["messages"][1]["content"]
    assert "Write 4 " in body["messages"][1]["content"]
    seeds = {request["seed"] for requests in model.asked.values() for request in requests}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**31 for seed in seeds)
    run(stage(tmp_path, llm(model, top_p=0.9, extra={"top_k": 7}, system="You draw.")))
    assert calls(model) == [1, 1, 1, 1], "what is stored is not asked for again"


@pytest.mark.parametrize("bad", BAD_FIRST.values(), ids=BAD_FIRST.keys())
def test_after_a_bad_reply_it_is_asked_again(bad: Any, serve: Any, tmp_path: Path) -> None:
    model = serve(first(bad))
    writing = stage(tmp_path, llm(model))
    run(writing)
    assert writing.texts() == [good(name, 2) for name in NAMES], "nothing of the bad reply is kept"
    assert calls(model) == [2, 2, 2, 2]


def test_a_bad_reply_changes_the_seed_and_a_lost_one_does_not(serve: Any, tmp_path: Path) -> None:
    for bad, same in ((BAD_FIRST["refusal"], False), (BAD_FIRST["500"], True)):
        model = serve(first(bad))
        run(stage(tmp_path / str(same), llm(model)))
        seeds = [[body["seed"] for body in model.asked[name]] for name in NAMES]
        assert [one == two for one, two in seeds] == [same] * 4


SHAPES: dict[str, Callable[[str], str]] = {
    "fenced": lambda name: f"Here you go:\n```json\n{json.dumps({'prompts': good(name)})}\n```\nEnjoy!",
    "bare list": lambda name: json.dumps(good(name)),
    "objects": lambda name: json.dumps([{"prompt": text} for text in good(name)]),
    "numbered list": lambda name: "\n".join(f"{i}. {text}" for i, text in enumerate(good(name), 1)),
    "bold bullets": lambda name: "Sure:\n" + "\n".join(f"- **{text}**" for text in good(name)),
    "thinking block": lambda name: f"<think>1. a bad {name}</think>{json.dumps({'prompts': good(name)})}",
    "too many": lambda name: json.dumps({"prompts": good(name, count=9)}),
    "duplicates": lambda name: json.dumps({"prompts": [text for text in good(name) for _ in range(3)]}),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_replies_of_any_shape_are_read(shape: Any, serve: Any, tmp_path: Path) -> None:
    model = serve(always(lambda name, turn: completion(shape(name))))
    writing = stage(tmp_path, llm(model))
    run(writing)
    assert writing.texts() == [good(name) for name in NAMES]
    assert calls(model) == [1, 1, 1, 1]


def test_of_a_cut_reply_the_whole_sentences_are_kept_and_the_rest_is_asked_for(serve: Any, tmp_path: Path) -> None:
    def answer(name: str, turn: int) -> Any:
        whole = json.dumps({"prompts": good(name, turn)})
        return completion(whole[: whole.index("side 2") + 3], "length") if turn == 1 else completion(whole)

    model = serve(always(answer))
    writing = stage(tmp_path, llm(model))
    run(writing)
    assert writing.texts() == [good(name)[:2] + good(name, 2)[:2] for name in NAMES]
    assert calls(model) == [2, 2, 2, 2]
    again = model.asked["barn owl"][1]["messages"][-1]["content"]
    assert "Write 2 " in again
    assert all(f"- {text}" in again for text in good("barn owl")[:2]), "it is told what is there"


def test_too_few_are_asked_for_again_at_most_k_times(serve: Any, tmp_path: Path) -> None:
    model = serve(always(lambda name, turn: good_reply(name, 1 if name == "sea otter" else turn, 2)))
    writing = stage(tmp_path, llm(model))
    said = r"1 of 4 classes .*class 2 \('sea otter'\): 2 usable prompts of 4 in 3 rounds \(duplicate 4\)"
    with pytest.raises(PromptError, match=said):
        run(writing)
    assert calls(model) == [2, 2, 3, 2]
    assert writing.missing() == [2]
    assert writing.texts()[2] == good("sea otter")[:2], "what it gave is kept"
    model.answer = always(lambda name, turn: good_reply(name, turn, 2))
    run(stage(tmp_path, llm(model)))
    assert calls(model) == [2, 2, 4, 2], "the others are not asked again"
    assert writing.texts()[2] == [*good("sea otter")[:2], *good("sea otter", 4)[:2]]


def test_asking_for_more_keeps_what_is_there(serve: Any, tmp_path: Path) -> None:
    model = serve(always(good_reply))
    run(stage(tmp_path, llm(model)))
    more = stage(tmp_path, llm(model), wanted=6)
    run(more)
    assert more.texts() == [good(name) + good(name, 2)[:2] for name in NAMES]
    assert calls(model) == [2, 2, 2, 2]


def test_a_class_that_is_never_described_may_get_templates(serve: Any, tmp_path: Path) -> None:
    def answer(name: str, turn: int) -> Any:
        return completion("I'm sorry, I can't.") if name == "red fox" else good_reply(name)

    model = serve(always(answer))
    writing = stage(tmp_path, llm(model, allow_fallback=True))
    run(writing)
    assert writing.texts()[0] == ["a photo of a red fox, a kind of animal."] * 4
    assert writing.templated() == [4, 0, 0, 0]
    assert calls(model) == [3, 1, 1, 1]
    run(stage(tmp_path, llm(model, allow_fallback=True)))
    assert calls(model) == [3, 1, 1, 1]
    with pytest.raises(PromptError, match=r"class 0 .*refusal 3"):
        run(stage(tmp_path, llm(model)))


def refusing(status: int, message: str, **more: Any) -> Answer:
    return lambda model, handler, body, name, turn: error(status, message, **more)(handler, name)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            refusing(401, f"Incorrect API key provided: {KEY}"),
            r"refuses the key \(HTTP 401: .*\*\*\*.*llm\.api_key_env",
        ),
        (refusing(403, "no access"), r"refuses the key \(HTTP 403: no access"),
        (
            refusing(404, "model 'good-model' not found"),
            r"llm\.model=good-model: .*does not know it.*it serves good-model",
        ),
        (refusing(402, "pay first"), "no quota left"),
        (refusing(429, "You exceeded it", code="insufficient_quota"), r"no quota left \(HTTP 429"),
        (refusing(400, "temperature must be below 1"), r"refuses the request \(HTTP 400: temperature must be"),
        (refusing(413, "too large"), r"HTTP 413: too large"),
    ],
)
def test_what_no_class_can_get_over_is_one_error_at_once(
    answer: Answer, message: str, serve: Any, tmp_path: Path
) -> None:
    model = serve(answer)
    start = time.monotonic()
    with pytest.raises(ServerError, match=message) as raised:
        run(stage(tmp_path, llm(model)))
    assert time.monotonic() - start < 4
    assert max(calls(model)) <= 1, "nobody is asked twice"
    assert KEY not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_is_finished_before_the_server_refuses_is_kept(serve: Any, tmp_path: Path) -> None:
    seen = itertools.count()

    def answer(model: Model, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
        if next(seen) < 2:
            send(handler, 200, good_reply(name))
        else:
            error(401, "expired")(handler, name)

    model = serve(answer)
    writing = stage(tmp_path, llm(model, concurrency=1))
    with pytest.raises(ServerError, match="expired"):
        run(writing)
    assert len(writing.missing()) == 2
    model.answer = always(good_reply)
    asked = calls(model)
    run(stage(tmp_path, llm(model)))
    assert sum(calls(model)) == sum(asked) + 2, "finished classes are never asked again"


@pytest.mark.parametrize("understood", ["json_object", None])
def test_a_server_that_knows_no_schema_is_asked_for_less(understood: str | None, serve: Any, tmp_path: Path) -> None:
    def answer(model: Model, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
        wanted = body.get("response_format", {"type": None})["type"]
        if wanted in ("json_schema", "json_object") and wanted != understood:
            error(400, f"response_format type {wanted} is not supported")(handler, name)
        else:
            send(handler, 200, good_reply(name))

    model = serve(answer)
    writing = stage(tmp_path, llm(model, concurrency=1))
    run(writing)
    assert writing.texts() == [good(name) for name in NAMES]
    steps = 1 if understood else 2
    assert sorted(calls(model)) == [1, 1, 1, 1 + steps], "found out once, not for each class"
    formats = {json.dumps(model.asked[name][-1].get("response_format")) for name in NAMES}
    assert formats == {'{"type": "json_object"}' if understood else "null"}


def test_unstructured_asks_for_no_format(serve: Any, tmp_path: Path) -> None:
    model = serve(always(lambda name, turn: completion("\n".join(good(name)))))
    run(stage(tmp_path, llm(model, structured=False)))
    assert all("response_format" not in model.asked[name][0] for name in NAMES)


def test_a_server_with_other_fields_is_asked_by_those(
    serve: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(model: Model, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
        if "max_tokens" in body:
            error(400, "Unsupported parameter: use 'max_completion_tokens' instead")(handler, name)
        elif "seed" in body:
            error(422, "seed: extra fields not permitted")(handler, name)
        else:
            send(handler, 200, good_reply(name))

    model = serve(answer)
    run(stage(tmp_path, llm(model, concurrency=1)))
    assert sum(calls(model)) == 6
    assert model.asked["pine marten"][-1]["max_completion_tokens"] == 2048
    assert caplog.text.count("takes no seed") == 1


def test_a_policy_error_is_a_refusal_of_that_class_alone(serve: Any, tmp_path: Path) -> None:
    def answer(model: Model, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
        if name == "red fox":
            error(400, "The prompt was blocked", code="content_filter")(handler, name)
        else:
            send(handler, 200, good_reply(name))

    with pytest.raises(PromptError, match=r"1 of 4 classes.*class 0 .*refusal 3"):
        run(stage(tmp_path, llm(serve(answer))))


def test_it_waits_as_long_as_the_server_says(serve: Any, tmp_path: Path) -> None:
    times: list[float] = []

    def answer(model: Model, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
        if name == "red fox":
            times.append(time.monotonic())
        if turn == 1:
            error(429, "wait", headers={"Retry-After": "0.4"})(handler, name)
        else:
            send(handler, 200, good_reply(name))

    run(stage(tmp_path, llm(serve(answer))))
    assert times[1] - times[0] >= 0.4


def test_a_wait_beyond_the_deadline_is_not_begun(serve: Any, tmp_path: Path) -> None:
    def answer(model: Model, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
        if name == "red fox":
            error(429, "come back later", headers={"Retry-After": "3600"})(handler, name)
        else:
            send(handler, 200, good_reply(name))

    model = serve(answer)
    start = time.monotonic()
    with pytest.raises(
        PromptError, match=r"class 0 .*0 usable prompts of 4 in 0 rounds.*deadline_s: HTTP 429: come back"
    ):
        run(stage(tmp_path, llm(model)))
    assert time.monotonic() - start < 4
    assert calls(model) == [1, 1, 1, 1]


def test_a_class_has_a_deadline_and_the_others_go_on(serve: Any, tmp_path: Path) -> None:
    def answer(model: Model, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
        if name == "red fox":
            slow(handler, name)
        else:
            time.sleep(0.05)
            send(handler, 200, good_reply(name))

    model = serve(answer)
    writing = stage(tmp_path, llm(model, timeout_s=0.2, deadline_s=0.7))
    with pytest.raises(PromptError, match=r"1 of 4 .*class 0 .*no reply within llm\.deadline_s: no reply within"):
        run(writing)
    assert writing.missing() == [0]
    assert calls(model)[1:] == [1, 1, 1]
    assert 2 <= calls(model)[0] <= 6


def test_a_server_that_is_not_there_is_one_error_soon(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    writer = ServerLLM("m", base_url=url, api_key_env=None, backoff_s=0.01)
    with pytest.raises(ServerError, match=r"llm\.base_url=http://127\.0\.0\.1.*is the server running there\?"):
        run(stage(tmp_path, writer))


def test_a_server_that_dies_is_one_error_not_one_a_class(serve: Any, tmp_path: Path) -> None:
    def answer(model: Model, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
        if name == "red fox":
            send(handler, 200, good_reply(name))
        else:
            reset(handler, name)

    writing = stage(tmp_path, llm(serve(answer), concurrency=1, deadline_s=0.3))
    with pytest.raises(ServerError, match="answers nobody any more"):
        run(writing)
    assert writing.missing() == [1, 2, 3]


def test_classes_are_asked_at_the_same_time(serve: Any, tmp_path: Path) -> None:
    for concurrency in (1, 3):
        together = threading.Barrier(concurrency)

        def answer(
            model: Model, handler: Handler, body: dict[str, Any], name: str, turn: int, together: Any = together
        ) -> None:
            if name != NAMES[-1]:  # three classes, so that the barrier comes out even
                together.wait(timeout=5)
            send(handler, 200, good_reply(name))

        model = serve(answer)
        run(stage(tmp_path / str(concurrency), llm(model, concurrency=concurrency, timeout_s=6, deadline_s=20)))
        assert model.most_busy <= concurrency


@pytest.mark.parametrize("answer", [always(good_reply), refusing(401, f"bad key {KEY}"), first(BAD_FIRST["429"])])
def test_the_key_is_written_nowhere(
    answer: Answer, serve: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def echoing(model: Model, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
        if name == "sea otter":
            error(500, f"cannot serve {handler.headers['authorization']}")(handler, name)
        else:
            answer(model, handler, body, name, turn)

    model = serve(echoing)
    writer = llm(model, deadline_s=0.4)
    with caplog.at_level(logging.DEBUG), pytest.raises((ServerError, PromptError)) as raised:
        run(stage(tmp_path, writer))
    assert model.keys == {f"Bearer {KEY}"}
    said = [str(raised.value), caplog.text, repr(writer), json.dumps(inputs_of(writer))]
    assert not any(KEY in text for text in said)
    assert not any(KEY.encode() in content for content in tree(tmp_path).values())


def test_a_server_without_a_key_does_not_get_another_services(serve: Any, tmp_path: Path) -> None:
    model = serve(always(good_reply))
    run(stage(tmp_path, llm(model, api_key_env=None)))
    assert model.keys == {"Bearer none"}


def test_a_key_that_is_not_set_is_an_error_before_anybody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(ValueError, match=r"llm\.api_key_env=TEST_KEY: this environment variable is not set"):
        ServerLLM("m", api_key_env="TEST_KEY").load(torch.device("cpu"))


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ValueError, match=r"`openai` is not installed.*pip install 'lgclip\[server\]'"):
        ServerLLM("m", api_key_env="TEST_KEY").load(torch.device("cpu"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"api_key_env": KEY}, r"llm\.api_key_env: it is the NAME of an environment variable"),
        ({"base_url": "https://me:secret@host/v1"}, "no user, password or query"),
        ({"base_url": "https://host/v1?key=secret"}, "no user, password or query"),
        ({"base_url": "localhost:8000"}, r"llm\.base_url=localhost:8000: it must be an http address"),
        ({"concurrency": 0}, r"llm\.concurrency=0: it must be at least 1"),
        ({"max_tokens": 0}, "at least 1"),
        ({"timeout_s": 0}, "above 0"),
        ({"deadline_s": float("nan")}, "above 0"),
        ({"backoff_s": -1.0}, "above 0"),
        ({"temperature": 0}, "above 0"),
        ({"model": ""}, "name a model"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        ServerLLM(**{"model": "m", **setting})
    assert "secret" not in str(raised.value)


def test_the_presets_are_of_the_kind_that_they_say(serve: Any, tmp_path: Path) -> None:
    conf = Path(__file__).parents[1] / "conf" / "llm"
    presets: dict[str, Any] = {path.stem: OmegaConf.load(path) for path in conf.glob("*.yaml")}
    servers = {name: preset for name, preset in presets.items() if preset._target_.endswith("ServerLLM")}
    assert servers.keys() == {"server", "vllm", "ollama", "llama_cpp", "official"}
    model = serve(always(good_reply))
    for name, preset in sorted(servers.items()):
        own = {"model": "good-model", "base_url": model.url, "api_key_env": "TEST_KEY"}
        run(stage(tmp_path / name, instantiate(OmegaConf.merge(preset, own), _convert_="all")))
    asked = model.asked["red fox"][sorted(servers).index("official")]["messages"][-1]["content"]
    assert 'Begin each with the words "red fox which has"' in asked


def test_a_pen_gives_each_class_as_soon_as_it_is_done(serve: Any) -> None:
    hold = threading.Event()

    def answer(model: Model, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
        if name == "red fox":
            hold.wait(5)
        send(handler, 200, good_reply(name))

    pen = llm(serve(answer), timeout_s=8, deadline_s=9).load(torch.device("cpu"))
    done = pen([Task(subject, 4) for subject in SUBJECTS], 0)
    early = dict(next(done) for _ in range(3))
    assert early.keys() == {1, 2, 3}
    assert all(isinstance(written, Written) for written in early.values())
    hold.set()
    assert next(done)[0] == 0
