"""Names come from folders, files, tables and models: none leaves its folder, steers a terminal or forges a line."""

import io
import logging
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imagenet_trees import content
from parquet_trees import table, write
from worlds import World, call, judge, picture_folder

from lgclip.datasets.archive import ArchiveError, unpack
from lgclip.datasets.base import checked_names
from lgclip.datasets.hub import HubImages
from lgclip.inventory import Kind, walk
from lgclip.shown import OneLine, one_line, shown
from lgclip.store import PromptStore
from lgclip.transport import import_archive

pytest_plugins = ("run_fixtures",)

HOSTILE = [
    "../../escaped", "/tmp/escaped", "..", ".", "~/escaped", "a/b/../../../escaped", "C:\\escaped", "CON", "nul.txt",
    "aux:stream", "con. ", "\x1b[2J\x1b]0;owned\x07", "x\x9b31mred", "beep\x07\x08\x08", "a\rforged", "a\x00b",
    "x" * 5000, "é" * 200, "\u202egnp.exe", "\u2066a\u2069", "\U0001f469\u200d\U0001f467 family", "قط", "$(touch it)",
    "`id`; rm -rf .", "%s%n{}", "{name}", "-rf", "=1+1", "a\u2028forged", "null", "''; --",
]  # fmt: skip
STEERING = re.compile(r"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")
OF_A_RUN = re.compile(
    r"\.hydra/(config|hydra|overrides)\.yaml|log/(metrics\.csv|hparams\.yaml)|(evaluate|generate)\.log|result\.json"
    r"|(per_class|predictions|diagnostics)\.csv|prototypes\.png|images\.jsonl"
)


def escaped(root: Path, *folders: Path) -> list[str]:
    """The files below `root` that lie in none of the folders, and whatever was written to /tmp."""
    outside = [path for path in root.rglob("*") if path.is_file() and not any(f in path.parents for f in folders)]
    return [str(path) for path in (*outside, Path("/tmp/escaped")) if path.exists()]


def files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def hostile_set(tmp_path: Path) -> Path:
    """A folder of classes under hostile names, which is itself called by one; the names are in a file too."""
    root = picture_folder(tmp_path / "data" / "set\x1b[2J\nforged 99.9%", [f"c{i:02}" for i in range(len(HOSTILE))], 1)
    lines = [name.replace("\r", "\\r").replace("\u2028", " ") for name in HOSTILE]
    (tmp_path / "data" / "names.txt").write_text("\n".join(lines), encoding="utf-8")
    return root


def overrides(world: World, root: Path) -> list[str]:
    taken = [o for o in world.evaluating() if not o.startswith(("dataset", "logger", "prompts_per_class"))]
    names = f"dataset.names='{root.parent / 'names.txt'}'"
    quoted = str(root).replace("'", r"\'")
    return [*taken, "dataset=folder", f"dataset.root='{quoted}'", names, "prompts_per_class=1", "logger=csv"]


