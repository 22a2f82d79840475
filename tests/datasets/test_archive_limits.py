"""Tests foreign archives: legitimate oddities are unpacked, all else is one error, and no header takes much memory."""

import bz2
import contextlib
import gzip
import io
import lzma
import struct
import tarfile
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_archives import GOOD, remaining_files, tar_of, zip_of

from lgclip.cli.store.archive import ABOUT, import_archive
from lgclip.datasets import archive as archives
from lgclip.datasets.archive import ArchiveError, unpack
from lgclip.datasets.archive_members import MAX_HEADER_BYTES


def pax_header(records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """Returns an extended header of a tar."""
    header = tarfile.TarInfo("pax")
    header.type = kind
    header.size = len(records)
    return header.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % tarfile.BLOCKSIZE)


def record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode()
    size = len(body) + 1
    while len(str(size)) + len(body) != size:
        size = len(str(size)) + len(body)
    return str(size).encode() + body


def plain_member(name: str = "set/a.jpg", content: bytes = b"a") -> bytes:
    header = tarfile.TarInfo(name)
    header.size = len(content)
    return header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


END = bytes(2 * tarfile.BLOCKSIZE)


@pytest.mark.parametrize("mtime", ["1e300", "inf", "-inf", "nan", "1e18", "-1e18"])
def test_impossible_time_is_one_error(mtime: str, tmp_path: Path) -> None:
    path = tmp_path / "set.tar"
    path.write_bytes(pax_header(record("mtime", mtime)) + plain_member() + END)
    with pytest.raises(ArchiveError, match=r"set\.tar: 'set/a\.jpg' was changed at .* no date; nothing was unpacked"):
        unpack(path, tmp_path / "folder")
    assert not remaining_files(tmp_path / "folder")


@pytest.mark.parametrize("mtime", ["0", "1300000000.25", "-86400"])
def test_possible_time_is_kept(mtime: str, tmp_path: Path) -> None:
    path = tmp_path / "set.tar"
    path.write_bytes(pax_header(record("mtime", mtime)) + plain_member() + END)
    unpack(path, tmp_path / "folder")
    assert (tmp_path / "folder" / "set" / "a.jpg").stat().st_mtime == float(mtime)


@pytest.mark.parametrize("date", [0, 0x21, (15 << 5) | 31, 0xFFFF])
def test_zip_without_dates_is_unpacked(date: int, tmp_path: Path) -> None:
    path = zip_of(tmp_path / "set.zip", ("set/a.jpg", b"a"))
    content = bytearray(path.read_bytes())
    for offset in (content.index(b"PK\x03\x04") + 12, content.index(b"PK\x01\x02") + 14):
        content[offset : offset + 2] = struct.pack("<H", date)
    path.write_bytes(content)
    unpack(path, tmp_path / "folder")
    assert (tmp_path / "folder" / "set" / "a.jpg").read_bytes() == b"a"


@pytest.mark.parametrize("method", [1, 9, 12, 14, 93, 99])
def test_unsupported_compression_is_one_error(method: int, tmp_path: Path) -> None:
    path = zip_of(tmp_path / "set.zip", ("set/a.jpg", b"a"))
    content = bytearray(path.read_bytes())
    for offset in (content.index(b"PK\x03\x04") + 8, content.index(b"PK\x01\x02") + 10):
        content[offset : offset + 2] = struct.pack("<H", method)
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=rf"set\.zip: 'set/a\.jpg' is compressed by method {method},"):
        unpack(path, tmp_path / "folder")


LARGE = 1 << 26


def big_header(kind: bytes) -> Callable[[], bytes]:
    return lambda: pax_header(record("comment", "x" * LARGE), kind) + plain_member() + END


def many_headers() -> bytes:
    return pax_header(record("comment", "x" * 60_000)) * 200 + plain_member() + END


