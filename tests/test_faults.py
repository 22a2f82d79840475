"""Images with nothing in them: told apart, drawn again, then listed, and never part of a prototype."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import Trainer
from pipelines import guarded_folder, similarity
from worlds import NAMES, SENTENCES, World, call, diffuser_folder, judge, made, rows, stored, tree

from lgclip.batch import Prompt, Subject
from lgclip.diffuser.base import Drawn, image_prompts, noise_seed, shared_noise_seed
from lgclip.diffuser.brush import PipelineBrush
from lgclip.diffuser.faults import FLAT_STD, Fault, fault_of, faults_of
from lgclip.diffuser.pipeline import Diffuser
from lgclip.drawing import Drawing
from lgclip.export import export_features
from lgclip.image_store import ImageStore
from lgclip.stages import StageBar, Stages, quiet

pytest_plugins = ("run_fixtures",)

CPU = torch.device("cpu")
SUBJECTS = [Subject(c, name) for c, name in enumerate(NAMES)]
PROMPTS = image_prompts([[s.replace("{}", name) for s in SENTENCES[:3]] for name in NAMES], 3, 1)


def noise(spread: float, seed: int = 0) -> np.ndarray:
    """An image whose every channel has this standard deviation in grey levels, more or less."""
    return np.clip(np.random.default_rng(seed).normal(128, spread, (32, 32, 3)).round(), 0, 255).astype(np.uint8)


def judged(*images: np.ndarray, finite: bool = True, flagged: bool = False) -> list[Fault | None]:
    tensor = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    return faults_of(tensor, [finite] * len(images), [flagged] * len(images))


def test_each_fault_is_told_from_the_others() -> None:
    black, grey, red = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 99, np.uint8), np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200  # a channel differs from another, yet nothing is in it
    assert judged(black, grey, red, noise(20)[:8, :8]) == [Fault.BLACK, Fault.FLAT, Fault.FLAT, None]
    assert judged(black, noise(20)[:8, :8], flagged=True) == [Fault.UNSAFE] * 2
    assert judged(noise(20), finite=False, flagged=True) == [Fault.NOT_FINITE]
    for bad in (float("nan"), float("inf")):
        image = torch.rand(1, 3, 8, 8)
        image[0, 1, 2, 3] = bad
        assert faults_of(image, [True], [False]) == [Fault.NOT_FINITE]


@given(st.floats(0, 4), st.integers(0, 3))
def test_a_file_is_judged_as_a_drawing_is(spread: float, seed: int) -> None:
    image = noise(spread, seed)
    expected = Fault.FLAT if image.reshape(-1, 3).std(axis=0).max() < FLAT_STD else None
    assert fault_of(image) == judged(image)[0] == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_plain_image_in_half_precision_is_no_fault(dtype: torch.dtype) -> None:
    assert faults_of(torch.from_numpy(noise(6)).permute(2, 0, 1)[None].to(dtype) / 255, [True], [False]) == [None]


def spoilt(folder: Path, part: str, spoil: Callable[[Any], None]) -> PipelineBrush:
    """A pipeline with a weight gone wrong."""
    pipeline: Any = Diffuser(str(diffuser_folder(folder))).load(CPU).pipeline
    with torch.no_grad():
        spoil(pipeline.components[part])
    pipeline.save_pretrained(folder)
    return Diffuser(str(folder), steps=2, guidance=3.0, size=32).load(CPU)


@pytest.mark.parametrize(
    ("part", "spoil", "fault"),
    [
        ("unet", lambda unet: unet.conv_in.bias[0].fill_(float("nan")), Fault.NOT_FINITE),
        ("unet", lambda unet: unet.conv_out.weight.fill_(float("inf")), Fault.NOT_FINITE),
        ("vae", lambda vae: vae.decoder.conv_in.bias[0].fill_(float("nan")), Fault.NOT_FINITE),
        ("vae", lambda vae: vae.decoder.conv_out.weight.zero_(), Fault.FLAT),
        ("vae", lambda vae: (vae.decoder.conv_out.weight.zero_(), vae.decoder.conv_out.bias.fill_(-9)), Fault.BLACK),
    ],
    ids=["NaN in the U-Net", "infinite latents", "NaN in the decoder", "grey", "black"],
)
def test_a_pipeline_that_breaks_is_caught(
    part: str, spoil: Callable[[Any], None], fault: Fault, tmp_path: Path
) -> None:
    assert spoilt(tmp_path, part, spoil).draw(PROMPTS[:2], 0, [0, 0]).faults == [fault] * 2


@pytest.fixture(scope="module")
def limit(tmp_path_factory: pytest.TempPathFactory) -> float:
    """A limit of the safety checker that lies in the widest gap between the world's images."""
    brush = load(guarded_folder(tmp_path_factory.mktemp("open"), 1.0))
    scores = sorted(similarity(brush.pipeline, brush(PROMPTS, 0)))
    gaps = [(above - below, (above + below) / 2) for below, above in pairwise(scores[4:])]
    return max(gaps)[1]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, limit: float) -> Path:
    return guarded_folder(tmp_path_factory.mktemp("guarded") / "model", limit)