def test_hostile_names_write_into_the_run_and_the_store_alone(
    fresh_world: World, hostile_set: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    given = overrides(fresh_world, hostile_set)
    result = judge(given, run)
    call("generate", *given, f"hydra.run.dir={tmp_path / 'generated'}")
    said = capfd.readouterr()
    assert result["num_classes"] == len(HOSTILE)
    assert escaped(tmp_path, run, tmp_path / "generated", fresh_world.store, tmp_path / "data") == []
    assert {item.kind for item in walk(fresh_world.store)} <= {*Kind} - {Kind.FOREIGN, Kind.LINK, Kind.LEFTOVER}
    strange = [name for name in (*files(run), *files(tmp_path / "generated")) if not OF_A_RUN.fullmatch(name)]
    assert strange == []
    assert STEERING.findall(said.out) == []
    assert "\n99.9%" not in said.out
    assert not [line for line in said.out.splitlines() if line.startswith("forged")]
    assert STEERING.findall((run / "per_class.csv").read_text(encoding="utf-8")) == []
    assert len((tmp_path / "generated" / "images.jsonl").read_text(encoding="utf-8").split("\n")) == len(HOSTILE) + 1


def test_class_names_steer_nothing_and_stay_what_they_are() -> None:
    names = checked_names(HOSTILE)
    assert [STEERING.findall(name) for name in names] == [[]] * len(HOSTILE)
    kept = ("../../escaped", "CON", "\U0001f469\u200d\U0001f467 family", "قط", "$(touch it)", "{name}")
    assert [names[HOSTILE.index(name)] for name in kept] == list(kept)


@pytest.mark.parametrize("name", ["a\udcffb", "\ud800"])
def test_a_name_that_is_no_text_is_an_error_that_can_be_shown(name: str) -> None:
    with pytest.raises(ValueError, match="class 1") as raised:
        checked_names(["cat", name])
    str(raised.value).encode()


def test_labels_of_a_table_are_names_like_others(tmp_path: Path) -> None:
    labels = [name for name in HOSTILE if name.strip()]
    rows = table([content(i % 7) for i in range(len(labels))], {"label": labels})
    root = write(tmp_path / "set\x1b[2J", "data/test-00000-of-00001.parquet", rows)
    found = HubImages(root=str(root))
    assert len(found.class_names) == len(labels)
    assert STEERING.findall("".join((*found.class_names, found.name, found.split))) == []
    assert files(tmp_path) == ["set\x1b[2J/data/test-00000-of-00001.parquet"]


@settings(max_examples=100)
@given(text=st.text() | st.sampled_from(HOSTILE))
def test_whatever_is_said_a_store_names_its_files_by_keys(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("escape")
    inputs = {"class": text, "writer": {"model": text}, "schema": 1}
    try:
        PromptStore(root / "store").put(inputs, [text], failure=text)
    except UnicodeEncodeError:  # half a pair of surrogates
        assert files(root) == []
        return
    assert [item.kind for item in walk(root / "store")] == [Kind.PROMPTS]
    assert escaped(root, root / "store") == []


@given(st.text(alphabet=st.characters()))
def test_what_is_shown_steers_nothing_and_can_be_written(text: str) -> None:
    assert STEERING.findall(one_line(text).replace("\t", "")) == []
    assert "\n" not in one_line(text)
    one_line(text).encode()
    assert len(shown(text).split("\n")) == len(text.split("\n"))
    plain = "".join(letter for letter in text if letter.isalnum() or letter == " ")
    assert one_line(plain) == plain


def test_a_name_cannot_forge_a_line_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "a-very-secret-token-1")
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(OneLine("[%(levelname)s] - %(message)s"))
    record = logging.makeLogRecord(
        {"levelname": "WARNING", "msg": "bad file %s", "args": ("a\n[ERROR] - all lost\x1b[2J",)}
    )
    handler.emit(record)
    record = logging.makeLogRecord({"levelname": "WARNING", "msg": "sent a-very-secret-token-1"})
    handler.emit(record)
    first, second = written.getvalue().splitlines()
    assert first == r"[WARNING] - bad file a\x0a[ERROR] - all lost\x1b[2J"
    assert second == "[WARNING] - sent ***"


def test_a_log_of_a_run_is_written_so(
    fresh_world: World, hostile_set: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (hostile_set / ".hidden\x1b[2J\n[forged] error").mkdir()
    with pytest.raises(SystemExit):
        call(
            "evaluate", *overrides(fresh_world, hostile_set), "encoder.model=/nowhere", f"hydra.run.dir={tmp_path}/run"
        )
    with pytest.raises(SystemExit):
        call("generate", *overrides(fresh_world, hostile_set), "llm=file", f"llm.path={tmp_path / 'no file'}")
    written = "".join(path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.log"))
    assert "hidden folders are no classes" in written
    said = capfd.readouterr()
    for text in (written, said.out, said.err):
        assert STEERING.findall(text) == []
        assert not [line for line in text.splitlines() if line.startswith("[forged]")]


def members(archive: Path, **pax: str) -> None:
    """A tar with one plain file, whose extended header says something else of it."""
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("fine.txt")
        info.size, info.pax_headers = 4, {key.replace("_", "."): value for key, value in pax.items()}
        tar.addfile(info, io.BytesIO(b"data"))


SPARSE = {"GNU_sparse_major": "0", "GNU_sparse_minor": "1", "GNU_sparse_map": "0,4"}
PAX = {
    "a place outside": ({"path": "../escaped"}, "would lie outside"),
    "an absolute place": ({"path": "/tmp/escaped"}, "would lie outside"),
    "a sparse file with a place outside": ({**SPARSE, "GNU_sparse_name": "../escaped"}, "would lie outside"),
    "a sparse file larger than any disk": ({**SPARSE, "GNU_sparse_size": str(1 << 60)}, "GB unpacked"),
    "a size larger than any disk": ({"size": str(1 << 60)}, "GB unpacked|damaged"),
}


@pytest.mark.parametrize("what", PAX)
@pytest.mark.parametrize("how", ["unpack", "import"])
def test_an_extended_header_of_a_tar_leads_nowhere(what: str, how: str, tmp_path: Path) -> None:
    headers, said = PAX[what]
    archive = tmp_path / "bad.tar"
    members(archive, **headers)
    into = tmp_path / "into"
    with pytest.raises(ValueError, match=said):
        list(unpack(archive, into) if how == "unpack" else import_archive(into, archive))
    assert escaped(tmp_path) == [str(archive)]


def test_a_zip_that_lies_of_its_size_fills_no_disk(tmp_path: Path) -> None:
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("zeros", b"\0" * 5_000_000)
    data = archive.read_bytes()
    size = (5_000_000).to_bytes(4, "little")
    assert data.count(size) == 2
    archive.write_bytes(data.replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(ArchiveError, match="damaged"):
        unpack(archive, tmp_path / "into")
    assert escaped(tmp_path) == [str(archive)]


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """Hydra sets the handlers of a process; the next test has its own."""
    before = list(logging.root.handlers)
    yield
    for handler in [handler for handler in logging.root.handlers if handler not in before]:
        logging.root.removeHandler(handler)
        handler.close()
