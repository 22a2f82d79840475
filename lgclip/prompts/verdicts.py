"""Whether a sentence that a model gave can be drawn from, and if not, why."""

import re
import unicodedata
from enum import StrEnum

from lgclip.batch import Subject


class Outcome(StrEnum):
    """What became of a sentence, or of a whole reply that held none."""

    USABLE = "usable"
    EMPTY = "empty"
    NOT_PROMPTS = "not the format that was asked for"
    REFUSAL = "refusal"
    ERROR_TEXT = "error text"
    TOO_SHORT = "too short"
    WRONG_LANGUAGE = "wrong language"
    NO_NAME = "without the class name"
    DUPLICATE = "duplicate"


_REFUSAL = re.compile(
    r"^(?:i(?:'m| am) (?:so |very |really )?sorry|sorry\b|my apologies|i apologi[sz]e|unfortunately,? i\b"
    r"|(?:but )?i (?:can(?:not|'t| not)|could not|won't|will not|must decline|do not|don't) "
    r"(?:\w+ )?(?:assist|help|provide|generate|create|write|fulfil+|comply|do|describe|produce|complete|continue|have)"
    r"\b"
    r"|i(?:'m| am) (?:unable|not able|afraid)|as an ai\b|as a (?:large )?language model)",
    re.I,
)
_ERROR = re.compile(
    r"^\W*(?:error\b|(?:\w+ )?(?:api|http|server|runtime|internal|unexpected|unknown) error\b|traceback \(most recent"
    r"|\w*(?:error|exception):|exception\b|internal server error|bad gateway|service (?:temporarily )?unavailable"
    r"|gateway time-?out|too many requests|rate limit|quota exceeded|invalid api key|unauthori[sz]ed"
    r"|null$|none$|undefined$)"
    r"|<!doctype|<html\b|</?(?:body|head|title)>|\b(?:status|error) code:? \d{3}\b",
    re.I,
)
_CODE = re.compile(r"[{\[]\s*[\"'{\[]|```")
_WORD = re.compile(r"[^\W_]+")
_JOINED = 6
"""Words of a sentence that are put together when a name is looked for: "sea lion" for "sealion"."""


def spoilt(text: str) -> Outcome | None:
    """Whether a text is a refusal or an error message rather than a description; None if neither."""
    text = text.strip().replace("’", "'")  # noqa: RUF001
    if _ERROR.search(text):
        return Outcome.ERROR_TEXT
    return Outcome.REFUSAL if _REFUSAL.search(text) else None


def verdict(
    text: str, subject: Subject, known: set[str], *, must_name: bool, exact_name: bool, min_words: int
) -> Outcome:
    """What is to become of one sentence.

    Args:
        text: The sentence, on one line.
        subject: The class that it is to describe.
        known: `sameness` of the sentences that are there.
        must_name: Whether it has to hold the class name, as `names` tells.
        exact_name: Whether the name has to stand there letter by letter, but for case.
        min_words: Words that it has at least, where words are spaced.
    """
    if not text:
        return Outcome.EMPTY
    if bad := spoilt(text) or (Outcome.NOT_PROMPTS if _CODE.match(text) else None):
        return bad
    latin = _is_latin(subject.name)
    if latin and (len(text.split()) < min_words or not _is_latin(text)):
        return Outcome.WRONG_LANGUAGE if not _is_latin(text) else Outcome.TOO_SHORT
    named = subject.name.casefold() in text.casefold() if exact_name else names(text, subject.name)
    if must_name and not named:
        return Outcome.NO_NAME
    return Outcome.DUPLICATE if sameness(text) in known else Outcome.USABLE


def sameness(text: str) -> str:
    """What two sentences share that differ in case, spaces and punctuation alone."""
    return "".join(_WORD.findall(_folded(text))) or text


def names(text: str, name: str) -> bool:
    """Whether a sentence holds a class name, give or take how it is written.

    Case, accents, hyphens, underscores, apostrophes, spaces and the plural do not matter; of "highway or
    road", "sea / lake" or "tench, Tinca tinca" one part is enough. The name stands at the bounds of words,
    "cat" is not in "category", except in scripts that put no space between words.
    """
    parts = [part for part in re.split(r"\s+or\s+|[,;/|]|\(.*?\)", name) if len("".join(_WORD.findall(part))) > 2]
    return any(_holds(text, part) for part in {name, *parts})


def _holds(text: str, name: str) -> bool:
    wanted = _WORD.findall(_folded(name))
    if not wanted:
        return name.strip().casefold() in text.casefold()
    if not _is_latin(name):
        return "".join(wanted) in sameness(text)
    pattern = re.compile("".join(f"(?:{'|'.join(map(re.escape, sorted(_forms(word))))})" for word in wanted))
    words = _WORD.findall(_folded(text))
    longest = len(wanted) + _JOINED
    for start in range(len(words)):
        joined = ""
        for word in words[start : start + longest]:
            joined += word
            if pattern.fullmatch(joined):
                return True
    return False


def _forms(word: str) -> set[str]:
    """A word and what its singular and plural may be."""
    forms = {word, f"{word}s", f"{word}es"}
    if len(word) > 2:
        singular = [word[: -len(end)] + put for end, put in _ENDS if word.endswith(end) and len(word) > len(end) + 1]
        plural = [word[: -len(put)] + end for end, put in _ENDS if put and word.endswith(put)]
        forms |= {*singular, *plural}
    return forms


_ENDS = (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("men", "man"), ("geese", "goose"), ("mice", "mouse"), ("es", ""),
         ("s", ""))  # fmt: skip


def _folded(text: str) -> str:
    """Lower case without accents and apostrophes."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in plain if not unicodedata.combining(letter) and letter not in "'’")  # noqa: RUF001


def _is_latin(text: str) -> bool:
    """Whether at most half of a text's letters are of another script: a test of the script, not of the language."""
    letters = [letter for letter in text if letter.isalpha()]
    return 2 * sum("LATIN" in unicodedata.name(letter, "") for letter in letters) >= len(letters)
