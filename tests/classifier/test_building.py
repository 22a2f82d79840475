"""A classifier is built from names alone, changed class by class, saved, loaded and evaluated."""

import csv
import json
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import NAMES, Sandbox, build_in, build_overrides, evaluate_run, run_command
from sklearn.metrics import accuracy_score

import lgclip
from lgclip.classifier.model import ImageClassifier
from lgclip.classifier.places import RECORD, SHEET, TENSORS
from lgclip.cli.main import main
from lgclip.datasets.folder import Folder

pytest_plugins = ("run_fixtures",)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(world: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "shapes.lgclip"
    build_in(world, NAMES).save(folder)
    return folder


def same_classifier(first: ImageClassifier, second: ImageClassifier) -> None:
    assert first.class_names == second.class_names
    assert [info.prompts for info in first.classes] == [info.prompts for info in second.classes]
    assert first.fitted == second.fitted
    assert first.support is not None
    assert second.support is not None
    assert first.support.labels.tolist() == second.support.labels.tolist()
    np.testing.assert_array_equal(first.support.features.numpy(), second.support.features.numpy())
    assert (first.text is None) == (second.text is None)
    if first.text is not None and second.text is not None:
        np.testing.assert_array_equal(first.text.numpy(), second.text.numpy())


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [(), ("method=fusion", "scales=multi"), ("method=clip_text",), ("calibration=leave_one_out", "prototype=affinity")],
    ids=["images", "fusion", "text", "calibrated"],
)
def test_predictions_are_those_of_an_evaluation(overrides: Sequence[str], sandbox: Sandbox, tmp_path: Path) -> None:
    classifier = build_in(sandbox, NAMES, *overrides)
    result = evaluate_run(sandbox, tmp_path / "run", *overrides)
    data = Folder(str(sandbox.synthetic_images))

    evaluation = lgclip.evaluate(classifier, sandbox.synthetic_images)

    with (tmp_path / "run" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [prediction.label for prediction in evaluation.predictions] == [
        data.class_names[int(row["prediction"])] for row in rows
    ]
    np.testing.assert_allclose(
        [prediction.score or 0 for prediction in evaluation.predictions],
        [float(row["confidence"]) for row in rows],
        atol=2e-5,
    )
    assert evaluation.n == result["n"]
    for name in ("top1", "top5", "mean_per_class", "top1_ci95", "mean_per_class_ci95"):
        np.testing.assert_allclose(getattr(evaluation.metrics, name), result["metrics"][name])
    # The run needed nothing that the build had not stored.
    assert all(stage["computed"] == 0 for stage in result["stages"] if stage["stage"] in ("prompts", "images"))


def test_scikit_learn_accepts_it(built: Path, world: Sandbox) -> None:
    data = Folder(str(world.synthetic_images))
    files = [data.original(index) for index in range(len(data))]
    true_names = [data.class_names[label] for label in data.labels]
    classifier = lgclip.load(built)

    accuracy = accuracy_score(true_names, classifier.predict(files))

    assert accuracy == pytest.approx(lgclip.evaluate(classifier, world.synthetic_images).metrics.top1)
    frame = classifier.classify_frame(files, top=2)
    assert list(frame["label"]) == list(classifier.predict(files))
    assert list(frame.columns) == [
        "path", "label", "score", "runner_up", "margin", "rejected", "error",
        "label_1", "score_1", "label_2", "score_2",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(), ("method=fusion",), ("selection=text", "selection.keep=2")])
def test_added_classes_equal_those_of_one_build(overrides: Sequence[str], sandbox: Sandbox, tmp_path: Path) -> None:
    complete = build_in(sandbox, NAMES, *overrides)
    build_in(sandbox, NAMES[:2], *overrides).save(tmp_path / "two")
    classifier = lgclip.load(tmp_path / "two", overrides=[f"paths.store={sandbox.store}", "trainer.accelerator=cpu"])

    classifier.add(NAMES[2])

    same_classifier(classifier, complete)
    classifier.save(tmp_path / "three.zip")
    loaded = lgclip.load(tmp_path / "three.zip")
    same_classifier(loaded, complete)
    assert [strip is not None for strip in loaded.strips] == [strip is not None for strip in complete.strips]
    loaded.remove(NAMES[2])
    same_classifier(loaded, build_in(sandbox, NAMES[:2], *overrides))


