"""Tests faulty images: detected, generated again, then listed, and never part of a prototype."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import (
    NAMES,
    SENTENCES,
    Sandbox,
    computed_counts,
    evaluate_run,
    make_diffuser,
    read_arrays,
    read_csv,
    read_store,
    read_tree,
    run_command,
)
from hypothesis import given
from hypothesis import strategies as st
from lightning import Trainer
from pipelines import guarded_folder, similarity

from lgclip.datasets.image_decoding import FLAT_STD
from lgclip.diffuser.base import GeneratedBatch, ImageGenerator, image_prompts, noise_seed, shared_noise_seed
from lgclip.diffuser.image_checks import fault_of, faults_of
from lgclip.diffuser.pipeline import Diffuser
from lgclip.diffuser.sampling_loop import SamplingPipeline
from lgclip.reporting.export_features import export_features
from lgclip.stages.images import ImageGenerationStage
from lgclip.stages.runner import StageBar, Stages, quiet
from lgclip.store.images import ImageStore
from lgclip.types import Fault, Prompt, TargetClass

pytest_plugins = ("run_fixtures",)

CPU = torch.device("cpu")
SUBJECTS = [TargetClass(c, name) for c, name in enumerate(NAMES)]
PROMPTS = image_prompts(SUBJECTS, [[s.replace("{}", name) for s in SENTENCES[:3]] for name in NAMES], 3, 1)


def noise(spread: float, seed: int = 0) -> np.ndarray:
    """Returns an image whose channels have about this standard deviation in gray levels."""
    return np.clip(np.random.default_rng(seed).normal(128, spread, (32, 32, 3)).round(), 0, 255).astype(np.uint8)


def predictions(*images: np.ndarray, finite: bool = True, flagged: bool = False) -> list[Fault | None]:
    tensor = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    return faults_of(tensor, [finite] * len(images), [flagged] * len(images))


def test_faults_are_distinguished() -> None:
    black = np.zeros((8, 8, 3), np.uint8)
    gray = np.full((8, 8, 3), 99, np.uint8)
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200  # a channel differs from another, yet nothing is in it
    assert predictions(black, gray, red, noise(20)[:8, :8]) == [Fault.BLACK, Fault.FLAT, Fault.FLAT, None]
    assert predictions(black, noise(20)[:8, :8], flagged=True) == [Fault.UNSAFE] * 2
    assert predictions(noise(20), finite=False, flagged=True) == [Fault.NOT_FINITE]
    for bad in (float("nan"), float("inf")):
        image = torch.rand(1, 3, 8, 8)
        image[0, 1, 2, 3] = bad
        assert faults_of(image, [True], [False]) == [Fault.NOT_FINITE]


@given(st.floats(0, 4), st.integers(0, 3))
def test_file_and_image_checks_agree(spread: float, seed: int) -> None:
    image = noise(spread, seed)
    expected = Fault.FLAT if image.reshape(-1, 3).std(axis=0).max() < FLAT_STD else None
    assert fault_of(image) == predictions(image)[0] == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_plain_half_precision_image_is_no_fault(dtype: torch.dtype) -> None:
    assert faults_of(torch.from_numpy(noise(6)).permute(2, 0, 1)[None].to(dtype) / 255, [True], [False]) == [None]


def faulty_pipeline(folder: Path, part: str, spoil: Callable[[Any], None]) -> SamplingPipeline:
    """Returns a pipeline with one corrupted weight."""
    pipeline: Any = Diffuser(str(make_diffuser(folder))).load(CPU).pipeline
    with torch.no_grad():
        spoil(pipeline.components[part])
    pipeline.save_pretrained(folder)
    return Diffuser(str(folder), steps=2, guidance=3.0, size=32).load(CPU)


@pytest.mark.slow
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
def test_broken_pipeline_is_detected(part: str, spoil: Callable[[Any], None], fault: Fault, tmp_path: Path) -> None:
    assert faulty_pipeline(tmp_path, part, spoil).generate(PROMPTS[:2], 0, [0, 0]).faults == [fault] * 2


@pytest.fixture(scope="module")
def limit(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Returns a limit of the safety checker in the widest gap between the sandbox's images."""
    brush = load(guarded_folder(tmp_path_factory.mktemp("open"), 1.0))
    scores = sorted(similarity(brush.pipeline, brush(PROMPTS, 0)))
    gaps = [(above - below, (above + below) / 2) for below, above in pairwise(scores[4:])]
    return max(gaps)[1]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, limit: float) -> Path:
    return guarded_folder(tmp_path_factory.mktemp("guarded") / "model", limit)


