"""Decides whether a sentence of a language model is usable as a prompt, and if not, why."""

import re
import unicodedata
from collections.abc import Sequence
from enum import StrEnum
from itertools import accumulate

from lgclip.prompts.reply_phrases import is_chat, is_error_text, is_refusal
from lgclip.types import TargetClass


class FilterResult(StrEnum):
    """Enumerates the results for a sentence, or for a complete reply without sentences."""

    USABLE = "usable"
    EMPTY = "empty"
    NOT_PROMPTS = "not the format that was asked for"
    REFUSAL = "refusal"
    ERROR_TEXT = "error text"
    TOO_SHORT = "too short"
    WRONG_LANGUAGE = "wrong language"
    NO_NAME = "without the class name"
    DUPLICATE = "duplicate"
    THINKING = "thinking or another role's turn"
    CHAT = "text around the prompts"
    TRUNCATED = "cut off"
    TOO_LONG = "text beyond the limit of a reply"


_CODE = re.compile(r"[{\[]\s*[\"'{\[]|```")
_WORD = re.compile(r"[^\W_]+")
_ALTERNATIVES = re.compile(r"(?<!\s)\s+or\s+|[,;/|]|\([^()]*\)")


def error_or_refusal(text: str, name: str = "") -> FilterResult | None:
    """Checks whether a text is a refusal or an error message rather than a description; None if neither.

    Args:
        text: The text.
        name: The class name, which may contain such words itself, as "error message" does.
    """
    if is_error_text(text, name):
        return FilterResult.ERROR_TEXT
    if is_refusal(text, name):
        return FilterResult.REFUSAL
    return None


def filter_reply(
    text: str, target_class: TargetClass, existing: set[str], *, must_name: bool, exact_name: bool, min_words: int
) -> FilterResult:
    """Decides whether one sentence is usable.

    Args:
        text: The sentence, on one line.
        target_class: The class that it should describe.
        existing: `normal_form` of the existing sentences.
        must_name: Whether it must contain the class name, as `names` checks.
        exact_name: Whether the name must occur letter by letter, ignoring case.
        min_words: Minimum number of words, in scripts with spaces.
    """
    if not text:
        return FilterResult.EMPTY
    if problem := _problem_of_content(text, target_class.name) or _problem_of_form(text, target_class.name, min_words):
        return problem
    if must_name and not _has_name(text, target_class.name, exact=exact_name):
        return FilterResult.NO_NAME
    if normal_form(text) in existing:
        return FilterResult.DUPLICATE
    return FilterResult.USABLE


def _problem_of_content(text: str, name: str) -> FilterResult | None:
    if problem := error_or_refusal(text, name):
        return problem
    if is_chat(text, name):
        return FilterResult.CHAT
    return None


def _problem_of_form(text: str, name: str, min_words: int) -> FilterResult | None:
    # A line of JSON that could not be parsed arrives here like any other sentence.
    if _CODE.match(text):
        return FilterResult.NOT_PROMPTS
    # A data set with names in another script expects sentences in its language, where words may have no spaces
    # between them and cannot be counted.
    if not _is_latin(name):
        return None
    if not _is_latin(text):
        return FilterResult.WRONG_LANGUAGE
    if len(text.split()) < min_words:
        return FilterResult.TOO_SHORT
    return None


def _has_name(text: str, name: str, *, exact: bool) -> bool:
    if exact:
        return name.casefold() in text.casefold()
    return names(text, name)


def normal_form(text: str) -> str:
    """Returns a normal form that ignores case, spaces and punctuation, to detect duplicates."""
    return "".join(_WORD.findall(_folded(text))) or text


def names(text: str, name: str) -> bool:
    """Checks whether a sentence contains a class name, in any usual spelling.

    Case, accents, hyphens, underscores, apostrophes, spaces and the plural do not matter; of "highway or
    road", "sea / lake" or "tench, Tinca tinca" one part is enough. The name must match at word boundaries:
    "cat" is not in "category", except in scripts without spaces between words.
    """
    parts = _ALTERNATIVES.split(name)
    # A part of one or two letters, as of "TV / monitor", is in too many sentences to be informative.
    parts = [part for part in parts if len("".join(_WORD.findall(part))) > 2]
    return any(_contains(text, part) for part in {name, *parts})


def _contains(text: str, name: str) -> bool:
    name_words = _WORD.findall(_folded(name))
    # A name of symbols alone has no words to compare.
    if not name_words:
        return name.strip().casefold() in text.casefold()
    # Scripts without spaces have no word bounds that a regular expression could see.
    if not _is_latin(name):
        return "".join(name_words) in normal_form(text)
    words = _WORD.findall(_folded(text))
    letters = "".join(words)
    # Where words begin and end in the text without spaces: "cat" is not in "a cathode", but "sea lion" is "sealion".
    bounds = {0, *accumulate(map(len, words))}
    # All places where the words of the name so far may end, for all beginnings at once: trying the combinations of
    # singular and plural one by one takes exponential time for a name of many short words.
    ends = bounds
    for word in name_words:
        forms = _forms(word)
        ends = {end + len(form) for end in ends for form in forms if letters.startswith(form, end)}
    return not bounds.isdisjoint(ends)


def _forms(word: str) -> set[str]:
    """Returns a word with its possible singular and plural forms."""
    forms = {word, f"{word}s", f"{word}es"}
    if len(word) > 2:
        # Both ways, since it is not known whether the class name is a plural, as "glasses". Wrong forms do no harm:
        # they are words that no sentence contains.
        for plural, singular in _ENDS:
            if word.endswith(plural) and len(word) > len(plural) + 1:
                forms.add(word[: -len(plural)] + singular)
            if singular and word.endswith(singular):
                forms.add(word[: -len(singular)] + plural)
    return forms


_ENDS = (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("men", "man"), ("geese", "goose"), ("mice", "mouse"), ("es", ""),
         ("s", ""))  # fmt: skip


def _folded(text: str) -> str:
    """Returns lower case without accents and apostrophes."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in plain if not unicodedata.combining(letter) and letter not in "'’")  # noqa: RUF001


def _is_latin(text: str) -> bool:
    """Checks that at most half of a text's letters are of another script: a test of the script, not of the language."""
    letters = [letter for letter in text if letter.isalpha()]
    return 2 * sum("LATIN" in unicodedata.name(letter, "") for letter in letters) >= len(letters)


CLIP_TOKENS = 77
"""Context length of CLIP's text towers, with start and end tokens; T5 towers of newer models read more."""


def cut_tokens(prompts: Sequence[str]) -> list[int]:
    """Returns the number of tokens of each prompt that CLIP's text tower truncates, by CLIP's own vocabulary."""
    room = CLIP_TOKENS - 2  # the start and the end take one each
    # A token is a byte at least, so most prompts need no tokenizer.
    if not any(len(prompt.encode()) > room for prompt in prompts):
        return [0] * len(prompts)
    from open_clip.tokenizer import SimpleTokenizer  # its vocabulary comes with the package

    tokenizer = SimpleTokenizer()
    return [max(0, len(tokenizer.encode(prompt)) - room) for prompt in prompts]
