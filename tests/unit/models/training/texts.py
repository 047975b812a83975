"""A text that is small enough to train on within a test."""

from __future__ import annotations

import random
from pathlib import Path

WORDS = ("light", "darkness", "earth", "water", "heaven", "spirit", "people", "king", "house", "stone", "river", "hand")


def write_text(path: Path, chapters: int = 40, verses: int = 3) -> Path:
    """Write `chapters` chapters of made-up verses in the format of `bible -f`, and return the path."""
    draw = random.Random(0)
    lines = [
        f"Ge{chapter}:{verse} And the {draw.choice(WORDS)} of the {draw.choice(WORDS)}, and {draw.choice(WORDS)}."
        for chapter in range(1, chapters + 1)
        for verse in range(1, verses + 1)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
