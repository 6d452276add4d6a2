"""Configs are plain dataclasses; this reads them from TOML, applies `-o key=value` overrides, and writes them back.

    @dataclass(frozen=True)
    class RL:
        model: Path  # no default: must be given
        steps: int = 100  # optimiser steps
        optim: Optim = Optim()

    cfg = load(RL, Path("rl.toml"), ["optim.lr=1e-4", "model=nano"])

A field is an int, float, bool, str, Path, Literal, a tuple of these (`tuple[int, ...]` or of fixed length), another
dataclass, or one of these or None. TOML has no null, so None is written as the text "none" (and the text "none" cannot
be given to an optional str). Ranges are the dataclass's own business: raise UserError in `__post_init__`.

Every mistake is a UserError that says where (file or override) and names the nearest right key.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import io
import json
import re
import textwrap
import tokenize
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from mull.errors import UserError, nearest

T = TypeVar("T")

# ------------------------------------------------------------------------------------------------ loading


def load(cls: type[T], toml_path: Path | None = None, overrides: Sequence[str] = ()) -> T:
    """A config of class `cls`: its defaults, then the file, then the overrides in order (the last one wins).

    Raises UserError for a file that cannot be read or parsed, an unknown key, a value of the wrong type, and a field
    without a default that nobody gave.
    """
    values: dict[str, Any] = {}
    if toml_path is not None:
        _merge(cls, values, _read(Path(toml_path)), (), str(toml_path), raw=False)
    for override in overrides:
        key, equals, text = override.partition("=")
        path = tuple(part.strip() for part in key.split("."))
        if not equals or not all(path):
            raise UserError(f"override {override!r} is not of the form key=value or section.key=value")
        nested: Any = text.strip()
        for part in reversed(path):
            nested = {part: nested}
        _merge(cls, values, nested, (), f"override {override!r}", raw=True)
    return _build(cls, values, MISSING, ())


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode()
        return tomllib.loads(text)
    except FileNotFoundError:
        raise UserError(f"config file {path} does not exist") from None
    except UnicodeDecodeError as e:
        raise UserError(f"config file {path} is not text in UTF-8 (byte {e.start})") from None
    except OSError as e:
        raise UserError(f"config file {path} cannot be read: {e.strerror}") from None
    except tomllib.TOMLDecodeError as e:
        why, at = str(e), re.search(r" \(at line (\d+), column (\d+)\)$", str(e))
        if at:
            raise UserError(f"{path}, line {at[1]}, column {at[2]}: not valid TOML: {why[: at.start()]}") from None
        line = path.read_text().rstrip("\n").count("\n") + 1
        raise UserError(f"{path}, line {line}: not valid TOML: {why}") from None


def _merge(cls: type, values: dict[str, Any], new: dict[str, Any], at: tuple[str, ...], where: str, raw: bool) -> None:
    """Checks and converts the nested dict `new` against `cls` and puts it into `values`.

    `raw`: leaves are an override's text, to be read as their field's type demands; else they are TOML values.
    """
    hints = _hints(cls)
    for key, value in new.items():
        path = (*at, key)
        if key not in hints:
            raise UserError(f"{where}: unknown key '{'.'.join(path)}'{_nearest_key(cls, at, key)}")
        kind, optional = _optional(hints[key])
        if optional and value == "none":
            values[key] = None
        elif dataclasses.is_dataclass(kind):
            if raw and isinstance(value, str):  # section={a = 1, b = 2}
                value = _toml_value(value)
                if isinstance(value, dict):
                    _merge(_class(kind), values.setdefault(key, {}), value, path, where, raw=False)
                    continue
            if not isinstance(value, dict):
                first = next(iter(_hints(_class(kind))), "key")
                raise UserError(
                    f"{where}: '{'.'.join(path)}' is a section; give its keys, as in {'.'.join(path)}.{first}=…"
                )
            if not isinstance(values.get(key), dict):
                values[key] = {}  # None from before, or nothing
            _merge(_class(kind), values[key], value, path, where, raw)
        elif raw and isinstance(value, dict):
            raise UserError(
                f"{where}: '{'.'.join(path)}' is {_name(kind)}, not a section; it has no key '{next(iter(value))}'"
            )
        else:
            try:
                values[key] = _from_text(kind, value) if raw else _from_toml(kind, value)
            except _Wrong as wrong:
                expected = _name(hints[key])
                raise UserError(f"{where}: '{'.'.join(path)}' must be {expected}, not {wrong.args[0]}") from None


def _build(cls: type[T], values: dict[str, Any], base: Any, at: tuple[str, ...]) -> T:
    """An instance of `cls` from converted `values`; what they leave out comes from `base`, or the class's defaults."""
    made: dict[str, Any] = {}
    for field in _fields(cls):
        kind, _ = _optional(_hints(cls)[field.name])
        default = getattr(base, field.name) if base is not MISSING and base is not None else _default(field)
        if field.name in values and not (dataclasses.is_dataclass(kind) and isinstance(values[field.name], dict)):
            made[field.name] = values[field.name]
        elif dataclasses.is_dataclass(kind) and (field.name in values or default is MISSING):
            made[field.name] = _build(_class(kind), values.get(field.name, {}), default, (*at, field.name))
        elif default is MISSING:
            key = ".".join((*at, field.name))
            raise UserError(
                f"the config needs a value for '{key}' ({_name(kind)}): set it in the file or with -o {key}=…"
            )
        else:
            made[field.name] = default
    return cls(**made)


