"""Tests prompt tuning: the same vectors interrupted or not, on one device or two, without hidden labels."""

import json
import signal
import sys
from dataclasses import replace
from itertools import count, product
from pathlib import Path
from typing import Any, NoReturn

import fit_prompts
import pytest
import torch
import torch.nn.functional as F
from factories import read_csv, read_tree
from multiprocess_runs import start_process, wait_for_processes
from prompt_factories import (
    PER_CLASS,
    Relabelled,
    encoder_of,
    hidden_labels_of,
    setup_of,
    small_config,
    train_prompts,
    tuning_data_of,
)
from safetensors.torch import load_file
from student_factories import NAMES, ColorPatches, build_context, build_stages, key_inputs, one_cpu

from lgclip.datasets.splits import DatasetSplits
from lgclip.encoder.scales import SquareCrops
from lgclip.encoder.timm import Timm
from lgclip.stages.extract import encode
from lgclip.training.loop import run_training
from lgclip.training.prompt_tuning.encoder import LearnedPrompts
from lgclip.training.prompt_tuning.paradigms import Paradigm
from lgclip.training.prompt_tuning.pool import PromptTuningData, check_apart
from lgclip.training.prompt_tuning.pseudo_labelling import assign_pseudo_labels
from lgclip.training.prompt_tuning.rounds import PromptTuningLoop
from lgclip.training.prompt_tuning.soft_prompts import TextContext, TextPrompt
from lgclip.training.prompt_tuning.task import PromptTuningSetup
from lgclip.training.prompt_tuning.train import PromptTraining

CPU = torch.device("cpu")


def vectors(folder: Path) -> dict[str, torch.Tensor]:
    return {path.stem: load_file(path)["vectors"] for path in sorted(folder.glob("*.safetensors"))}


def about(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "prompt_tuning.json").read_text())


