"""Removes what a chat template and a reasoning model put around an answer: special tokens, roles, channels, tags."""

import re
from itertools import zip_longest
from typing import NamedTuple

_MARKUP = re.compile(
    r"<\|(?P<token>[^<>|\n]{1,48})\|?>"  # <|im_end|>, and <|channel> of newer templates
    r"|<(?P<late>[A-Za-z]\w{0,31})\|>"  # <channel|>
    r"|<\uff5c(?P<wide>[^<>\uff5c\n]{1,48})\uff5c>"  # <｜Assistant｜>  # noqa: RUF003
    r"|<<(?P<system>/?SYS)>>"
    r"|<(?P<byte>0x[0-9A-Fa-f]{2})>"
    r"|<(?P<slash>/?)(?P<tag>[A-Za-z][\w:.-]{0,47})(?:\s[^<>\n]{0,80})?>"
    r"|\[(?P<bracket_slash>/?)(?P<bracket>[A-Z][A-Z_]{1,31}|gMASK)\]"
    r"|◁(?P<arrow_slash>/?)(?P<arrow>\w{1,31})▷"
)
"""Finds tokens of chat templates and tags; every repetition is bounded, so that the search takes linear time."""

_HEADERS = frozenset(("im_start", "start_of_turn", "start_header_id", "header_start", "start_of_role", "start", "turn",
                      "channel", "im_system", "im_user", "im_assistant"))  # fmt: skip
"""Tokens that are followed by the name of a role or a channel."""
_HEADER_ENDS = frozenset(("end_header_id", "header_end", "end_of_role", "message", "channel", "constrain", "im_middle"))
_VISIBLE = frozenset(("assistant", "model", "final", "bot", "ai", "chatbot", "gpt", "response", "answer", ""))
_HIDDEN = ("user", "system", "human", "tool", "observation", "developer", "function", "ipython", "environment")
_PLAIN_TOKENS = re.compile(
    r"/?s|[be]os|pad|unk|mask|sep|cls|sop|eop|eo[dt]|(?:start|end|begin)_of_\w+|extra_id_\d+|unused\d+|image_soft_token"
)
_BRACKET_TOKENS = frozenset(("INST", "SYSTEM_PROMPT", "AVAILABLE_TOOLS", "TOOL_CALLS", "TOOL_RESULTS", "BOS", "EOS",
                             "PAD", "CLS", "SEP", "UNK", "MASK", "gMASK", "IMG", "END", "STOP", "EOT"))  # fmt: skip

_THINKING = ("think", "thought", "reason", "reflect", "scratch", "analys", "analyz", "monolog", "deliberat", "cot",
             "rationale", "brainstorm", "draft", "planning", "introspect", "ponder", "critique")  # fmt: skip
"""Beginnings of tag names whose text is never an answer, even if one of the two tags is missing."""
_CONTAINERS = frozenset(("answer", "final", "output", "response", "result", "results", "solution"))
_ANSWER = _CONTAINERS | frozenset(
    ("prompt", "prompts", "description", "descriptions", "caption", "captions", "sentence", "sentences", "item",
     "items", "list", "text", "json", "image", "images", "assistant", "entry", "content")
)  # fmt: skip
_INLINE = frozenset(
    ("b", "i", "em", "strong", "u", "span", "a", "code", "mark", "small", "sub", "sup", "q", "font", "tt")
)  # fmt: skip
_BLOCKS = frozenset(
    ("p", "br", "li", "ol", "ul", "div", "pre", "h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr",
     "td", "th", "hr", "blockquote", "dl", "dt", "dd")
)  # fmt: skip
_PAGE = frozenset(("html", "body", "head", "title"))

_LEADING_ROLE = re.compile(r"(?:assistant|model|final)[ \t]?\n|(?:assistant|response|final answer|answer)\s?:", re.I)
_HARMONY_START = re.compile(r"(?:assistant)?(?:analysis|commentary)(?=[^\sa-z])")
_HARMONY_FINAL = re.compile(r"assistant\s?(?:commentary\s?)?final")
_SPOKEN_START = re.compile(
    r"[*#_]{0,8} ?(?:here is my thought process|thinking\.\.\.|thinking process|thinking|thought|reasoning|analysis)\W",
    re.I,
)
_SPOKEN_END = re.compile(
    r"here is my response\W{1,4}|\.\.\.\s?done thinking\.?"
    r"|^\W{0,6}(?:final answer|final response|final output|answer|response|output|final prompts)\W{0,2}:\W{0,3}$"
    r"|^\W{0,6}(?:final answer|final response|final output)\W{0,2}:",
    re.I | re.M,
)


class Answer(NamedTuple):
    """Holds the part of a reply that was meant to be read.

    Attributes:
        text: The answer.
        hidden_blocks: Number of removed sections: thinking, and turns of other roles.
    """

    text: str
    hidden_blocks: int


