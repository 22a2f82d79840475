"""Tests the cost log: lines written by several processes, and measured tokens and bytes."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lgclip.prompts.base import Task
from lgclip.prompts.local_llm import LocalLLM, _lengths
from lgclip.runtime.devices import Peak
from lgclip.store.atomic import WriteError
from lgclip.store.cost_log import Line, Tokens, append, append_start, both, lines_of, rate, read_cost_log
from lgclip.types import TargetClass

LINE = Line(10, "image", 5.0, "cpu", 1)
CPU = torch.device("cpu")


@given(st.lists(st.builds(
    Line,
    count=st.integers(1, 10**9), unit=st.text(), seconds=st.floats(0, 1e9),
    device=st.text(), devices=st.integers(1, 8),
    tokens=st.none() | st.builds(Tokens, st.integers(0, 10**12), st.integers(0, 10**12)),
), max_size=4))  # fmt: skip
def test_cost_lines_round_trip(tmp_path_factory: pytest.TempPathFactory, lines: list[Line]) -> None:
    path = tmp_path_factory.mktemp("ledger") / "not" / "there" / "costs.jsonl"
    for line in lines:
        append(path, line)
    assert lines_of(path) == lines


@pytest.mark.parametrize(
    "bad",
    ["", "{", "[]", "7", "null", '{"count": 1}', json.dumps({**vars(LINE), "count": 0}),
     json.dumps({**vars(LINE), "count": "many"}), json.dumps({**vars(LINE), "seconds": -1.0}),
     json.dumps({**vars(LINE), "tokens": {"words": 3}}), json.dumps({**vars(LINE), "more": 1})],
)  # fmt: skip
def test_damaged_line_is_reported_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: str) -> None:
    path = tmp_path / "costs.jsonl"
    append(path, LINE)
    with path.open("a") as file:
        file.write(bad + "\n")
    append(path, LINE)
    assert lines_of(path) == [LINE, LINE]
    assert f"{path}: line 2 is damaged" in caplog.text


def test_concurrent_writers_lose_no_line(tmp_path: Path) -> None:
    write = (
        "import sys\nfrom pathlib import Path\nfrom lgclip.store.cost_log import Line, append\n"
        "for at in range(200): append(Path(sys.argv[1]), Line(at + 1, 'image' * 40, 1.0, sys.argv[2], 1))\n"
    )
    path = tmp_path / "costs.jsonl"
    root = Path(__file__).parents[2]
    running = [subprocess.Popen([sys.executable, "-c", write, str(path), name], cwd=root) for name in "abc"]
    assert [process.wait(timeout=300) for process in running] == [0, 0, 0]
    lines = lines_of(path)
    for name in "abc":
        assert [line.count for line in lines if line.device == name] == list(range(1, 201))


def test_rate_covers_everything_computed() -> None:
    lines = [LINE, Line(30, "image", 7.0, "cpu", 1)]
    assert rate(lines) == 12.0 / 40
    assert rate([]) is None


def test_tokens_are_unknown_if_one_is() -> None:
    assert both(Tokens(1, 2), Tokens(10, 20)) == Tokens(11, 22)
    assert both(Tokens(1, 2), None) is both(None, Tokens(1, 2)) is None


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=4), st.sets(st.integers(0, 3))
)
def test_reply_length_ends_at_the_end_token(rows: list[list[int]], ends: set[int]) -> None:
    expected = []
    for row in rows:
        expected.append(next((index + 1 for index, token in enumerate(row) if token in ends), 5))
    assert _lengths(torch.tensor(rows), sorted(ends) or None).tolist() == expected
    if len(ends) == 1:
        assert _lengths(torch.tensor(rows), next(iter(ends))).tolist() == expected


def test_tokens_exclude_padding() -> None:
    settings: dict[str, Any] = {"instruction": "{name}", "again": "", "min_words": 1, "exact_name": True}
    llm = LocalLLM("tiny:language", **settings, max_new_tokens=40, replies_per_round=4, max_rounds=3)
    tasks = [Task(TargetClass(0, "pink ring"), 3), Task(TargetClass(1, "long pink ring"), 3)]
    writer = llm.load(CPU)
    together = {place: outcome.tokens for place, outcome in writer(tasks, 0)}
    alone = [next(iter(writer([task], 0)))[1].tokens for task in tasks]
    assert [together[0], together[1]] == alone, "what a class takes does not depend on its batch"
    tokenizer, _ = llm._load(CPU)
    for task, tokens in zip(tasks, alone, strict=True):
        assert tokens is not None
        chat = [{"role": "user", "content": task.target_class.name}]
        prompt_tokens = len(tokenizer(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True),
                              add_special_tokens=False)["input_ids"])  # fmt: skip
        rounds, rest = divmod(tokens.prompt, 4 * prompt_tokens)
        assert (rest, 1 <= rounds <= 3) == (0, True)
        assert 0 < tokens.completion <= rounds * 4 * 40


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no figure without /proc")
def test_peak_memory_is_per_block() -> None:
    def of(megabytes: int) -> tuple[int, str | None]:
        with Peak(CPU) as peak:
            np.ones(megabytes * 2**20, dtype=np.uint8)[::4096].sum()
        assert peak.bytes is not None
        return peak.bytes, peak.source

    def process() -> int:
        return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024

    small, _ = of(1)
    before = process()
    large, source = of(2 * before // 2**20)  # larger than this process has ever been
    assert source == "process"
    assert large >= max(before, small + 0.9 * 2 * before)
    after, source = of(1)
    assert source == "samples"
    assert after < large - before
    assert process() >= large, "who measures the whole process is still told its peak"


def test_peak_memory_is_recorded_after_errors() -> None:
    peak = Peak(CPU)
    with pytest.raises(RuntimeError, match="power cut"), peak:
        raise RuntimeError("power cut")
    assert not peak._watch.is_alive()


def test_start_without_an_end_is_unfinished(tmp_path: Path) -> None:
    path = tmp_path / "costs.jsonl"
    first, second = append_start(path), append_start(path)
    append(path, replace(LINE, start=second))
    append(path, LINE)
    assert read_cost_log(path) == ([LINE, LINE], 1)
    assert [line.start for line in lines_of(path)] == [second, ""]
    append(path, replace(LINE, count=0, start=first))
    assert read_cost_log(path).unfinished == 0
    assert rate(lines_of(path)) == 0.75


@pytest.mark.multiprocess
def test_killed_process_leaves_its_start(tmp_path: Path) -> None:
    path = tmp_path / "costs.jsonl"
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom lgclip.store.cost_log import append_start\n"
        "append_start(Path(sys.argv[1]))\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)], cwd=Path(__file__).parents[2], check=False)
    assert killed.returncode == -9
    assert read_cost_log(path) == ([], 1)


def test_refused_write_names_the_cost_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(WriteError, match=rf"{tmp_path}/costs.jsonl: File too large; make room"):
        append(tmp_path / "costs.jsonl", LINE)
