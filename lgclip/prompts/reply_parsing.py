"""Parses a language model's reply into sentences: JSON, tables, lists, and the text that models put around them."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from lgclip.prompts.filtering import FilterResult
from lgclip.prompts.loose_json import find_values
from lgclip.prompts.reply_lines import split_items, split_line, strip_marks, without_emphasis
from lgclip.prompts.reply_markup import extract_answer
from lgclip.prompts.reply_phrases import is_chat, is_refusal, offers_answer, strip_chat
from lgclip.prompts.reply_values import NoPromptsError, prompts_of

__all__ = ["MAX_REPLY_CHARACTERS", "NoPromptsError", "ParsedReply", "parse_reply", "sentences_of"]

MAX_REPLY_CHARACTERS = 20_000
"""Maximum number of characters of an answer that are parsed; a server's reply may be endless."""

_UNSEEN = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufffd\ud800-\udfff]"
)
_FENCE = re.compile(r"^[ \t]*(?:`{3,}|~{3,})[ \t]*+(?:[\w-]++[ \t]*+)?$", re.MULTILINE)
_PAGE = ("<!doctype", "<html")
_COMMA = re.compile(r"([\"'”’]),$")  # noqa: RUF001
_QUOTES = "\"'“”‘’«»„"  # noqa: RUF001
_ENDS = (".", "!", "?", "…", "。", "！", "？", '"', "”", "'", "’", ")")  # noqa: RUF001


class ParsedReply(NamedTuple):
    """Holds the sentences of a reply, and the outcome of each other part.

    Attributes:
        sentences: The sentences, each on one line, still to be filtered.
        dropped: Why each other part is no sentence.
    """

    sentences: list[str]
    dropped: list[FilterResult]


class _Texts(NamedTuple):
    """Holds the items of an answer.

    Attributes:
        texts: The items.
        remarks: Lines around them.
        is_cut: Whether the last item is cut off if the reply is; in JSON such an item was left out already.
        is_list: Whether the items are those of a list, table or JSON value.
    """

    texts: Sequence[str]
    remarks: Sequence[str]
    is_cut: bool
    is_list: bool


def sentences_of(reply: str, name: str = "") -> list[str]:
    """Extracts the sentences of a reply, each on one line, without surrounding text: see `parse_reply`."""
    return parse_reply(reply, name).sentences


def parse_reply(reply: str, name: str = "", *, is_truncated: bool = False) -> ParsedReply:
    """Extracts the sentences of a reply, and why its other parts are none.

    Supported formats: JSON values of any structure, also in fences, after a preamble, truncated, or with the quotes of
    Python; else Markdown tables and comma-separated values; else lines, of which only the numbered or bulleted ones
    count if there are several. Tokens of chat templates, thinking and other roles' turns are dropped first.

    Args:
        reply: The reply.
        name: The class name, if it may begin like the number of a list item.
        is_truncated: Whether the model reached its token limit.

    Raises:
        NoPromptsError: If the reply is JSON of another structure, or a web page.
    """
    text = _UNSEEN.sub("", reply.replace("\r\n", "\n").replace("\r", "\n"))
    if text.lstrip()[:16].lower().startswith(_PAGE):
        raise NoPromptsError(text.strip()[:80])
    answer = extract_answer(text)
    dropped = [FilterResult.THINKING] * answer.hidden_blocks
    text = _FENCE.sub("", answer.text).strip()
    if len(text) > MAX_REPLY_CHARACTERS:
        dropped.append(FilterResult.TOO_LONG)
        text = text[:MAX_REPLY_CHARACTERS]
        is_truncated = True
    items = _items(text, name)
    dropped += [FilterResult.CHAT for remark in items.remarks if not is_refusal(remark, name)]
    # A model that declines goes on with reasons or other ideas, in sentences of their own that may name the class.
    introduction = [*items.remarks[:1], *([] if items.is_list else items.texts[:1])]
    around = items.remarks if items.is_list else [*items.remarks, *items.texts]
    if any(is_refusal(text, name) for text in introduction) and not any(map(offers_answer, around)):
        return ParsedReply([], [*dropped, FilterResult.REFUSAL])
    texts = list(items.texts)
    if items.is_cut and _ends_open(texts, is_truncated=is_truncated, is_list=items.is_list):
        dropped.append(FilterResult.TRUNCATED)
        texts.pop()
    sentences: list[str] = []
    for text in texts:
        sentence = _clean(text)
        if is_chat(sentence, name) and not is_refusal(sentence, name):
            dropped.append(FilterResult.CHAT)
        elif sentence:
            sentences.append(sentence)
    return ParsedReply(sentences, dropped)


def _items(text: str, name: str) -> _Texts:
    """Returns the items of an answer without thinking and fences, by its format."""
    parsed = find_values(_unwrapped(text))
    split = partial(_split, name=name)
    if parsed.values:
        texts, error = _of_values(parsed.values, split)
        if texts:
            return _Texts(strip_marks(texts, name), [], is_cut=False, is_list=True)
        # Brackets in an ordinary sentence, such as a list's empty boxes, are no JSON.
        if text[:1] in ("{", "[") or (parsed.is_strict and any(parsed.values)):
            if error is not None:
                raise error
            return _Texts([], [], is_cut=False, is_list=True)
    items = split_items(text.replace("\\n", "\n"), name)
    return _Texts(items.texts, items.remarks, is_cut=True, is_list=items.is_list)


def _unwrapped(text: str) -> str:
    """Returns the content of a reply that is one JSON string, as some servers send structured output."""
    if text[:1] == '"' and text[-1:] == '"':
        try:
            return json.loads(text, strict=False)
        except json.JSONDecodeError:
            pass
    return text


def _of_values(values: Iterable[object], split: Callable[[str], list[str]]) -> tuple[list[str], NoPromptsError | None]:
    """Returns the prompts of all values of a reply, and why one has none: another may hold the prompts."""
    texts: list[str] = []
    refused: NoPromptsError | None = None
    for value in values:
        try:
            texts += prompts_of(value, split)
        except NoPromptsError as error:
            refused = refused or error
    return texts, refused


def _split(text: str, *, name: str) -> list[str]:
    """Returns the items of a string in JSON, which may hold a list."""
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) > 1 or len(split_line(text.strip(), name)) > 1:
        return list(split_items(text, name).texts)
    return [text]


def _ends_open(texts: Sequence[str], *, is_truncated: bool, is_list: bool) -> bool:
    """Checks whether the last item is half a sentence."""
    if not texts or texts[-1].rstrip().endswith(_ENDS):
        return False
    others = texts[:-1]
    return is_truncated or (is_list and len(others) > 1 and all(text.rstrip().endswith(_ENDS) for text in others))


def _clean(text: str) -> str:
    """Returns one line without surrounding emphasis and quotation marks, and without talk at its ends."""
    text = _UNSEEN.sub("", text)  # JSON escapes may have brought back what was removed from the reply
    text = " ".join(without_emphasis(text).split())
    text = strip_chat(_COMMA.sub(r"\1", text))
    return " ".join(_unquoted(text).split())


def _unquoted(text: str) -> str:
    """Returns a text without a pair of quotation marks around it."""
    # Any two marks are taken for a pair, since models mix straight and curly ones.
    if len(text) < 2 or text[0] not in _QUOTES or text[-1] not in _QUOTES:
        return text
    inner = text[1:-1]
    place = inner.find(text[-1])
    # `"Tom" next to "Jerry"` begins and ends with a word in quotes: the first mark inside closes one.
    if place > 0 and text[0] == text[-1] == '"' and not inner[place - 1].isspace():
        return text
    return inner
