"""Splits the text of a reply into items: numbered and bulleted lists, lists in one line, tables, CSV, plain lines."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from lgclip.prompts.reply_tables import read_csv, read_table

_BULLET = r"[-•‣◦▪▫■□●○◆◇★☆✓✔✅➤➢►▶→·∙⁃>](?!\d)|[*+–—](?=\s)"  # noqa: RUF001
_NUMBER = r"[#№]?\(?(?P<number>\d{1,3})(?:[.):](?!\d)|[．、）])|[①-⑳]|\d\ufe0f?\u20e3"  # noqa: RUF001
_MARK = re.compile(rf"(?:{_BULLET}|{_NUMBER})(?:\s*\[[ xX]?\])?\s*(?=\S)")
_LETTER = re.compile(r"\(?(?P<letter>[A-Za-z])[.)]\s+(?=\S)")
_LABEL = re.compile(
    r"(?:(?:text-to-image |image )?(?:prompt|description|caption|sentence)|image|photo|picture|option|variation"
    r"|variant|example|scene|version|view|shot|no\.?)\s*(?:#\s*)?\d{1,3}\s*[.:)–—-]\s*",  # noqa: RUF001
    re.I,
)
_BARE_LABEL = re.compile(r"(?:(?:text-to-image |image )?(?:prompt|description|caption|sentence)|text)\s?:\s", re.I)
_NOTHING = re.compile(r"[{}\[\]]|[#№]?\(?\d{1,3}[.):]?$|[-=_*~#]{2,}$|```|~~~")
_HEADING = re.compile(r"#{1,6}\s")
_ONLY_LABEL = re.compile(r"(?:prompt|description|caption|image)\s*(?:#\s*)?\d{1,3}\s*:?$", re.I)
_INLINE = re.compile(r"(?:^|(?<=\s))(?:(?:prompt|description|caption|image)\s?#?)?\(?(\d{1,3})[.):](?=[\s\"'“*])", re.I)
_INLINE_BULLET = re.compile(r"\s[•●▪◦‣]\s")
_OPEN_WORDS = frozenset(
    ("a", "an", "the", "in", "of", "on", "at", "and", "or", "with", "for", "to", "by", "from", "der", "die", "das",
     "dem", "den", "im", "am", "le", "la", "les", "un", "une", "de", "du", "des", "il", "el")
)  # fmt: skip
"""Words that end no sentence: "the 2. Bundesliga" is no second item."""
_MAX_TITLE_WORDS = 3


class Items(NamedTuple):
    """Holds the items of a text.

    Attributes:
        texts: The items, without numbers and bullets.
        remarks: Lines around a list, which are not items of it.
        is_list: Whether the text is a list, rather than plain lines.
    """

    texts: list[str]
    remarks: list[str]
    is_list: bool


class _Line(NamedTuple):
    text: str
    is_indented: bool
    is_heading: bool


def split_items(text: str, name: str = "") -> Items:
    """Returns the items of a text.

    Args:
        text: The text.
        name: The class name, which may begin like the number of an item, as "1. FC Köln" does.
    """
    raw_lines = text.splitlines()
    for read in (read_table, read_csv):
        table = read(raw_lines)
        if table is not None:
            return Items(list(table.texts), list(table.remarks), is_list=True)
    lines = [line for raw in raw_lines for line in _lines_of(raw, name)]
    lines = [line for line in lines if line.text and not _NOTHING.match(line.text) and not _ONLY_LABEL.match(line.text)]
    marked = [bool(_mark_end(line.text, name)) for line in lines]
    if sum(marked) < 2:
        # Below two items there is no list: a sentence may begin with a number or a dash.
        texts = [line.text for line in lines if not line.is_heading or _mark_end(line.text, name)]
        return Items(strip_marks(texts, name), [line.text for line in lines if line.text not in texts], is_list=False)
    return _list_items(lines, marked, name)


def _lines_of(raw: str, name: str) -> list[_Line]:
    is_indented = raw[:2].isspace() or raw[:1] == "\t"
    text = _without_emphasis(raw.strip())
    is_heading = bool(_HEADING.match(text))
    if is_heading:
        text = text.lstrip("#").strip()
    return [_Line(part, is_indented, is_heading) for part in split_line(text, name)]


def _list_items(lines: Sequence[_Line], marked: Sequence[bool], name: str) -> Items:
    """Returns the items of a list; a line that is indented below an item is its continuation."""
    items: list[str] = []
    remarks: list[str] = []
    others: list[str] = []
    follows_item = False
    for line, is_marked in zip(lines, marked, strict=True):
        if is_marked:
            items.append(line.text)
        elif follows_item and line.is_indented:
            items[-1] += " " + line.text
        else:
            others.append(line.text)
        follows_item = is_marked or (follows_item and line.is_indented)
    texts = strip_marks(items, name)
    # Numbered titles, each above a sentence: the sentences are the items.
    titles = sum(len(text.split()) <= _MAX_TITLE_WORDS for text in texts)
    sentences = [text for text in others if len(text.split()) > _MAX_TITLE_WORDS and not text.endswith(":")]
    if titles == len(texts) and len(sentences) >= len(texts):
        return Items(sentences, [*remarks, *texts], is_list=True)
    return Items(texts, [*remarks, *others], is_list=True)


def split_line(line: str, name: str = "") -> list[str]:
    """Returns the items of a line such as "1. a cat 2. a dog", or the line itself."""
    starts = _inline_starts(_hide_name(line, name))
    if starts:
        pieces = [line[start:end].strip() for start, end in zip(starts, [*starts[1:], len(line)], strict=True)]
        before = line[: starts[0]].strip()
        # A remark in front of the list, which has a line to itself then.
        if before:
            pieces.insert(0, before)
        return pieces
    if line[:1] in "•●▪◦‣" and line:
        bullets = _INLINE_BULLET.split(line[1:])
        if len(bullets) > 1:
            return [f"• {piece.strip()}" for piece in bullets]
    return [line]


def _inline_starts(line: str) -> list[int]:
    """Returns where the items of a list in one line begin, empty if the line is no list."""
    starts: list[int] = []
    expected = 0
    previous_end = 0
    for match in _INLINE.finditer(line):
        number = int(match[1])
        if not starts:
            before = line[: match.start()].strip()
            # In the middle of a line a list begins with 1, after a remark that ends.
            if before and (number != 1 or before[-1] not in ":.!?"):
                continue
            starts.append(match.start())
        elif number == expected:
            words = line[previous_end : match.start()].split()
            if len(words) < 2 or words[-1].lower() in _OPEN_WORDS:
                continue
            starts.append(match.start())
        else:
            continue
        previous_end = match.end()
        expected = number + 1
    if len(starts) < 2 or len(line[previous_end:].split()) < 2:
        return []
    return starts


def _hide_name(line: str, name: str) -> str:
    """Returns a line of the same length in which numbers of the class name are no numbers of a list."""
    if not any(letter.isdigit() for letter in name):
        return line
    return re.sub(re.escape(name), lambda match: "x" * len(match[0]), line, flags=re.I)


def strip_marks(texts: Sequence[str], name: str = "") -> list[str]:
    """Removes each item's number, bullet or label, but no number that belongs to the class name."""
    texts = [text.lstrip() for text in texts]
    letters = [_LETTER.match(text) for text in texts]
    # "A. Lincoln" is a name; a list has an item per letter.
    if len(texts) > 1 and _is_consecutive([match["letter"].lower() if match else "" for match in letters]):
        return [_strip_label(text[match.end() :]) for text, match in zip(texts, letters, strict=True) if match]
    if _shares_number(texts):
        return [_strip_label(text) for text in texts]
    stripped: list[str] = []
    for text in texts:
        end = _mark_end(text, name)
        stripped.append(_strip_label(text[end:]))
    return stripped


