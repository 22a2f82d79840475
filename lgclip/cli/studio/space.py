"""Writes a folder that is a Hugging Face Space: the page, what it needs, and a classifier."""

import json
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lgclip.runtime.secrets import refuse_on_command_line
from lgclip.store.atomic import atomic_write

APP = "app.py"
REQUIREMENTS = "requirements.txt"
README = "README.md"
CLASSIFIER = "classifier.zip"
_FILES = (APP, REQUIREMENTS, README, CLASSIFIER)


def space_command(folder: Path, classifier: str | None, overrides: Sequence[str] = ()) -> Iterator[str]:
    """Runs `lgclip studio --space DIR`.

    Args:
        folder: Folder to write; files of an earlier Space are replaced.
        classifier: Folder, zip file or hub address of a classifier; None writes a Space that builds one.
        overrides: Overrides as of `lgclip build`, which the Space uses.

    Raises:
        ValueError: If something else is in the folder, there is no classifier, or an override holds a key.
        WriteError: If the system refuses it.
    """
    # They are written to a file that is published.
    refuse_on_command_line(overrides)
    _check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = [APP, REQUIREMENTS, README]
    if classifier is not None:
        from lgclip.api import load

        load(classifier).save(folder / CLASSIFIER)
        names.append(CLASSIFIER)
    _write(folder / APP, _app(overrides))
    _write(folder / REQUIREMENTS, f"lgclip[studio]>={version('lgclip')}\n")
    _write(folder / README, _readme(has_classifier=classifier is not None))
    yield f"{folder}: {', '.join(names)}; try it by: python {folder / APP}"


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--space {folder}: it is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / APP).is_file():
        raise ValueError(f"--space {folder}: it holds other files and no Space; name a new folder")


def _app(overrides: Sequence[str]) -> str:
    # JSON of a list of texts is Python too, and nothing in a text ends its quotes.
    listed = json.dumps(list(overrides))
    return f'''"""Serves lgclip studio as a Hugging Face Space."""

from pathlib import Path

from lgclip.cli.studio.server import run_space

OVERRIDES = {listed}

if __name__ == "__main__":
    run_space(Path(__file__).resolve().parent, OVERRIDES)
'''


def _readme(*, has_classifier: bool) -> str:
    try:
        sdk_version = version("gradio")
    except PackageNotFoundError as error:
        raise ValueError("a Space names its version of Gradio: install lgclip[studio]") from error
    content = (
        "It starts with the classifier in `classifier.zip`." if has_classifier else "It starts without a classifier."
    )
    return f"""---
title: lgclip studio
emoji: 🖼️
colorFrom: blue
colorTo: gray
sdk: gradio
sdk_version: {sdk_version}
python_version: "3.11"
app_file: {APP}
pinned: false
---

# lgclip studio

Class names in, image classifier out. {content} Every visitor changes a copy of their own.

`{REQUIREMENTS}` needs a published release of lgclip; until there is one, put a wheel into this
folder and name it there.
"""


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
