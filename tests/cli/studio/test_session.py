"""Tests what the buttons of the page do, without a page."""

import csv
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from factories import NAMES, Sandbox, build_overrides
from PIL import Image

import lgclip
from lgclip.classifier.explain import expectations
from lgclip.classifier.model import ImageClassifier
from lgclip.cli.studio.session import Limits, Session, available_downloads, error_message
from lgclip.cli.studio.sessions import MAX_SESSIONS, SessionStore

pytest_plugins = ("run_fixtures",)

HOSTILE = "<img src=x onerror=window.pwned=1>"


@pytest.fixture(scope="module")
def saved(world: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("saved") / "shapes.zip"
    return lgclip.build(NAMES, llm="template", overrides=build_overrides(world)).save(place)


@pytest.fixture
def session(saved: Path, world: Sandbox, tmp_path: Path) -> Session:
    """Returns a session with a classifier of three classes, three images each."""
    overrides = [f"paths.store={world.store}", "trainer.accelerator=cpu"]
    return Session(tmp_path / "session", build_overrides(world), classifier=lgclip.load(saved, overrides=overrides))


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    files = []
    for number, color in enumerate(("red", "green", "blue")):
        file = tmp_path / f"{color} photo.png"
        Image.new("RGB", (40, 40), color).save(file)
        image = Image.open(file).convert("RGB")
        image.paste((0, 0, 0), (5 * number, 5, 20, 30))
        image.save(file)
        files.append(file)
    return files


def classifier_of(session: Session) -> ImageClassifier:
    assert session.classifier is not None
    return session.classifier


@pytest.mark.slow
def test_build_reports_stages_and_counts(world: Sandbox, tmp_path: Path) -> None:
    session = Session(tmp_path / "session", ["llm=template", *build_overrides(world)])

    texts = list(session.build(f"{NAMES[0]}\n\n{NAMES[1]}\ta long description\n"))

    assert session.class_names() == tuple(NAMES[:2])
    assert classifier_of(session).classes[1].description == "a long description"
    assert texts[-1].endswith("built 2 classes from 6 synthetic images")
    assert "prompts: 1 of 1" in texts[-1] or "prompts: 2 of 2" in texts[-1]
    assert len(texts) >= 3  # while it runs, and not only at the end
    assert session.expectations() == "\n".join(expectations(classifier_of(session)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it holds no class name"),
        ("cat", "a classifier needs at least 2"),
        ("cat\ncat", "'cat' occurs twice"),
        ("\n".join(f"class {number}" for number in range(5)), "5 classes; this page takes 4 at most"),
    ],
)
def test_wrong_names_are_one_message(text: str, message: str, tmp_path: Path) -> None:
    session = Session(tmp_path, limits=Limits(names=4))
    with pytest.raises(ValueError, match=message):
        list(session.build(text))
    assert session.classifier is None


def test_actions_need_a_classifier(tmp_path: Path) -> None:
    session = Session(tmp_path)
    assert session.class_images() == []
    assert session.expectations() == ""
    with pytest.raises(ValueError, match="no classifier yet"):
        list(session.add("cat"))
    with pytest.raises(ValueError, match="no classifier yet"):
        session.classify([tmp_path])
    with pytest.raises(ValueError, match="no classifier yet"):
        session.write("classifier")


def test_marked_images_are_dropped(session: Session) -> None:
    first = session.class_images()[0]
    assert len(first.ids) == len(first.images) == first.total == 3
    session.toggle(first.ids[0])
    session.toggle(first.ids[1])
    session.toggle(first.ids[1])
    assert session.marked == (first.ids[0],)

    assert session.drop_marked() == "dropped 1 images, 8 remain"

    assert session.class_images()[0].ids == first.ids[1:]
    assert session.marked == ()
    with pytest.raises(ValueError, match="no image is marked"):
        session.drop_marked()
    with pytest.raises(ValueError, match="no longer part"):
        session.toggle(first.ids[0])


def test_failed_change_leaves_the_classifier(session: Session) -> None:
    before = classifier_of(session)
    for image_id in session.class_images()[0].ids:
        session.toggle(image_id)
    with pytest.raises(ValueError, match="would have no image left"):
        session.drop_marked()
    assert session.classifier is before
    assert len(before.image_ids) == 9


def test_photographs_have_labels_and_similar_images(session: Session, photographs: list[Path]) -> None:
    assert session.classify(photographs) == "3 photographs"

    expected = list(classifier_of(session).classify(photographs, top=3))
    assert [photo.prediction.label for photo in session.photos] == [item.label for item in expected]
    assert [photo.prediction.score for photo in session.photos] == pytest.approx([item.score for item in expected])
    for photo, file in zip(session.photos, photographs, strict=True):
        assert photo.name == file.name
        similarities = [item.similarity for item in photo.similar]
        assert similarities == sorted(similarities, reverse=True)
        assert len(similarities) == 5
        assert all(item.image is not None for item in photo.similar)
    assert "add up to 100%" in session.details(0)
    assert session.details(7) == ""


def test_rejected_photograph_says_so(session: Session, photographs: list[Path]) -> None:
    session.classify(photographs[:1])
    photo = session.photos[0]
    session.photos = (replace(photo, prediction=replace(photo.prediction, rejected=True)),)
    assert session.photos[0].caption == f"none of these (most similar: {photo.prediction.label})"
    assert "its label means little" in session.details(0)


def test_unreadable_file_is_reported(session: Session, photographs: list[Path], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(b"no image")
    svg = tmp_path / "page.svg"
    svg.write_text("<svg onload='window.pwned=1'/>")

    assert session.classify([damaged, photographs[0], svg]) == "3 photographs, 2 of them cannot be read"

    assert session.photos[0].caption.startswith("cannot be read: ")
    assert session.photos[1].similar
    with pytest.raises(ValueError, match="cannot be read as an image"):
        session.correct(0, NAMES[0])


def test_uploads_are_bounded(session: Session, photographs: list[Path], tmp_path: Path) -> None:
    session._limits = Limits(upload_bytes=1000, photos=2)
    with pytest.raises(ValueError, match="3 files; at most 2 at once"):
        session.classify(photographs)
    large = tmp_path / "large.png"
    large.write_bytes(bytes(1001))
    with pytest.raises(ValueError, match=r"large\.png: 0\.0 MB; a photograph may have 0\.001 MB"):
        session.classify([large])
    with pytest.raises(ValueError, match="no photograph"):
        session.classify([])
    assert session.photos == ()


def test_correction_becomes_a_shot(session: Session, photographs: list[Path]) -> None:
    session.classify(photographs)
    label = session.photos[0].prediction.label
    other = next(name for name in NAMES if name != label)

    message = session.correct(0, other)

    assert message.startswith(f"red photo.png is an example of {other} now")
    shots = classifier_of(session).shots
    assert shots is not None
    assert shots.labels.tolist() == [NAMES.index(other)]
    assert session.photos[0].prediction.label == other
    with pytest.raises(ValueError, match="given twice"):
        session.correct(0, other)
    with pytest.raises(ValueError, match="no class 'zebra'"):
        session.correct(1, "zebra")
    with pytest.raises(ValueError, match="choose a photograph"):
        session.correct(9, other)


@pytest.mark.slow
def test_added_class_is_used_for_the_photographs(session: Session, photographs: list[Path]) -> None:
    session.classify(photographs)
    texts = list(session.add(f"{HOSTILE}\tmarkup"))
    assert session.class_names() == (*NAMES, HOSTILE)
    assert texts[-1].endswith("added 1 classes, now 4")
    assert all(len(photo.prediction.top) == 3 for photo in session.photos)
    with pytest.raises(ValueError, match="are all named"):
        list(session.add(HOSTILE))


def test_files_are_written(session: Session, photographs: list[Path]) -> None:
    with pytest.raises(ValueError, match="no predictions yet"):
        session.write("predictions")
    session.classify(photographs)
    with session.write("predictions").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [file.name for file in photographs]
    assert [row["label"] for row in rows] == [photo.prediction.label for photo in session.photos]
    assert lgclip.load(session.write("classifier")).class_names == session.class_names()
    assert session.write("safetensors").stat().st_size > 0
    with pytest.raises(ValueError, match="choose predictions, classifier, safetensors, onnx"):
        session.write("../secret")


def test_onnx_is_offered_if_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "onnx" in available_downloads()
    monkeypatch.setattr("lgclip.cli.studio.session.find_spec", lambda package: None)
    assert list(available_downloads()) == ["predictions", "classifier", "safetensors"]


def test_no_file_name_reaches_a_path(session: Session, photographs: list[Path], tmp_path: Path) -> None:
    hostile = tmp_path / "=cmd'|<script>alert(1)<script>.png"
    os.link(photographs[0], hostile)
    session.classify([hostile])
    assert [path.name for path in (tmp_path / "session" / "photos").iterdir()] == ["photo_0"]
    with session.write("predictions").open(newline="") as file:
        assert next(csv.DictReader(file))["path"] == f"'{hostile.name}"  # no formula in a spreadsheet


def test_second_action_waits_for_the_first(session: Session, photographs: list[Path]) -> None:
    session._busy.acquire()
    with pytest.raises(ValueError, match="wait until that is done"):
        session.classify(photographs)
    with pytest.raises(ValueError, match="wait until that is done"):
        list(session.add("cat"))
    session._busy.release()
    session.classify(photographs)


def test_closed_tab_frees_the_session(session: Session) -> None:
    entered = threading.Event()
    leave = threading.Event()

    def work() -> str:
        entered.set()
        leave.wait(10)
        return "done"

    texts = session._with_progress(work)
    assert next(texts) == "starting"
    entered.wait(10)
    texts.close()  # pyright: ignore[reportAttributeAccessIssue]
    leave.set()
    assert session._busy.acquire(timeout=10)
    session._busy.release()


def test_sessions_share_nothing(saved: Path, tmp_path: Path) -> None:
    store = SessionStore(tmp_path, classifier=lgclip.load(saved))
    first = store.get("a")
    second = store.get("b")
    assert store.get("a") is first
    first.toggle(first.class_images()[0].ids[0])
    first.drop_marked()
    assert len(classifier_of(first).image_ids) == 8
    assert len(classifier_of(second).image_ids) == 9
    assert second.marked == ()
    assert len(classifier_of(store.get("c")).image_ids) == 9
    first.write("classifier")
    assert (tmp_path / "session_1").is_dir()
    store.remove("a")
    assert not (tmp_path / "session_1").exists()
    assert store.get("a") is not first


def test_idle_sessions_are_forgotten(tmp_path: Path) -> None:
    store = SessionStore(tmp_path)
    first = store.get("0")
    for number in range(1, MAX_SESSIONS):
        store.get(str(number))
    assert store.get("0") is first
    store.get("one more")
    assert store.get("0") is first


def test_internal_errors_show_no_code(caplog: pytest.LogCaptureFixture) -> None:
    assert error_message(ValueError("name")) == "name"
    assert "internal error" in error_message(KeyError("secret detail"))
    assert "secret detail" not in error_message(KeyError("secret detail"))
    assert "unexpected error" in caplog.text
