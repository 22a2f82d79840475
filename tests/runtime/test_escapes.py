"""Tests names from folders, files, tables and models: none leaves its folder, controls a terminal or forges a line."""

import io
import logging
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from factories import Sandbox, evaluate_run, make_image_folder, run_command
from hypothesis import given, settings
from hypothesis import strategies as st
from imagenet_trees import content
from parquet_trees import table, write

from lgclip.cli.store.archive import import_archive
from lgclip.cli.store.inventory import Kind, walk
from lgclip.datasets.archive import ArchiveError, unpack
from lgclip.datasets.base import checked_names
from lgclip.datasets.hugging_face import HubImages
from lgclip.runtime.terminal import OneLine, sanitized, single_line
from lgclip.store.prompts import PromptStore

pytest_plugins = ("run_fixtures",)

MALICIOUS_NAMES = [
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


def files_outside(root: Path, *folders: Path) -> list[str]:
    """Returns the files below `root` outside the folders, and any file written to /tmp."""
    outside = []
    for path in root.rglob("*"):
        if path.is_file() and not any(f in path.parents for f in folders):
            outside.append(path)
    return [str(path) for path in (*outside, Path("/tmp/escaped")) if path.exists()]


def files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def malicious_dataset(tmp_path: Path) -> Path:
    """Creates a folder and a file of classes with malicious names."""
    root = make_image_folder(
        tmp_path / "data" / "set\x1b[2J\nforged 99.9%", [f"c{i:02}" for i in range(len(MALICIOUS_NAMES))], 1
    )
    lines = [name.replace("\r", "\\r").replace("\u2028", " ") for name in MALICIOUS_NAMES]
    (tmp_path / "data" / "names.txt").write_text("\n".join(lines), encoding="utf-8")
    return root


def overrides(sandbox: Sandbox, root: Path) -> list[str]:
    selected = [o for o in sandbox.evaluate_overrides() if not o.startswith(("dataset", "logger", "prompts_per_class"))]
    names = f"dataset.names='{root.parent / 'names.txt'}'"
    quoted = str(root).replace("'", r"\'")
    return [*selected, "dataset=folder", f"dataset.root='{quoted}'", names, "prompts_per_class=1", "logger=csv"]


@pytest.mark.slow
def test_malicious_names_stay_in_run_and_store(
    fresh_sandbox: Sandbox, malicious_dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run_overrides = overrides(fresh_sandbox, malicious_dataset)
    result = evaluate_run(run_overrides, run)
    run_command("generate", *run_overrides, f"hydra.run.dir={tmp_path / 'generated'}")
    captured = capfd.readouterr()
    assert result["num_classes"] == len(MALICIOUS_NAMES)
    assert files_outside(tmp_path, run, tmp_path / "generated", fresh_sandbox.store, tmp_path / "data") == []
    assert {item.kind for item in walk(fresh_sandbox.store)} <= {*Kind} - {Kind.FOREIGN, Kind.LINK, Kind.LEFTOVER}
    foreign = [name for name in (*files(run), *files(tmp_path / "generated")) if not OF_A_RUN.fullmatch(name)]
    assert foreign == []
    assert STEERING.findall(captured.out) == []
    assert "\n99.9%" not in captured.out
    assert not [line for line in captured.out.splitlines() if line.startswith("forged")]
    assert STEERING.findall((run / "per_class.csv").read_text(encoding="utf-8")) == []
    assert (
        len((tmp_path / "generated" / "images.jsonl").read_text(encoding="utf-8").split("\n"))
        == len(MALICIOUS_NAMES) + 1
    )


def test_class_names_are_sanitized_for_output() -> None:
    names = checked_names(MALICIOUS_NAMES)
    assert [STEERING.findall(name) for name in names] == [[]] * len(MALICIOUS_NAMES)
    expected_names = ("../../escaped", "CON", "\U0001f469\u200d\U0001f467 family", "قط", "$(touch it)", "{name}")
    assert [names[MALICIOUS_NAMES.index(name)] for name in expected_names] == list(expected_names)


@pytest.mark.parametrize("name", ["a\udcffb", "\ud800"])
def test_non_text_name_is_rejected(name: str) -> None:
    with pytest.raises(ValueError, match="class 1") as raised:
        checked_names(["cat", name])
    str(raised.value).encode()


def test_table_labels_are_sanitized(tmp_path: Path) -> None:
    labels = [name for name in MALICIOUS_NAMES if name.strip()]
    rows = table([content(i % 7) for i in range(len(labels))], {"label": labels})
    root = write(tmp_path / "set\x1b[2J", "data/test-00000-of-00001.parquet", rows)
    dataset = HubImages(root=str(root))
    assert len(dataset.class_names) == len(labels)
    assert STEERING.findall("".join((*dataset.class_names, dataset.name, dataset.split))) == []
    assert files(tmp_path) == ["set\x1b[2J/data/test-00000-of-00001.parquet"]


@settings(max_examples=100)
@given(text=st.text() | st.sampled_from(MALICIOUS_NAMES))
def test_store_file_names_are_keys(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("escape")
    inputs = {"class": text, "prompt_generator": {"model": text}, "schema": 1}
    try:
        PromptStore(root / "store").put(inputs, [text], failure=text)
    except UnicodeEncodeError:  # half a pair of surrogates
        assert files(root) == []
        return
    assert [item.kind for item in walk(root / "store")] == [Kind.PROMPTS]
    assert files_outside(root, root / "store") == []


@given(st.text(alphabet=st.characters()))
def test_sanitized_text_is_safe(text: str) -> None:
    assert STEERING.findall(single_line(text).replace("\t", "")) == []
    assert "\n" not in single_line(text)
    single_line(text).encode()
    assert len(sanitized(text).split("\n")) == len(text.split("\n"))
    plain = "".join(letter for letter in text if letter.isalnum() or letter == " ")
    assert single_line(plain) == plain


def test_name_cannot_forge_log_lines(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_run_log_is_sanitized(
    fresh_sandbox: Sandbox, malicious_dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (malicious_dataset / ".hidden\x1b[2J\n[forged] error").mkdir()
    with pytest.raises(SystemExit):
        run_command(
            "evaluate",
            *overrides(fresh_sandbox, malicious_dataset),
            "encoder.model=/nowhere",
            f"hydra.run.dir={tmp_path}/run",
        )
    with pytest.raises(SystemExit):
        run_command(
            "generate", *overrides(fresh_sandbox, malicious_dataset), "llm=file", f"llm.path={tmp_path / 'no file'}"
        )
    written = "".join(path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.log"))
    assert "not read, hidden: 1" in written
    captured = capfd.readouterr()
    for text in (written, captured.out, captured.err):
        assert STEERING.findall(text) == []
        assert not [line for line in text.splitlines() if line.startswith("[forged]")]


def members(archive: Path, **pax: str) -> None:
    """Checks the members of a tar with one plain file whose extended header contradicts it."""
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("fine.txt")
        info.size = 4
        info.pax_headers = {key.replace("_", "."): value for key, value in pax.items()}
        tar.addfile(info, io.BytesIO(b"data"))


SPARSE = {"GNU_sparse_major": "0", "GNU_sparse_minor": "1", "GNU_sparse_map": "0,4"}
PAX = {
    "a place outside": ({"path": "../escaped"}, "would lie outside"),
    "an absolute place": ({"path": "/tmp/escaped"}, "would lie outside"),
    "a sparse file with a place outside": ({**SPARSE, "GNU_sparse_name": "../escaped"}, "would lie outside"),
    "a sparse file larger than any disk": ({**SPARSE, "GNU_sparse_size": str(1 << 60)}, "GB unpacked"),
    "a size larger than any disk": ({"size": str(1 << 60)}, "GB unpacked|damaged"),
}


@pytest.mark.parametrize("case", PAX)
@pytest.mark.parametrize("command", ["unpack", "import"])
def test_tar_extended_headers_are_ignored(case: str, command: str, tmp_path: Path) -> None:
    headers, message = PAX[case]
    archive = tmp_path / "bad.tar"
    members(archive, **headers)
    into = tmp_path / "into"
    with pytest.raises(ValueError, match=message):
        list(unpack(archive, into) if command == "unpack" else import_archive(into, archive))
    assert files_outside(tmp_path) == [str(archive)]


def test_zip_size_lies_are_detected(tmp_path: Path) -> None:
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("zeros", b"\0" * 5_000_000)
    data = archive.read_bytes()
    size = (5_000_000).to_bytes(4, "little")
    assert data.count(size) == 2
    archive.write_bytes(data.replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(ArchiveError, match="damaged"):
        unpack(archive, tmp_path / "into")
    assert files_outside(tmp_path) == [str(archive)]


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """Restores the log handlers that Hydra replaces."""
    before = list(logging.root.handlers)
    yield
    for handler in [handler for handler in logging.root.handlers if handler not in before]:
        logging.root.removeHandler(handler)
        handler.close()
