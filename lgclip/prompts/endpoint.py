"""One request to a server that speaks OpenAI's chat protocol, repeated while that can help."""

import email.utils
import json
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from lgclip.credentials import hidden
from lgclip.ledger import Tokens
from lgclip.prompts.verdicts import Outcome
from lgclip.shown import one_line

log = logging.getLogger(__name__)

SCHEMA = {
    "type": "object",
    "properties": {"prompts": {"type": "array", "items": {"type": "string"}}},
    "required": ["prompts"],
    "additionalProperties": False,
}
_FORMATS: tuple[dict[str, Any] | None, ...] = (
    {"type": "json_schema", "json_schema": {"name": "prompts", "strict": True, "schema": SCHEMA}},
    {"type": "json_object"},
    None,
)
_ABOUT_FORMAT = re.compile(r"response.?format|json.?schema|json.?object|structured|grammar|guided", re.I)
_POLICY = re.compile(r"content.?(?:filter|policy|management)|safety|moderation", re.I)
_QUOTA = re.compile(r"insufficient.?quota|billing|credit", re.I)
_WIRE = ("openai", "httpx", "httpx2", "httpcore", "httpcore2")
"""Loggers of the client and of the libraries that it asks with, in its older and newer versions."""
_LONGEST_WAIT = 60.0
_FIRST_TRIES = 3
"""Attempts after which a server that has never answered counts as absent."""


class ServerError(ValueError):
    """No class can be written for: the message says why and what to do."""


class OverdueError(ValueError):
    """A class's deadline has passed; the message is the last thing that went wrong."""


class StoppedError(RuntimeError):
    """The run has ended for another reason."""


class _LaterError(Exception):
    """Worth another attempt.

    Attributes:
        after: Seconds that the server asks to wait, None if it does not say.
        absent: Whether no server was there at all.
    """

    def __init__(self, reason: str, after: float | None = None, *, absent: bool = False) -> None:
        super().__init__(reason)
        self.after, self.absent = after, absent


class Reply(NamedTuple):
    """What the model said, or why it said nothing, and what that took if the server tells."""

    text: str
    outcome: Outcome | None = None
    tokens: Tokens | None = None