def assert_equal(results: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert results.keys() == expected.keys() != set()
    assert [name for name, value in expected.items() if not torch.equal(results[name], value)] == []


def test_prompts_are_saved_atomically(tmp_path: Path) -> None:
    tuning_data = tuning_data_of(tmp_path, "ssl")
    folder = train_prompts(
        setup_of(tmp_path, tuning_data, rounds=3, epochs=4), tmp_path / "made", hidden=hidden_labels_of(tuning_data)
    )
    assert {Path(name).name for name in read_tree(tmp_path / "made")} == {"text.safetensors", "prompt_tuning.json"}
    metadata = about(folder)
    assert [row["round"] for row in metadata["rounds"]] == [0, 1, 2, 3]
    assert [row["k"] for row in metadata["rounds"][1:]] == [2, 4, 6], "int(n * int(18 / 3) / 3)"
    assert [row["coverage"] for row in metadata["rounds"][1:]] == pytest.approx([6 / 18, 12 / 18, 1.0])
    assert all(0 <= row[name] <= 1 for row, name in product(metadata["rounds"][1:], ("precision", "accuracy")))
    assert metadata["trained_on"] == {"labelled": 6, "unlabelled": 18, "synthetic": 0}
    assert metadata["seen"] == metadata["unseen"] == [], "these are words of another paradigm"
    assert vectors(folder)["text"].shape == (4, 32)
    assert "text prompt after 3 rounds; on the pool's unlabelled images" in PromptTraining.summary(folder)


def test_trained_prompts_are_reused(tmp_path: Path) -> None:
    setup = setup_of(tmp_path)
    folder = train_prompts(setup, tmp_path)
    before = read_tree(folder)

    def never(**_: Any) -> NoReturn:
        raise AssertionError("no trainer is made")

    assert train_prompts(setup, tmp_path) == folder
    stages = build_stages()
    assert run_training(PromptTraining(setup), build_context(tmp_path, never, stages=stages)) == folder
    assert read_tree(folder) == before
    assert [(stats.stage, stats.computed, stats.reused) for stats in stages.stage_stats] == [("prompt tuning", 0, 2)]


@pytest.mark.parametrize("kind", ["ul", "ssl", "trzsl"])
def test_hidden_labels_change_nothing(kind: str, tmp_path: Path) -> None:
    """Checks both the labels used for analysis and those of the pool."""
    tuning_data = tuning_data_of(tmp_path, kind)
    blind = train_prompts(setup_of(tmp_path, tuning_data), tmp_path / "blind")
    hidden = hidden_labels_of(tuning_data)
    seeing = train_prompts(setup_of(tmp_path, tuning_data), tmp_path / "seeing", hidden=hidden[::-1])
    assert_equal(vectors(seeing), vectors(blind))
    assert "precision" in about(seeing)["rounds"][1]
    assert "precision" not in about(blind)["rounds"][1]
    # The unlabelled images' labels the other way round: classes, division and key stay as they are.
    labels = list(ColorPatches(PER_CLASS, "train").labels)
    for index, label in zip(tuning_data.class_split.unlabelled.tolist(), hidden[::-1], strict=True):
        labels[index] = label
    if kind != "ssl":  # there, which images are drawn to be labelled depends on the classes' sizes and places
        relabelled = tuning_data_of(tmp_path, kind, Relabelled(labels))
        assert PromptTraining(setup_of(tmp_path, relabelled)).folder(tmp_path) == PromptTraining(
            setup_of(tmp_path, tuning_data)
        ).folder(tmp_path)
        assert_equal(vectors(train_prompts(setup_of(tmp_path, relabelled), tmp_path / "other")), vectors(blind))


def test_pool_metadata_has_no_hidden_label(tmp_path: Path) -> None:
    tuning_data = tuning_data_of(tmp_path, "trzsl")
    assert set(tuning_data.labels.tolist()) == set(tuning_data.class_split.seen_classes)
    assert (
        len(tuning_data.labels)
        == len(tuning_data.class_split.labelled)
        == PER_CLASS * len(tuning_data.class_split.seen_classes)
    )
    assert (
        set(tuning_data.class_split.targets)
        == set(tuning_data.class_split.unseen)
        == {0, 1, 2} - set(tuning_data.class_split.seen_classes)
    )


def test_text_prompts_use_stored_features(tmp_path: Path) -> None:
    def fail(_: int) -> NoReturn:
        raise AssertionError("no image is read")

    tuning_data = tuning_data_of(tmp_path, images=4)
    assert tuning_data.synthetic is not None
    tuning_data = replace(
        tuning_data, pool=replace(tuning_data.pool, load=fail), synthetic=replace(tuning_data.synthetic, load=fail)
    )
    setup = setup_of(tmp_path, tuning_data, synthetic_weight=1.0, auxiliary="selected")
    assert PromptTraining(setup).is_complete(train_prompts(setup, tmp_path))


@pytest.mark.multiprocess
def test_killed_round_resumes_exactly(
    tmp_path: Path,
) -> None:
    script = [sys.executable, fit_prompts.__file__, str(tmp_path)]
    wait_for_processes([start_process([*script, "killed"])], status=-signal.SIGKILL)
    (left,) = (tmp_path / "killed").glob("store/prompts_learned/*")
    assert set(read_tree(left)) == {"checkpoints/rounds.safetensors", "checkpoints/02/last.safetensors"}
    wait_for_processes([start_process(script)])
    (alone,), (shared,) = (list((tmp_path / str(n)).glob("store/prompts_learned/*")) for n in (1, 2))
    assert alone.name == shared.name == left.name, "how many devices there are is in no key"
    fit_prompts.fit(tmp_path, tmp_path / "killed", 1)
    assert_equal(vectors(left), vectors(alone))
    assert not (left / "checkpoints").exists()
    assert (about(shared)["devices"], about(alone)["devices"]) == (2, 1)
    for kind, value in vectors(shared).items():
        torch.testing.assert_close(value, vectors(alone)[kind], rtol=1e-3, atol=1e-5)


def test_rounds_restart_or_continue(tmp_path: Path) -> None:
    """Checks a round's first loss: that of its initial prompt on the labels of the round before."""
    tuning_data = tuning_data_of(tmp_path)
    encoder = encoder_of(tmp_path)
    recipe: dict[str, Any] = {"shots": 8, "batch_size": 24}
    once = train_prompts(setup_of(tmp_path, tuning_data, rounds=1, **recipe), tmp_path)
    new = TextPrompt(encoder.learning_towers(CPU, "text"), TextContext(tokens=4), NAMES)().detach()
    last = LearnedPrompts(str(once)).class_features(encoder, NAMES, CPU)
    assert last is not None
    pseudo_labels = assign_pseudo_labels(small_config(**recipe), tuning_data.pool.features @ last.T, 0.05, None, 8)
    assert sorted(pseudo_labels.places.tolist()) == list(range(24))
    for warm, begins_with in ((False, new), (True, last)):
        folder = train_prompts(setup_of(tmp_path, tuning_data, warm_start=warm, **recipe), tmp_path)
        logits = (tuning_data.pool.features @ begins_with.T / 0.05)[pseudo_labels.places]
        expected = F.cross_entropy(logits, pseudo_labels.sets.long().argmax(dim=1)).item()
        assert about(folder)["rounds"][2]["losses"][0] == pytest.approx(expected, rel=1e-4)


def test_release_templates_and_warm_start(tmp_path: Path) -> None:
    tuning_data = tuning_data_of(tmp_path)
    encoder = encoder_of(tmp_path)
    assert small_config(release_bugs=True).starts_from_previous
    assert not small_config(release_bugs=True, modality="visual").starts_from_previous
    text_features = encoder.load(CPU).texts([f"a photo of a {{}}{name}" for name in NAMES])
    loop = PromptTuningLoop(small_config(release_bugs=True, rounds=0), encoder, tuning_data, tmp_path / "zero", CPU, 0)
    trained, _ = loop.run(one_cpu, one_cpu(logger=False, enable_checkpointing=False), None, False)
    torch.testing.assert_close(trained.cosines, tuning_data.pool.features @ text_features.T)


def test_release_holds_out_a_fifth_of_many_pseudo_labels(tmp_path: Path) -> None:
    tuning_data = tuning_data_of(tmp_path)
    counts = {}
    for shots in (6, 10):
        for release in (False, True):
            folder = train_prompts(setup_of(tmp_path, tuning_data, shots=shots, release_bugs=release), tmp_path)
            counts[shots, release] = about(folder)["rounds"][1]["guessed"]

    # The release's boards may list an image twice, so that the counts differ otherwise too.
    assert counts[10, True] == int(0.8 * 10 * len(NAMES))
    assert counts[6, True] == 6 * len(NAMES)
    assert counts[10, False] <= 24


@pytest.mark.slow
def test_synthetic_images_are_used(tmp_path: Path) -> None:
    tuning_data = tuning_data_of(tmp_path, images=5)
    ways: dict[str, dict[str, Any]] = {
        "grip": {}, "aided": {"auxiliary": "selected"},
        "given": {"auxiliary": "fixed", "aux_neighbors": 2, "aux_weight":
        3.0}, "all": {"auxiliary": "selected", "synthetic_weight": 1.0},
        "few": {"synthetic_weight": 1.0, "synthetic_images": 2},
        "cpl": {"candidate_labels": True, "alpha": 0.6, "beta": 0.5},
    }  # fmt: skip
    results = {
        name: train_prompts(setup_of(tmp_path, tuning_data, **settings), tmp_path, hidden=hidden_labels_of(tuning_data))
        for name, settings in ways.items()
    }
    assert len({vectors(folder)["text"].numpy().tobytes() for folder in results.values()}) >= 5, "two may guess alike"
    assert about(results["grip"])["auxiliary"] is None
    assert about(results["given"])["auxiliary"] == {
        "keep": 2, "weight": 3.0, "text_temperature": 0.05, "aux_temperature": 0.01, "leave_one_out": None,
        "text_left_out": None, "prior": False,
    }  # fmt: skip
    assert about(results["aided"])["auxiliary"]["leave_one_out"] >= 0.9, "a random tower separates the colors"
    assert about(results["few"])["trained_on"]["synthetic"] == 6
    assert about(results["cpl"])["rounds"][1]["candidates"] >= 1
    precision = {name: about(folder)["rounds"][1]["precision"] for name, folder in results.items()}
    assert precision["given"] > precision["grip"], "sentences of a random tower say nothing of colors"


def test_prior_counts_where_held_out_images_are_too_easy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tuning_data = tuning_data_of(tmp_path, images=5)
    assert tuning_data.synthetic is not None
    # Sentences that are the mean image of their class: the text then classifies each held-out image correctly.
    easy = replace(tuning_data, sentences=tuning_data.support(None).means(renormalize=True))
    recipe: dict[str, Any] = {"auxiliary": "selected", "synthetic_weight": 1.0}
    places = count()

    def metadata(data: PromptTuningData, **values: Any) -> dict[str, Any]:
        caplog.clear()
        # A folder for each: the sentences are no part of the key, since they follow from templates and class names.
        folder = tmp_path / str(next(places))
        return about(train_prompts(setup_of(tmp_path, data, **recipe, **values), folder))["auxiliary"]

    trusted = metadata(easy)
    assert trusted["text_left_out"] == 1.0
    assert not trusted["prior"]
    assert "the text prompts classify 100.0% of the held-out synthetic images" in caplog.text
    assert "prompt_tuning.prior_weight" in caplog.text
    prior = metadata(easy, prior_weight=0.125)
    assert (prior["weight"], prior["prior"]) == (0.125, True)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    # With a text that is often wrong the selection stays, and nothing is said.
    hard = replace(easy, sentences=easy.sentences.roll(1, dims=0))
    selected = metadata(hard, prior_weight=0.125)
    assert not selected["prior"]
    assert selected["text_left_out"] < 0.98
    assert "prior_weight" not in caplog.text


def test_prior_also_weights_the_loss(tmp_path: Path) -> None:
    """A prior of 0 leaves the synthetic images out: the prompts are GRIP's."""
    tuning_data = tuning_data_of(tmp_path, images=5)
    easy = replace(tuning_data, sentences=tuning_data.support(None).means(renormalize=True))
    grip = setup_of(tmp_path, easy)
    without = setup_of(tmp_path, easy, auxiliary="selected", synthetic_weight=1.0, prior_weight=0.0)
    # The first round's temperature is fitted on the synthetic images, which changes confidences but no ranking here.
    expected = vectors(train_prompts(grip, tmp_path / "grip"))
    assert_equal(vectors(train_prompts(without, tmp_path / "prior")), expected)


def test_auxiliary_rounds_end(tmp_path: Path) -> None:
    tuning_data = tuning_data_of(tmp_path, images=5)
    recipe: dict[str, Any] = {"auxiliary": "fixed", "aux_neighbors": 2, "aux_weight": 3.0, "rounds": 2}

    def rounds(**values: Any) -> list[dict[str, Any]]:
        folder = train_prompts(setup_of(tmp_path, tuning_data, **recipe, **values), tmp_path)
        return about(folder)["rounds"]

    everywhere = rounds()
    first = rounds(auxiliary_rounds=1)
    assert first[1] == everywhere[1]
    assert first[2] != everywhere[2]
    assert rounds(auxiliary_rounds=2) == everywhere


def test_zero_rounds_is_zero_shot(tmp_path: Path) -> None:
    tuning_data = tuning_data_of(tmp_path)
    folder = train_prompts(setup_of(tmp_path, tuning_data, rounds=0), tmp_path, hidden=hidden_labels_of(tuning_data))
    assert set(read_tree(folder)) == {"prompt_tuning.json"}
    right = (
        (
            (tuning_data.pool.features @ tuning_data.sentences.T).argmax(dim=1)
            == torch.tensor(hidden_labels_of(tuning_data))
        )
        .float()
        .mean()
    )
    assert about(folder)["rounds"] == [{"round": 0, "accuracy": pytest.approx(float(right))}]
    assert LearnedPrompts(str(folder)).class_features(encoder_of(tmp_path), NAMES, CPU) is None
    assert PromptTraining.summary(folder).endswith("nothing tuned, zero-shot")


def test_epochs_and_rounds_are_logged(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    tuning_data = tuning_data_of(tmp_path)
    logger = CSVLogger(tmp_path, "log")
    folder = train_prompts(
        setup_of(tmp_path, tuning_data), tmp_path, hidden=hidden_labels_of(tuning_data), logger=logger
    )
    logged = read_csv(next((tmp_path / "log").rglob("metrics.csv")))
    rounds = about(folder)["rounds"][1:]
    assert [float(row["loss"]) for row in logged] == pytest.approx([loss for row in rounds for loss in row["losses"]])
    reported_rounds = [float(row["accuracy"]) for row in logged if row["accuracy"]]
    assert reported_rounds == pytest.approx([row["accuracy"] for row in rounds])


def test_invalid_settings_are_rejected_early(tmp_path: Path) -> None:
    tuning_data = tuning_data_of(tmp_path)
    encoder = encoder_of(tmp_path)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"shots": 25}, r"K=25 pseudo-labels of a class: it must be 1 to 24"),
        ({"auxiliary": "selected"}, "uses synthetic images of each class, and there are none"),
    ]
    for values, message in bad:
        with pytest.raises(ValueError, match=message):
            setup_of(tmp_path, tuning_data, **values)
    with pytest.raises(ValueError, match=r"prompt_tuning\.synthetic_images=5: class 0 has 4; generate more"):
        setup_of(tmp_path, tuning_data_of(tmp_path, images=4), synthetic_weight=1.0, synthetic_images=5)
    two = replace(tuning_data, scales=SquareCrops((1.0, 0.5), (1.0, 1.0)))
    with pytest.raises(ValueError, match=r"prompt_tuning\.modality=visual: .*choose scales=single"):
        PromptTuningSetup(small_config(modality="visual"), encoder, two)
    with pytest.raises(ValueError, match=r"encoder\.precision=fp16"):
        PromptTuningSetup(small_config(), replace(encoder, precision="fp16"), tuning_data)
    with pytest.raises(ValueError, match="no text tower"):
        PromptTuningSetup(small_config(), Timm("test_vit", checkpoint=None, precision="fp32"), tuning_data)
    streams, pool = encode(
        build_context(tmp_path / "store"),
        ColorPatches(PER_CLASS, "train"),
        encoder,
        SquareCrops(),
        synthetic_images=None,
    )
    with pytest.raises(ValueError, match="choose an encoder with a text tower"):
        PromptTuningData.create(streams.streams[1:], pool, Paradigm(), SquareCrops())


