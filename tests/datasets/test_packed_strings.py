"""Tests strings packed in little memory: they behave as a list."""

import pickle
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgclip.datasets.packed_strings import PackedHashes, PackedStrings
from lgclip.store.keys import content_key

# What the names of files on Linux can be: half a surrogate pair stands for a byte that is no UTF-8.
names = st.text(st.characters(exclude_categories=["Cs"])) | st.binary().map(
    lambda b: b.decode("utf-8", "surrogateescape")
)


@pytest.mark.parametrize("kind", [PackedStrings, PackedHashes])
@given(texts=st.lists(names), part=st.slices(8))
def test_packed_strings_behave_like_a_list(
    kind: type[PackedStrings] | type[PackedHashes], texts: list[str], part: slice
) -> None:
    if kind is PackedHashes:
        texts = [content_key({"text": repr(text)}) for text in texts]
    packed = kind(iter(texts))
    assert list(packed) == texts
    assert packed == texts
    assert packed[part] == texts[part]
    assert [packed[index - len(texts)] for index in range(len(texts))] == texts
    assert list(pickle.loads(pickle.dumps(packed))) == texts
    assert (packed == [*texts, "more"]) is False


def test_index_out_of_range_is_an_error() -> None:
    with pytest.raises(IndexError):
        PackedStrings(["a"])[1]


def test_packed_strings_use_less_than_half_of_the_memory() -> None:
    def room(make: object) -> int:
        tracemalloc.start()
        packed = make(f"class_{index % 1000:04d}/{index:06d}.jpg" for index in range(20_000))  # pyright: ignore[reportCallIssue]
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(packed) == 20_000
        return size

    assert room(PackedStrings) < room(tuple) / 2
