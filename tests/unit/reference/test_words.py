from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jitmk.program.program import BufferKind
from jitmk.reference.words import RaceError, WordArena, from_words, to_words, value_words


@given(st.sampled_from((BufferKind.BF16, BufferKind.FP32)), st.lists(st.floats(width=16, allow_nan=False), min_size=1))
def test_values_survive_as_words(kind: BufferKind, numbers: list[float]) -> None:
    values = np.array(numbers, dtype=np.float32)
    if kind is BufferKind.BF16:
        values = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    words = to_words(kind, values)
    begin, end = value_words(kind, 0, len(values))
    assert len(words) == end - begin
    assert np.array_equal(from_words(kind, words, len(values)), values)


def test_a_bf16_word_holds_the_first_value_low() -> None:
    (word,) = to_words(BufferKind.BF16, np.array([1.0, -2.0], dtype=np.float32))
    assert word == 0xC0003F80
    with pytest.raises(AssertionError, match="not rounded"):
        to_words(BufferKind.BF16, np.array([1.001, 0], dtype=np.float32))


def arena(readers: int = 1) -> WordArena:
    return WordArena(np.full(8, readers, dtype=np.int64))


def payload(*values: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.array(values, dtype=np.uint32)


def test_words_are_there_once_all_are_written() -> None:
    words = arena()
    words.write(slice(0, 2), payload(5, 6), 1, "a", "SM 0")
    assert words.first_missing(slice(0, 3), 1) == 2
    words.write(slice(2, 3), payload(7), 1, "a", "SM 1")
    assert words.first_missing(slice(0, 3), 1) is None
    assert words.read(slice(0, 3), 1, "a", "SM 2").tolist() == [5, 6, 7]
    assert words.first_missing(slice(0, 3), 2) == 0, "last step's words are not this step's"


def test_writing_twice_is_a_race() -> None:
    words = arena()
    words.write(slice(0, 2), payload(5, 6), 1, "a", "SM 0")
    with pytest.raises(RaceError, match=r"SM 1 writes word 1 \(buffer 'a'\) in epoch 1, but a: SM 0 wrote it in"):
        words.write(slice(1, 3), payload(6, 7), 1, "a", "SM 1")


def test_overwriting_before_the_last_reader_is_a_race() -> None:
    words = arena(readers=2)
    words.write(slice(0, 2), payload(5, 6), 1, "a", "SM 0")
    words.read(slice(0, 2), 1, "a", "SM 1")
    with pytest.raises(RaceError, match="1 readers of its value by a: SM 0 of epoch 1 are still to come"):
        words.write(slice(0, 2), payload(7, 8), 2, "a", "SM 0")
    words.read(slice(0, 2), 1, "a", "SM 2")
    words.write(slice(0, 2), payload(7, 8), 2, "a", "SM 0")


def test_reading_another_step_or_another_buffer_is_a_race() -> None:
    words = arena(readers=0)
    words.write(slice(0, 2), payload(5, 6), 1, "a", "SM 0")
    with pytest.raises(RaceError, match="as part of buffer 'b', but finds a value of a: SM 0"):
        words.read(slice(0, 2), 1, "b", "SM 1")
    words.write(slice(0, 2), payload(7, 8), 2, "a", "SM 0")
    with pytest.raises(RaceError, match="in epoch 1, but a: SM 0 overwrote it in epoch 2"):
        words.read(slice(0, 2), 1, "a", "SM 1")
