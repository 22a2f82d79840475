"""Texts in little memory: a list of strings in all that can be asked of one."""

import pickle
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgclip.identity import key_of
from lgclip.texts import Keys, Texts

# What the names of files on Linux can be: half a surrogate pair stands for a byte that is no UTF-8.
names = st.text(st.characters(exclude_categories=["Cs"])) | st.binary().map(
    lambda b: b.decode("utf-8", "surrogateescape")
)


@pytest.mark.parametrize("kind", [Texts, Keys])
@given(texts=st.lists(names), part=st.slices(8))
def test_they_are_a_list_of_strings(kind: type[Texts] | type[Keys], texts: list[str], part: slice) -> None:
    if kind is Keys:
        texts = [key_of({"text": repr(text)}) for text in texts]
    held = kind(iter(texts))
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
