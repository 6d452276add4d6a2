"""Chat templates: reading, compiling and rendering them, and keeping what people type apart from what they write."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mull.errors import UserError
from mull.files import read_object

Messages = Sequence[Mapping[str, Any]]
ROLES = ("system", "developer", "user", "assistant", "tool")
OPEN, CLOSE = "<think>", "</think>"

# --- messages


def validated(messages: Messages | str, system: str | None) -> list[dict[str, Any]]:
    """Messages with text contents; UserError that names the first that is not a message."""
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


def strings(value: Any) -> Iterator[str]:
    """Every text inside a message."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in [*value.keys(), *value.values()]:
            yield from strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from strings(item)


def guarded(turn: Mapping[str, Any], guard: dict[str, str]) -> dict[str, Any]:
    """The message with stand-ins in all its texts.

    An assistant's own thought tags stay: templates look for them to drop the thoughts of earlier turns.
    """
    table = str.maketrans(guard)
    keep = re.compile(f"({OPEN}|{CLOSE})") if turn["role"] == "assistant" else None

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


def compile_template(name: str, template: str) -> jinja2.Template:
    """A template as transformers compiles it: sandboxed, with the same filters and functions."""

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


def render(template: jinja2.Template, name: str, **values: Any) -> str:
    try:
        return template.render(**values, tools=None, documents=None)
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as e:
        raise UserError(f"the chat template of {name} refuses these messages: {e}") from e


def template_of(folder: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """The folder's chat template, from whichever of the three places holds it."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = tokenizer_config.get("chat_template") or read_object(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):  # several named templates
        template = {t["name"]: t["template"] for t in template}.get("default")
    return template if isinstance(template, str) else None