def load(folder: Path) -> PipelineBrush:
    return Diffuser(str(folder), steps=2, guidance=3.0, size=32).load(CPU)


def test_the_safety_checker_s_verdict_is_read(guarded: Path, limit: float, tmp_path: Path) -> None:
    plain = load(guarded_folder(tmp_path / "open", 1.0))
    pixels = plain(PROMPTS, 0)
    expected = [Fault.UNSAFE if score > limit else None for score in similarity(plain.pipeline, pixels)]
    drawn = load(guarded).draw(PROMPTS, 0, [0] * len(PROMPTS))
    assert drawn.faults == expected
    assert 0 < expected.count(Fault.UNSAFE) < len(PROMPTS)
    for fault, guarded_image, image in zip(expected, drawn.pixels, pixels, strict=True):
        np.testing.assert_allclose(guarded_image.astype(int), 0 if fault else image, atol=1)


@dataclass(frozen=True)
class Moody:
    """A painter whose attempts go wrong as it is told: at each prompt's text, by attempt."""

    moods: dict[str, list[Fault]]
    retries: int = 2
    size: int | None = None
    batch_size: int = 2
    asked: list[tuple[str, int]] = field(default_factory=list)

    def inputs(self) -> dict[str, object]:
        return {"painter": "moody"}

    def load(self, device: torch.device) -> "Moody":
        return self

    def __call__(self, prompts: Sequence[Prompt], seed: int) -> np.ndarray:
        raise AssertionError("the stage wants to know of faults")

    def draw(self, prompts: Sequence[Prompt], seed: int, attempts: Sequence[int]) -> Drawn:
        self.asked.extend((prompt.text, attempt) for prompt, attempt in zip(prompts, attempts, strict=True))
        pixels = [noise(40, noise_seed(p, seed, k) % 2**32) for p, k in zip(prompts, attempts, strict=True)]
        moods = [self.moods.get(prompt.text, []) for prompt in prompts]
        return Drawn(np.stack(pixels), [dict(enumerate(m)).get(k) for m, k in zip(moods, attempts, strict=True)])


WANTED = [Prompt(c, f"{name} {i}", 0) for c, name in enumerate("abc") for i in range(2)]
CLASSES = [Subject(c, name) for c, name in enumerate("abc")]


def complete(painter: Moody, root: Path) -> Drawing:
    quiet()
    painter.asked.clear()
    drawing = Drawing(painter, root, CLASSES, WANTED, 0)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[StageBar()])
    Stages(trainer).complete("images", drawing, len(WANTED))
    return drawing


