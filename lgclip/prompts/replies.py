"""What a language model says, to prompts."""

import re

_NUMBERING = re.compile(r"^\s*(?:[-*•]|\(?\d{1,3}[.):])\s*")


def usable_lines(reply: str, class_name: str) -> list[str]:
    """The lines of a reply that are prompts: numbering taken off, the class name in them."""
    lines = (" ".join(_NUMBERING.sub("", line).strip().strip("\"'").split()) for line in reply.splitlines())
    wanted = class_name.casefold()
    return [line for line in lines if wanted in line.casefold()]
