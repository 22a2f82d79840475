"""Fills a text that was written with gaps."""

import re

from lgclip.batch import Subject

_GAP = re.compile(r"\{(name|count|context|have|caption)\}")
_OPTIONAL = re.compile(r"\[([^\[\]]*\{context\}[^\[\]]*)\]")


def fill(text: str, subject: Subject, count: int = 0, have: str = "", caption: str | None = None) -> str:
    """`text` with `{name}`, `{count}`, `{context}` and `{have}` filled in, in one pass; `{caption}` if there is one.

    What stands in square brackets around `{context}` vanishes with it: `a {name}[, {context}]` is
    `a robin, a type of bird` or `a robin`. A name that itself holds a gap stays as it is.
    """
    context = subject.context.strip()
    text = _OPTIONAL.sub(r"\1" if context else "", text)
    if not context:
        text = re.sub(r" ?\{context\}", "", text)
    filled = {"name": subject.name, "count": str(count), "context": context, "have": have}
    if caption is not None:
        filled["caption"] = caption
    return _GAP.sub(lambda gap: filled.get(gap.group(1), gap.group()), text)