def many_global_headers() -> bytes:
    parts = [
        pax_header(record(f"comment{i}", "x" * 60_000), tarfile.XGLTYPE) + plain_member(f"{i}") for i in range(200)
    ]
    return b"".join(parts) + END


def sparse_list() -> bytes:
    records = record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") + record("GNU.sparse.realsize", "9")
    return pax_header(records) + plain_member(content=b"9" * LARGE) + END


def old_sparse_list() -> bytes:
    header = tarfile.TarInfo("set/a")
    header.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[482] = 1  # more of the list follows
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    more = (b"%011o " % 1) * 42 + b"\1" + bytes(7)
    return bytes(block) + more * 100_000 + END


def deep_path() -> bytes:
    return pax_header(record("path", "a/" * 400_000)) + plain_member() + END


def endless_path() -> bytes:
    return pax_header(record("path", "a" * 900_000)) + plain_member() + END


HEAVY = {
    "pax": big_header(tarfile.XHDTYPE), "global pax": big_header(tarfile.XGLTYPE),
    "solaris pax": big_header(tarfile.SOLARIS_XHDTYPE), "long name": big_header(tarfile.GNUTYPE_LONGNAME),
    "long link": big_header(tarfile.GNUTYPE_LONGLINK), "many headers": many_headers,
    "many global headers": many_global_headers, "sparse": sparse_list, "old sparse": old_sparse_list,
    "deep path": deep_path, "long path": endless_path,
}  # fmt: skip


@pytest.mark.parametrize("case", HEAVY)
def test_heavy_header_takes_no_memory(case: str, tmp_path: Path) -> None:
    path = tmp_path / "set.tar.gz"
    path.write_bytes(gzip.compress(HEAVY[case](), 1))
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match=r"set\.tar\.gz"):
            unpack(path, tmp_path / "folder")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * MAX_HEADER_BYTES
    assert not remaining_files(tmp_path / "folder")


def test_large_list_of_a_zip_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with path.open("wb") as file:
        file.truncate(1 << 30)  # a file with a hole, which takes no room
        file.seek(0, 2)
        file.write(b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 1, 1, (1 << 30) - 1, 0, 0))
    tracemalloc.start()
    with pytest.raises(ArchiveError, match=r"set\.zip is damaged.*list of members has 1073741823 bytes"):
        unpack(path, tmp_path / "folder")
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


def test_number_of_members_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    with pytest.raises(ArchiveError, match="more than 3 members"):
        unpack(tar_of(tmp_path / "a.tar", *((f"{i}.jpg", b"1") for i in range(4))), tmp_path / "folder")
    with pytest.raises(ArchiveError, match="more than 3 folders"):
        unpack(tar_of(tmp_path / "b.tar", ("a/b/c/d/e/f/g.jpg", b"1")), tmp_path / "folder")


@pytest.mark.parametrize("member", range(1, 4))
def test_damaged_header_is_not_the_end(member: int, tmp_path: Path) -> None:
    """Checks the headers of a plain tar, after whose first damaged one `tarfile` reads no more and says nothing."""
    path = tar_of(tmp_path / "set.tar", *GOOD, mode="w")
    content = bytearray(path.read_bytes())
    content[1024 * member + 20] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match="a header is damaged"):
        unpack(path, tmp_path / "folder")


@pytest.mark.parametrize("about", [b"[" * 100_000, b"{" + b" " * 1_000_000 + b"}", b"\xff", b"[]", b"1"])
def test_import_of_a_foreign_archive_is_one_error(about: bytes, tmp_path: Path) -> None:
    path = tar_of(tmp_path / "store.tar", (ABOUT, about), ("MANIFEST.sha256", b"\xff"), mode="w")
    with pytest.raises(ValueError, match=r"store\.tar"):
        list(import_archive(tmp_path / "store", path))
    assert not remaining_files(tmp_path / "store")


# ------------------------------------------------------------------------------------------------------------ fuzzing

