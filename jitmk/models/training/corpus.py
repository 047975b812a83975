"""The training text: verses with references in, chapters out, some of them held out for good.

The input is what Debian's `bible` program prints with pretty-printing off, one verse a line::

    Ge1:1 In the beginning God created the heaven and the earth.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jitmk.models.training.recipe import TrainingError

KJV_SHA256: Final = "cd45f0c9cedab8e4439bd6486c8952c77cc8b0ecc5d1f6ae3513f2039f47229d"
"""sha256 of `bible -f gen1:1-rev22:21` with bible-kjv-text 4.38, the text of the bundled model."""

HOLDOUT_PERIOD: Final = 40
"""Of every 40 consecutive chapters one goes to validation and one to test: 2.5 % each, spread over all books."""
_VALIDATION_INDEX: Final = 19
_TEST_INDEX: Final = 39

_VERSE: Final = re.compile(r"(?P<chapter>[1-3]?[A-Za-z]+[0-9]+):[0-9]+ (?P<text>\S.*)")


@dataclass(frozen=True)
class Chapter:
    """One chapter, for instance reference `Ge1`; text: its verses, one a line, without numbers."""

    reference: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """The chapters of a text, split by position: train on one part, choose by another, report the third."""

    train: tuple[Chapter, ...]
    validation: tuple[Chapter, ...]
    test: tuple[Chapter, ...]
    sha256: str
    """Digest of the file that the corpus was read from."""


def read_corpus(path: Path) -> Corpus:
    """Read and split a file of verses, each line `<Book><chapter>:<verse> <text>`.

    Raises:
        TrainingError: the file cannot be read, a line is no verse, or there are too few chapters to hold some out.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise TrainingError(f"cannot read the text {path}: {error.strerror}") from error
    chapters = _chapters(raw, path)
    if len(chapters) < HOLDOUT_PERIOD:
        raise TrainingError(
            f"{path} has {len(chapters)} chapters; at least {HOLDOUT_PERIOD} are needed, because one in "
            f"{HOLDOUT_PERIOD} is held out for validation and one for test"
        )
    places = [index % HOLDOUT_PERIOD for index in range(len(chapters))]
    return Corpus(
        train=tuple(c for c, p in zip(chapters, places, strict=True) if p not in (_VALIDATION_INDEX, _TEST_INDEX)),
        validation=tuple(c for c, p in zip(chapters, places, strict=True) if p == _VALIDATION_INDEX),
        test=tuple(c for c, p in zip(chapters, places, strict=True) if p == _TEST_INDEX),
        sha256=hashlib.sha256(raw).hexdigest(),
    )


def _chapters(raw: bytes, path: Path) -> list[Chapter]:
    """Group consecutive verses of the same chapter; order is the file's."""
    verses: dict[str, list[str]] = {}
    for number, line in enumerate(raw.decode("utf-8", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        match = _VERSE.fullmatch(line)
        if match is None:
            raise TrainingError(
                f"{path}, line {number}, is no verse: {line[:60]!r}. Expected lines like 'Ge1:1 In the beginning ...', "
                "as `bible -f gen1:1-rev22:21` prints them"
            )
        # The source has a few doubled spaces; they carry nothing.
        verses.setdefault(match["chapter"], []).append(" ".join(match["text"].split()))
    return [Chapter(reference, "\n".join(lines)) for reference, lines in verses.items()]