def load(folder: Path) -> SamplingPipeline:
    return Diffuser(str(folder), steps=2, guidance=3.0, size=32).load(CPU)


@pytest.mark.slow
def test_safety_checker_result_is_used(guarded: Path, limit: float, tmp_path: Path) -> None:
    plain = load(guarded_folder(tmp_path / "open", 1.0))
    pixels = plain(PROMPTS, 0)
    expected = [Fault.UNSAFE if score > limit else None for score in similarity(plain.pipeline, pixels)]
    generated = load(guarded).generate(PROMPTS, 0, [0] * len(PROMPTS))
    assert generated.faults == expected
    assert 0 < expected.count(Fault.UNSAFE) < len(PROMPTS)
    for fault, guarded_image, image in zip(expected, generated.pixels, pixels, strict=True):
        np.testing.assert_allclose(guarded_image.astype(int), 0 if fault else image, atol=1)


@dataclass(frozen=True)
class FaultyGenerator(ImageGenerator):
    """Generates with scripted faults per prompt and attempt."""

    moods: dict[str, list[Fault]]
    retries: int = 2
    size: int | None = None
    batch_size: int | str = 2
    requests: list[tuple[str, int]] = field(default_factory=list)

    def inputs(self) -> dict[str, object]:
        return {"painter": "moody"}

    def load(self, device: torch.device) -> "FaultyGenerator":
        return self

    def __call__(self, prompts: Sequence[Prompt], seed: int) -> np.ndarray:
        raise AssertionError("the stage wants to know of faults")

    def generate(self, prompts: Sequence[Prompt], seed: int, attempts: Sequence[int]) -> GeneratedBatch:
        self.requests.extend((prompt.text, attempt) for prompt, attempt in zip(prompts, attempts, strict=True))
        pixels = [noise(40, noise_seed(p, seed, k) % 2**32) for p, k in zip(prompts, attempts, strict=True)]
        moods = [self.moods.get(prompt.text, []) for prompt in prompts]
        return GeneratedBatch(
            np.stack(pixels), [dict(enumerate(m)).get(k) for m, k in zip(moods, attempts, strict=True)]
        )


CLASSES = [TargetClass(c, name) for c, name in enumerate("abc")]
WANTED = [Prompt(target_class, f"{target_class.name} {i}", 0) for target_class, i in product(CLASSES, range(2))]


def complete(painter: FaultyGenerator, root: Path) -> ImageGenerationStage:
    quiet()
    painter.requests.clear()
    synthetic_images = ImageGenerationStage(painter, root, CLASSES, WANTED, 0)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[StageBar()])
    Stages(trainer).complete("images", synthetic_images, len(WANTED))
    return synthetic_images


def test_faulty_image_is_regenerated_with_the_next_seed(tmp_path: Path) -> None:
    painter = FaultyGenerator({"a 1": [Fault.UNSAFE], "c 0": [Fault.FLAT, Fault.NOT_FINITE]})
    synthetic_images = complete(painter, tmp_path).synthetic_images()
    assert sorted(painter.requests) == sorted(
        [*((prompt.text, 0) for prompt in WANTED), ("a 1", 1), ("c 0", 1), ("c 0", 2)]
    )
    assert (list(synthetic_images.prompts), synthetic_images.missing, synthetic_images.faults()) == (WANTED, [], [])
    for index, prompt in enumerate(WANTED):
        attempt = {"a 1": 1, "c 0": 2}.get(prompt.text, 0)
        np.testing.assert_array_equal(
            np.asarray(synthetic_images.image(index)), noise(40, noise_seed(prompt, 0, attempt) % 2**32)
        )


