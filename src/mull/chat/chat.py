"""`Chat`: one model folder's tokenizer, chat template, thought tags and end tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path

from tokenizers import Tokenizer

from mull.chat.decode import Decoder, StreamDecoder
from mull.chat.template import (
    CLOSE,
    OPEN,
    Messages,
    compile_template,
    guarded,
    render,
    strings,
    template_of,
    validated,
)
from mull.errors import UserError
from mull.files import read_object

SURROGATES = re.compile("[\ud800-\udfff]")


class Chat:
    """A model folder's tokenizer, chat template, thought tags and end tokens.

    `think_open` and `think_close` are the tags' token ids: one each where the tokenizer has them as tokens. With
    `spell_think` a tokenizer without them spells them out of ordinary tokens; without it, asking for them is a
    UserError. `end_ids` are all tokens that end a turn: those that any of the folder's files names, and the one that
    the template writes behind an answer; `turn_end` is the one to train on.
    """

    def __init__(
        self,
        name: str,
        tokenizer_json: str,
        template: str | None,
        special: Mapping[str, str],
        end: Iterable[int | str],
        spell_think: bool = False,
    ):
        self.name = name
        self.special = dict(special)  # bos_token, eos_token, …: what a template may write
        self.spell_think = spell_think
        self._tokenizer_json = tokenizer_json
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer_json)
        except Exception as e:  # the tokenizers library raises bare Exception
            raise UserError(f"{name}/tokenizer.json cannot be read ({e}): download the model again") from e
        self._template = compile_template(name, template) if template else None
        self._template_source = template or ""
        added = self._tokenizer.get_added_tokens_decoder()
        self.vocab_size = max([self._tokenizer.get_vocab_size(False), *(i + 1 for i in added)])
        # Runs of spaces are added tokens of some tokenizers; they control nothing.
        self._controls = {token.content: i for i, token in added.items() if token.content.strip()}
        self._decoder = Decoder(self._tokenizer, tokenizer_json)
        ids = [i if isinstance(i, int) else self._tokenizer.token_to_id(i) for i in end]
        written = self._written_end()
        self.end_ids: tuple[int, ...] = tuple(dict.fromkeys(i for i in [*ids, written] if i is not None))
        if not self.end_ids:
            raise UserError(
                f"{name} names no end token: set eos_token_id in generation_config.json to the token that ends a turn"
            )
        self.turn_end: int = self.end_ids[0] if written is None else written

    @classmethod
    def load(cls, folder: Path | str, spell_think: bool = False) -> Chat:
        """Reads tokenizer.json, tokenizer_config.json, chat_template.jinja and the configs that name end tokens."""
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder: mull loads models from folders and downloads nothing")
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(
                f"{folder} has no tokenizer.json: put it there, for example with AutoTokenizer's save_pretrained"
            )
        config = read_object(folder / "tokenizer_config.json")
        special = {
            key: value if isinstance(value, str) else value["content"]
            for key, value in {**read_object(folder / "special_tokens_map.json"), **config}.items()
            if key.endswith("_token") and (isinstance(value, str) or (isinstance(value, dict) and "content" in value))
        }
        end: list[int | str] = []
        for name in ("generation_config.json", "config.json"):
            value = read_object(folder / name).get("eos_token_id")
            end += value if isinstance(value, list) else [] if value is None else [value]
        end += [special["eos_token"]] if "eos_token" in special else []
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as e:
            raise UserError(f"{path} cannot be read ({e}): download the model again") from e
        return cls(str(folder), text, template_of(folder, config), special, end, spell_think)

    # --- text and tokens

    def encode(self, text: str) -> list[int]:
        """Tokens of a user's or model's plain text: no control token comes out, whatever the text spells.

        A lone surrogate, which no UTF-8 text can hold, becomes the replacement character.
        """
        text = SURROGATES.sub("\ufffd", text)
        ids = self._plain.encode(text, add_special_tokens=False).ids
        if self._control_ids.isdisjoint(ids):
            return ids
        # The model's own vocabulary holds a control token, and the text spells it: encode it in two pieces.
        cuts = [0, *(match.start() + 1 for match in self._control_pattern.finditer(text)), len(text)]
        pieces = (text[a:b] for a, b in pairwise(cuts))
        return [i for piece in pieces for i in self._plain.encode(piece, add_special_tokens=False).ids]

    def encode_written(self, text: str, special: bool = True) -> list[int]:
        """Tokens of text in which control tokens count: a whole prompt, such as a template writes.

        With `special` comes first what the tokenizer puts before every text (a bos token, for some), once.
        """
        ids = self._tokenizer.encode(SURROGATES.sub("\ufffd", text), add_special_tokens=special).ids
        bos = self._controls.get(self.special.get("bos_token", ""))
        return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids

    def spelled(self, token: int) -> str:
        """One token as OpenAI's log-probabilities name it: its text, or `bytes:` and hexadecimal bytes where those are
        no characters of their own. Different tokens of a byte-level tokenizer have different names.
        """
        text = self.decode([token])
        if "\ufffd" not in text:
            return text or f"token_id:{token}"
        raw = self._decoder.token_bytes(token) if self._decoder.byte_level else text.encode()
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of `tokens`, control tokens spelled out. Bytes that are no UTF-8 become replacement characters."""
        return self._decoder.decode(tokens)

    def speaks_like(self, other: Chat) -> bool:
        """Whether tokens of thoughts and answers mean the same to both, so that they pass from one model to the other
        unchanged. (Prompts may differ: templates are not compared.)"""
        if self is other:
            return True
        if (self.think_close, self.turn_end) != (other.think_close, other.turn_end):
            return False
        same = self._tokenizer_json == other._tokenizer_json
        return same or self._tokenizer.get_vocab(True) == other._tokenizer.get_vocab(True)

    def stream(self) -> StreamDecoder:
        """A decoder for one growing completion: `push(token)` gives text, `flush()` the rest."""
        return StreamDecoder(self._decoder)

    # --- prompts

    def prompt(self, messages: Messages | str, think: bool = True, system: str | None = None) -> list[int]:
        """The tokens that a model continues with its thought (`think`) or at once with its answer.

        `messages` is a question, or dicts of `role` and `content` whose content is text or text parts.
        """
        turns = validated(messages, system)
        guard = self._guard(turns)
        text = self._render([guarded(turn, guard) for turn in turns], think, add_generation_prompt=True)
        ids = self._encode_rendered(text, guard)
        opened = text.rstrip().endswith(OPEN)
        if think:
            return ids if opened else [*ids, *self.think_open]
        if not self.has_think or text.rstrip().endswith(CLOSE):
            return ids
        gap = self.encode("\n\n") if self._breaks else []
        if not opened:
            ids += [*self.think_open, *gap]
        elif self._breaks and text.endswith("\n"):
            ids += self.encode("\n")
        return [*ids, *self.think_close, *gap]

    def reply(self, thought: str, answer: str) -> list[int]:
        """What a model should say to `prompt(…)`: thought, closing tag, answer and end, spaced as the template's."""
        if self._breaks:
            thought = ("" if self._opens_with_break else "\n") + thought + "\n"
            answer = "\n\n" + answer
        return [*self.encode(thought), *self.think_close, *self.encode(answer), self.turn_end]

    def split(self, completion: Sequence[int], think: bool = True) -> tuple[str, str, bool]:
        """(thought, answer, whether the thought was closed) of a completion to `prompt(…, think)`.

        Both are stripped of white space around them. Without a closed thought there is no answer: "". What follows
        an end token is dropped.
        """
        end = next((t for t, token in enumerate(completion) if token in self.end_ids), len(completion))
        tokens = list(completion[:end])
        if not think:
            return "", self.decode(tokens).strip(), True
        if len(self.think_open) == len(self.think_close) == 1:
            opened, close = self.think_open[0], self.think_close[0]
            tokens = tokens[1:] if tokens[:1] == [opened] else tokens
            at = tokens.index(close) if close in tokens else -1
            thought, answer = (tokens[:at], tokens[at + 1 :]) if at >= 0 else (tokens, [])
            return self.decode(thought).strip(), self.decode(answer).strip(), at >= 0
        thought, close, answer = self.decode(tokens).strip().removeprefix(OPEN).partition(CLOSE)
        return thought.strip(), answer.strip(), bool(close)

    @property
    def has_think(self) -> bool:
        """Whether `think_open` and `think_close` can be had."""
        return self.spell_think or (OPEN in self._controls and CLOSE in self._controls)

    @cached_property
    def think_open(self) -> tuple[int, ...]:
        return self._tag(OPEN)

    @cached_property
    def think_close(self) -> tuple[int, ...]:
        return self._tag(CLOSE)

    # --- inside

    def _tag(self, tag: str) -> tuple[int, ...]:
        if tag in self._controls:
            return (self._controls[tag],)
        if self.spell_think:
            return tuple(self.encode(tag))
        raise UserError(
            f"the tokenizer of {self.name} has no {tag} token: add <think> and </think> to the added_tokens of its"
            " tokenizer.json, or allow them to be spelled out of ordinary tokens"
        )

    def _render(self, turns: Messages, think: bool, add_generation_prompt: bool) -> str:
        if self._template is None:
            raise UserError(
                f"{self.name} has no chat template: put a chat_template.jinja there, for example the one of the"
                " model's instruct version"
            )
        return render(
            self._template,
            self.name,
            **self.special,
            messages=turns,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=think,
        )

    def _written_end(self) -> int | None:
        """The control token that the template writes behind an answer. Base models often name another end token."""
        if self._template is None:
            return None
        turns = [{"role": "user", "content": "0"}, {"role": "assistant", "content": "mull"}]
        try:
            text = self._render(turns, think=True, add_generation_prompt=False)
        except UserError:  # a template for other conversations
            return None
        match = self._control_pattern.match(text.rpartition("mull")[2].lstrip())
        return self._controls[match[0]] if match else None

    @cached_property
    def _breaks(self) -> bool:
        """Whether the template sets thoughts apart by line breaks, as Qwen3's does."""
        return any(OPEN + newline in self._template_source for newline in ("\n", "\\n"))

    @cached_property
    def _opens_with_break(self) -> bool:
        text = self._render([{"role": "user", "content": "0"}], think=True, add_generation_prompt=True)
        return text.endswith("\n") and text.rstrip().endswith(OPEN)

    def _guard(self, turns: Messages) -> dict[str, str]:
        """Stand-ins, found in no message and not in the template, for a character of every control token.

        Without that character no message can spell a control token, whatever a template cuts out of it.
        """
        used = set("".join([self._template_source, *(s for turn in turns for s in strings(turn))]))
        free = (c for c in map(chr, chain(range(0xE000, 0xF900), range(0xF0000, 0xFFFFE))) if c not in used)
        return {mark: next(free) for mark in self._marks}

    def _encode_rendered(self, guarded: str, guard: dict[str, str]) -> list[int]:
        """Tokens of a rendered template: control tokens where the template wrote them, plain text elsewhere."""
        restore = str.maketrans({stand_in: mark for mark, stand_in in guard.items()})
        text = guarded.translate(restore)
        pieces = self._control_pattern.split(guarded)
        if self._control_pattern.split(text) == [piece.translate(restore) for piece in pieces]:
            return self._tokenizer.encode(SURROGATES.sub("\ufffd", text), add_special_tokens=False).ids
        ids: list[int] = []
        for i, piece in enumerate(pieces):  # the pattern is one group: every second piece is a control token
            ids += [self._controls[piece]] if i % 2 else self.encode(piece.translate(restore)) if piece else []
        return ids

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._controls, key=len, reverse=True)
        return re.compile("(" + ("|".join(map(re.escape, longest_first)) or "(?!)") + ")")

    @cached_property
    def _marks(self) -> list[str]:
        """One punctuation mark of every control token (its first character where it has none)."""
        return sorted(
            {next((c for c in tag if not c.isalnum() and not c.isspace()), tag[0]) for tag in [OPEN, *self._controls]}
        )

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(self._controls.values())

    @cached_property
    def _plain(self) -> Tokenizer:
        """The same tokenizer, deaf to its control tokens."""
        raw = json.loads(self._tokenizer_json)
        for token in raw.get("added_tokens") or []:
            token["special"] = bool(token["content"].strip())
        plain = Tokenizer.from_str(json.dumps(raw))
        plain.encode_special_tokens = True
        return plain
