"""Limits requests to a server: their host, the bytes of the answer, and the time.

`httpx` limits each read, not a whole answer: a server that sends one byte a second holds a client for ever, and 0.4 MB
of gzip become 0.8 GB. Its hooks see every request, redirects among them, and every answer before it is read.
"""

import logging
import os
import time
import zlib
from importlib import import_module
from types import ModuleType
from typing import Any

from lgclip.runtime.api_keys import is_loopback, may_send, parse_address

log = logging.getLogger(__name__)

MAX_REPLY_BYTES = 4_000_000
"""Maximum decoded size of an answer; ten sentences are a few kilobytes."""

_NAMELESS = {
    "host", "accept", "accept-encoding", "connection", "content-type", "content-length", "transfer-encoding",
    "user-agent", "authorization", "idempotency-key",
}  # fmt: skip
"""Headers that are part of every request; all others come from variables of the environment."""

_FROM_ENVIRONMENT = {"openai-organization": "OPENAI_ORG_ID", "openai-project": "OPENAI_PROJECT_ID"}
_OTHERS = "OPENAI_CUSTOM_HEADERS"


class UnsafeReplyError(Exception):
    """Reports an answer that no chat server gives: too large, encoded in an unknown way, or sent by another host."""


def make_client(base_url: str, secret: str) -> Any:
    """Returns an HTTP client for `openai.OpenAI` that sends a key to one host and reads bounded answers.

    Args:
        base_url: Address of the server.
        secret: The key, sent in the header `Authorization`.
    """
    import openai

    # Newer versions of the client are built on httpx2, older ones on httpx; both have the same classes.
    library = import_module(openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0])
    address = parse_address("llm.base_url", base_url)
    _warn_of_dropped_headers(base_url)

    def restrict(request: Any) -> None:
        if _origin(request.url) != _origin(library.URL(base_url)):
            raise UnsafeReplyError(
                f"the server at {address.netloc} redirects to {request.url.host or 'another place'}, to which nothing "
                "is sent: set llm.base_url to the address that it redirects to, if you trust that"
            )
        for name in list(request.headers):
            if not _may_carry(name.lower(), base_url):
                del request.headers[name]
        request.headers["Authorization"] = f"Bearer {secret}"
        request.headers["Accept-Encoding"] = "identity"
        limit = (request.extensions.get("timeout") or {}).get("read")
        # A redirected request keeps the extensions of the first one, and with them its deadline.
        if limit is not None:
            request.extensions.setdefault("lgclip_until", time.monotonic() + limit)

    def read(response: Any) -> None:
        body = _read_bounded(response, library)
        response.headers.pop("content-encoding", None)
        response.stream = library.ByteStream(body)

    # A plain request to this machine must not go through a proxy, where the key would be readable.
    is_local = address.scheme.lower() == "http" and is_loopback(str(address.hostname))
    return openai.DefaultHttpxClient(event_hooks={"request": [restrict], "response": [read]}, trust_env=not is_local)


def _read_bounded(response: Any, library: ModuleType) -> bytes:
    """Returns the decoded body of an answer.

    Raises:
        UnsafeReplyError: If it is too large, or encoded in another way than gzip or deflate.
    """
    until = response.request.extensions.get("lgclip_until", float("inf"))
    encoding = response.headers.get("content-encoding", "identity").strip().lower() or "identity"
    decoder: Any = None
    if encoding in ("gzip", "x-gzip", "deflate"):
        decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either of the two by its first bytes
    elif encoding != "identity":
        response.stream.close()
        raise UnsafeReplyError(f"the server encodes its reply as {encoding[:20]!r}, which was not asked for")
    body = bytearray()
    try:
        for chunk in response.stream:
            decoded = chunk
            if decoder is not None:
                # What exceeds the limit is not even decoded.
                decoded = decoder.decompress(chunk, MAX_REPLY_BYTES + 1 - len(body))
            body += decoded
            if len(body) > MAX_REPLY_BYTES:
                raise UnsafeReplyError(f"a reply is larger than {MAX_REPLY_BYTES / 1e6:.0f} MB")
            if time.monotonic() > until:
                raise library.ReadTimeout("the reply is not complete in time", request=response.request)
    except zlib.error as error:
        raise library.ReadError(f"the reply is damaged ({error})", request=response.request) from None
    finally:
        response.stream.close()
    return bytes(body)


def _origin(url: Any) -> tuple[str, str, int]:
    """Returns the scheme, host and port of an httpx URL."""
    port = url.port or (443 if url.scheme == "https" else 80)
    return url.scheme, url.host, port


def _may_carry(header: str, base_url: str) -> bool:
    if header in _NAMELESS or header.startswith("x-stainless-"):
        return True
    return may_send(_FROM_ENVIRONMENT.get(header, _OTHERS), base_url)


def _warn_of_dropped_headers(base_url: str) -> None:
    for variable in (*_FROM_ENVIRONMENT.values(), _OTHERS):
        if os.environ.get(variable) and not may_send(variable, base_url):
            log.warning("%s is not sent to %s: bind it with LGCLIP_KEYS if that server needs it", variable, base_url)