def test_permanent_fault_is_listed_and_skipped(tmp_path: Path) -> None:
    painter = FaultyGenerator({"b 0": [Fault.UNSAFE, Fault.UNSAFE, Fault.BLACK]})
    synthetic_images = complete(painter, tmp_path).synthetic_images()
    assert synthetic_images.faults() == [
        {"class": 1, "name": "b", "prompt": "b 0", "repeat": 0, "faults": ["unsafe", "unsafe", "black"]}
    ]
    available = [prompt for prompt in WANTED if prompt.text != "b 0"]
    assert list(synthetic_images.prompts) == available
    assert len(synthetic_images.ids) == len(synthetic_images.paths) == len(set(synthetic_images.ids)) == len(available)
    before = read_tree(tmp_path)
    again = complete(painter, tmp_path)
    assert (painter.requests, again.synthetic_images(), read_tree(tmp_path)) == ([], synthetic_images, before)


def test_more_retries_continue(tmp_path: Path) -> None:
    moods = {"b 0": [Fault.FLAT] * 4}
    assert len(complete(FaultyGenerator(moods, retries=1), tmp_path).synthetic_images().missing) == 1
    retried = FaultyGenerator(moods, retries=4)
    assert complete(retried, tmp_path).synthetic_images().missing == []
    assert retried.requests == [("b 0", 2), ("b 0", 3), ("b 0", 4)]
    # Nor does the store know more than it is asked for: fewer retries say what they said alone.
    assert len(complete(FaultyGenerator(moods, retries=1), tmp_path).synthetic_images().missing) == 1


def test_removed_marker_triggers_regeneration(tmp_path: Path) -> None:
    complete(FaultyGenerator({"b 0": [Fault.FLAT]}, retries=0), tmp_path)
    (marker,) = tmp_path.rglob("*.fault.json")
    about = json.loads(marker.read_text(encoding="utf-8"))
    identity = {"class": "b", "occurrence": 0, "text": "b 0", "repeat": 0}
    assert about == {"fault": "flat", **identity, "seed": 0, "attempt": 0}
    for spoil in (marker.unlink, lambda: marker.write_text("{"), lambda: marker.write_text('{"fault": "tired"}')):
        spoil()
        again = FaultyGenerator({"b 0": [Fault.FLAT]}, retries=0)
        assert len(complete(again, tmp_path).synthetic_images().missing) == 1
        assert again.requests == [("b 0", 0)]


def test_class_without_images_is_an_error(tmp_path: Path) -> None:
    painter = FaultyGenerator({"c 0": [Fault.UNSAFE] * 3, "c 1": [Fault.FLAT] * 3, "a 0": [Fault.FLAT] * 3})
    synthetic_images = complete(painter, tmp_path)
    with pytest.raises(ValueError, match=r"class 2 \('c'\): not one of 2 images .*1 unsafe, 1 flat.*diffuser\.retries"):
        synthetic_images.synthetic_images()


@pytest.mark.parametrize("seed_of", [noise_seed, shared_noise_seed])
def test_every_attempt_has_its_own_seed(seed_of: Callable[[Prompt, int, int], int]) -> None:
    seeds = [seed_of(prompt, seed, k) for prompt, seed, k in product(PROMPTS[:1], (0, 1), range(4))]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [seed_of(prompt, seed, k) for prompt, seed, k in product(PROMPTS[:1], (0, 1), range(4))]


