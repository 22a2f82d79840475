"""Sends one request to a server with OpenAI's chat protocol, and retries while that can help."""

import email.utils
import json
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from lgclip.prompts.bounded_http import UnsafeReplyError
from lgclip.prompts.filtering import FilterResult
from lgclip.runtime.deadlines import OvertimeError, call_within
from lgclip.runtime.secrets import hidden
from lgclip.runtime.terminal import single_line
from lgclip.store.cost_log import Tokens

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
_REFUSED = ("content_filter", "refusal", "safety")
_CUT_OFF = ("length", "max_tokens", "model_length")
"""Values of `finish_reason`: OpenAI's own come first, then those that other services pass on."""
_WIRE = ("openai", "httpx", "httpx2", "httpcore", "httpcore2")
"""Loggers of the client and of its HTTP libraries, in older and newer versions."""
_LONGEST_WAIT = 60.0
_LIST_TIMEOUT_S = 10.0
_FIRST_TRIES = 3
"""Attempts after which a server that has never answered counts as absent."""


class ServerError(ValueError):
    """Reports that prompts cannot be generated for any class: the message says why and how to fix it."""


class OverdueError(ValueError):
    """Reports that a class's deadline has passed; the message is the last error."""


class StoppedError(RuntimeError):
    """Reports that the run has ended for another reason."""


class _LaterError(Exception):
    """Reports an error that is worth a retry.

    Attributes:
        after: Seconds that the server asks to wait, None if unknown.
        absent: Whether no server could be reached at all.
    """

    def __init__(self, reason: str, after: float | None = None, *, absent: bool = False) -> None:
        super().__init__(reason)
        self.after = after
        self.absent = absent


class Reply(NamedTuple):
    """Holds the model's answer, or why there is none, and its token counts if the server reports them.

    Attributes:
        text: The answer.
        outcome: Reason why there is none; None if there is one.
        tokens: Its token counts.
        is_truncated: Whether the model reached its token limit, so that the last sentence may be half of one.
    """

    text: str
    outcome: FilterResult | None = None
    tokens: Tokens | None = None
    is_truncated: bool = False