def refuse_unread(cfg: Any, by: str, readers: Mapping[str, Sequence[Any]]) -> None:
    """UserError for a key of `cfg` that was given and that nothing reads. `readers` says, of some keys, with which
    values of the key `by` each is read; a key counts as given where it is not at its default."""
    chosen = getattr(cfg, by)
    for field in _fields(type(cfg)):
        values = readers.get(field.name)
        if values is not None and chosen not in values and getattr(cfg, field.name) != _default(field):
            wanted = " or ".join(_plain(value) for value in values)
            raise UserError(
                f"{field.name} does nothing with {by}={_plain(chosen)}: leave it out, or give {by}={wanted}"
            )


def _plain(value: Any) -> str:
    """A value as it would be written behind -o key=."""
    return value if isinstance(value, str) else _toml(value)


# ------------------------------------------------------------------------------------------------- values


class _Wrong(Exception):
    """A value is not of the field's type; the argument says what it is instead."""


def _from_toml(kind: Any, value: Any) -> Any:
    kind, optional = _optional(kind)
    if optional and value == "none":
        return None
    if get_origin(kind) is Literal:
        for choice in get_args(kind):
            if choice == value and type(choice) is type(value):
                return choice
        raise _Wrong(_show(value) + (nearest(value, map(str, get_args(kind))) if isinstance(value, str) else ""))
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise _Wrong(_show(value))
        return tuple(_from_toml(k, v) for k, v in zip(_element_kinds(kind, value), value, strict=True))
    if kind is float and type(value) is int:
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if type(value) is not kind:  # exact: a bool is no int, and TOML has no subclasses
        raise _Wrong(_show(value))
    return value


def _from_text(kind: Any, text: str) -> Any:
    """An override's text as `kind`. Text for a str, Path or Literal may stand bare: name=3 gives the text "3"."""
    kind, optional = _optional(kind)
    if optional and text == "none":
        return None
    value = _toml_value(text)
    if get_origin(kind) is tuple and not isinstance(value, list):  # bare words: tasks=chain,maze or tasks=[chain, maze]
        inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        words = [word.strip() for word in inner.split(",")] if inner.strip() else []
        return tuple(_from_text(k, word) for k, word in zip(_element_kinds(kind, words), words, strict=True))
    if get_origin(kind) is Literal and text in get_args(kind):
        return text
    if kind in (str, Path) and not isinstance(value, str):
        return kind(text)
    return _from_toml(kind, text if value is None else value)


def _toml_value(text: str) -> Any:
    """`text` as one TOML value; None when it is not one, as a bare word is not."""
    try:
        parsed = tomllib.loads(f"v = {text}")
    except tomllib.TOMLDecodeError:
        return None
    return parsed["v"] if len(parsed) == 1 else None


def _element_kinds(kind: Any, value: list) -> list[Any]:
    kinds = get_args(kind)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return [kinds[0]] * len(value)
    if len(kinds) != len(value):
        raise _Wrong(f"{len(value)} values")
    return list(kinds)


def _show(value: Any) -> str:
    if isinstance(value, str):
        return f"the text {value!r}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a section"
    return f"the list {value}" if isinstance(value, list) else f"{value}"


# ------------------------------------------------------------------------------------------------ writing


def to_toml(cfg: Any) -> str:
    """The resolved config as TOML text: `load(type(cfg), <this>)` gives an equal config."""
    return "\n".join(_lines(cfg, ())).strip() + "\n"