class _Mark(NamedTuple):
    name: str
    closes: bool
    start: int
    end: int
    is_token: bool
    family: str


def extract_answer(reply: str) -> Answer:
    """Returns the answer in a reply, in one pass over its tokens and one over its tags."""
    hidden = 0
    text = reply.lstrip()
    # A server that removes special tokens leaves the names of the channels: "analysis...assistantfinal...".
    if _HARMONY_START.match(text):
        hidden += 1
        text = _after_last(_HARMONY_FINAL, text, default="")
    elif "assistantfinal" in text:
        hidden += 1
        text = text.rpartition("assistantfinal")[2]
    text, turns = _visible_turns(text)
    text, blocks = _without_blocks(text)
    text = text.strip()
    if _SPOKEN_START.match(text) and _SPOKEN_END.search(text):
        hidden += 1
        text = _after_last(_SPOKEN_END, text, default=text)
    text = text[_end_of_match(_LEADING_ROLE, text) :]
    return Answer(text, hidden + turns + blocks)


def _after_last(pattern: re.Pattern[str], text: str, default: str) -> str:
    last: re.Match[str] | None = None
    for match in pattern.finditer(text):
        last = match
    if last is None:
        return default
    return text[last.end() :]


def _end_of_match(pattern: re.Pattern[str], text: str) -> int:
    match = pattern.match(text)
    if match is None:
        return 0
    return match.end()


def _marks(text: str) -> list[_Mark]:
    """Returns the tokens and tags of a text, in order."""
    marks: list[_Mark] = []
    for match in _MARKUP.finditer(text):
        family = match.lastgroup or ""
        name = match[family]
        closes = False
        is_token = family in ("token", "late", "wide", "system", "byte")
        if family == "tag":
            closes = bool(match["slash"])
            is_token = bool(_PLAIN_TOKENS.fullmatch(name))
        elif family in ("bracket", "arrow"):
            closes = bool(match[f"{family}_slash"])
        elif family == "late":
            closes = True
        elif family == "wide":
            name = name.replace("▁", "_")
        marks.append(_Mark(name, closes, match.start(), match.end(), is_token, family))
    return marks


def _visible_turns(text: str) -> tuple[str, int]:
    """Returns the assistant's reply to the user, without special tokens; thinking tokens become tags.

    A model that misses its end goes on with the user's next turn, and Harmony's messages name a channel each.
    """
    tokens = [mark for mark in _marks(text) if mark.is_token]
    parts: list[str] = []
    hidden = 0
    visible = True
    position = 0
    for token, following in zip_longest(tokens, tokens[1:]):
        # An overlap: the header of the token before reached beyond this one.
        if token.start < position:
            continue
        if visible:
            parts.append(text[position : token.start])
        position = token.end
        name = token.name.lower()
        if token.family == "late":
            # <channel|> ends what <|channel> began.
            visible = True
        elif tag := _thinking_tag(name):
            parts.append(tag)
        elif name in _HEADERS:
            header, position = _header(text, position, following)
            was_visible = visible
            visible = header in _VISIBLE
            hidden += was_visible and not visible
        elif name == "constrain" and following is not None:
            # The format of a channel's message, "json", stands between this token and the next one.
            position = following.start
        elif any(word in name for word in _HIDDEN) and not name.startswith("end"):
            hidden += visible
            visible = False
        elif name != "message":
            # The end of a turn, or a token without a role: what follows is the assistant's unless it says otherwise.
            visible = True
            if name not in ("unk", "mask", "pad"):
                parts.append("\n")
    if visible:
        parts.append(text[position:])
    return "".join(parts), int(hidden)


def _header(text: str, start: int, following: _Mark | None) -> tuple[str, int]:
    """Returns the role or channel that follows a token, in lower case, and where its body starts."""
    if following is not None and following.name.lower() in _HEADER_ENDS:
        end = following.start
        body = following.start
    else:
        end = text.find("\n", start, start + 64)
        body = end + 1
        if end < 0:
            # No line break: a role is one word, and the body follows at once.
            end = start
            while end < len(text) and text[end].isalpha():
                end += 1
            body = end
    words = text[start:end].split()
    role = ""
    if words:
        role = words[0].lower()
    return role, body


def _thinking_tag(name: str) -> str:
    """Returns the tag that a token such as START_THINKING or end_of_thought stands for, empty for another one."""
    words = re.split(r"[^a-z]", name)
    if not any(word.startswith(("think", "thought", "reasoning")) for word in words):
        return ""
    if words[0] in ("end", "stop", ""):
        return "</think>"
    return "<think>"


