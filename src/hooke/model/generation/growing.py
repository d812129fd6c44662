"""Text that grows by a token at a time: pieces that are safe to show at once, and stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from hooke.model.text import TokenText

_BROKEN = "\ufffd"  # what decoders show for bytes that are not a whole character
_LONGEST = 4  # bytes of one UTF-8 character, so tokens that it can be spread over


class GrowingText:
    """The text of one continuation while it is being generated.

    What has been given out is never taken back: a character is held until its last byte is there, and what may be the
    beginning of a stop string until it is known not to be one. All pieces joined are the text.

    Args:
        stop: the text ends before the first of these.
    """

    def __init__(self, reader: TokenText, stop: Sequence[str] = ()) -> None:
        self._reader, self._stop = reader, tuple(stop)
        self._pending: list[int] = []  # tokens of a character that is not whole yet
        self._held = ""  # may be the beginning of a stop string
        self.text = ""
        self.stopped = False

    def add(self, token_id: int) -> str:
        """What can be shown after one more token."""
        self._pending.append(token_id)
        new = self._read()
        if new.endswith(_BROKEN) and len(self._pending) < _LONGEST:
            return ""
        self._pending = []
        return self._give(new, end=False)

    def end(self) -> str:
        """What was still held when no more tokens come."""
        new, self._pending = self._read(), []
        return self._give(new, end=True)

    def _read(self) -> str:
        return "".join(self._reader.pieces(self._pending))

    def _give(self, new: str, *, end: bool) -> str:
        waiting, self._held = self._held + new, ""
        if self.stopped:
            return ""
        found = [place for place in (waiting.find(word) for word in self._stop) if place >= 0]
        if found:
            waiting, self.stopped = waiting[: min(found)], True
        elif not end:
            n_held = max((_overlap(waiting, word) for word in self._stop), default=0)
            waiting, self._held = waiting[: len(waiting) - n_held], waiting[len(waiting) - n_held :]
        self.text += waiting
        return waiting


def _overlap(text: str, word: str) -> int:
    """Length of the longest end of the text that is a beginning of the word."""
    longest = min(len(text), len(word) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(word[:n])), 0)