def test_a_faulty_image_is_drawn_again_with_the_next_seed_and_no_other_is(tmp_path: Path) -> None:
    painter = Moody({"a 1": [Fault.UNSAFE], "c 0": [Fault.FLAT, Fault.NOT_FINITE]})
    pictures = complete(painter, tmp_path).pictures()
    assert sorted(painter.asked) == sorted(
        [*((prompt.text, 0) for prompt in WANTED), ("a 1", 1), ("c 0", 1), ("c 0", 2)]
    )
    assert (list(pictures.prompts), pictures.missing, pictures.faults()) == (WANTED, [], [])
    for at, prompt in enumerate(WANTED):
        attempt = {"a 1": 1, "c 0": 2}.get(prompt.text, 0)
        np.testing.assert_array_equal(np.asarray(pictures.image(at)), noise(40, noise_seed(prompt, 0, attempt) % 2**32))


def test_what_fails_for_good_is_listed_left_out_and_not_tried_again(tmp_path: Path) -> None:
    painter = Moody({"b 0": [Fault.UNSAFE, Fault.UNSAFE, Fault.BLACK]})
    pictures = complete(painter, tmp_path).pictures()
    assert pictures.faults() == [
        {"class": 1, "name": "b", "prompt": "b 0", "repeat": 0, "faults": ["unsafe", "unsafe", "black"]}
    ]
    there = [prompt for prompt in WANTED if prompt.text != "b 0"]
    assert list(pictures.prompts) == there
    assert len(pictures.ids) == len(pictures.paths) == len(set(pictures.ids)) == len(there)
    before = tree(tmp_path)
    again = complete(painter, tmp_path)
    assert (painter.asked, again.pictures(), tree(tmp_path)) == ([], pictures, before)


def test_more_retries_go_on_where_fewer_ended(tmp_path: Path) -> None:
    moods = {"b 0": [Fault.FLAT] * 4}
    assert len(complete(Moody(moods, retries=1), tmp_path).pictures().missing) == 1
    more = Moody(moods, retries=4)
    assert complete(more, tmp_path).pictures().missing == []
    assert more.asked == [("b 0", 2), ("b 0", 3), ("b 0", 4)]
    # Nor does the store know more than it is asked for: fewer retries say what they said alone.
    assert len(complete(Moody(moods, retries=1), tmp_path).pictures().missing) == 1


def test_a_marker_that_is_taken_away_or_damaged_has_the_image_drawn_again(tmp_path: Path) -> None:
    complete(Moody({"b 0": [Fault.FLAT]}, retries=0), tmp_path)
    (marker,) = tmp_path.rglob("*.fault.json")
    about = json.loads(marker.read_text(encoding="utf-8"))
    assert about == {"fault": "flat", "class_index": 1, "text": "b 0", "repeat": 0, "seed": 0, "attempt": 0}
    for spoil in (marker.unlink, lambda: marker.write_text("{"), lambda: marker.write_text('{"fault": "tired"}')):
        spoil()
        again = Moody({"b 0": [Fault.FLAT]}, retries=0)
        assert len(complete(again, tmp_path).pictures().missing) == 1
        assert again.asked == [("b 0", 0)]


def test_a_class_without_an_image_is_an_error_that_names_it(tmp_path: Path) -> None:
    painter = Moody({"c 0": [Fault.UNSAFE] * 3, "c 1": [Fault.FLAT] * 3, "a 0": [Fault.FLAT] * 3})
    drawing = complete(painter, tmp_path)
    with pytest.raises(ValueError, match=r"class 2 \('c'\): not one of 2 images .*1 unsafe, 1 flat.*diffuser\.retries"):
        drawing.pictures()


@pytest.mark.parametrize("seed_of", [noise_seed, shared_noise_seed])
def test_every_attempt_has_a_seed_of_its_own(seed_of: Callable[[Prompt, int, int], int]) -> None:
    seeds = [seed_of(prompt, seed, k) for prompt in PROMPTS[:1] for seed in (0, 1) for k in range(4)]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [seed_of(prompt, seed, k) for prompt in PROMPTS[:1] for seed in (0, 1) for k in range(4)]


