"""Chains as other programs read them: JSONL or Parquet, as flat rows, as chat messages, or as preference pairs.

    | form        | a row                                                                                         |
    |-------------|-----------------------------------------------------------------------------------------------|
    | chains      | question, thought, answer, and every field of `ChainRow`                                        |
    | chat        | {"messages": [{"role": "user", ...}, {"role": "assistant", "content": "<think>...</think>..."}]} |
    | preference  | {"prompt": [user], "chosen": [assistant], "rejected": [assistant]}                              |

The last two are the conversational forms that TRL's SFTTrainer and DPOTrainer take, and most others, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from mull.chat.template import CLOSE, OPEN
from mull.errors import MissingExtra, UserError
from mull.files import disk_is_full, sync
from mull.store.catalogue import ChainRow
from mull.store.store import Store, Worked

Form = Literal["chains", "chat", "preference"]
Row = dict[str, Any]


# --------------------------------------------------------------------------------------------------- rows


def flat(worked: Worked) -> Row:
    """A chain with its texts: `question` is the question's text, `question_id` its id."""
    row = asdict(worked.row)
    question_id = row.pop("question")
    texts = {"question": worked.question, "thought": worked.thought, "answer": worked.answer}
    return {"question_id": question_id} | texts | row


def spoken(thought: str, answer: str, breaks: bool = False) -> str:
    """What the assistant says. `breaks`: with the empty lines that Qwen3's template puts around a thought."""
    if breaks:
        return f"{OPEN}\n{thought}\n{CLOSE}\n\n{answer}"
    return f"{OPEN}{thought}{CLOSE}{answer}"


def plain_tags(worked: Worked) -> bool:
    """Whether thought and answer spell no thought tag themselves: with one, nobody could tell them apart again."""
    return not any(tag in text for tag in (OPEN, CLOSE) for text in (worked.thought, worked.answer))


def chat_row(worked: Worked, system: str = "", breaks: bool = False) -> Row:
    return {"messages": [*_asked(worked, system), _said(worked, breaks)]}


def preference_row(chosen: Worked, rejected: Worked, system: str = "", breaks: bool = False) -> Row:
    """ValueError for chains of two questions."""
    if chosen.row.question != rejected.row.question:
        raise ValueError(f"a pair of two questions, {chosen.row.question} and {rejected.row.question}")
    prompt = _asked(chosen, system)
    return {"prompt": prompt, "chosen": [_said(chosen, breaks)], "rejected": [_said(rejected, breaks)]}


def _asked(worked: Worked, system: str) -> list[dict[str, str]]:
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": worked.question}]


def _said(worked: Worked, breaks: bool) -> dict[str, str]:
    return {"role": "assistant", "content": spoken(worked.thought, worked.answer, breaks)}


def outcome_pairs(
    right: Sequence[ChainRow], wrong: Sequence[ChainRow], each: int = 1, seed: int = 0
) -> list[tuple[ChainRow, ChainRow]]:
    """Up to `each` (right, wrong) pairs of every question that has both, no chain in two of them; drawn by `seed` and
    the question. `right` are best curated ones; a chain whose text is the same on both sides is left out of `wrong`."""
    rights, wrongs = _by_question(right), _by_question(wrong)
    pairs = []
    for question in sorted(rights.keys() & wrongs.keys()):
        rng = random.Random(f"{seed}/{question}")
        good = {row.text for row in rights[question]}
        bad = [row for row in {row.text: row for row in wrongs[question]}.values() if row.text not in good]
        n = min(each, len(rights[question]), len(bad))
        pairs += zip(rng.sample(rights[question], n), rng.sample(bad, n), strict=True)
    return pairs


def _by_question(rows: Sequence[ChainRow]) -> dict[str, list[ChainRow]]:
    out: dict[str, list[ChainRow]] = {}
    for row in sorted(rows, key=lambda row: (row.trace, row.leaf)):
        out.setdefault(row.question, []).append(row)
    return out


def chain_rows(store: Store, rows: Iterable[ChainRow]) -> Iterator[Row]:
    return map(flat, store.worked(rows))


def chat_rows(store: Store, rows: Iterable[ChainRow], system: str = "", breaks: bool = False) -> Iterator[Row]:
    """Chains that spell a thought tag themselves are left out."""
    return (chat_row(worked, system, breaks) for worked in store.worked(rows) if plain_tags(worked))


def preference_rows(
    store: Store, pairs: Iterable[tuple[ChainRow, ChainRow]], system: str = "", breaks: bool = False
) -> Iterator[Row]:
    """Pairs of which one spells a thought tag itself are left out."""
    worked = store.worked(row for pair in pairs for row in pair)
    while pair := tuple(islice(worked, 2)):
        chosen, rejected = pair
        if plain_tags(chosen) and plain_tags(rejected):
            yield preference_row(chosen, rejected, system, breaks)


# -------------------------------------------------------------------------------------------------- files


def write(path: Path | str, rows: Iterable[Row], form: Form) -> int:
    """Writes a file whole or not at all, JSONL or Parquet by its ending; how many rows. `form` is that of the rows."""
    path = Path(path)
    writers: dict[str, Callable[[Path, Iterable[Row], Form], int]] = {".jsonl": _jsonl, ".parquet": _parquet}
    if path.suffix not in writers:
        raise UserError(f"{path} ends in neither .jsonl nor .parquet: name a file that does")
    part = path.with_name(f".part-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        n = writers[path.suffix](part, rows, form)
        sync(part)
        os.replace(part, path)
    except OSError as e:
        if disk_is_full(e, path.parent):
            raise UserError(f"the disk is full, {path} was not written: free some space and export again") from e
        raise UserError(f"{path} cannot be written: {e.strerror or e}; choose another file") from e
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return n


def _jsonl(path: Path, rows: Iterable[Row], form: Form) -> int:
    n = 0
    with open(path, "wb") as f:
        for row in rows:
            f.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            n += 1
    return n


def _parquet(path: Path, rows: Iterable[Row], form: Form) -> int:
    try:
        import pyarrow as pa  # pyright: ignore[reportMissingImports]
        from pyarrow import parquet  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtra("pyarrow", "parquet", "writing Parquet") from None
    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    kinds = {"str": pa.string(), "int": pa.int64(), "bool": pa.bool_(), "bool | None": pa.bool_()}
    columns = [(name, kinds[str(ChainRow.__annotations__[name])]) for name in ChainRow.__slots__ if name != "question"]
    texts = [(name, pa.string()) for name in ("question_id", "question", "thought", "answer")]
    schemas = {
        "chains": [*texts, *columns],
        "chat": [("messages", messages)],
        "preference": [(name, messages) for name in ("prompt", "chosen", "rejected")],
    }
    schema, n = pa.schema(schemas[form]), 0
    with parquet.ParquetWriter(path, schema) as writer:
        rows = iter(rows)
        while part := list(islice(rows, 4096)):
            clean = json.loads(json.dumps(part, ensure_ascii=False).encode("utf-8", "replace"))  # no lone surrogates
            writer.write_table(pa.Table.from_pylist(clean, schema))
            n += len(part)
    return n
