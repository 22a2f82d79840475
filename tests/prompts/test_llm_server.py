"""Tests `llm=server` against a real HTTP server that follows and breaks the protocol."""

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
    ChatServer,
    Handler,
    completion,
    count_requests,
    error_reply,
    generation_stage,
    good_reply,
    good_sentences,
    reject_with,
    reply_always,
    reply_slowly,
    reset_connection,
    run_stage,
    send,
    server_llm,
)
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lgclip.prompts.base import GeneratedPrompts, PromptError, Task
from lgclip.prompts.openai_client import ServerError
from lgclip.prompts.server_llm import ServerLLM

pytest_plugins = ("chat_fixtures",)
pytestmark = pytest.mark.usefixtures("key")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            reject_with(401, f"Incorrect API key provided: {KEY}"),
            r"refuses the key \(HTTP 401: .*\*\*\*.*llm\.api_key_env",
        ),
        (reject_with(403, "no access"), r"refuses the key \(HTTP 403: no access"),
        (
            reject_with(404, "model 'good-model' not found"),
            r"llm\.model=good-model: .*does not know it.*it serves good-model",
        ),
        (reject_with(402, "pay first"), "no quota left"),
        (reject_with(429, "You exceeded it", code="insufficient_quota"), r"no quota left \(HTTP 429"),
        (reject_with(400, "temperature must be below 1"), r"refuses the request \(HTTP 400: temperature must be"),
        (reject_with(413, "too large"), r"HTTP 413: too large"),
    ],
)
def test_fatal_errors_stop_immediately(answer: Answer, message: str, serve: Any, tmp_path: Path) -> None:
    model = serve(answer)
    start = time.monotonic()
    with pytest.raises(ServerError, match=message) as raised:
        run_stage(generation_stage(tmp_path, server_llm(model)))
    assert time.monotonic() - start < 4
    assert max(count_requests(model)) <= 1, "nobody is asked twice"
    assert KEY not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_finished_classes_survive_a_refusal(serve: Any, tmp_path: Path) -> None:
    seen = itertools.count()

    def answer(model: ChatServer, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
        if next(seen) < 2:
            send(handler, 200, good_reply(name))
        else:
            error_reply(401, "expired")(handler, name)

    model = serve(answer)
    writing = generation_stage(tmp_path, server_llm(model, concurrency=1))
    with pytest.raises(ServerError, match="expired"):
        run_stage(writing)
    assert len(writing.missing()) == 2
    model.answer = reply_always(good_reply)
    counts = count_requests(model)
    run_stage(generation_stage(tmp_path, server_llm(model)))
    assert sum(count_requests(model)) == sum(counts) + 2, "finished classes are never asked again"


@pytest.mark.parametrize("understood", ["json_object", None])
def test_server_without_schema_gets_plainer_requests(understood: str | None, serve: Any, tmp_path: Path) -> None:
    def answer(model: ChatServer, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
        expected = body.get("response_format", {"type": None})["type"]
        if expected in ("json_schema", "json_object") and expected != understood:
            error_reply(400, f"response_format type {expected} is not supported")(handler, name)
        else:
            send(handler, 200, good_reply(name))

    model = serve(answer)
    writing = generation_stage(tmp_path, server_llm(model, concurrency=1))
    run_stage(writing)
    assert writing.texts() == [good_sentences(name) for name in NAMES]
    steps = 1 if understood else 2
    assert sorted(count_requests(model)) == [1, 1, 1, 1 + steps], "found out once, not for each class"
    formats = {json.dumps(model.requests[name][-1].get("response_format")) for name in NAMES}
    assert formats == {'{"type": "json_object"}' if understood else "null"}


def test_unstructured_requests_no_format(serve: Any, tmp_path: Path) -> None:
    model = serve(reply_always(lambda name, turn: completion("\n".join(good_sentences(name)))))
    run_stage(generation_stage(tmp_path, server_llm(model, structured=False)))
    assert all("response_format" not in model.requests[name][0] for name in NAMES)


def test_server_fields_can_be_renamed(serve: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def answer(model: ChatServer, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
        if "max_tokens" in body:
            error_reply(400, "Unsupported parameter: use 'max_completion_tokens' instead")(handler, name)
        elif "seed" in body:
            error_reply(422, "seed: extra fields not permitted")(handler, name)
        else:
            send(handler, 200, good_reply(name))

    model = serve(answer)
    run_stage(generation_stage(tmp_path, server_llm(model, concurrency=1)))
    assert sum(count_requests(model)) == 6
    assert model.requests["pine marten"][-1]["max_completion_tokens"] == 2048
    assert caplog.text.count("takes no seed") == 1


def test_policy_error_affects_one_class(serve: Any, tmp_path: Path) -> None:
    def answer(model: ChatServer, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
        if name == "red fox":
            error_reply(400, "The prompt was blocked", code="content_filter")(handler, name)
        else:
            send(handler, 200, good_reply(name))

    with pytest.raises(PromptError, match=r"1 of 4 classes.*class 0 .*refusal 3"):
        run_stage(generation_stage(tmp_path, server_llm(serve(answer))))


def test_retry_after_is_respected(serve: Any, tmp_path: Path) -> None:
    times: list[float] = []

    def answer(model: ChatServer, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
        if name == "red fox":
            times.append(time.monotonic())
        if turn == 1:
            error_reply(429, "wait", headers={"Retry-After": "0.4"})(handler, name)
        else:
            send(handler, 200, good_reply(name))

    run_stage(generation_stage(tmp_path, server_llm(serve(answer))))
    assert times[1] - times[0] >= 0.4


def test_wait_beyond_the_deadline_is_skipped(serve: Any, tmp_path: Path) -> None:
    def answer(model: ChatServer, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
        if name == "red fox":
            error_reply(429, "come back later", headers={"Retry-After": "3600"})(handler, name)
        else:
            send(handler, 200, good_reply(name))

    model = serve(answer)
    start = time.monotonic()
    with pytest.raises(
        PromptError, match=r"class 0 .*0 usable prompts of 4 in 0 rounds.*deadline_s: HTTP 429: come back"
    ):
        run_stage(generation_stage(tmp_path, server_llm(model)))
    assert time.monotonic() - start < 4
    assert count_requests(model) == [1, 1, 1, 1]


def test_deadline_is_per_class(serve: Any, tmp_path: Path) -> None:
    def answer(model: ChatServer, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
        if name == "red fox":
            reply_slowly(handler, name)
        else:
            time.sleep(0.05)
            send(handler, 200, good_reply(name))

    model = serve(answer)
    writing = generation_stage(tmp_path, server_llm(model, timeout_s=0.2, deadline_s=0.7))
    with pytest.raises(PromptError, match=r"1 of 4 .*class 0 .*no reply within llm\.deadline_s: no reply within"):
        run_stage(writing)
    assert writing.missing() == [0]
    assert count_requests(model)[1:] == [1, 1, 1]
    assert 2 <= count_requests(model)[0] <= 6


def test_missing_server_is_one_error(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    prompt_generator = ServerLLM("m", base_url=url, api_key_env=None, backoff_s=0.01)
    with pytest.raises(ServerError, match=r"llm\.base_url=http://127\.0\.0\.1.*is the server running there\?"):
        run_stage(generation_stage(tmp_path, prompt_generator))


def test_dying_server_is_one_error(serve: Any, tmp_path: Path) -> None:
    def answer(model: ChatServer, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
        if name == "red fox":
            send(handler, 200, good_reply(name))
        else:
            reset_connection(handler, name)

    writing = generation_stage(tmp_path, server_llm(serve(answer), concurrency=1, deadline_s=0.3))
    with pytest.raises(ServerError, match="has stopped answering"):
        run_stage(writing)
    assert writing.missing() == [1, 2, 3]


def test_classes_are_requested_concurrently(serve: Any, tmp_path: Path) -> None:
    for concurrency in (1, 3):
        together = threading.Barrier(concurrency)

        def answer(
            model: ChatServer, handler: Handler, body: dict[str, Any], name: str, turn: int, together: Any = together
        ) -> None:
            if name != NAMES[-1]:  # three classes, so that the barrier comes out even
                together.wait(timeout=5)
            send(handler, 200, good_reply(name))

        model = serve(answer)
        run_stage(
            generation_stage(
                tmp_path / str(concurrency), server_llm(model, concurrency=concurrency, timeout_s=6, deadline_s=20)
            )
        )
        assert model.most_busy <= concurrency


def test_presets_have_their_declared_kind(serve: Any, tmp_path: Path) -> None:
    conf = Path(__file__).parents[2] / "conf" / "llm"
    presets: dict[str, Any] = {path.stem: OmegaConf.load(path) for path in conf.glob("*.yaml")}
    servers = {name: preset for name, preset in presets.items() if preset._target_.endswith("ServerLLM")}
    assert servers.keys() == {"server", "vllm", "ollama", "llama_cpp", "official"}
    model = serve(reply_always(good_reply))
    for name, preset in sorted(servers.items()):
        settings = {"model": "good-model", "base_url": model.url, "api_key_env": "TEST_KEY"}
        run_stage(generation_stage(tmp_path / name, instantiate(OmegaConf.merge(preset, settings), _convert_="all")))
    content = model.requests["red fox"][sorted(servers).index("official")]["messages"][-1]["content"]
    assert 'Begin each with the words "red fox which has"' in content


def test_classes_are_returned_as_they_finish(serve: Any) -> None:
    hold = threading.Event()

    def answer(model: ChatServer, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
        if name == "red fox":
            hold.wait(5)
        send(handler, 200, good_reply(name))

    writer = server_llm(serve(answer), timeout_s=8, deadline_s=9).load(torch.device("cpu"))
    done = writer([Task(target_class, 4) for target_class in SUBJECTS], 0)
    early = dict(next(done) for _ in range(3))
    assert early.keys() == {1, 2, 3}
    assert all(isinstance(written, GeneratedPrompts) for written in early.values())
    hold.set()
    assert next(done)[0] == 0