def _lines(cfg: Any, at: tuple[str, ...]) -> list[str]:
    lines = [f"[{'.'.join(_key(part) for part in at)}]"] if at else []
    sections: list[str] = []
    for field in _fields(type(cfg)):
        value = getattr(cfg, field.name)
        if dataclasses.is_dataclass(value):
            sections += ["", *_lines(value, (*at, field.name))]
        else:
            _, optional = _optional(_hints(type(cfg))[field.name])
            if optional and value == "none":
                raise ValueError(f"{field.name} holds the text 'none', which means None in a config file")
            lines.append(f"{_key(field.name)} = {_toml(value)}")
    return lines + sections


def _toml(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return repr(float(value))  # also inf and nan, which TOML knows by these names
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, (str, Path)):
        # JSON's escapes are TOML's, except that JSON leaves DEL alone, which TOML forbids.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    raise TypeError(f"a config cannot hold a {type(value).__name__}")


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


# --------------------------------------------------------------------------------------------- describing


@dataclass(frozen=True, slots=True)
class Option:
    """One key of a config, for people."""

    key: str  # dotted, as in an override
    type: str
    default: str  # as it would be written in TOML; "" when it must be given
    help: str


def describe(cls: type, *, _base: Any = MISSING, _at: tuple[str, ...] = ()) -> list[Option]:
    """Every key of `cls` with its type, default and help: metadata={"help": …}, else the comment behind the field."""
    found: list[Option] = []
    comments = _comments(cls)
    for field in _fields(cls):
        kind, _ = _optional(_hints(cls)[field.name])
        default = _default(field) if _base is MISSING or _base is None else getattr(_base, field.name)
        path = (*_at, field.name)
        if dataclasses.is_dataclass(kind):
            found += describe(_class(kind), _base=default, _at=path)
        else:
            help = field.metadata.get("help") or comments.get(field.name, "")
            shown = "" if default is MISSING else _toml(default)
            found.append(Option(".".join(path), _name(_hints(cls)[field.name]), shown, help))
    return found


def _comments(cls: type) -> dict[str, str]:
    """Field name → the comment at the end of its line, from the source where there is one (base classes too)."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            source = textwrap.dedent(inspect.getsource(base))
        except (OSError, TypeError):
            continue
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        ends = {t.start[0]: t.string.lstrip("# ").rstrip() for t in tokens if t.type == tokenize.COMMENT}
        body = typing.cast(ast.ClassDef, ast.parse(source).body[0]).body
        for node in body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.end_lineno in ends:
                found[node.target.id] = ends[node.end_lineno]
    return found


# -------------------------------------------------------------------------------------------- annotations


def _fields(cls: type) -> list[dataclasses.Field]:
    return [f for f in dataclasses.fields(cls) if f.init]


@functools.cache  # it compiles every annotation again, and is asked for each field
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in _fields(cls)}


def _default(field: dataclasses.Field) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _class(kind: Any) -> type:
    return kind


def _optional(kind: Any) -> tuple[Any, bool]:
    """`X | None` → (X, True); X → (X, False)."""
    if get_origin(kind) in (Union, types.UnionType):
        rest = [k for k in get_args(kind) if k is not type(None)]
        if len(rest) != 1 or len(rest) == len(get_args(kind)):
            raise TypeError(f"a config field cannot be of type {kind}: only X or None is possible")
        return rest[0], True
    return kind, False


def _name(kind: Any) -> str:
    """A type in words, to stand after 'must be'."""
    kind, optional = _optional(kind)
    if optional:
        return f"{_name(kind)}, or none"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if len(kinds) == 2 and kinds[1] is Ellipsis:
            return f"a list, each {_name(kinds[0])}"
        return f"a list of {len(kinds)} ({', '.join(map(_name, kinds))})"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    if kind not in words and not dataclasses.is_dataclass(kind):
        raise TypeError(f"a config field cannot be of type {kind}")
    return words.get(kind, "a section")


def _nearest_key(cls: type, at: tuple[str, ...], key: str) -> str:
    """The tail of an error sentence: the nearest key of this section, else a key of that name in another section."""
    here = [".".join((*at, name)) for name in _hints(cls)]
    if near := nearest(".".join((*at, key)), here if at else _hints(cls)):
        return near
    below = [".".join((*at, option.key)) for option in describe(cls) if option.key.split(".")[-1] == key]
    return f"; did you mean '{below[0]}'?" if below else f"; the keys here are {', '.join(here)}"
