"""A classifier knows its limits, and is mended: threshold, forecast, dropped images, new images, real shots."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_server import Answer, ChatServer, completion, good_sentences, send
from factories import NAMES, Sandbox, build_in, build_overrides
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import normalize

import lgclip
from lgclip.classifier.explain import expectations
from lgclip.classifier.improvement import _best_candidate
from lgclip.classifier.inference import encode_images
from lgclip.classifier.model import ImageClassifier
from lgclip.classifier.places import RECORD
from lgclip.classifier.sheet import tiles_of
from lgclip.classifier.shot_folders import images_by_class
from lgclip.cli.main import main
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.rejection import SCORES, Rejection, ScoreInputs

pytest_plugins = ("run_fixtures", "chat_fixtures")
pytestmark = pytest.mark.usefixtures("key")


@pytest.fixture(scope="module")
def saved(world: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "shapes.lgclip"
    build_in(world).save(folder)
    return folder


def loaded(saved: Path, world: Sandbox) -> ImageClassifier:
    return lgclip.load(saved, overrides=[f"paths.store={world.store}", "trainer.accelerator=cpu"])


def photos(folder: Path, names: Mapping[str, int], seed: int = 0) -> Path:
    """Writes random images, some for each class."""
    rng = np.random.default_rng(seed)
    for name, count in names.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((48, 40)).save(folder / name / f"{number}.png")
    return folder


# ----------------------------------------------------------------------------------------------------------- rejection


def test_build_names_what_it_rejects(saved: Path, world: Sandbox) -> None:
    classifier = loaded(saved, world)
    assert classifier.negatives is not None
    assert classifier.rejector is not None
    assert not set(classifier.negatives.names) & set(NAMES)
    # Without a language model the words of the names are recombined.
    assert set(classifier.negatives.names) == {
        "blue ring", "blue star", "green moon", "green star", "red moon", "red ring"
    }  # fmt: skip
    assert classifier.rejector.negatives == 2 * len(classifier.negatives.names)
    assert classifier.rejector.recall >= 0.95


def test_predictions_follow_the_threshold(saved: Path, world: Sandbox) -> None:
    classifier = loaded(saved, world)
    rejector = classifier.rejector
    assert rejector is not None
    assert classifier.negatives is not None
    images = classifier.references.images
    assert images is not None
    for score in SCORES:
        _, features = encode_images(classifier, world.synthetic_images)
        negatives = classifier.negatives.references
        inputs = ScoreInputs(
            classifier.scorer()(features),
            (features @ images.features.T).amax(dim=1),
            classifier.choice.fit(negatives.support, negatives.text)(features),
            classifier.temperature.value,
        )
        values = SCORES[score](inputs).double()
        threshold = float(values.median())
        classifier.rejector = rejector._replace(score=score, threshold=threshold)

        rejected = [prediction.rejected for prediction in classifier.classify(world.synthetic_images, batch_size=5)]

        assert rejected == (values < threshold).tolist(), score
        assert 0 < sum(map(bool, rejected)) < len(rejected)


def test_files_keep_the_threshold(saved: Path, world: Sandbox, tmp_path: Path) -> None:
    built = build_in(world)
    for path in (saved, built.save(tmp_path / "packed.zip")):
        classifier = loaded(path, world)
        assert classifier.rejector == built.rejector
        assert classifier.rejection == built.rejection
        assert list(classifier.classify(world.synthetic_images)) == list(built.classify(world.synthetic_images))
    record = json.loads((saved / RECORD).read_text())
    assert record["rejection"]["configured"]["recall"] == 0.95
    assert (
        load_file(saved / "classifier.safetensors")["negatives"].shape[0] == record["rejection"]["fitted"]["negatives"]
    )


def test_a_chat_model_names_what_is_similar(
    world: Sandbox, serve: Callable[[Answer], ChatServer], caplog: pytest.LogCaptureFixture
) -> None:
    similar = {
        "red fox": ["1. Dingo", "red foxes", "coyote.", "jackal"],
        "barn owl": ["tawny owl", "Dingo", "barn owl"],
        "sea otter": ["harbor seal", "I cannot name more."],
        "pine marten": ["weasel", "stoat", "mink", "polecat"],
    }

    def answer(model: ChatServer, handler: Any, body: dict[str, Any], name: str, turn: int) -> None:
        request = body["messages"][-1]["content"]
        described = re.search(r"one photograph of: (.+)$", request, re.MULTILINE)
        texts = good_sentences(described[1], turn, count=6) if described else similar[name]
        send(handler, 200, completion(json.dumps({"prompts": texts})))

    model = serve(answer)
    model_values = ["llm.model=good-model", f"llm.base_url={model.url}", "llm.api_key_env=TEST_KEY", "llm.max_rounds=2"]
    overrides = [part for part in build_overrides(world) if not part.startswith("llm")]
    names = ("red fox", "barn owl", "sea otter", "pine marten")

    classifier = lgclip.build(names, llm="server", overrides=[*overrides, *model_values, "rejection.similar_names=2"])

    assert classifier.negatives is not None
    # In turn; no class, no kind of one, no name twice, no sentence, and two of each class at most.
    assert classifier.negatives.names == ("Dingo", "tawny owl", "harbor seal", "weasel", "coyote", "stoat")
    assert "fewer similar names than asked" in caplog.text


def test_files_of_names_replace_the_similar_ones(world: Sandbox, tmp_path: Path) -> None:
    names = tmp_path / "others.txt"
    names.write_text(f"grey cube\tfour corners\nwhite cone\n{NAMES[0].upper()}\n")
    classifier = build_in(world, NAMES, f"rejection.names={names}")
    assert classifier.negatives is not None
    assert classifier.negatives.names == ("grey cube", "white cone"), "a class is no negative"
    assert classifier.rejection is not None
    assert classifier.rejection.names == "others.txt", "no path of this machine"
    # Elsewhere the file does not exist.
    names.unlink()
    classifier.add("Grey Cube")
    assert classifier.negatives.names == ("white cone",)
    assert classifier.rejector is not None
    with pytest.raises(ValueError, match="no such file"):
        build_in(world, NAMES, f"rejection.names={tmp_path / 'missing.txt'}")


@pytest.mark.parametrize(
    ("override", "score", "has_negatives"),
    [
        ("rejection=positives", "max_score", False),
        ("rejection.score=energy", "energy", True),
        ("rejection=none", "", False),
    ],
)
def test_rejection_is_a_config_group(override: str, score: str, has_negatives: bool, world: Sandbox) -> None:
    classifier = build_in(world, NAMES, override)
    assert (classifier.negatives is not None) == has_negatives
    assert (classifier.rejector.score if classifier.rejector else "") == score
    rejected = {prediction.rejected for prediction in classifier.classify(world.synthetic_images)}
    assert (rejected == {None}) == (not score)


def test_a_class_is_no_negative_once_it_is_added(saved: Path, world: Sandbox) -> None:
    classifier = loaded(saved, world)
    classifier.add("blue ring")
    assert classifier.negatives is not None
    assert "blue ring" not in classifier.negatives.names
    assert classifier.rejector is not None
    assert classifier.rejector.positives == len(classifier.image_ids)


def test_single_images_reject_nothing_and_are_never_sure(world: Sandbox) -> None:
    classifier = build_in(world, NAMES, "prompts_per_class=1")
    assert classifier.rejector is None
    assert classifier.forecast() is None
    assert not classifier.temperature.is_fitted
    assert max(prediction.score or 0 for prediction in classifier.classify(world.synthetic_images)) < 0.9
    text = " ".join(expectations(classifier))
    assert "expected accuracy: unknown" in text
    assert "probabilities: not fitted" in text
    assert "none of these: nothing is rejected" in text


def test_tables_mark_rejected_images(saved: Path, world: Sandbox, tmp_path: Path, capsys: Any) -> None:
    classifier = loaded(saved, world)
    assert classifier.rejector is not None
    classifier.rejector = classifier.rejector._replace(threshold=float("1e9"))
    everything = classifier.save(tmp_path / "strict")
    images = photos(tmp_path / "photos", {"a": 2})
    assert (
        main(["classify", str(everything), str(images), "-o", str(tmp_path / "t.csv"), "--move-to", str(tmp_path)]) == 0
    )
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert lines[0].split(",")[:6] == ["path", "label", "score", "runner_up", "margin", "rejected"]
    assert [line.split(",")[5] for line in lines[1:]] == ["true", "true"]
    assert "2 images classified, 2 of them as none of the classes" in capsys.readouterr().out
    assert len(list((tmp_path / "none of these").iterdir())) == 2
    assert main(["classify", str(everything), str(tmp_path / "none of these")]) == 0
    assert "none of these (most similar: " in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------ forecast


def test_numbers_come_with_their_meaning(saved: Path, world: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    classifier = loaded(saved, world)
    predicted = classifier.forecast()
    assert predicted is not None
    assert main(["show", str(saved)]) == 0
    out = capsys.readouterr().out
    card = (saved / "README.md").read_text()
    for text in (out, card):
        assert f"expected accuracy: {100 * predicted.expected:.0f}% (" in text
        assert f"the accuracy on {predicted.images} synthetic images, each left out of its prototype" in text
        assert "none of these: an image is rejected if" in text
        assert "probabilities: scaled by the synthetic images that were left out" in text


# -------------------------------------------------------------------------------------------------------------- images


def test_dropped_images_never_come_back(saved: Path, world: Sandbox, tmp_path: Path) -> None:
    classifier = loaded(saved, world)
    assert classifier.support is not None
    labels = classifier.support.labels.tolist()
    places = [row for row, label in enumerate(labels) if label == 0]
    victim = classifier.image_ids[places[1]]
    before = tiles_of(classifier.strips[0])

    classifier.drop(victim[:12])

    assert victim not in classifier.image_ids
    assert len(classifier.support.labels) == len(labels) - 1
    after = tiles_of(classifier.strips[0])
    assert [tile.tobytes() for tile in after] == [tile.tobytes() for place, tile in enumerate(before) if place != 1]
    again = loaded(classifier.save(tmp_path / "dropped"), world)
    assert again.dropped == (victim,)
    assert any("dropped 1 synthetic images" in edit for edit in again.edits)
    assert "dropped 1 synthetic images" in (tmp_path / "dropped" / "README.md").read_text()
    # The class goes and comes back: the store has the image, the classifier does not.
    again.remove(NAMES[0])
    again.add(NAMES[0])
    assert victim not in again.image_ids
    assert len(again.image_ids) == len(labels) - 1
    torch.testing.assert_close(
        again.scorer()(classifier.support.features)[:, -1], classifier.scorer()(classifier.support.features)[:, 0]
    )


def test_wrong_ids_are_one_error(saved: Path, world: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    classifier = loaded(saved, world)
    assert classifier.support is not None
    with pytest.raises(ValueError, match="at least 4 letters"):
        classifier.drop("ab")
    with pytest.raises(ValueError, match=r"no image 'zzzz'; lgclip show CLASSIFIER --images"):
        classifier.drop("zzzz")
    rows = (classifier.support.labels == 1).nonzero().flatten().tolist()
    with pytest.raises(ValueError, match=r"'green ring' would have no image left"):
        classifier.drop([classifier.image_ids[row] for row in rows])
    assert len(classifier.image_ids) == len(classifier.support.labels), "an error changes nothing"
    assert not classifier.dropped
    assert main(["show", str(saved), "--images"]) == 0
    shown = capsys.readouterr().out
    assert all(image_id[:12] in shown for image_id in classifier.image_ids)
    assert main(["edit", str(saved), "--drop", "zzzz"]) == 1


def test_commands_drop_images(saved: Path, world: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    victim = loaded(saved, world).image_ids[0]
    assert main(["edit", str(saved), "--drop", victim[:10], "-o", str(tmp_path / "fewer")]) == 0
    assert "1 images dropped" in capsys.readouterr().out
    assert victim not in loaded(tmp_path / "fewer", world).image_ids
    assert victim in loaded(saved, world).image_ids


def test_improvement_keeps_what_helps(saved: Path, world: Sandbox, tmp_path: Path) -> None:
    classifier = loaded(saved, world)
    assert classifier.support is not None
    before = set(classifier.image_ids)
    lines = classifier.improve(2)
    predicted = classifier.forecast()
    assert predicted is not None
    assert lines
    new = set(classifier.image_ids) - before
    remaining = [line for line in lines if "kept the old images" not in line and "no class is" not in line]
    # Random models confuse everything, so that something was tried; what was kept is in the card.
    assert bool(new) == bool(remaining) == bool(classifier.edits)
    assert len(classifier.image_ids) == len(classifier.support.labels) == len(set(classifier.image_ids))
    replaced = before - set(classifier.image_ids)
    assert replaced <= set(classifier.dropped)
    assert not set(classifier.image_ids) & set(classifier.dropped)
    again = loaded(classifier.save(tmp_path / "improved"), world)
    assert again.edits == classifier.edits
    assert list(again.classify(world.synthetic_images)) == list(classifier.classify(world.synthetic_images))


def test_improvement_is_judged_on_left_out_images(saved: Path, world: Sandbox) -> None:
    classifier = loaded(saved, world)
    # Overlapping clusters in the place of the random encoder's features, which tell nothing apart.
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(3, 32, generator=generator)

    def images_of(center: int, label: int, noise: float, count: int = 8) -> SupportSet:
        features = centers[center] + noise * torch.randn(count, 32, generator=generator)
        return SupportSet(normalize(features, dim=1), torch.full((count,), label), 3)

    parts = [images_of(index, index, noise) for index, noise in enumerate((3.0, 1.0, 1.0))]
    classifier.support = SupportSet(
        torch.cat([part.features for part in parts]), torch.cat([part.labels for part in parts]), 3
    )
    # Images of another class that are said to be of this one: they fit themselves well, and the old ones badly.
    assert _best_candidate(classifier, 0, images_of(1, 0, 0.5)).action == "kept the old images"
    # Clear images of the class itself, where the old ones are noisy.
    assert _best_candidate(classifier, 0, images_of(0, 0, 0.5)).action != "kept the old images"


def test_improvement_needs_left_out_images(world: Sandbox) -> None:
    with pytest.raises(ValueError, match="improve=0: at least one round"):
        build_in(world).improve(0)
    with pytest.raises(ValueError, match="two images per class"):
        build_in(world, NAMES, "prompts_per_class=1").improve(1)


# --------------------------------------------------------------------------------------------------------------- shots


def test_shots_move_the_prototypes(saved: Path, world: Sandbox, tmp_path: Path) -> None:
    classifier = loaded(saved, world)
    folder = photos(tmp_path / "shots", {"blue_moon": 3, "red star": 3})
    before = classifier.scorer()
    classifier.add_shots(images_by_class(folder, classifier.class_names))
    assert classifier.shots is not None
    assert classifier.support is not None
    assert classifier.shots.labels.tolist() == [0, 0, 0, 2, 2, 2]
    _, features = encode_images(classifier, folder)
    expected = (
        torch.cat(
            [
                classifier.support.features[classifier.support.labels == 0],
                classifier.shots.features[:3].repeat(classifier.shots.repeats, 1),
            ]
        )
        .double()
        .mean(dim=0)
    )
    expected = (expected / expected.norm()).float()
    torch.testing.assert_close(classifier.scorer()(features)[:, 0], features @ expected)
    torch.testing.assert_close(classifier.scorer()(features)[:, 1], before(features)[:, 1])
    again = loaded(classifier.save(tmp_path / "shot"), world)
    assert list(again.classify(folder)) == list(classifier.classify(folder))
    assert "6 real images were mixed in" in (tmp_path / "shot" / "README.md").read_text()
    again.remove(NAMES[0])
    assert again.shots is not None
    assert again.shots.labels.tolist() == [1, 1, 1]


def test_shots_are_checked(saved: Path, world: Sandbox, tmp_path: Path) -> None:
    classifier = loaded(saved, world)
    folder = photos(tmp_path / "shots", {"red star": 2})
    images = images_by_class(folder, classifier.class_names)
    classifier.add_shots(images)
    with pytest.raises(ValueError, match="given twice, or is among the shots already"):
        classifier.add_shots(images)
    with pytest.raises(ValueError, match=r"would have 18 real images, at most 16"):
        classifier.add_shots({"red star": photos(tmp_path / "many", {"x": 16}, seed=1)})
    assert classifier.shots is not None
    assert len(classifier.shots.ids) == 2, "an error changes nothing"
    with pytest.raises(ValueError, match="no class 'cat'"):
        images_by_class(photos(tmp_path / "cats", {"cat": 1}), classifier.class_names)
    with pytest.raises(ValueError, match="no such folder"):
        images_by_class(tmp_path / "missing", classifier.class_names)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image in it"):
        images_by_class(tmp_path / "empty", classifier.class_names)
    selecting = build_in(world, NAMES, "selection=medoid", "selection.keep=2")
    with pytest.raises(ValueError, match=r"selection\.keep=null"):
        selecting.add_shots(images)


def test_commands_add_shots_and_measure_worth(
    saved: Path, world: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photos(tmp_path / "shots", dict.fromkeys(NAMES, 4))
    assert main(["add-shots", str(saved), str(folder), "-o", str(tmp_path / "shot")]) == 0
    assert "added 12 real images, 4 to 4 of 3 classes" in capsys.readouterr().out
    assert main(["worth", str(saved), str(folder), "--plot", str(tmp_path / "worth.png")]) == 0
    out = capsys.readouterr().out
    assert "the synthetic prototypes are worth" in out
    assert [line.split(" | ")[0] for line in out.splitlines()[1:3]] == ["1", "2"]
    with Image.open(tmp_path / "worth.png") as plot:
        assert plot.width > 300
    assert main(["worth", str(saved), str(photos(tmp_path / "few", dict.fromkeys(NAMES, 2)))]) == 1
    assert "at least 3 of every class are needed" in capsys.readouterr().err


def test_rejection_can_be_set_later(saved: Path, world: Sandbox) -> None:
    classifier = loaded(saved, world)
    classifier.reject_unknown(None)
    assert classifier.rejector is None
    assert {prediction.rejected for prediction in classifier.classify(world.synthetic_images)} == {None}
    classifier.reject_unknown(Rejection(score="margin", recall=0.5, similar_names=0))
    assert classifier.rejector is not None
    assert classifier.rejector.score == "margin"
    assert classifier.negatives is None
