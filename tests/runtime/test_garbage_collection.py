"""A process ends without a last garbage collection, and still does what was registered for its end."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
import atexit, gc, tempfile
from pathlib import Path
from lgclip.runtime.garbage_collection import collect_less

class Node:
    def __del__(self):
        print("collected", flush=True)

{call}
atexit.register(lambda: print("registered", flush=True))
folder = tempfile.TemporaryDirectory()
print(folder.name)
node = Node()
node.self = node  # a cycle, which only a collection finds
del node
gc.disable()
"""


@pytest.mark.multiprocess
@pytest.mark.parametrize(("call", "collected"), [("", True), ("collect_less(); collect_less()", False)])
def test_last_collection_is_skipped(call: str, collected: bool) -> None:
    completed = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE.format(call=call)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    place, *lines = completed.stdout.splitlines()
    assert lines == ["registered", *(["collected"] if collected else [])]
    assert not completed.stderr
    assert not Path(place).exists(), "what cleans up at the end does so"
