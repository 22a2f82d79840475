"""Texts in little memory: a list of strings in all that can be asked of one."""

import pickle
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgclip.texts import Texts

# What the names of files on Linux can be: half a surrogate pair stands for a byte that is no UTF-8.
names = st.text(st.characters(exclude_categories=["Cs"])) | st.binary().map(
    lambda b: b.decode("utf-8", "surrogateescape")
)


@given(st.lists(names), st.slices(8))
def test_texts_are_a_list_of_strings(texts: list[str], part: slice) -> None:
    held = Texts(iter(texts))
    assert list(held) == texts
    assert held == texts
    assert held[part] == texts[part]
    assert [held[at - len(texts)] for at in range(len(texts))] == texts
    assert list(pickle.loads(pickle.dumps(held))) == texts
    assert (held == [*texts, "more"]) is False


def test_a_place_that_is_not_there_is_an_index_error() -> None:
    with pytest.raises(IndexError):
        Texts(["a"])[1]


def test_they_take_a_quarter_of_the_room_of_strings() -> None:
    def room(make: object) -> int:
        tracemalloc.start()
        held = make(f"class_{at % 1000:04d}/{at:06d}.jpg" for at in range(20_000))  # pyright: ignore[reportCallIssue]
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(held) == 20_000
        return size

    assert room(Texts) < room(tuple) / 3
