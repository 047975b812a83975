"""Stop strings in a stream of text pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Ends a stream of text at the first stop string that is complete, wherever the pieces were cut.

    Text that may be the beginning of a stop string is held back until it is clear that it is not. The stop string
    itself is never given out. Of several that end at the same character, the one that began first counts.

    Args:
        stops: the stop strings, none of them empty; there may be none.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.matched: str | None = None
        """The stop string that was found, or None so far."""

    def push(self, piece: str) -> str:
        """Takes the next piece; returns the text that can be shown now. After a match there is none."""
        if self.matched is not None:
            return ""
        text = self._held + piece
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            _, begin, self.matched = min(found)
            self._held = ""
            return text[:begin]
        keep = self._beginning_of_a_stop(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The text that was held back, now that no more will come."""
        held, self._held = self._held, ""
        return held

    def _beginning_of_a_stop(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
