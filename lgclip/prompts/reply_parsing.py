"""Parses a language model's reply into sentences: JSON, lists, and the text that models put around them."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

_TAG = re.compile(r"<(/?)(think|thinking|reasoning|thought)>|\[(/?)(THINK)\]", re.I)
_UNSEEN = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufffd\ud800-\udfff]"
)

_FENCE = re.compile(r"^[ \t]*(?:`{3,}|~{3,})[ \t]*[\w-]*[ \t]*$", re.MULTILINE)
_JSON = re.compile(r"\{\s*[\"{}]|\[\s*[\"{\]]")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"\s*(:?)', re.DOTALL)
_KEYS = ("prompts", "descriptions", "captions", "sentences")
_TEXT_KEYS = ("prompt", "description", "caption", "text", "sentence")

_LIST_MARK = re.compile(r"^\s*(?:[-•‣◦]|[*–—](?=\s)|\(?\d{1,3}[.):](?!\d))\s*(?=\S)")  # noqa: RUF001
_NOTHING = re.compile(r"[#{}\[\]]|\(?\d{1,3}[.):]$")
_LABEL = re.compile(r"^(?:prompt|description|caption|image)\s*(?:#\s*)?\d{1,3}\s*[.:)-]\s*", re.I)
_BOLD = re.compile(r"\*\*(.+?)\*\*|__(.+?)__|`(.+?)`")
_AROUND = re.compile(
    r"^(?:sure|certainly|of course|absolutely|okay|ok)\b[^.]{0,80}[!:]"
    r"|^(?:here|below|these|the following)\s+(?:are|is)\b.*\b(?:prompts?|descriptions?|sentences?|captions?)\b"
    r"|^(?:let me know|feel free|i hope|hope this|would you like|if you(?:'d| would)? (?:like|want|need)|note:)",
    re.I,
)
_COMMA = re.compile(r"([\"'”’])\s*,$")  # noqa: RUF001
_QUOTES = "\"'“”‘’«»„"  # noqa: RUF001


_LONGEST = 100_000
"""Maximum number of characters that are parsed after the thinking; a server's reply may be endless."""


class NoPromptsError(ValueError):
    """Reports a JSON reply without anything that could be a prompt; the message is the error text in the reply."""


def sentences_of(reply: str) -> list[str]:
    """Extracts the sentences of a reply, each on one line, without surrounding text.

    Supported formats: a JSON object with a list in it, bare JSON lists of strings or objects, both also in fences,
    after a preamble or truncated (complete strings are kept); else lines, of which only the
    numbered or bulleted ones count if there are any. Thinking blocks, with or without tags at either end, are dropped.

    Raises:
        NoPromptsError: If the reply is JSON of another structure.
    """
    text = _UNSEEN.sub("", reply.replace("\r\n", "\n").replace("\r", "\n"))
    text = _FENCE.sub("", _content(text)[:_LONGEST]).strip()
    # None is "no JSON at all", which an empty list is not: `{"prompts": []}` has no lines to fall back on.
    texts: Iterable[str] | None = _from_json(text)
    if texts is None:
        texts = _lines(text)
    return [clean for clean in map(_clean, texts) if clean]


def _content(text: str) -> str:
    """Returns the text after and between thinking blocks; in one pass, since replies may be arbitrarily long."""
    tags: list[tuple[re.Match[str], str, bool]] = []
    for tag in _TAG.finditer(text):
        # "]" marks the tags in square brackets: <think> is not closed by [/THINK].
        name = (tag[2] or tag[4]).lower() + "]" * bool(tag[4])
        tags.append((tag, name, bool(tag[1] or tag[3])))
    # Where each kind of tag is closed for the last time. It answers "is it closed at all" without a search through
    # the rest of the text, which would make a reply of many open tags take quadratic time.
    last = {name: tag.start() for tag, name, closes in tags if closes}
    parts: list[str] = []
    start = 0
    inside = ""
    for tag, name, closes in tags:
        if inside:
            # Other tags inside belong to the thinking, such as a model that reasons about how to write <think>.
            if closes and name == inside:
                start = tag.end()
                inside = ""
        elif closes:  # its beginning was in the template
            parts = []
            start = tag.end()
        else:
            parts.append(text[start : tag.start()])
            # Cut off in the middle of its thinking: nothing behind the tag was meant to be read.
            if last.get(name, -1) < tag.start():
                return "".join(parts)
            inside = name
    return "".join([*parts, text[start:]])