NAMES = st.one_of(
    st.sampled_from(
        ["a", "set/a.jpg", "set/", "../a", "/a", "a\\b", "C:x", "", ".", "./a", "a\0b", "a/../b", "A", "\u00e9"]
    ),
    st.text(st.characters(codec="utf-8"), max_size=12),
    st.lists(st.sampled_from("abAB."), max_size=8).map("/".join),
)
TAR_KINDS = st.sampled_from(
    [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, b"x", b"g", b"L", b"S", b"9"]
)
HEADERS = st.dictionaries(
    st.sampled_from(
        ["path", "mtime", "size", "linkpath", "uid", "GNU.sparse.major", "GNU.sparse.map", "hdrcharset", "x"]
    ),
    st.one_of(st.text(st.characters(codec="utf-8"), max_size=9), st.integers(-9, 2**70).map(str), st.floats().map(str)),
    max_size=3,
)


@st.composite
def tars(draw: st.DrawFn) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for _ in range(draw(st.integers(0, 5))):
            info = tarfile.TarInfo(draw(NAMES))
            if draw(st.integers(0, 3)) == 0:
                info.type = draw(TAR_KINDS)
                info.pax_headers = draw(HEADERS)
            info.mtime = draw(st.one_of(st.integers(0, 2**33), st.floats(0, 1e12)))
            content = draw(st.binary(max_size=40))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    compress = draw(st.sampled_from([bytes, gzip.compress, bz2.compress, lzma.compress]))
    return compress(out.getvalue())


@st.composite
def zips(draw: st.DrawFn) -> bytes:
    out = io.BytesIO()
    methods = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
    with zipfile.ZipFile(out, "w") as packed:
        for _ in range(draw(st.integers(0, 5))):
            info = zipfile.ZipInfo("x", (1980, 1, 1, 0, 0, 0))
            info.filename = draw(NAMES)
            info.external_attr = draw(st.one_of(st.just(0), st.integers(0, 2**32 - 1)))
            info.compress_type = draw(st.sampled_from(methods[:2] * 3 + methods))
            info.extra = draw(st.binary(max_size=8))
            with warnings.catch_warnings(action="ignore"):  # of two members with one name
                packed.writestr(info, draw(st.binary(max_size=40)))
    return out.getvalue()


@st.composite
def damaged(draw: st.DrawFn, archives_: st.SearchStrategy[bytes]) -> bytes:
    """Draws an archive with some bytes flipped, a part removed or doubled, or cut."""
    content = bytearray(draw(archives_))
    for _ in range(draw(st.integers(0, 4))):
        if content:
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        cut = draw(st.integers(0, len(content)))
        content = content[:cut] + content[cut + draw(st.integers(0, 600)) :]
    return bytes(content)


def _unpack_safely(name: str, content: bytes, folder: Path) -> None:
    """Unpacks an archive into an empty folder: either it works, or it is an `ArchiveError` and nothing is there."""
    folder.mkdir()
    (folder / name).write_bytes(content)
    tops: list[Path] = []
    with contextlib.suppress(ArchiveError):
        tops = unpack(folder / name, folder / "into")
    assert remaining_files(folder) <= {name, "into"}
    assert remaining_files(folder / "into") == {top.name for top in tops}
    for path in (folder / "into").rglob("*"):
        assert not path.is_symlink()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(content=damaged(tars()), name=st.sampled_from(["a.tar", "a.tar.gz", "a.tgz"]))
def test_any_tar_is_unpacked_or_one_error(content: bytes, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    _unpack_safely(name, content, tmp_path_factory.mktemp("tar") / "x")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(content=damaged(zips()))
def test_any_zip_is_unpacked_or_one_error(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    _unpack_safely("a.zip", content, tmp_path_factory.mktemp("zip") / "x")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(content=st.binary(max_size=2000), name=st.sampled_from(["a.tar", "a.tar.gz", "a.zip"]))
def test_any_bytes_are_one_error(content: bytes, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    _unpack_safely(name, content, tmp_path_factory.mktemp("any") / "x")
