"""Generates prompts with a model behind any server with OpenAI's chat protocol: vLLM, Ollama, llama.cpp, a cloud."""

import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import urlsplit

import torch

from lgclip.prompts.base import GeneratedPrompts, PromptError, PromptWriter, Task
from lgclip.prompts.bounded_http import make_client
from lgclip.prompts.chat import ChatHistory, ChatPromptGenerator, seed_of
from lgclip.prompts.openai_client import Endpoint, OverdueError, ServerError
from lgclip.runtime.api_keys import check_key, parse_address
from lgclip.store.keys import NOT_AN_INPUT

_NO_KEY = "none"
"""Sent where no key is needed: the client requires one, and must not use another service's from the environment."""


@dataclass(frozen=True)
class ServerLLM(ChatPromptGenerator):
    """Generates prompts with a model on a server.

    Args:
        model: The server's name for it. Together with the address it identifies the model in the key.
        base_url: The server's address, up to `/v1`.
        api_key_env: Name of the environment variable that holds the key; None for a server without one. It must be
            bound to the server's host, see `lgclip.runtime.api_keys`.
        structured: Whether to request a reply by JSON schema. A server without support is asked for
            JSON, and then for text.
        max_tokens: Maximum reply length, in tokens.
        extra: Further fields of the request, for server-specific extensions of the protocol.
        concurrency: Number of classes processed concurrently.
        timeout_s: Maximum time for one reply from the request to its last byte, in seconds.
        deadline_s: Maximum time for one class, including waits and retries, in seconds.
        backoff_s: First wait after a failure, in seconds; it doubles up to a minute, or is what the server requests.
    """

    key_name: ClassVar[str] = "ServerLLM"
    prompts_from: ClassVar[str] = "class_names"

    base_url: str = "https://api.openai.com/v1"
    api_key_env: str | None = field(default="OPENAI_API_KEY", metadata=NOT_AN_INPUT)
    structured: bool = True
    max_tokens: int = 2048
    extra: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = field(default=8, metadata=NOT_AN_INPUT)
    timeout_s: float = field(default=120.0, metadata=NOT_AN_INPUT)
    deadline_s: float = field(default=600.0, metadata=NOT_AN_INPUT)
    backoff_s: float = field(default=1.0, metadata=NOT_AN_INPUT)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_tokens", "concurrency"):
            self._check_at_least(name, 1)
        for name in ("timeout_s", "deadline_s", "backoff_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"llm.{name}={getattr(self, name)}: it must be above 0")
        address = urlsplit(self.base_url)
        if "@" in address.netloc or address.query:  # it is in keys and results
            raise ValueError("llm.base_url: no user, password or query in it; a key goes through llm.api_key_env")
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError(
                f"llm.base_url={self.base_url}: it must be an http address such as http://localhost:8000/v1"
            )
        parse_address("llm.base_url", self.base_url)
        if self.api_key_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.api_key_env):
            # What was given may be the key itself, so it is not shown.
            raise ValueError("llm.api_key_env: it is the NAME of an environment variable, in capitals, not a key")

    @property
    def items_per_call(self) -> int:
        return 4 * self.concurrency  # so that one slow class does not idle the other threads

    @property
    def server(self) -> str:
        return f"server at {urlsplit(self.base_url).netloc}"

    def load(self, device: torch.device) -> PromptWriter:
        endpoint = self._endpoint()

        def write(tasks: Sequence[Task], seed: int) -> Iterator[tuple[int, GeneratedPrompts | PromptError]]:
            stop = threading.Event()
            pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="llm")
            with endpoint.connection():
                places: dict[Future[GeneratedPrompts | PromptError], int] = {
                    pool.submit(self._compose, endpoint, ChatHistory(task, self), seed, stop): place
                    for place, task in enumerate(tasks)
                }
                try:
                    yield from _as_completed(places)
                except ServerError:
                    # The other threads would only fail as well, each after its own deadline.
                    stop.set()
                    pool.shutdown(cancel_futures=True)
                    # What was answered before the failure is paid for, so it is stored before the run stops.
                    answered = {f: p for f, p in places.items() if not f.cancelled() and not f.exception()}
                    yield from _as_completed(answered)
                    raise
                finally:
                    stop.set()
                    pool.shutdown(cancel_futures=True)

        return write

    def waits_for(self) -> str:
        if self.api_key_env is not None and not os.environ.get(self.api_key_env):
            return f"put the server's key in the environment variable {self.api_key_env}"
        return f"a server at {self.base_url}"

    def _endpoint(self) -> Endpoint:
        try:
            import openai
        except ImportError:
            raise ValueError(
                "the package `openai` is not installed, which asks a server; it is the extra `server`: "
                "pip install 'lgclip[server]'"
            ) from None
        secret = ""
        if self.api_key_env is not None:
            secret = os.environ.get(self.api_key_env, "")
            if not secret:
                raise ValueError(
                    f"llm.api_key_env={self.api_key_env}: this environment variable is not set; put the server's key "
                    "in it, or set llm.api_key_env=null for a server without one"
                )
            check_key("llm.api_key_env", self.api_key_env, self.base_url)
        request: dict[str, Any] = {"model": self.model, "temperature": self.temperature}
        if self.top_p < 1:
            request["top_p"] = self.top_p
        if self.extra:
            request["extra_body"] = dict(self.extra)

        def connect() -> openai.OpenAI:
            client = make_client(self.base_url, secret or _NO_KEY)
            return openai.OpenAI(base_url=self.base_url, api_key=secret or _NO_KEY, max_retries=0, http_client=client)

        return Endpoint(
            connect,
            request,
            structured=self.structured,
            max_tokens=self.max_tokens,
            timeout_s=self.timeout_s,
            backoff_s=self.backoff_s,
            secret=secret,
        )

    def _compose(
        self, endpoint: Endpoint, history: ChatHistory, seed: int, stop: threading.Event
    ) -> GeneratedPrompts | PromptError:
        """Generates the prompts of one class, in its own thread."""
        start = time.monotonic()
        for _ in range(self.max_rounds):
            if not history.missing:
                break
            try:
                # 31 bits: some servers hold a seed in a signed int.
                reply = endpoint.ask(self.chat(history), seed_of(seed, history) >> 17, start + self.deadline_s, stop)
            except OverdueError as overdue:
                # No class has had an answer since this one began: the server is gone, and this class is not to blame.
                if endpoint.answered < start:
                    raise ServerError(f"llm.base_url={self.base_url}: it has stopped answering; {overdue}") from None
                return history.result(str(overdue))
            history.spend(reply.tokens)
            if reply.outcome is None:
                history.add([reply.text], truncated=[0] if reply.is_truncated else [])
            else:
                # An unusable reply is a round too: the next one must have another seed.
                history.add([])
                history.note(reply.outcome)
        return history.result()


def _as_completed(
    places: dict[Future[GeneratedPrompts | PromptError], int],
) -> Iterator[tuple[int, GeneratedPrompts | PromptError]]:
    """Yields each class once, as soon as it is done, and removes it from `places`."""
    # The list is a copy, because `places` shrinks while it is gone through.
    for future in as_completed(list(places)):
        outcome = future.result()
        yield places.pop(future), outcome