def _mark_end(text: str, name: str) -> int:
    """Returns where a text begins after its number or bullet, 0 if it has none."""
    match = _MARK.match(text)
    if match is None:
        label = _LABEL.match(text)
        return label.end() if label else 0
    if name and text.casefold().startswith(name.casefold()):
        return 0
    return match.end()


def _strip_label(text: str) -> str:
    for label in (_LABEL, _BARE_LABEL):
        match = label.match(text)
        if match and match.end() < len(text):
            return text[match.end() :]
    return text


def _is_consecutive(letters: Sequence[str]) -> bool:
    first = letters[0]
    return bool(first) and all(letter and ord(letter) == ord(first) + place for place, letter in enumerate(letters))


def _shares_number(texts: Sequence[str]) -> bool:
    """Checks whether all texts begin with the same number and the same capitalized word, which is a name then."""
    if len(texts) < 2:
        return False
    begins: set[tuple[str, str]] = set()
    for text in texts:
        words = text.split(maxsplit=2)
        if len(words) < 2 or not words[0][:-1].isdigit() or not words[1][:1].isupper():
            return False
        begins.add((words[0], words[1]))
    return len(begins) == 1


def _without_emphasis(text: str) -> str:
    """Removes Markdown's marks of emphasis and code."""
    text = text.replace("**", "")
    for mark in ("__", "`", "~~"):
        # A single mark is text.
        if text.count(mark) % 2 == 0:
            text = text.replace(mark, "")
    return text


def without_emphasis(text: str) -> str:
    """Removes Markdown's marks of emphasis, code and a pair of single marks around the text."""
    text = _without_emphasis(text).strip()
    if len(text) > 2 and text[0] == text[-1] and text[0] in "*_" and text[1] != " ":
        return text[1:-1]
    return text