class Endpoint:
    """A model behind a server; threads share it.

    Args:
        connect: Gives an `openai.OpenAI` without retries of its own: deadlines are a class's, not a request's.
        request: What every request holds.
        structured: Whether to ask for the JSON schema; a server that refuses is asked for less.
        max_tokens: Longest reply.
        timeout_s: Longest wait for one reply.
        backoff_s: First wait after a failure; it doubles, and half of it is chance.
        secret: The key, which no message may hold.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        request: Mapping[str, Any],
        *,
        structured: bool,
        max_tokens: int,
        timeout_s: float,
        backoff_s: float,
        secret: str,
    ) -> None:
        self._connect, self._request, self._secret = connect, dict(request), secret
        self._client: Any = None
        self._timeout_s, self._backoff_s, self._max_tokens = timeout_s, backoff_s, max_tokens
        self._format = 0 if structured else len(_FORMATS) - 1
        self._limit, self._seeded = "max_tokens", True
        self.answered = float("-inf")

    @contextmanager
    def connection(self) -> Iterator[None]:
        """Keeps connections to the server for the block."""
        for name in _WIRE:
            # What they say besides, at any verbosity, are headers, and a server may send the key back in one.
            logging.getLogger(name).setLevel(logging.WARNING)
        with self._connect() as self._client:
            yield

    def ask(self, messages: Sequence[Mapping[str, str]], seed: int, until: float, stop: threading.Event) -> Reply:
        """The reply to `messages`.

        Args:
            messages: The chat.
            seed: For servers that heed it.
            until: When to give up, on `time.monotonic`'s clock.
            stop: Set when the run has ended.

        Raises:
            OverdueError: If there is none in time.
            ServerError: If there can be none, for any class.
            StoppedError: If `stop` was set.
        """
        attempt, reason = 0, "no time was left"
        while (left := until - time.monotonic()) > 0:
            if stop.is_set():
                raise StoppedError
            try:
                reply = self._once(messages, seed, min(self._timeout_s, left))
            except _LaterError as later:
                attempt, reason = attempt + 1, str(later)
                if later.absent and attempt >= _FIRST_TRIES and self.answered == float("-inf"):
                    raise ServerError(
                        f"llm.base_url={self._client.base_url}: {reason}; is the server running there?"
                    ) from None
                wait = self._wait(attempt, later.after)
                if wait >= until - time.monotonic():
                    break
                stop.wait(wait)
                continue
            if reply is not None:
                return reply
        raise OverdueError(f"no reply within llm.deadline_s: {reason}")

    def _wait(self, attempt: int, after: float | None) -> float:
        longest = min(_LONGEST_WAIT, self._backoff_s * 2 ** min(attempt - 1, 16))
        # Chance keeps the threads apart; it is no part of any result.
        return max(after or 0.0, longest * (0.5 + 0.5 * random.random()))

    def _once(self, messages: Sequence[Mapping[str, str]], seed: int, timeout_s: float) -> Reply | None:
        """One attempt; None if the request was changed for this server and is to be sent again.

        Raises:
            _LaterError: If it is worth another attempt.
            ServerError: If it is not.
        """
        import openai

        used = self._format
        options: dict[str, Any] = {self._limit: self._max_tokens}
        if _FORMATS[used] is not None:
            options["response_format"] = _FORMATS[used]
        if self._seeded:
            options["seed"] = seed
        try:
            completion = self._client.chat.completions.create(
                messages=list(messages), timeout=timeout_s, **options, **self._request
            )
        except openai.APITimeoutError:
            raise _LaterError(f"no reply within {timeout_s:.3g} s") from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise _LaterError(self._plain(f"no connection ({cause})"), absent=True) from None
        except openai.APIStatusError as error:
            self.answered = time.monotonic()
            return self._refused(error, used)
        except (openai.APIResponseValidationError, json.JSONDecodeError):
            raise _LaterError("the reply is no JSON") from None
        reply = self._read(completion)
        self.answered = time.monotonic()
        return reply

    def _read(self, completion: Any) -> Reply:
        if isinstance(completion, str):  # what the client makes of a page that is no JSON
            raise _LaterError(
                self._plain(
                    f"a web page came in place of a reply ({completion[:60]!r}); does llm.base_url end with /v1?"
                )
            )
        choices = getattr(completion, "choices", None)
        # The client checks nothing of what a server sends: any value may stand in any place.
        if not (isinstance(choices, list) and choices):
            raise _LaterError(self._plain(f"a reply without choices: {str(completion)[:120]}"))
        message, tokens = getattr(choices[0], "message", None), _usage(completion)
        if getattr(choices[0], "finish_reason", None) == "content_filter" or getattr(message, "refusal", None):
            return Reply("", Outcome.REFUSAL, tokens)
        content = getattr(message, "content", None)
        if isinstance(content, list):  # some servers give it in parts
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        if not (isinstance(content, str) and content.strip()):
            return Reply("", Outcome.EMPTY, tokens)
        if self._secret and self._secret in content:  # it would be kept as a prompt
            return Reply("", Outcome.ERROR_TEXT, tokens)
        return Reply(content, None, tokens)

    def _refused(self, error: Any, used: int) -> Reply | None:
        """What an HTTP status means."""
        body = error.body
        said = body.get("message") if isinstance(body, dict) else body
        said = self._plain(str(said or error.message))
        code = str(body.get("code") or body.get("type") or "") if isinstance(body, dict) else ""
        status, model = error.status_code, self._request["model"]
        if status in (401, 403):
            raise ServerError(f"the server refuses the key (HTTP {status}: {said}): see llm.api_key_env")
        if status == 402 or (status == 429 and _QUOTA.search(f"{code} {said}")):
            raise ServerError(f"the server's account has no quota left (HTTP {status}: {said})")
        if status == 404:
            raise ServerError(
                f"llm.model={model}: the server at {self._client.base_url} does not know it, or the address is wrong "
                f"(HTTP 404: {said}){self._served()}"
            )
        if status in (408, 409, 425, 429) or status >= 500:
            raise _LaterError(f"HTTP {status}: {said}", _retry_after(error.response.headers))
        if status in (400, 422):
            if self._adapted(said, used):
                return None
            if _POLICY.search(f"{code} {said}"):
                return Reply("", Outcome.REFUSAL)
        raise ServerError(f"the server refuses the request (HTTP {status}: {said})")

    def _adapted(self, said: str, used: int) -> bool:
        """Leaves out what the server does not know, for all requests to come."""
        if _ABOUT_FORMAT.search(said) and _FORMATS[used] is not None:
            self._format = max(self._format, used + 1)
            log.info("the server does not take response_format %s: %s", _FORMATS[used], said)
            return True
        if "max_completion_tokens" in said and self._limit == "max_tokens":
            self._limit = "max_completion_tokens"
            return True
        if re.search(r"\bseed\b", said) and self._seeded:
            self._seeded = False
            log.warning("the server takes no seed: the same request may get another reply")
            return True
        return False

    def _served(self) -> str:
        """The models that the server names, if it does."""
        import openai

        try:
            names = [model.id for model in self._client.with_options(timeout=10).models.list().data]
        except (openai.OpenAIError, AttributeError, TypeError, ValueError):
            return ""
        return f"; it serves {self._plain(', '.join(map(str, names[:20])))}" if names else ""

    def _plain(self, text: str) -> str:
        """One short line without the key, and without what steers a terminal."""
        text = text.replace(self._secret, "***") if self._secret else text
        return one_line(" ".join(hidden(text).split()))[:300]


def _usage(completion: Any) -> Tokens | None:
    """What a reply took, of a server that tells: the client checks no field, so any value may stand there."""
    usage = getattr(completion, "usage", None)
    prompt, completion = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
    if isinstance(prompt, int) and isinstance(completion, int) and min(prompt, completion) >= 0:
        return Tokens(prompt, completion)
    return None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, which it says as a number or as a date."""
    said = headers.get("retry-after")
    if said is None:
        return None
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return None
