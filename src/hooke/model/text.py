"""How token ids read as text: exact pieces, also where one character is spread over several tokens."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_BROKEN = "\ufffd"  # what decoders show for bytes that are not a whole character
_LONGEST = 4  # bytes of one UTF-8 character, so tokens that it can be spread over


class TokenText:
    """Text of token ids under one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, d_vocab: int) -> None:
        self._tokenizer = tokenizer
        self._d_vocab = d_vocab
        # Some decoders drop a leading space at the start of a text; behind an anchor token every piece keeps its own.
        self._anchor: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        self._anchor_text = self.decode(self._anchor)
        self._single: dict[int, str] = {}

    def decode(self, ids: Sequence[int]) -> str:
        """Whole text of ids, special tokens included, nothing cleaned up."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def piece(self, token_id: int) -> str:
        """Text of one token by itself; bytes that are not a whole character read as U+FFFD."""
        if token_id not in self._single:
            if not 0 <= token_id < self._d_vocab:
                return f"<id {token_id} out of range>"
            self._single[token_id] = self._after_anchor([token_id])
        return self._single[token_id]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Text of each token in its sequence. A character spread over several tokens is shown at its last one.

        Example: for the tokens of "é" split into two bytes the pieces are "" and "é".
        """
        shown, pending = [], []
        for token_id in ids:
            pending.append(token_id)
            text = self.piece(token_id) if len(pending) == 1 else self._after_anchor(pending)
            if text.endswith(_BROKEN) and len(pending) < _LONGEST:
                shown.append("")
                continue
            shown.append(text)
            pending = []
        if pending:  # the sequence ends inside a character
            shown[-1] = self._after_anchor(pending)
        return shown

    def _after_anchor(self, ids: list[int]) -> str:
        return self.decode(self._anchor + ids)[len(self._anchor_text) :]
