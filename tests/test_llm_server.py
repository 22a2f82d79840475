"""`llm=server` against a real HTTP server that speaks the protocol, badly."""

import itertools
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_server import (
    KEY,
    NAMES,
    SUBJECTS,
    Answer,
    Handler,
    Model,
    always,
    calls,
    completion,
    error,
    good,
    good_reply,
    llm,
    refusing,
    reset,
    run,
    send,
    slow,
    stage,
)
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lgclip.prompts.base import PromptError, Task, Written
from lgclip.prompts.endpoint import ServerError
from lgclip.prompts.server import ServerLLM

pytest_plugins = ("chat_fixtures",)
pytestmark = pytest.mark.usefixtures("key")


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
