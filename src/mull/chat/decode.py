"""Tokens to text, whole or streaming, never cutting a character and never raising on bytes that are no UTF-8."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable

from tokenizers import Tokenizer


def _byte_of() -> dict[str, bytes]:
    """Byte-level BPE's printable stand-in for each byte (GPT-2, Radford et al. 2019), turned round."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [b for b in range(256) if b not in shown]
    return {chr(b) if b in shown else chr(256 + hidden.index(b)): bytes([b]) for b in range(256)}


_BYTE_OF = _byte_of()


class Decoder:
    """Byte-level tokenizers decode by joining their tokens' bytes; others (SentencePiece) as their own decoder does."""

    def __init__(self, tokenizer: Tokenizer, tokenizer_json: str):
        self._tokenizer = tokenizer
        self._added = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items()}
        decoder = json.loads(tokenizer_json).get("decoder") or {}
        kinds = [d["type"] for d in decoder.get("decoders", [decoder]) if "type" in d]
        self.byte_level = kinds == ["ByteLevel"]
        self._bytes: dict[int, bytes] = {}

    def decode(self, tokens: Iterable[int]) -> str:
        if self.byte_level:
            return b"".join(map(self.token_bytes, tokens)).decode("utf-8", "replace")
        return self._tokenizer.decode(list(tokens), skip_special_tokens=False)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token; none for an id that the tokenizer lacks (models pad their vocabulary)."""
        found = self._bytes.get(token)
        if found is None:
            if token in self._added:
                found = self._added[token].encode()
            else:
                written = self._tokenizer.id_to_token(token) or ""
                found = b"".join(_BYTE_OF[c] if c in _BYTE_OF else c.encode() for c in written)
            self._bytes[token] = found
        return found


class StreamDecoder:
    """Text of a growing token sequence, in increments that never cut a character.

    The increments and the `flush` joined are `Chat.decode` of all tokens.
    """

    def __init__(self, decoder: Decoder):
        self._decoder = decoder
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._tokens: list[int] = []  # only for tokenizers that are not byte-level
        self._read = 0  # tokens whose text is wholly emitted
        self._context = 0  # where decoding starts, so that spaces at a seam come out right

    def push(self, token: int) -> str:
        if self._decoder.byte_level:
            return self._utf8.decode(self._decoder.token_bytes(token))
        self._tokens.append(token)
        text = self._tail()
        if not text or text.endswith("\ufffd"):  # perhaps half a character, which the next token completes
            return ""
        self._context, self._read = self._read, len(self._tokens)
        return text

    def flush(self) -> str:
        """The rest, once no token follows: half a character comes out as replacement characters."""
        if self._decoder.byte_level:
            return self._utf8.decode(b"", final=True)
        text = self._tail()
        self._context = self._read = len(self._tokens)
        return text

    def _tail(self) -> str:
        known = self._decoder.decode(self._tokens[self._context : self._read])
        return self._decoder.decode(self._tokens[self._context :])[len(known) :]