class PatchSplits(DatasetSplits):
    """Contains test images and a pool of others."""

    def __init__(self) -> None:
        super().__init__(lambda **_: ColorPatches(PER_CLASS, "test"))
        self.unlabeled_pool = ColorPatches(PER_CLASS, "train")


def test_setup_separates_hidden_labels(tmp_path: Path) -> None:
    splits = PatchSplits()
    inputs = key_inputs(splits, encoder_of(tmp_path), SquareCrops())
    setup, hidden = PromptTuningSetup.create(small_config(), Paradigm("trzsl"), inputs, build_context(tmp_path))
    assert hidden == hidden_labels_of(setup.data)
    assert PromptTraining(setup).is_complete(train_prompts(setup, tmp_path, hidden=hidden))


def test_diverging_rate_is_reported(tmp_path: Path) -> None:
    setup = setup_of(tmp_path, lr=1e30, epochs=6)
    with pytest.raises(
        ValueError, match=r"prompt_tuning\.lr=1e\+30: the loss of epoch \d is not a number; lower the rate"
    ):
        train_prompts(setup, tmp_path)
    task = PromptTraining(setup)
    assert not task.is_complete(task.folder(tmp_path))


def test_no_test_image_is_used() -> None:
    check_apart(ColorPatches(PER_CLASS, "train"), ColorPatches(PER_CLASS, "test"))
    with pytest.raises(ValueError, match="24 of the 24 images to train on are among the evaluated ones, first image"):
        check_apart(ColorPatches(PER_CLASS, "test"), ColorPatches(PER_CLASS, "test"))


