"""Tests the key, the package and the settings of `llm=server`."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_server import (
    BAD_FIRST,
    KEY,
    Answer,
    ChatServer,
    Handler,
    error_reply,
    fail_first,
    generation_stage,
    good_reply,
    reject_with,
    reply_always,
    run_stage,
    server_llm,
)
from factories import read_tree

from lgclip.prompts.base import PromptError
from lgclip.prompts.openai_client import ServerError
from lgclip.prompts.server_llm import ServerLLM
from lgclip.store.keys import key_inputs

pytest_plugins = ("chat_fixtures",)
pytestmark = pytest.mark.usefixtures("key")


@pytest.mark.parametrize(
    "answer", [reply_always(good_reply), reject_with(401, f"bad key {KEY}"), fail_first(BAD_FIRST["429"])]
)
def test_key_is_stored_nowhere(answer: Answer, serve: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def echoing(model: ChatServer, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
        if name == "sea otter":
            error_reply(500, f"cannot serve {handler.headers['authorization']}")(handler, name)
        else:
            answer(model, handler, body, name, turn)

    model = serve(echoing)
    prompt_generator = server_llm(model, deadline_s=0.4)
    with caplog.at_level(logging.DEBUG), pytest.raises((ServerError, PromptError)) as raised:
        run_stage(generation_stage(tmp_path, prompt_generator))
    assert model.keys == {f"Bearer {KEY}"}
    texts = [str(raised.value), caplog.text, repr(prompt_generator), json.dumps(key_inputs(prompt_generator))]
    assert not any(KEY in text for text in texts)
    assert not any(KEY.encode() in content for content in read_tree(tmp_path).values())


def test_server_without_key_gets_no_other_key(serve: Any, tmp_path: Path) -> None:
    model = serve(reply_always(good_reply))
    run_stage(generation_stage(tmp_path, server_llm(model, api_key_env=None)))
    assert model.keys == {"Bearer none"}


def test_missing_key_is_rejected_before_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(ValueError, match=r"llm\.api_key_env=TEST_KEY: this environment variable is not set"):
        ServerLLM("m", api_key_env="TEST_KEY").load(torch.device("cpu"))


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_invalid_settings_are_rejected(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        ServerLLM(**{"model": "m", **setting})
    assert "secret" not in str(raised.value)
