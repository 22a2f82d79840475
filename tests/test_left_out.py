"""Runs that left images out: what reads them later, and several processes and workers on the same store."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_pictures import DAMAGES, WHOLE, damaged_folder, encoded
from PIL import Image
from test_diffuser_folder import folder_run, release
from worlds import World, judge, rows, stored
from written_runs import write_run

from lgclip.audit import audit
from lgclip.batch import ImageBatch, Unread
from lgclip.comparison import ComparisonError, Side, compare
from lgclip.damage import Findings, Readable
from lgclip.dashboard.collect import collect
from lgclip.data import Stream, Streams, _Seen, _stack
from lgclip.datasets.files import read_image
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoding import Encoding, SharedViews
from lgclip.export import export_features
from lgclip.feature_store import FeatureStore
from lgclip.ledger import LEDGER, lines_of
from lgclip.reopen import reopen
from lgclip.retention import used_by
from lgclip.runs import Run, RunError
from lgclip.scales import SquareCrops
from lgclip.transport import export
from lgclip.verification import verify

pytest_plugins = ("run_fixtures",)

ROOT = Path(__file__).parents[1]
GOOD = 3 * WHOLE


@pytest.fixture
def spoilt(world: World, tmp_path: Path) -> World:
    """A world with prompts and drawn images, whose pictures to judge are damaged in every way."""
    damaged_folder(tmp_path / "pictures")
    return replace(world, pictures=tmp_path / "pictures")


def test_a_batch_holds_what_was_read_and_tells_the_rest() -> None:
    seen = [_Seen("a", torch.zeros(2, 3, 4, 4)), _Seen("c", torch.ones(2, 3, 4, 4))]
    gone = Unread("b", "b.png", "it is empty")
    batch = _stack([seen[0], gone, seen[1]])
    assert (batch.ids, list(batch.unread)) == (["a", "c"], [gone])
    assert torch.equal(batch.views, torch.stack([one.views for one in seen]))
    assert _stack([gone, gone]).views.shape == (0, 0, 3, 0, 0)
    assert ImageBatch(["a"], batch.views[:1]).unread == ()


def test_a_drawn_image_must_be_readable_and_the_error_says_what_to_do(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, {}, {})
    stream = Stream("synthetic", ["a"], [0], ("whole",), store, load=lambda at: pytest.fail(f"{at} is loaded"))
    encoder = OpenClip("tiny:encoder")
    stage = Encoding(encoder, Streams([stream], 1, SharedViews(encoder, SquareCrops()), 2))
    with pytest.raises(ValueError, match=r"a\.png cannot be read as an image \(it is empty\); `lgclip store verify"):
        stage._note(0, [Unread("a", "a.png", "it is empty")])
    assert not list(tmp_path.iterdir())


def test_whatever_reads_a_run_knows_which_images_it_left_out(
    spoilt: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run", judge(spoilt, tmp_path / "run", "on_bad_image=skip"))
    kept = [int(row["index"]) for row in rows(run.folder / "predictions.csv")]
    assert len(run.predictions.label) == GOOD
    [encoding] = lines_of(spoilt.store / "features" / run.result["store"]["real"] / LEDGER)
    assert encoding.count == GOOD, "what could not be read was not encoded"
    opened = reopen(run)
    assert isinstance(opened.dataset, Readable)
    assert list(opened.dataset.places) == kept
    export_features(run.folder, tmp_path / "features.npz")
    arrays = np.load(tmp_path / "features.npz")
    assert arrays["real"].shape[0] == GOOD
    np.testing.assert_array_equal(arrays["real_labels"], run.predictions.label)
    found = audit(run)["duplicates"]
    assert (found["test_images"], {pair["test"] for pair in found["pairs"]} <= set(kept)) == (GOOD, True)

    page = collect([run.folder], title="", reference=None, images=2)
    told = dict(page["runs"][0]["provenance"])
    assert told["test images that could not be read"].startswith(f"{len(DAMAGES)} of {GOOD + len(DAMAGES)}: ")
    assert page["thumbs"]
    assert not [note for note in page["notes"] if "not shown" in note]

    assert "0 faults" in list(verify(spoilt.store))[-1]
    assert used_by([run.folder], spoilt.store, whole=True).features
    assert list(export(spoilt.store, tmp_path / "part.tar", [run.folder]))
    assert list(export(spoilt.store, tmp_path / "whole.tar"))

    for path in spoilt.pictures.rglob("1_*"):
        path.unlink()
    assert reopen(run).dataset.ids == opened.dataset.ids, "what was bad has been moved away"
    (spoilt.pictures / "red star" / "3.png").write_bytes(encoded("PNG", seed=5))
    with pytest.raises(RunError, match=rf"judged {GOOD} of {GOOD + len(DAMAGES)} images, the data set now has 7"):
        reopen(run)


def skipping(*places: int) -> dict[str, object]:
    """Fields of the result of a run on 12 images and those at some places."""
    return {
        "images_in_dataset": 12 + len(places),
        "skipped": [{"index": at, "file": "x", "reason": "y"} for at in places],
    }


def written(folder: Path, *places: int) -> Run:
    """A run on 12 images that left out those at some places."""
    write_run(folder, more=skipping(*places))
    lines = (folder / "predictions.csv").read_text(encoding="utf-8").splitlines()
    kept = [at for at in range(12 + len(places)) if at not in places]
    body = [",".join([str(at), *line.split(",")[1:]]) for at, line in zip(kept, lines[1:], strict=True)]
    (folder / "predictions.csv").write_text("\n".join([lines[0], *body, ""]), encoding="utf-8")
    return Run.read(folder)


def test_runs_that_left_out_other_images_are_not_compared(tmp_path: Path) -> None:
    one, same, other, none = (written(tmp_path / str(at), *out) for at, out in enumerate([(3,), (3,), (4,), ()]))
    (found,) = compare([Side(one), Side(same)])
    assert found.test["difference"] == 0
    with pytest.raises(
        ComparisonError, match=r"images left out as unreadable, 1 \(first \[3\]\) and 1 \(first \[4\]\)"
    ):
        compare([Side(one), Side(other)])
    with pytest.raises(ComparisonError, match=r"images left out as unreadable, 1 \(first \[3\]\) and none"):
        compare([Side(one), Side(none)])
    page = collect([one.folder, same.folder, other.folder], title="", reference=None, images=0)
    judged = [run["judged"] for run in page["runs"]]
    assert judged[0] == judged[1] != judged[2]
    assert [row["reason"] is None for row in page["comparisons"]] == [True, False]


def test_predictions_that_hold_an_image_that_was_left_out_are_not_whole(tmp_path: Path) -> None:
    write_run(tmp_path / "run", more=skipping(3))
    with pytest.raises(RunError, match="is not whole"):
        Run.read(tmp_path / "run").predictions  # noqa: B018


def in_processes(world: World, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Evaluates on two processes, each with two workers that decode."""
    two = ["trainer.devices=2", "trainer.strategy=ddp", "workers=2", "encoder.batch_size=2"]
    command = [sys.executable, "evaluate.py", *world.evaluating(), f"hydra.run.dir={folder}", *two, *overrides]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip


def test_a_run_that_was_cut_off_among_bad_images_says_what_a_whole_one_says(
    spoilt: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = judge(replace(spoilt, store=tmp_path / "other"), tmp_path / "whole", "on_bad_image=skip")
    add, calls = Findings.add, []

    def cut(findings: Findings, reasons: dict[str, str]) -> None:
        calls.append(reasons)
        if len(calls) > 2:
            raise RuntimeError("power cut")
        add(findings, reasons)

    monkeypatch.setattr(Findings, "add", cut)
    with pytest.raises(RuntimeError, match="power cut"):
        judge(spoilt, tmp_path / "cut", "on_bad_image=skip", "encoder.batch_size=2")
    monkeypatch.setattr(Findings, "add", add)
    read = set[str]()

    def watched(path: Path) -> Image.Image:
        read.add(path.name)
        return read_image(path)

    monkeypatch.setattr("lgclip.datasets.folder.read_image", watched)
    result = judge(spoilt, tmp_path / "run", "on_bad_image=skip", "encoder.batch_size=3")
    assert len([name for name in read if name.startswith("1_")]) == len(DAMAGES) - sum(map(len, calls[:2]))
    assert (result["skipped"], result["metrics"]) == (whole["skipped"], whole["metrics"])
    same = (tmp_path / "whole" / "predictions.csv").read_bytes()
    assert (tmp_path / "run" / "predictions.csv").read_bytes() == same


def test_two_processes_with_workers_say_what_one_says(spoilt: World, tmp_path: Path) -> None:
    alone = judge(replace(spoilt, store=tmp_path / "other"), tmp_path / "one", "on_bad_image=skip")
    done = in_processes(spoilt, tmp_path / "raise")
    assert done.returncode == 1, done.stderr
    error = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert error.startswith(f"error: {len(DAMAGES)} of {GOOD + len(DAMAGES)} images of pictures: ")
    assert [one["file"] for one in alone["skipped"] if one["file"] not in error] == []
    assert not (tmp_path / "raise" / "result.json").exists()
    assert not [name for name in stored(spoilt.store) if "/." in name], "half-written files"

    done = in_processes(spoilt, tmp_path / "two", "on_bad_image=quarantine")
    assert done.returncode == 0, done.stderr
    assert f"{GOOD} of {GOOD + len(DAMAGES)} images, {len(DAMAGES)} could not be read" in done.stdout
    result = json.loads((tmp_path / "two" / "result.json").read_text(encoding="utf-8"))
    for key in ("skipped", "n", "images_in_dataset", "metrics", "beside"):
        assert result[key] == alone[key]
    for name in ("predictions.csv", "per_class.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert len(list((tmp_path / "two" / "quarantine").iterdir())) == 1 + len(DAMAGES)


def test_a_bad_prototype_of_the_user_s_is_named_and_left_out(
    fresh_world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = release(tmp_path / "root")
    bad = damaged_folder(tmp_path / "bad")
    for at, name in enumerate(("bomb", "html")):
        (root / "red star" / f"{at}_red star.jpg").write_bytes(bad[name].read_bytes())
    result = folder_run(fresh_world, root, tmp_path / "run", "prompts_per_class=2", "images_per_prompt=2")
    assert [one["faults"] for one in result["missing_images"]] == [["unreadable"]] * 2
    out = capsys.readouterr().out
    for at, words in enumerate(("it has more than 89,478,485 pixels", "it is a web page")):
        assert f"{at}_red star.jpg cannot be read as an image ({words}" in out