def test_interrupted_batch_keeps_complete_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uninterrupted = complete(FaultyGenerator({"a 1": [Fault.FLAT]}, batch_size=4), tmp_path / "whole")
    put = ImageStore.put

    def full_disk(store: ImageStore, name: str, pixels: np.ndarray, about: dict[str, object]) -> None:
        if about["text"] == "b 0":
            raise OSError(28, "No space left on device")
        put(store, name, pixels, about)

    monkeypatch.setattr(ImageStore, "put", full_disk)
    with pytest.raises(OSError, match="No space left"):
        complete(FaultyGenerator({"a 1": [Fault.FLAT]}, batch_size=4), tmp_path / "cut")
    monkeypatch.setattr(ImageStore, "put", put)
    left = read_store(tmp_path / "cut")
    assert not [name for name in left if "/." in name], "half-written files"
    assert left.items() < read_store(tmp_path / "whole").items()
    rest = FaultyGenerator({"a 1": [Fault.FLAT]}, batch_size=4)
    assert complete(rest, tmp_path / "cut").synthetic_images().ids == uninterrupted.synthetic_images().ids
    assert read_store(tmp_path / "cut") == read_store(tmp_path / "whole")
    assert ("a 1", 0) not in rest.requests, "its fault was in the store"


@pytest.mark.slow
def test_run_skips_and_reports_faulty_images(
    fresh_sandbox: Sandbox, guarded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sandbox = replace(fresh_sandbox, diffuser=guarded)
    result = evaluate_run(sandbox, tmp_path / "run", "diffuser.retries=0")
    missing = result["missing_images"]
    assert 0 < len(missing) < len(PROMPTS)
    assert {tuple(entry["faults"]) for entry in missing} == {("unsafe",)}
    assert f"{len(missing)} synthetic images of" in capsys.readouterr().out
    available_count = len(PROMPTS) - len(missing)
    assert computed_counts(result)["features"] == 3 + available_count + result["n"]
    assert len(read_csv(tmp_path / "run" / "predictions.csv")) == result["n"]

    export_features(tmp_path / "run", tmp_path / "features.npz")
    arrays = read_arrays(tmp_path / "features.npz")
    assert arrays["synthetic"].shape[:2] == (available_count, 1)
    lost = np.bincount([entry["class"] for entry in missing], minlength=3)
    np.testing.assert_array_equal(np.bincount(arrays["synthetic_labels"], minlength=3), 3 - lost)

    again = evaluate_run(sandbox, tmp_path / "again", "diffuser.retries=0")
    assert computed_counts(again) == {"prompts": 0, "images": 0, "features": 0}
    assert (again["metrics"], again["missing_images"]) == (result["metrics"], missing)

    run_command("generate", *sandbox.generate_overrides(), "diffuser.retries=0", f"hydra.run.dir={tmp_path / 'drawn'}")
    assert f"{available_count} images of 3 classes, {len(missing)} could not be generated" in capsys.readouterr().out
    assert len((tmp_path / "drawn" / "images.jsonl").read_text().splitlines()) == available_count


@pytest.mark.slow
def test_prototypes_use_available_images(fresh_sandbox: Sandbox, guarded: Path, tmp_path: Path) -> None:
    """Compares with the mean of each class's exported features."""
    evaluate_run(replace(fresh_sandbox, diffuser=guarded), tmp_path / "run", "diffuser.retries=0", "method=lgclip")
    export_features(tmp_path / "run", tmp_path / "features.npz")
    arrays = read_arrays(tmp_path / "features.npz")
    synthetic = arrays["synthetic"][:, 0]
    labels = arrays["synthetic_labels"]
    means = np.stack([synthetic[labels == c].mean(axis=0) for c in range(3)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    expected = (arrays["real"][:, 0] @ means.T).argmax(axis=1)
    assert [int(row["prediction"]) for row in read_csv(tmp_path / "run" / "predictions.csv")] == expected.tolist()


def test_class_without_valid_images_is_one_line(
    fresh_sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sandbox = replace(fresh_sandbox, diffuser=guarded_folder(tmp_path / "strict", -1.0))
    with pytest.raises(SystemExit) as end:
        evaluate_run(sandbox, tmp_path / "run", "diffuser.retries=1")
    stderr = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 1
    assert stderr.startswith("error: class 0 ('blue moon'): not one of 3 images could be used (3 unsafe)")
