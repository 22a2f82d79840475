"""The key, the package and the settings of `llm=server`."""

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
    Handler,
    Model,
    always,
    error,
    first,
    good_reply,
    llm,
    refusing,
    run,
    stage,
)
from worlds import tree

from lgclip.identity import inputs_of
from lgclip.prompts.base import PromptError
from lgclip.prompts.endpoint import ServerError
from lgclip.prompts.server import ServerLLM

pytest_plugins = ("chat_fixtures",)
pytestmark = pytest.mark.usefixtures("key")


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