def _without_blocks(text: str) -> tuple[str, int]:
    """Returns a text without thinking and without the tags around the answer.

    A pair of tags of any other name counts as thinking too, unless nothing would be left without its text.
    """
    tags = [mark for mark in _marks(text) if not mark.is_token]
    # Where each tag is closed for the last time. It answers "is it closed at all" without a search through the rest
    # of the text, which would make a reply of many open tags take quadratic time.
    last_close = {(tag.family, tag.name.lower()): tag.start for tag in tags if tag.closes}
    reader = _BlockReader(text)
    for tag in tags:
        key = (tag.family, tag.name.lower())
        reader.take(tag, key, is_closed_later=last_close.get(key, -1) >= tag.end)
        if reader.is_done:
            break
    return reader.finish()


class _BlockReader:
    """Collects the text between tags, in one pass."""

    def __init__(self, text: str) -> None:
        self.is_done = False
        self._text = text
        self._position = 0
        self._parts: list[str] = []
        self._unknown: list[str] = []
        self._inside: tuple[str, str] | None = None
        self._inside_unknown = False
        self._blocks = 0
        # Where the text of the explicit answers begins and ends in `_parts`.
        self._container: tuple[tuple[str, str], int] | None = None
        self._answers: list[str] = []

    def take(self, tag: _Mark, key: tuple[str, str], *, is_closed_later: bool) -> None:
        """Handles the next tag."""
        if self._inside is not None:
            # Other tags inside belong to the thinking, such as a model that reasons about how to write <think>.
            if tag.closes and key == self._inside:
                self._leave(tag)
            return
        kind = _kind(tag.name)
        if tag.family == "bracket" and kind != "thinking" and not is_closed_later:
            # A word in brackets, such as [RED], is text.
            if tag.name in _BRACKET_TOKENS:
                self._replace(tag, "\n")
            return
        if kind == "thinking":
            self._enter_thinking(tag, key, is_closed_later=is_closed_later)
        elif kind == "page":
            return
        elif kind == "inline":
            self._replace(tag, "")
        elif kind in ("answer", "block"):
            self._replace(tag, "\n")
            self._note_container(tag, key)
        elif not tag.closes and is_closed_later:
            self._parts.append(self._text[self._position : tag.start])
            self._position = tag.end
            self._inside = key
            self._inside_unknown = True

    def _enter_thinking(self, tag: _Mark, key: tuple[str, str], *, is_closed_later: bool) -> None:
        if tag.closes:
            # Its beginning was in the template, so that everything so far was thinking.
            self._blocks += 1
            self._parts = []
            self._answers = []
            self._container = None
            self._position = tag.end
            return
        self._parts.append(self._text[self._position : tag.start])
        self._position = tag.end
        self._inside = key
        self._inside_unknown = False
        if not is_closed_later:
            # Cut off in the middle of its thinking: nothing behind the tag was meant to be read.
            self._blocks += 1
            self._position = len(self._text)
            self._inside = None
            self.is_done = True

    def _leave(self, tag: _Mark) -> None:
        if self._inside_unknown:
            self._unknown.append(self._text[self._position : tag.start])
        self._blocks += 1
        self._position = tag.end
        self._inside = None

    def _replace(self, tag: _Mark, replacement: str) -> None:
        self._parts.append(self._text[self._position : tag.start])
        self._parts.append(replacement)
        self._position = tag.end

    def _note_container(self, tag: _Mark, key: tuple[str, str]) -> None:
        if not _CONTAINERS & set(_words(tag.name)):
            return
        if not tag.closes and self._container is None:
            self._container = (key, len(self._parts))
        elif tag.closes and self._container is not None and self._container[0] == key:
            self._answers += self._parts[self._container[1] :]
            self._container = None

    def finish(self) -> tuple[str, int]:
        """Returns the text that is left, and the number of removed blocks."""
        self._parts.append(self._text[self._position :])
        if self._container is not None:
            # The answer was cut off before its closing tag.
            self._answers += self._parts[self._container[1] :]
        answer = "".join(self._answers)
        if answer.strip():
            return answer, self._blocks
        answer = "".join(self._parts)
        if not answer.strip() and self._unknown:
            # Tags such as <cat>...</cat> are around the answer itself.
            return "\n".join(self._unknown), self._blocks - len(self._unknown)
        return answer, self._blocks


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[^a-z]", name.lower()) if word]


def _kind(name: str) -> str:
    """Returns the content of the tags of a name: thinking, an answer, formatting, a web page, or something unknown."""
    words = _words(name)
    if any(word.startswith(_THINKING) for word in words):
        return "thinking"
    lower = name.lower()
    if lower in _PAGE:
        return "page"
    if lower in _INLINE:
        return "inline"
    if lower in _BLOCKS:
        return "block"
    if _ANSWER & set(words):
        return "answer"
    return "unknown"