def _from_json(text: str) -> list[str] | None:
    """Returns the strings of the JSON values in a text, None if there is no JSON."""
    texts: list[str] | None = None
    refused: NoPromptsError | None = None
    position = 0
    while start := _JSON.search(text, position):
        try:
            # `strict=False` allows line breaks inside strings, which models write unescaped. `raw_decode` assigns
            # the end of the value before `_strings` may refuse it, so the search always goes forward.
            value, position = json.JSONDecoder(strict=False).raw_decode(text, start.start())
            texts = (texts or []) + _strings(value)
        except NoPromptsError as error:
            # Kept for later: another value of the same reply may hold the prompts.
            refused = error
        except (ValueError, RecursionError):  # a number of thousands of digits is no JSON either
            return (texts or []) + _salvaged(text[start.start() :])
    if refused and not texts:
        raise refused
    return texts


def _strings(value: Any) -> list[str]:
    """Returns the prompts of a JSON value, by its structure.

    Raises:
        NoPromptsError: If its structure is not one that holds prompts.
    """
    match value:
        case list():
            texts: list[str] = []
            for item in value:
                texts += _item(item)
            return texts
        case {"error": message}:
            raise NoPromptsError(f"error: {message}")
        case dict():
            # The names that were asked for go first, then any list, since models rename the field.
            lists = [value[key] for key in _KEYS if isinstance(value.get(key), list)]
            lists += [inside for inside in value.values() if isinstance(inside, list)]
            if lists:
                return _strings(lists[0])
            # A list inside one string, a line each.
            if texts := [value[key] for key in (*_KEYS, *_TEXT_KEYS) if isinstance(value.get(key), str)]:
                return list(_lines(texts[0]))
            # {"prompt1": ..., "prompt2": ...}
            numbered = [inside for key, inside in value.items() if re.search(r"\d$", str(key))]
            if numbered and all(isinstance(inside, str) for inside in numbered):
                return numbered
    raise NoPromptsError(json.dumps(value, ensure_ascii=False)[:80])


def _item(item: Any) -> list[str]:
    if isinstance(item, str):
        return [item]
    if isinstance(item, dict):
        texts = [item[key] for key in _TEXT_KEYS if isinstance(item.get(key), str)]
        return (texts or [text for text in item.values() if isinstance(text, str)])[:1]
    return []


def _salvaged(text: str) -> list[str]:
    """Returns the complete strings of JSON that is truncated or invalid; keys are not prompts."""
    # Only what stands in a list: strings before it are names and titles.
    start = text.find("[")
    if start < 0:
        return []
    return [_unescaped(string) for string, colon in _STRING.findall(text[start:]) if not colon]


def _unescaped(string: str) -> str:
    try:
        return json.loads(f'"{string}"', strict=False)
    except json.JSONDecodeError:
        return string.replace("\\", "")


def _lines(text: str) -> Iterator[str]:
    lines = [line.strip() for line in text.splitlines()]
    lines = [_bare(line) for line in lines if line and not _NOTHING.match(line)]
    marked = [line for line in lines if _LIST_MARK.match(line)]
    # Where some lines have numbers or bullets, the others are remarks around the list.
    if marked:
        lines = marked
    for line in lines:
        text = _LIST_MARK.sub("", line)
        if not _AROUND.match(text) and not text.endswith(":"):
            yield text


def _bare(line: str) -> str:
    """Removes bold marks, which may surround a line's number too."""
    return _BOLD.sub(lambda bold: next(filter(None, bold.groups())), line)


def _clean(text: str) -> str:
    """Returns one line without surrounding numbers, labels and quotation marks."""
    text = _UNSEEN.sub("", text)  # JSON escapes may have brought back what was removed from the reply
    text = _LABEL.sub("", _LIST_MARK.sub("", " ".join(_bare(text).split())))
    text = _COMMA.sub(r"\1", text.strip())
    # Any two marks are taken for a pair, since models mix straight and curly ones.
    if len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES:
        text = text[1:-1]
    return " ".join(text.split())