def test_aligned_images_move_by_the_mean_difference(tmp_path: Path) -> None:
    tuning_data = tuning_data_of(tmp_path, images=4)
    aligned = tuning_data.aligned()
    assert tuning_data.synthetic is not None
    assert aligned.synthetic is not None
    features = aligned.synthetic.features
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(features)))
    assert torch.equal(aligned.pool.features, tuning_data.pool.features)

    def gap(data: PromptTuningData) -> float:
        assert data.synthetic is not None
        return float((data.synthetic.features.mean(dim=0) - data.pool.features.mean(dim=0)).norm())

    assert gap(aligned) < 0.5 * gap(tuning_data)


def test_alignment_needs_synthetic_images_and_text_prompts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this recipe uses synthetic images of each class"):
        tuning_data_of(tmp_path).aligned()
    with pytest.raises(ValueError, match=r"prompt_tuning\.align_synthetic=true moves features"):
        small_config(align_synthetic=True, modality="visual")
    for values in ({"auxiliary_rounds": 1}, {"center_auxiliary": True}):
        with pytest.raises(ValueError, match="are of the auxiliary classifier"):
            small_config(**values)
    for auxiliary in ("none", "fixed"):
        with pytest.raises(ValueError, match=r"prior_weight=0\.5 replaces a selected value"):
            small_config(prior_weight=0.5, auxiliary=auxiliary)