class Endpoint:
    """Queries a model behind a server; shared by threads.

    Args:
        connect: Returns an `openai.OpenAI` without its own retries, because deadlines are per class, not per
            request, and with bounded answers (`lgclip.prompts.bounded_http`).
        request: Fields of every request.
        structured: Whether to ask for the JSON schema; a server that rejects it is asked for less.
        max_tokens: Maximum reply length.
        timeout_s: Maximum time for one reply.
        backoff_s: First wait after a failure; it doubles, with half of it as random jitter.
        secret: The key, which must not occur in any message.
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
        self._connect = connect
        self._request = dict(request)
        self._secret = secret
        self._client: Any = None
        self._timeout_s = timeout_s
        self._backoff_s = backoff_s
        self._max_tokens = max_tokens
        # What the server has shown it understands; `_adapted` takes away what it refuses. Threads share these
        # without a lock: they only ever change in one direction, and a stale value costs one more request.
        self._format = 0 if structured else len(_FORMATS) - 1
        self._limit = "max_tokens"
        self._seeded = True
        self.answered = float("-inf")

    @contextmanager
    def connection(self) -> Iterator[None]:
        """Keeps connections to the server open for the block."""
        for name in _WIRE:
            # Their other messages, at any verbosity, are headers, and a server may send the key back in one.
            logging.getLogger(name).setLevel(logging.WARNING)
        with self._connect() as self._client:
            yield

    def ask(self, messages: Sequence[Mapping[str, str]], seed: int, until: float, stop: threading.Event) -> Reply:
        """Returns the reply to `messages`.

        Args:
            messages: The chat.
            seed: Seed, for servers that support it.
            until: Deadline, on `time.monotonic`'s clock.
            stop: Set when the run has ended.

        Raises:
            OverdueError: If there is no reply in time.
            ServerError: If there can be none, for any class.
            StoppedError: If `stop` was set.
        """
        attempt = 0
        reason = "no time was left"
        while (remaining := until - time.monotonic()) > 0:
            if stop.is_set():
                raise StoppedError
            try:
                reply = self._once(messages, seed, min(self._timeout_s, remaining))
            except _LaterError as later:
                attempt += 1
                reason = str(later)
                # A server that has answered before may be restarting, and is waited for until the deadline. One that
                # never has is most likely a wrong address, and ten minutes of waiting would not help.
                if later.absent and attempt >= _FIRST_TRIES and self.answered == float("-inf"):
                    raise ServerError(
                        f"llm.base_url={self._client.base_url}: {reason}; is the server running there?"
                    ) from None
                wait = self._wait(attempt, later.after)
                if wait >= until - time.monotonic():
                    break
                # Not `sleep`: the wait ends at once when the run does.
                stop.wait(wait)
                continue
            if reply is not None:
                return reply
        raise OverdueError(f"no reply within llm.deadline_s: {reason}")

    def _wait(self, attempt: int, after: float | None) -> float:
        # The exponent is bounded, since 2 to the power of a few thousand attempts overflows a float.
        longest = min(_LONGEST_WAIT, self._backoff_s * 2 ** min(attempt - 1, 16))
        # Chance keeps the threads apart; it is no part of any result.
        return max(after or 0.0, longest * (0.5 + 0.5 * random.random()))

    def _once(self, messages: Sequence[Mapping[str, str]], seed: int, timeout_s: float) -> Reply | None:
        """Makes one attempt; returns None if the request was adapted to this server and must be sent again.

        Raises:
            _LaterError: If it is worth another attempt.
            ServerError: If it is not.
        """
        import openai

        # Read once: another thread may change it while this request is on its way, and a refusal is of this one.
        used = self._format
        options: dict[str, Any] = {self._limit: self._max_tokens}
        if _FORMATS[used] is not None:
            options["response_format"] = _FORMATS[used]
        if self._seeded:
            options["seed"] = seed
        create = partial(
            self._client.chat.completions.create,
            messages=list(messages),
            timeout=timeout_s,
            **options,
            **self._request,
        )
        try:
            completion = call_within(timeout_s, create)
        except (OvertimeError, openai.APITimeoutError):
            raise _LaterError(f"no reply within {timeout_s:.3g} s") from None
        except UnsafeReplyError as error:
            raise self._unsafe(error) from None
        except openai.APIConnectionError as error:
            # Some versions of the client wrap the errors of its hooks.
            if isinstance(error.__cause__, UnsafeReplyError):
                raise self._unsafe(error.__cause__) from None
            # The client's own text is "Connection error."; the cause has the address or the certificate.
            cause = error.__cause__ or error
            raise _LaterError(self._plain(f"no connection ({cause})"), absent=True) from None
        except openai.APIStatusError as error:
            self.answered = time.monotonic()
            return self._refused(error, used)
        except (openai.APIResponseValidationError, json.JSONDecodeError):
            raise _LaterError("the reply is not JSON") from None
        reply = self._read(completion)
        self.answered = time.monotonic()
        return reply

    def _unsafe(self, error: UnsafeReplyError) -> ServerError:
        return ServerError(self._plain(f"llm.base_url={self._client.base_url}: {error}"))

    def _read(self, completion: Any) -> Reply:
        if isinstance(completion, str):  # what the client makes of a page that is no JSON
            raise _LaterError(
                self._plain(
                    f"a web page came in place of a reply ({completion[:60]!r}); does llm.base_url end with /v1?"
                )
            )
        choices = getattr(completion, "choices", None)
        # The client checks nothing of what a server sends: any field may have any value.
        if not (isinstance(choices, list) and choices):
            raise _LaterError(self._plain(f"a reply without choices: {str(completion)[:120]}"))
        message = getattr(choices[0], "message", None)
        tokens = _usage(completion)
        finish_reason = str(getattr(choices[0], "finish_reason", None)).lower()
        if finish_reason in _REFUSED or getattr(message, "refusal", None):
            return Reply("", FilterResult.REFUSAL, tokens)
        content = getattr(message, "content", None)
        if isinstance(content, list):  # some servers give it in parts
            content = "".join(str(part.get("text", "")) for part in content if _is_text_part(part))
        if not (isinstance(content, str) and content.strip()):
            return Reply("", FilterResult.EMPTY, tokens)
        if self._secret and self._secret in content:  # it would be kept as a prompt
            return Reply("", FilterResult.ERROR_TEXT, tokens)
        return Reply(content, None, tokens, is_truncated=finish_reason in _CUT_OFF)

    def _refused(self, error: Any, used: int) -> Reply | None:
        """Interprets an HTTP status."""
        # The body of a server that keeps the protocol is an object; of a proxy in between it may be text or nothing.
        message: Any = error.body
        code = ""
        if isinstance(error.body, dict):
            message = error.body.get("message")
            code = str(error.body.get("code") or error.body.get("type") or "")
        message = self._plain(str(message or error.message))
        status = error.status_code
        model = self._request["model"]
        if status in (401, 403):
            raise ServerError(f"the server refuses the key (HTTP {status}: {message}): see llm.api_key_env")
        # 429 is both "too fast", which passes, and "not paid", which does not; only the text distinguishes them.
        if status == 402 or (status == 429 and _QUOTA.search(f"{code} {message}")):
            raise ServerError(f"the server's account has no quota left (HTTP {status}: {message})")
        if status == 404:
            raise ServerError(
                f"llm.model={model}: the server at {self._client.base_url} does not know it, or the address is wrong "
                f"(HTTP 404: {message}){self._served()}"
            )
        if status in (408, 409, 425, 429) or status >= 500:
            raise _LaterError(f"HTTP {status}: {message}", _retry_after(error.response.headers))
        if status in (400, 422):
            if self._adapted(message, used):
                return None
            # A filter refuses the words of one class, which is no reason to stop the others.
            if _POLICY.search(f"{code} {message}"):
                return Reply("", FilterResult.REFUSAL)
        raise ServerError(f"the server refuses the request (HTTP {status}: {message})")

    def _adapted(self, message: str, used: int) -> bool:
        """Removes fields that the server does not support from all further requests."""
        if _ABOUT_FORMAT.search(message) and _FORMATS[used] is not None:
            # `max`, because several threads may be refused the same format at the same time.
            self._format = max(self._format, used + 1)
            log.info("the server does not take response_format %s: %s", _FORMATS[used], message)
            return True
        # OpenAI's reasoning models refuse the older name and name the newer one.
        if "max_completion_tokens" in message and self._limit == "max_tokens":
            self._limit = "max_completion_tokens"
            return True
        if re.search(r"\bseed\b", message) and self._seeded:
            self._seeded = False
            log.warning("the server takes no seed: the same request may get another reply")
            return True
        return False

    def _served(self) -> str:
        """Returns the models that the server lists, if it does."""
        import openai

        try:
            models = call_within(_LIST_TIMEOUT_S, self._client.with_options(timeout=_LIST_TIMEOUT_S).models.list)
            names = [model.id for model in models.data]
        except (openai.OpenAIError, OvertimeError, UnsafeReplyError, AttributeError, TypeError, ValueError):
            return ""
        if not names:
            return ""
        return f"; it serves {self._plain(', '.join(map(str, names[:20])))}"

    def _plain(self, text: str) -> str:
        """Returns one short line without the key and without control characters."""
        # An empty secret would match between all letters.
        if self._secret:
            text = text.replace(self._secret, "***")
        return single_line(" ".join(hidden(text).split()))[:300]


def _is_text_part(part: Any) -> bool:
    """Checks whether a part of a message is its text rather than the thinking before it."""
    return isinstance(part, dict) and part.get("type") in (None, "text", "output_text")


def _usage(completion: Any) -> Tokens | None:
    """Returns the token counts of a reply if the server reports valid ones: the client does not validate fields."""
    usage = getattr(completion, "usage", None)
    read = getattr(usage, "prompt_tokens", None)
    written = getattr(usage, "completion_tokens", None)
    if isinstance(read, int) and isinstance(written, int) and min(read, written) >= 0:
        return Tokens(read, written)
    return None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds that a server asks to wait, given as a number or as a date."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