def test_classes_are_removed_and_renamed(built: Path, world: Sandbox) -> None:
    classifier = lgclip.load(built)
    classifier.rename(NAMES[0], "moon")

    assert classifier.class_names == ("moon", *NAMES[1:])
    assert classifier.classes[0].prompted_as == NAMES[0]
    before = lgclip.load(built).predict(world.synthetic_images)
    assert ["moon" if name == NAMES[0] else name for name in before] == list(classifier.predict(world.synthetic_images))
    classifier.remove("moon")
    assert set(classifier.predict(world.synthetic_images)) <= set(NAMES[1:])
    with pytest.raises(ValueError, match="no class 'moon'; the classes are 'green ring', 'red star'"):
        classifier.remove("moon")
    with pytest.raises(ValueError, match="1 classes would remain"):
        classifier.remove("red star")
    with pytest.raises(ValueError, match="named 'red star'"):
        classifier.rename("green ring", "red star")
    with pytest.raises(ValueError, match=r"named 'RED star'|named 'red star'"):
        classifier.add("RED star")


def test_descriptions_are_part_of_prompts_and_sentences(world: Sandbox) -> None:
    classifier = build_in(
        world, {"blarg": "a red furry ball", "green ring": ""}, "llm.templates=['a photo of a {}[, {context}].']",
        "prompts_per_class=1", "method=fusion",
    )  # fmt: skip

    assert classifier.classes[0].prompts == ("a photo of a blarg, a red furry ball.",)
    assert classifier.classes[0].description == "a red furry ball"
    assert classifier.classes[1].prompts == ("a photo of a green ring.",)
    assert classifier.text is not None


@pytest.mark.parametrize(
    ("content", "suffix", "message"),
    [
        ("", ".txt", "it holds no class name"),
        ("cat\n", ".txt", "1 class names; a classifier needs at least 2"),
        ("cat\ndog\ncat\n", ".txt", "'cat' occurs twice"),
        ("cat\nCat\n", ".txt", "are all named 'cat'"),
        ("\tfurry\ndog\n", ".txt", "class 0 has an empty name"),
        ("cat,dog", ".csv", r"files of names are .txt .* not .csv"),
        ('{"cat": "furry", "cat": "wet"}', ".json", "'cat' occurs twice"),
        ('{"cat": 3, "dog": ""}', ".json", "names and descriptions are text"),
        ('["cat", ["dog"]]', ".json", "names and descriptions are text"),
        ('"cat"', ".json", "it holds str, not a list"),
        ("[" * 100_000, ".json", "is not JSON"),
        (b"\xff\xfe\x00", ".txt", "is not text in UTF-8"),
    ],
)
def test_wrong_names_are_one_early_error(content: str | bytes, suffix: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / f"names{suffix}"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        lgclip.build(file)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"overrides": ["dataset=cub"]}, "a classifier is built from its names alone"),
        ({"overrides": ["promts_per_class=3"]}, "Did you mean 'prompts_per_class'"),
        ({"encoder": "vit_b17"}, "no encoder=vit_b17: choose"),
        ({"overrides": ["prompts_per_class=0"]}, "it must be an integer of at least 1"),
        ({"overrides": ["method=student"]}, "trains a model; a classifier is built from prototypes"),
    ],
)
def test_wrong_settings_are_one_early_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lgclip.build(["cat", "dog"], **arguments)