def test_a_batch_that_breaks_while_it_is_written_leaves_whole_images_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = complete(Moody({"a 1": [Fault.FLAT]}, batch_size=4), tmp_path / "whole")
    put = ImageStore.put

    def full_disk(store: ImageStore, name: str, pixels: np.ndarray, about: dict[str, object]) -> None:
        if about["text"] == "b 0":
            raise OSError(28, "No space left on device")
        put(store, name, pixels, about)

    monkeypatch.setattr(ImageStore, "put", full_disk)
    with pytest.raises(OSError, match="No space left"):
        complete(Moody({"a 1": [Fault.FLAT]}, batch_size=4), tmp_path / "cut")
    monkeypatch.setattr(ImageStore, "put", put)
    left = stored(tmp_path / "cut")
    assert not [name for name in left if "/." in name], "half-written files"
    assert left.items() < stored(tmp_path / "whole").items()
    rest = Moody({"a 1": [Fault.FLAT]}, batch_size=4)
    assert complete(rest, tmp_path / "cut").pictures().ids == whole.pictures().ids
    assert stored(tmp_path / "cut") == stored(tmp_path / "whole")
    assert ("a 1", 0) not in rest.asked, "its fault was in the store"


def test_a_run_leaves_faulty_images_out_and_says_so(
    fresh_world: World, guarded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = replace(fresh_world, diffuser=guarded)
    result = judge(world, tmp_path / "run", "diffuser.retries=0")
    gone = result["missing_images"]
    assert 0 < len(gone) < len(PROMPTS)
    assert {tuple(one["faults"]) for one in gone} == {("unsafe",)}
    assert f"{len(gone)} synthetic images of" in capsys.readouterr().out
    there = len(PROMPTS) - len(gone)
    assert made(result)["features"] == 3 + there + result["n"]
    assert len(rows(tmp_path / "run" / "predictions.csv")) == result["n"]

    export_features(tmp_path / "run", tmp_path / "features.npz")
    arrays = np.load(tmp_path / "features.npz")
    assert arrays["synthetic"].shape[:2] == (there, 1)
    lost = np.bincount([one["class"] for one in gone], minlength=3)
    np.testing.assert_array_equal(np.bincount(arrays["synthetic_labels"], minlength=3), 3 - lost)

    again = judge(world, tmp_path / "again", "diffuser.retries=0")
    assert made(again) == {"prompts": 0, "images": 0, "features": 0}
    assert (again["metrics"], again["missing_images"]) == (result["metrics"], gone)

    call("generate", *world.generating(), "diffuser.retries=0", f"hydra.run.dir={tmp_path / 'drawn'}")
    assert f"{there} images of 3 classes, {len(gone)} could not be had" in capsys.readouterr().out
    assert len((tmp_path / "drawn" / "images.jsonl").read_text().splitlines()) == there


def test_prototypes_are_those_of_the_images_that_are_there(fresh_world: World, guarded: Path, tmp_path: Path) -> None:
    """The oracle: the mean of each class's own features, taken from the export."""
    judge(replace(fresh_world, diffuser=guarded), tmp_path / "run", "diffuser.retries=0", "method=lgclip")
    export_features(tmp_path / "run", tmp_path / "features.npz")
    arrays = np.load(tmp_path / "features.npz")
    synthetic, labels = arrays["synthetic"][:, 0], arrays["synthetic_labels"]
    means = np.stack([synthetic[labels == c].mean(axis=0) for c in range(3)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    expected = (arrays["real"][:, 0] @ means.T).argmax(axis=1)
    assert [int(row["prediction"]) for row in rows(tmp_path / "run" / "predictions.csv")] == expected.tolist()


def test_a_class_that_cannot_be_drawn_is_one_plain_line(
    fresh_world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = replace(fresh_world, diffuser=guarded_folder(tmp_path / "strict", -1.0))
    with pytest.raises(SystemExit) as end:
        judge(world, tmp_path / "run", "diffuser.retries=1")
    said = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 1
    assert said.startswith("error: class 0 ('blue moon'): not one of 3 images could be used (3 unsafe)")
