"""Messages to tokens and back: the one place that knows chat templates, thought tags and end tokens.

Needs `tokenizers` and `jinja2` alone. Templates render as `transformers` renders them, with two differences, both
deliberate. Control tokens that are typed inside a message stay ordinary text. And the prompt always ends where the
thought begins (`think=True`), or after an empty one (`think=False`), whether the template knows of thinking or not.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from mull.errors import UserError

Messages = Sequence[Mapping[str, Any]]
ROLES = ("system", "developer", "user", "assistant", "tool")
OPEN, CLOSE = "<think>", "</think>"
SURROGATES = re.compile("[\ud800-\udfff]")


class Chat:
    """A model folder's tokenizer, chat template, thought tags and end tokens.

    `think_open` and `think_close` are the tags' token ids: one each where the tokenizer has them as tokens. With
    `spell_think` a tokenizer without them spells them out of ordinary tokens; without it, asking for them is a
    UserError. `end_ids` are all tokens that end a turn according to any of the folder's files.
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
        self._template = _compile(name, template) if template else None
        self._template_source = template or ""
        added = self._tokenizer.get_added_tokens_decoder()
        self._added = {i: token.content for i, token in added.items()}
        # Runs of spaces are added tokens of some tokenizers; they control nothing.
        self._controls = {token.content: i for i, token in added.items() if token.content.strip()}
        self.vocab_size = max([self._tokenizer.get_vocab_size(False), *(i + 1 for i in added)])
        ids = (i if isinstance(i, int) else self._tokenizer.token_to_id(i) for i in end)
        self.end_ids = tuple(dict.fromkeys(i for i in ids if i is not None))
        if not self.end_ids:
            raise UserError(
                f"{name} names no end token: set eos_token_id in generation_config.json to the token that ends a turn"
            )
        self._bytes: dict[int, bytes] = {}

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
        config = _read(folder / "tokenizer_config.json")
        special = {
            key: value if isinstance(value, str) else value["content"]
            for key, value in {**_read(folder / "special_tokens_map.json"), **config}.items()
            if key.endswith("_token") and (isinstance(value, str) or (isinstance(value, dict) and "content" in value))
        }
        end: list[int | str] = []
        for name in ("generation_config.json", "config.json"):
            value = _read(folder / name).get("eos_token_id")
            end += value if isinstance(value, list) else [] if value is None else [value]
        end += [special["eos_token"]] if "eos_token" in special else []
        text = path.read_text(encoding="utf-8")
        return cls(str(folder), text, _template_of(folder, config), special, end, spell_think)

    # --- text and tokens

    def encode(self, text: str) -> list[int]:
        """Tokens of a user's or model's plain text: no control token comes out, whatever the text spells.

        A lone surrogate, which no UTF-8 text can hold, becomes the replacement character.
        """
        text = SURROGATES.sub("\ufffd", text)
        ids = self._plain.encode(text, add_special_tokens=False).ids
        if self._control_ids.isdisjoint(ids):
            return ids
        # The model's own vocabulary holds a control token too, and the text spells it: encode it in two halves.
        halves = self._control_pattern.sub(lambda m: m[0][0] + "\0" + m[0][1:], text).split("\0")
        return [i for half in halves for i in self._plain.encode(half, add_special_tokens=False).ids]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of `tokens`, control tokens spelled out. Bytes that are no UTF-8 become replacement characters."""
        if self._byte_level:
            return b"".join(map(self._token_bytes, tokens)).decode("utf-8", "replace")
        return self._tokenizer.decode(list(tokens), skip_special_tokens=False)

    def stream(self) -> StreamDecoder:
        return StreamDecoder(self)

    # --- prompts

    def prompt(self, messages: Messages | str, think: bool = True, system: str | None = None) -> list[int]:
        """The tokens that a model continues with its thought (`think`) or at once with its answer.

        `messages` is a question, or dicts of `role` and `content` whose content is text or text parts.
        """
        turns = _validated(messages, system)
        tags = (OPEN, CLOSE)
        guard = self._guard(turns)
        text = self._render([_guarded(turn, guard, tags) for turn in turns], think, add_generation_prompt=True)
        ids = self._encode_rendered(text, guard)
        written = text.rstrip()
        if think:
            return ids if written.endswith(OPEN) else [*ids, *self.think_open]
        if written.endswith(CLOSE) or not self.has_think:
            return ids
        breaks = OPEN + "\n" in self._template_source or OPEN + "\\n" in self._template_source
        if written.endswith(OPEN):
            ids += self.encode("\n") if breaks and text.endswith(OPEN) else []
        else:
            ids += [*self.think_open, *(self.encode("\n\n") if breaks else [])]
        return [*ids, *self.think_close, *(self.encode("\n\n") if breaks else [])]

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
        try:
            return self._template.render(
                **self.special,
                messages=turns,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                enable_thinking=think,
            )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as e:
            raise UserError(f"the chat template of {self.name} refuses these messages: {e}") from e

    def _guard(self, turns: Messages) -> dict[str, str]:
        """A stand-in for every character that begins a control token, used nowhere in the messages or the template."""
        used = set("".join([self._template_source, *(s for turn in turns for s in _strings(turn))]))
        free = (c for c in map(chr, [*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE)]) if c not in used)
        return {first: next(free) for first in sorted({content[0] for content in self._controls})}

    def _encode_rendered(self, guarded: str, guard: dict[str, str]) -> list[int]:
        """Tokens of a rendered template: control tokens where the template wrote them, plain text elsewhere."""
        restore = str.maketrans({stand_in: first for first, stand_in in guard.items()})
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
    def _control_ids(self) -> frozenset[int]:
        return frozenset(self._controls.values())

    @cached_property
    def _plain(self) -> Tokenizer:
        """The same tokenizer with its control tokens taken out."""
        raw = json.loads(self._tokenizer_json)
        raw["added_tokens"] = [t for t in raw.get("added_tokens") or [] if not t["content"].strip()]
        raw["post_processor"] = None
        return Tokenizer.from_str(json.dumps(raw))

    @cached_property
    def _byte_level(self) -> bool:
        decoder = json.loads(self._tokenizer_json).get("decoder") or {}
        return decoder.get("type") == "ByteLevel" or [d["type"] for d in decoder.get("decoders", [])] == ["ByteLevel"]

    def _token_bytes(self, token: int) -> bytes:
        """The bytes of one token; none for an id that the tokenizer lacks (models pad their vocabulary)."""
        found = self._bytes.get(token)
        if found is None:
            written = self._added.get(token)
            if written is not None:
                found = written.encode()
            else:
                written = self._tokenizer.id_to_token(token) or ""
                found = b"".join(_BYTE_OF[c] if c in _BYTE_OF else c.encode() for c in written)
            self._bytes[token] = found
        return found


class StreamDecoder:
    """Text of a growing token sequence, in increments that never cut a character.

    The increments and the `flush` joined are `Chat.decode` of all tokens.
    """

    def __init__(self, chat: Chat):
        self._chat = chat
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._tokens: list[int] = []  # only for tokenizers that are not byte-level
        self._read = 0  # tokens whose text is wholly emitted
        self._context = 0  # where decoding starts, so that spaces at a seam come out right

    def push(self, token: int) -> str:
        if self._chat._byte_level:
            return self._utf8.decode(self._chat._token_bytes(token))
        self._tokens.append(token)
        text = self._tail()
        if text.endswith("\ufffd"):  # perhaps half a character; a real one comes out with the next token
            return ""
        self._context, self._read = self._read, len(self._tokens)
        return text

    def flush(self) -> str:
        """The rest, once no token follows: half a character comes out as replacement characters."""
        if self._chat._byte_level:
            return self._utf8.decode(b"", final=True)
        text = self._tail()
        self._context = self._read = len(self._tokens)
        return text

    def _tail(self) -> str:
        known = self._chat.decode(self._tokens[self._context : self._read])
        return self._chat.decode(self._tokens[self._context :])[len(known) :]


# --- messages


def _validated(messages: Messages | str, system: str | None) -> list[dict[str, Any]]:
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, Sequence) or not messages:
        raise UserError("messages must be a question or a non-empty list of messages with a role and a content")
    turns: list[dict[str, Any]] = [{"role": "system", "content": system}] if system is not None else []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise UserError(f"messages[{i}] is a {type(message).__name__}: give an object with a role and a content")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise UserError(f"messages[{i}] has the role {role!r}: use one of {', '.join(ROLES)}")
        if role == "system" and system is not None:
            raise UserError(f"messages[{i}] is a system message and a system prompt is given too: give one of them")
        if content is None and role == "assistant" and (message.get("tool_calls") or message.get("reasoning_content")):
            content = ""
        if isinstance(content, list) and all(
            isinstance(p, Mapping) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content
        ):
            content = "".join(part["text"] for part in content)
        if not isinstance(content, str):
            raise UserError(f"messages[{i}] has no text content: give a string or a list of text parts")
        turns.append({**message, "content": content})
    return turns


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in [*value.keys(), *value.values()]:
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


def _guarded(turn: Mapping[str, Any], guard: dict[str, str], tags: tuple[str, ...]) -> dict[str, Any]:
    """The message with stand-ins in all its texts.

    An assistant's own thought tags stay: templates look for them to drop the thoughts of earlier turns.
    """
    table = str.maketrans(guard)
    keep = re.compile("(" + "|".join(map(re.escape, tags)) + ")") if turn["role"] == "assistant" else None

    def protect(value: Any) -> Any:
        if isinstance(value, str):
            pieces = keep.split(value) if keep else [value]
            return "".join(piece if i % 2 else piece.translate(table) for i, piece in enumerate(pieces))
        if isinstance(value, Mapping):
            return {protect(k): protect(v) for k, v in value.items()}
        return [protect(item) for item in value] if isinstance(value, (list, tuple)) else value

    return {key: value if key == "role" else protect(value) for key, value in turn.items()}


# --- templates and files


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks text for training masks; here its body alone counts."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(name: str, template: str) -> jinja2.Template:
    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, **rest: Any) -> str:
        # Jinja's own filter escapes <, > and & for HTML, and sorts keys.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, **rest)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as e:
        raise UserError(f"the chat template of {name} has a syntax error in line {e.lineno}: {e.message}") from e


def _template_of(folder: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = tokenizer_config.get("chat_template") or _read(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):  # several named templates
        template = {t["name"]: t["template"] for t in template}.get("default")
    return template if isinstance(template, str) else None


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, empty when the file is absent."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise UserError(f"{path} is not valid JSON ({e}): download the model again") from e
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object: download the model again")
    return content


def _byte_of() -> dict[str, bytes]:
    """Byte-level BPE's printable stand-in for each byte (GPT-2), turned round."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [b for b in range(256) if b not in shown]
    return {chr(b) if b in shown else chr(256 + hidden.index(b)): bytes([b]) for b in range(256)}


_BYTE_OF = _byte_of()
