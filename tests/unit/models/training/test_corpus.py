"""Reading and splitting the text."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from jitmk.models.training.corpus import Chapter, read_corpus
from jitmk.models.training.recipe import TrainingError
from tests.unit.models.training.texts import write_text


def test_every_chapter_lands_in_exactly_one_part(tmp_path: Path) -> None:
    corpus = read_corpus(write_text(tmp_path / "text", chapters=85))
    parts = [corpus.train, corpus.validation, corpus.test]
    assert [len(part) for part in parts] == [81, 2, 2]
    assert {c.reference for part in parts for c in part} == {f"Ge{number}" for number in range(1, 86)}
    assert [c.reference for c in corpus.validation] == ["Ge20", "Ge60"]
    assert [c.reference for c in corpus.test] == ["Ge40", "Ge80"]
    assert corpus.sha256 == hashlib.sha256((tmp_path / "text").read_bytes()).hexdigest()


def test_references_and_doubled_spaces_are_left_out(tmp_path: Path) -> None:
    path = write_text(tmp_path / "text")
    path.write_text("1Sm1:1 Now there was  a man.\n1Sm1:2 And he had two wives;\n\n" + path.read_text())
    assert read_corpus(path).train[0] == Chapter("1Sm1", "Now there was a man.\nAnd he had two wives;")


def test_a_line_that_is_no_verse_is_named(tmp_path: Path) -> None:
    path = write_text(tmp_path / "text")
    path.write_text(path.read_text() + "Genesis 1\n")
    with pytest.raises(TrainingError, match="line 121, is no verse: 'Genesis 1'"):
        read_corpus(path)


def test_too_few_chapters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="has 39 chapters; at least 40 are needed"):
        read_corpus(write_text(tmp_path / "text", chapters=39))


def test_an_unreadable_text_is_an_error_of_jitmk(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"cannot read the text .*absent: No such file"):
        read_corpus(tmp_path / "absent")
