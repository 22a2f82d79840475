"""Provides a server for the test and keys in its environment."""

import threading
from collections.abc import Callable, Iterator

import pytest
from chat_server import (
    KEY,
    Answer,
    ChatServer,
)


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], ChatServer]]:
    models: list[ChatServer] = []

    def start(answer: Answer) -> ChatServer:
        models.append(ChatServer(answer))
        threading.Thread(target=models[-1].serve_forever, args=(0.01,), daemon=True).start()
        return models[-1]

    yield start
    for model in models:
        model.shutdown()
        model.server_close()


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.setenv("LGCLIP_KEYS", "TEST_KEY@127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-service")
