"""Runs the commands in README.md and in the pages of docs/, so that what they show works.

Every ```bash block is run in a temporary folder with a store of its own. README.md and "Get started" run first, in the
order of the navigation. The other pages may use what these have left there; two of them run at a time. A command that
was run before is not run again. A block below a comment `<!-- not run: reason -->` is skipped and counted.

    python docs/check_commands.py            # all pages
    python docs/check_commands.py README.md docs/guides/sweeps.md
    python docs/check_commands.py --list     # shows the commands without running them

The exit status is 1 if a command fails.
"""

import argparse
import itertools
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from lgclip.runtime.cores import usable_cores

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>[^>]*?) -->\n)?^```bash\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
LINKED = ("evaluate.py", "generate.py", "train.py", "conf", "examples", "benchmarks")
"""What a command expects in its working folder: that of the checkout."""
FIRST = ("README.md", "docs/get_started/", "docs/guides/store_maintenance.md")
"""Pages whose results the others use, or that need the store to themselves: they run before the others, one by one."""
LIMIT = 900.0
"""Seconds that a single command may take, on a busy machine too."""


class Command(NamedTuple):
    """Holds a command of a page.

    Attributes:
        page: Path of the page below the checkout.
        text: The command, with its continuation lines and here-document.
        reason: Why it is not run; empty if it is.
    """

    page: str
    text: str
    reason: str


def pages() -> list[Path]:
    """Returns README.md and the pages of docs/ in the order of the navigation."""
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    return [ROOT / "README.md", *(ROOT / "docs" / name for name in re.findall(r"([\w/]+\.md)$", nav, re.MULTILINE))]


def commands(page: Path) -> Iterator[Command]:
    """Yields the commands of a page in their order."""
    name = page.relative_to(ROOT).as_posix()
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        for text in split(block["text"]):
            yield Command(name, text, block["reason"] or "")


def split(block: str) -> Iterator[str]:
    """Yields the commands of a block: a line with its continuation lines, or with its here-document."""
    lines = iter(block.splitlines())
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        command = [line]
        while command[-1].endswith("\\"):
            command.append(next(lines))
        if delimiter := re.search(r"<<'(\w+)'", command[-1]):
            while command[-1] != delimiter[1]:
                command.append(next(lines))
        yield "\n".join(command)


def run(command: str, folder: Path, store: Path) -> tuple[int, str]:
    """Runs a command in a folder, with a store, and returns its exit status and output."""
    tools = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "LGCLIP_HOME": str(store),
        "HF_HUB_OFFLINE": "1",
        # Threads that share their cores with another program wait for each other, and are ten times slower than one.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
    }
    try:
        completed = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 124, f"not finished after {LIMIT:.0f} s"
    return completed.returncode, completed.stdout + completed.stderr


def linked_copy(folder: Path, copy: Path) -> Path:
    """Makes a folder with links to what another one holds, and returns it.

    Two runs that begin in the same second have the same run folder, so pages that run at a time need their own.
    """
    for name in ("outputs", "multirun"):
        (copy / name).mkdir(parents=True)
        for path in (folder / name).glob("*"):
            (copy / name / path.name).symlink_to(path)
    for path in folder.iterdir():
        if not (copy / path.name).exists():
            (copy / path.name).symlink_to(path)
    return copy


class Checker:
    """Runs distinct commands, and counts what became of them.

    Attributes:
        counts: Number of commands by outcome.
    """

    def __init__(self, store: Path) -> None:
        self.counts: Counter[str] = Counter()
        self._store = store
        self._checked: set[str] = set()
        self._lock = Lock()

    def check_page(self, page: Sequence[Command], folder: Path) -> None:
        """Runs the commands of a page in their order, unless they are skipped or were run before."""
        for command in page:
            with self._lock:
                is_repeated = command.text in self._checked
                if command.reason or is_repeated:
                    self.counts["skipped" if command.reason else "repeated"] += 1
                    continue
                self._checked.add(command.text)
            start = time.monotonic()
            status, output = run(command.text, folder, self._store)
            with self._lock:
                self.counts["failed" if status else "passed"] += 1
                line = command.text.splitlines()[0]
                print(f"{time.monotonic() - start:6.1f} s  {command.page}: {line}", flush=True)
                if status:
                    print(f"exit status {status}\n{output[-3000:]}", flush=True)


def check(selected: Sequence[Command], jobs: int) -> int:
    """Runs the commands of all pages, prints a line about each, and returns the number of failures."""
    start = time.monotonic()
    commands_by_page = [list(group) for _, group in itertools.groupby(selected, key=lambda command: command.page)]
    first = [page for page in commands_by_page if page[0].page.startswith(FIRST)]
    others = [page for page in commands_by_page if page not in first]
    with tempfile.TemporaryDirectory(prefix="lgclip-docs-") as temporary:
        folder = Path(temporary) / "first"
        folder.mkdir()
        for name in LINKED:
            (folder / name).symlink_to(ROOT / name)
        checker = Checker(Path(temporary) / "store")
        for page in first:
            checker.check_page(page, folder)
        copies = [linked_copy(folder, Path(temporary) / str(index)) for index in range(len(others))]
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(checker.check_page, others, copies))
    total = time.monotonic() - start
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = usage.ru_utime + usage.ru_stime
    counts = checker.counts
    print(
        f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped, "
        f"{counts['repeated']} repeated, {total:.0f} s, {processor:.0f} s of processor time"
    )
    return counts["failed"]


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description="Runs the commands of the documentation.")
    parser.add_argument("pages", nargs="*", type=Path, help="pages to check; by default all")
    parser.add_argument("--list", action="store_true", help="show the commands without running them")
    parser.add_argument("--jobs", type=int, default=min(2, usable_cores()), help="commands that run at a time")
    args = parser.parse_args()
    chosen = [page.resolve() for page in args.pages] or pages()
    selected = [command for page in chosen for command in commands(page)]
    if args.list:
        for command in selected:
            print(f"{command.page}: {f'[{command.reason}] ' if command.reason else ''}{command.text.splitlines()[0]}")
        return 0
    return min(check(selected, args.jobs), 1)


if __name__ == "__main__":
    sys.exit(main())