def test_names_are_generated_and_not_evaluated(
    sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "names.txt"
    file.write_text("blue moon\ngreen ring\twith a hole\n", encoding="utf-8")
    names = ["dataset=names", f"dataset.names={file}", f"hydra.run.dir={tmp_path / 'run'}"]
    run_command("generate", *sandbox.generate_overrides()[2:], *names)

    lines = [json.loads(line) for line in (tmp_path / "run" / "images.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["blue moon"] * 3 + ["green ring"] * 3
    with pytest.raises(SystemExit):
        run_command("evaluate", *sandbox.evaluate_overrides()[2:], *names)
    assert "has class names and no images to evaluate" in capsys.readouterr().err


def test_commands_build_change_and_show(world: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(NAMES[:2]), encoding="utf-8")
    out = tmp_path / "shapes.lgclip"
    assert main(["build", str(names), "-o", str(out), "llm=template", *build_overrides(world)]) == 0
    assert f"{out}: 2 classes, 6 synthetic images" in capsys.readouterr().out
    assert main(["add", str(out), NAMES[2], "--override", f"paths.store={world.store}"]) == 0
    assert f"{NAMES[2]} added, now 3 classes" in capsys.readouterr().out
    assert main(["rename", str(out), NAMES[2], "star"]) == 0
    assert main(["remove", str(out), NAMES[1], "-o", str(tmp_path / "less.zip")]) == 0
    assert lgclip.load(out).class_names == (*NAMES[:2], "star")
    assert lgclip.load(tmp_path / "less.zip").class_names == (NAMES[0], "star")
    capsys.readouterr()
    assert main(["show", str(out), "--sheet", str(tmp_path / "sheet.png")]) == 0
    shown = capsys.readouterr().out
    assert "- star, generated as 'red star'" in shown
    assert "    a photo of a blue moon." in shown
    assert (tmp_path / "sheet.png").read_bytes() == (out / SHEET).read_bytes()


@pytest.mark.parametrize("table_format", ["csv", "jsonl", "parquet"])
def test_tables_agree(table_format: str, built: Path, world: Sandbox, tmp_path: Path) -> None:
    import pandas as pd

    out = tmp_path / f"labels.{table_format}"
    assert main(["classify", str(built), str(world.synthetic_images), "-o", str(out), "--top", "2"]) == 0

    read = {"csv": pd.read_csv, "jsonl": lambda path: pd.read_json(path, lines=True), "parquet": pd.read_parquet}
    frame = read[table_format](out)
    expected = lgclip.load(built).classify_frame(world.synthetic_images, top=2)
    assert list(frame.columns) == list(expected.columns)
    for column in ("path", "label", "runner_up", "label_2"):
        assert list(frame[column]) == list(expected[column])
    np.testing.assert_allclose(frame["score"].astype(float), expected["score"].astype(float), atol=1e-6)


def test_unknown_table_formats_are_refused(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", str(built), str(tmp_path), "-o", str(tmp_path / "labels.xlsx")]) == 1
    assert "name a file with .csv, .jsonl" in capsys.readouterr().err


def test_images_are_moved_into_folders_of_their_classes(
    built: Path, world: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(world.synthetic_images, photos)
    (photos / "broken.png").write_bytes(b"nothing")
    files = [path for path in photos.rglob("*.png") if path.name != "broken.png"]
    contents = {path.read_bytes() for path in files}
    out = tmp_path / "labels.csv"
    moved = tmp_path / "sorted"

    assert main(["classify", str(built), str(photos), "-o", str(out), "--move-to", str(moved)]) == 0

    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    targets = [Path(row["moved_to"]) for row in rows if row["moved_to"]]
    # Images of one name, from the folders of different classes, stay apart.
    assert len(set(targets)) == len(files)
    assert {path.read_bytes() for path in targets} == contents
    assert all(
        path.parent.name == row["label"] for path, row in zip(targets, [r for r in rows if r["moved_to"]], strict=True)
    )
    assert (photos / "broken.png").exists()
    assert f"{len(files)} images moved" in capsys.readouterr().out


def test_class_names_are_no_paths(built: Path, world: Sandbox, tmp_path: Path) -> None:
    classifier = lgclip.load(built)
    for name, new in zip(NAMES, ("../../up", "/etc/passwd", "a:b"), strict=True):
        classifier.rename(name, new)
    classifier.save(tmp_path / "renamed")
    photos = tmp_path / "photos"
    shutil.copytree(world.synthetic_images, photos)

    assert main(["classify", str(tmp_path / "renamed"), str(photos), "--move-to", str(tmp_path / "sorted")]) == 0

    assert not list(photos.rglob("*.png"))
    assert len(list((tmp_path / "sorted").rglob("*.png"))) == len(NAMES) * 4


def test_zip_file_and_folder_hold_the_same(built: Path, tmp_path: Path) -> None:
    classifier = lgclip.load(built)
    file = classifier.save(tmp_path / "shapes.zip")
    again = classifier.save(tmp_path / "again.zip")

    assert file.read_bytes() == again.read_bytes()
    with zipfile.ZipFile(file) as archive:
        assert {info.filename: stat.S_IMODE(info.external_attr >> 16) for info in archive.infolist()} == dict.fromkeys(
            sorted(path.name for path in built.iterdir()), 0o644
        )
    same_classifier(lgclip.load(file), classifier)


def test_foreign_zip_files_are_one_error(built: Path, tmp_path: Path) -> None:
    for name, content in (
        ("text", b"no archive"),
        ("cut", lgclip.load(built).save(tmp_path / "a.zip").read_bytes()[:-50]),
    ):
        file = tmp_path / f"{name}.zip"
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"is damaged or no archive|no classifier"):
            lgclip.load(file)
    twice = tmp_path / "twice.zip"
    with zipfile.ZipFile(twice, "w") as archive:
        for folder in ("a", "b"):
            archive.writestr(f"{folder}/{RECORD}", "{}")
    with pytest.raises(ValueError, match=f"it holds {RECORD} twice"):
        lgclip.load(twice)


def test_other_folders_are_not_overwritten(built: Path, tmp_path: Path) -> None:
    classifier = lgclip.load(built)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("my notes")
    with pytest.raises(ValueError, match="holds other files and no classifier"):
        classifier.save(tmp_path / "mine")
    with pytest.raises(ValueError, match="it is a file; name a folder"):
        classifier.save(tmp_path / "mine" / "README.md")
    assert (tmp_path / "mine" / "README.md").read_text() == "my notes"


def test_interrupted_save_keeps_the_old_classifier(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shapes"
    classifier = lgclip.load(built)
    classifier.save(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    classifier.remove(NAMES[0])

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr("lgclip.classifier.files.write_json", fail)
    with pytest.raises(OSError, match="No space left"):
        classifier.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("change", [{"schema": 99}, {"classes": []}, {"fitted": {}}, {"settings": {}}])
def test_other_records_are_one_error(change: dict[str, Any], built: Path, tmp_path: Path) -> None:
    from lgclip.store.checksums import CHECKSUM, with_checksum

    folder = tmp_path / "other"
    shutil.copytree(built, folder)
    record = json.loads((folder / RECORD).read_text())
    record.pop(CHECKSUM)
    (folder / RECORD).write_text(json.dumps(with_checksum({**record, **change})))
    with pytest.raises(ValueError, match=str(folder)):
        lgclip.load(folder)


def test_classifiers_hold_a_linear_head(built: Path, world: Sandbox) -> None:
    """Whoever has the encoder alone needs one matrix."""
    from safetensors.torch import load_file

    prototypes = load_file(built / TENSORS)["prototypes"]
    classifier = lgclip.load(built)
    assert classifier.support is not None
    features = classifier.support.features
    np.testing.assert_allclose(
        (features @ prototypes.T).numpy(),
        classifier.choice.fit(classifier.support, None)(features).numpy(),
        atol=1e-6,
    )


def test_evaluation_rejects_other_classes_and_reports_unreadable_images(
    built: Path, world: Sandbox, tmp_path: Path
) -> None:
    classifier = lgclip.load(built)
    photos = tmp_path / "photos"
    shutil.copytree(world.synthetic_images, photos)
    bad = sorted(photos.rglob("*.png"))[0]
    bad.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"cannot be read as an image.*skip_unreadable=True"):
        lgclip.evaluate(classifier, photos)
    evaluation = lgclip.evaluate(classifier, photos, skip_unreadable=True)
    assert list(evaluation.unreadable) == [str(bad)]
    assert "1 unreadable ones left out" in str(evaluation)
    assert sum(n for n, _ in evaluation.per_class.values()) == evaluation.n == len(NAMES) * 4 - 1
    (photos / "red_star").rename(photos / "unicorn")
    with pytest.raises(ValueError, match="the classifier has no class 'unicorn'"):
        lgclip.evaluate(classifier, photos)


def test_import_is_light() -> None:
    code = (
        "import sys, lgclip; dir(lgclip); "
        "heavy = {'torch', 'hydra', 'omegaconf', 'PIL', 'numpy', 'lightning'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.multiprocess
def test_loading_imports_no_training_library(built: Path) -> None:
    """Starting is most of what a few images cost."""
    code = (
        "import sys; from lgclip.classifier.loading import load_classifier; from pathlib import Path; "
        f"load_classifier(Path({str(built)!r})); "
        "heavy = {'lightning', 'torchmetrics', 'transformers', 'diffusers'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
