"""Sanitizes text for terminals and logs: names come from folders, files and servers."""

import logging
import os
import sys
import unicodedata

from lgclip.runtime.secrets import hidden

TURNING = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029)}
"""Characters that change the text direction, or break a line without a line feed."""


def sanitized(text: str) -> str:
    """Sanitizes a message: line breaks stay, control sequences are escaped and the environment's keys are hidden."""
    return hidden("\n".join(map(single_line, text.split("\n"))))


def single_line(text: str) -> str:
    r"""Sanitizes a name: control sequences, line breaks and invalid text are escaped, as in `\x1b`."""
    return "".join(map(_spelt, text))


def _steers(letter: str) -> bool:
    # Control characters, escape sequences among them, and halves of surrogate pairs, which no terminal can print.
    return letter in TURNING or (letter != "\t" and unicodedata.category(letter) in ("Cc", "Cs"))


def _spelt(letter: str) -> str:
    if not _steers(letter):
        return letter
    # As Python itself writes such a letter in a string.
    code = ord(letter)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class OneLine(logging.Formatter):
    """Writes each log message as one line, so that no name in it can imitate another message."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (the name is logging's)
        record.message = single_line(record.message)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        return sanitized(super().format(record))


def print_loading(subject: str) -> None:
    """Prints on a terminal what is loaded in the next seconds; nothing in a file, and nothing on other devices.

    Args:
        subject: What is loaded.
    """
    if sys.stderr.isatty() and os.environ.get("LOCAL_RANK", "0") == "0":
        sys.stderr.write(f"loading {subject}\n")
        sys.stderr.flush()
