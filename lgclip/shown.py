"""Text as it may be shown on a terminal and written into a log: names come from folders, files and servers."""

import logging
import unicodedata

from lgclip.credentials import hidden

TURNING = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029)}
"""They turn the writing of what follows round, or break a line where no line ends."""


def shown(text: str) -> str:
    """A message: lines stay lines, but nothing in it steers the terminal, and the environment's keys are hidden."""
    return hidden("\n".join(map(one_line, text.split("\n"))))


def one_line(text: str) -> str:
    r"""A name: whatever steers a terminal, breaks a line or is no text at all is spelt out, as `\x1b`."""
    return "".join(_spelt(letter) if _steers(letter) else letter for letter in text)


def _steers(letter: str) -> bool:
    return letter in TURNING or (letter != "\t" and unicodedata.category(letter) in ("Cc", "Cs"))


def _spelt(letter: str) -> str:
    code = ord(letter)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class OneLine(logging.Formatter):
    """Writes a message of a log as one line, so that no name in it passes for another message."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (the name is logging's)
        record.message = one_line(record.message)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))
