"""What a language model says, to sentences: JSON, lists, and what models put around them."""

import json
import re
from collections.abc import Iterator
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
"""Characters that are read of a reply behind its thinking; a server's may go on without an end."""


class NoPromptsError(ValueError):
    """A reply is JSON without anything that could be a prompt; the message is what it says of an error."""


def sentences_of(reply: str) -> list[str]:
    """The sentences that a reply offers, each on one line, without what stands around them.

    Read are: a JSON object with a list in it, bare JSON lists of strings or objects, both also in fences,
    after a preamble or cut off in the middle (whole strings are kept); else lines, of which only the
    numbered or bulleted ones count if there are any. Thinking, opened or not, closed or not, is dropped.

    Raises:
        NoPromptsError: If the reply is JSON, and of another kind.
    """
    text = _UNSEEN.sub("", reply.replace("\r\n", "\n").replace("\r", "\n"))
    text = _FENCE.sub("", _said(text)[:_LONGEST]).strip()
    found = _from_json(text)
    texts = _lines(text) if found is None else found
    return [clean for clean in map(_clean, texts) if clean]


def _said(text: str) -> str:
    """What is said behind and between the thinking; in one pass, since a reply may be as long as a server likes."""
    tags = [
        (tag, (tag[2] or tag[4]).lower() + "]" * bool(tag[4]), bool(tag[1] or tag[3])) for tag in _TAG.finditer(text)
    ]
    last = {name: tag.start() for tag, name, closes in tags if closes}
    parts: list[str] = []
    at, inside = 0, ""
    for tag, name, closes in tags:
        if inside:
            if closes and name == inside:
                at, inside = tag.end(), ""
        elif closes:  # its beginning was in the template
            parts, at = [], tag.end()
        else:
            parts.append(text[at : tag.start()])
            if last.get(name, -1) < tag.start():
                return "".join(parts)
            inside = name
    return "".join([*parts, text[at:]])


def _from_json(text: str) -> list[str] | None:
    """The strings of the JSON values in a text, None if there is no JSON."""
    found: list[str] | None = None
    refused: NoPromptsError | None = None
    at = 0
    while start := _JSON.search(text, at):
        try:
            value, at = json.JSONDecoder(strict=False).raw_decode(text, start.start())
            found = (found or []) + _strings(value)
        except NoPromptsError as error:
            refused = error
        except (ValueError, RecursionError):  # a number of thousands of digits is no JSON either
            return (found or []) + _salvaged(text[start.start() :])
    if refused and not found:
        raise refused
    return found


def _strings(value: Any) -> list[str]:
    """The prompts of a JSON value, by its shape.

    Raises:
        NoPromptsError: If it has no shape that prompts come in.
    """
    match value:
        case list():
            return [text for item in value for text in _item(item)]
        case {"error": said}:
            raise NoPromptsError(f"error: {said}")
        case dict():
            lists = [value[key] for key in _KEYS if isinstance(value.get(key), list)]
            lists += [inside for inside in value.values() if isinstance(inside, list)]
            if lists:
                return _strings(lists[0])
            if texts := [value[key] for key in (*_KEYS, *_TEXT_KEYS) if isinstance(value.get(key), str)]:
                return list(_lines(texts[0]))
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
    """The whole strings of JSON that was cut off or is not quite JSON; keys are no prompts."""
    inside = text[text.find("[") :] if "[" in text else ""
    found = [string for string, colon in _STRING.findall(inside) if not colon]
    return [_unescaped(string) for string in found]


def _unescaped(string: str) -> str:
    try:
        return json.loads(f'"{string}"', strict=False)
    except json.JSONDecodeError:
        return string.replace("\\", "")


def _lines(text: str) -> Iterator[str]:
    lines = [line.strip() for line in text.splitlines()]
    lines = [_bare(line) for line in lines if line and not _NOTHING.match(line)]
    marked = [line for line in lines if _LIST_MARK.match(line)]
    for line in marked if len(marked) > 1 or (marked and len(lines) > 1) else lines:
        text = _LIST_MARK.sub("", line)
        if not _AROUND.match(text) and not text.endswith(":"):
            yield text


def _bare(line: str) -> str:
    """A line without bold marks, which may stand around its number too."""
    return _BOLD.sub(lambda bold: next(filter(None, bold.groups())), line)


def _clean(text: str) -> str:
    """One line, without numbers, labels and quotation marks around it."""
    text = _UNSEEN.sub("", text)  # JSON spells out what was taken away before
    text = _LABEL.sub("", _LIST_MARK.sub("", " ".join(_bare(text).split())))
    text = _COMMA.sub(r"\1", text.strip())
    if len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES:
        text = text[1:-1]
    return " ".join(text.split())
