"""Text from a stream of token ids, in pieces that add up to the text of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_REPLACEMENT = "�"


class StreamDecoder:
    """Decodes ids one at a time. Pieces never split a character, and together they are `decode` of all ids.

    The text of a token depends on its neighbours: a character may be spread over several byte tokens, and the space in
    front of a word is dropped at the beginning of a text. So the decoder keeps a window of recent ids that begins at
    a place from which decoding gives the same text as from the start, and what it shows is what the window's text
    has gained. Text is held back while later ids can still change it:

    - a last U+FFFD, which may be the beginning of a character in a byte-level vocabulary;
    - a run of byte-fallback tokens, which is valid or not as a whole.

    Args:
        decode: the text of ids.
        is_silent: whether an id leaves no trace in the text.
        byte_ids: ids of byte-fallback tokens.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], is_silent: Callable[[int], bool], byte_ids: frozenset[int]
    ) -> None:
        self._decode = decode
        self._is_silent = is_silent
        self._byte_ids = byte_ids
        self._window: list[int] = []
        self._shown = 0  # characters of the window's text
        self._settled = 0  # ids of the window whose text was shown in full, up to the last time that all was

    def push(self, token: int) -> str:
        """The text that `token` completes; often "", when more ids are needed to know it."""
        if self._is_silent(token):
            return ""
        self._window.append(token)
        if token in self._byte_ids:
            return ""
        text = self._decode(self._window)
        end = len(text) - text.endswith(_REPLACEMENT)
        piece, self._shown = text[self._shown : end], max(self._shown, end)
        if self._shown == len(text):
            self._move_window(text)
        return piece

    def flush(self) -> str:
        """The rest of the text, at the end of the stream. The decoder is then as new."""
        rest = self._decode(self._window)[self._shown :]
        self._window, self._shown, self._settled = [], 0, 0
        return rest

    def _move_window(self, text: str) -> None:
        """Drops the ids that were shown earlier, if the rest decodes to the end of `text` by itself.

        It must decode to something: an id that decodes to nothing alone (a space, at the beginning) cannot begin a
        window, since the next one would be at the beginning too.
        """
        rest = self._window[self._settled :]
        alone = self._decode(rest)
        if alone and self._settled and text.endswith(alone):
            self._window, self._shown = rest, len(alone)
        self._settled = len(self._window)
