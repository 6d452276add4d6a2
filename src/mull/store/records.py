"""What the store keeps of one question: the graded trace, who made it, and its chains as text. To JSON and back."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mull.chat import Chat
from mull.errors import StopReason, UserError
from mull.store.text import digest
from mull.tasks.base import Checked
from mull.types import Cost, Problem, Question, Span, SpanKind, StepKind, StepVerdict, Trace, Verdict

if TYPE_CHECKING:
    import numpy as np

FORMAT = 1  # of a line in a shard


@dataclass(frozen=True, slots=True)
class Made:
    """Who made a trace, and how."""

    policy: str  # a name for people: a folder, a run and a step
    weights: str = ""  # `weights_hash` of the policy's folder
    version: int = 0  # of the policy within the run
    run: str = ""
    decoding: Mapping[str, float] = field(default_factory=dict)  # temperature, top_p, top_k
    split: str = ""  # that the question was drawn from; "" where nobody said


@dataclass(slots=True)
class Record:
    """A graded trace as the store keeps it. `thoughts` and `steps` have one entry per leaf, as `trace.answers` has."""

    trace: Trace
    made: Made
    thoughts: list[str]  # everything behind the prompt, up to the closing tag, as text
    steps: list[list[StepVerdict] | None]  # None: nobody judged the lines

    @property
    def hash(self) -> str:
        return content_hash(self.trace)


def record_of(
    trace: Trace, chat: Chat, made: Made, task: Checked | None = None, problem: Problem | None = None
) -> Record:
    """A record of a graded trace, its chains spelled out with the policy's own `chat`.

    With a task and the problem every chain's lines are judged; lines that the task's check fails on stay unjudged.
    """
    thoughts, steps = [], []
    for leaf in trace.leaves:
        tokens = [t for span in trace.path(leaf) if span.kind is not SpanKind.PROMPT for t in span.tokens]
        thoughts.append(chat.split(tokens)[0])
        steps.append(None if task is None or problem is None else _judged(task, problem, thoughts[-1]))
    return Record(trace, made, thoughts, steps)


def _judged(task: Checked, problem: Problem, thought: str) -> list[StepVerdict] | None:
    try:
        return list(task.check_steps(problem, thought))
    except UserError:
        raise
    except Exception:  # one thought that a task's check did not foresee
        return None


def content_hash(trace: Trace) -> str:
    """Equal for traces of equal content: the question's id and the tree's tokens, kinds and parents. Two runs that
    sampled the same tree made one trace, whatever it cost them."""
    spans = [[span.kind.value, span.parent, [int(t) for t in span.tokens]] for span in trace.spans]
    return digest(trace.question.id, json.dumps(spans, separators=(",", ":")))


def weights_hash(folder: Path | str) -> str:
    """32 hex digits of a model folder's weights: what names a policy for good, whatever its folder is called."""
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no .safetensors file: name a model folder")
    h = hashlib.blake2b(digest_size=16)
    for file in files:
        with open(file, "rb") as f:
            h.update(file.name.encode() + b"\0" + hashlib.file_digest(f, hashlib.blake2b).digest())
    return h.hexdigest()


def is_right(record: Record, leaf: int) -> tuple[bool | None, bool | None]:
    """(verdict of chain number `leaf`, whether its steps are true): false if one is, None if none makes a claim."""
    oks = [step.ok for step in record.steps[leaf] or () if step.ok is not None]
    return record.trace.verdicts[leaf].correct, (all(oks) if oks else None)


# --------------------------------------------------------------------------------------------------- JSON


def to_line(record: Record) -> bytes:
    """One line of strict JSON in ASCII. ValueError for a trace that was not graded."""
    trace, made = record.trace, record.made
    each = {"answers": trace.answers, "verdicts": trace.verdicts, "thoughts": record.thoughts, "steps": record.steps}
    for name, values in each.items():
        if len(values) != len(trace.leaves):
            raise ValueError(
                f"the trace of {trace.question.id} has {len(trace.leaves)} leaves and {len(values)} {name}: "
                "grade it and make its record with record_of"
            )
    value = {
        "format": FORMAT,
        "hash": record.hash,
        "question": asdict(trace.question),
        "made": {f.name: getattr(made, f.name) for f in fields(Made)} | {"decoding": dict(made.decoding)},
        "strategy": trace.strategy,
        "spans": [_span(span) for span in trace.spans],
        "leaves": [int(leaf) for leaf in trace.leaves],
        "answers": trace.answers,
        "verdicts": [_verdict(v) for v in trace.verdicts],
        "answer": trace.answer,
        "chosen": int(trace.chosen),
        "verdict": None if trace.verdict is None else _verdict(trace.verdict),
        "exhausted": bool(trace.exhausted),
        "lost": trace.lost,
        "cost": {name: _number(n) for name, n in asdict(trace.cost).items()},
        "evidence": _number(trace.evidence),
        "thoughts": record.thoughts,
        "steps": [s if s is None else [[v.text, v.ok, v.kind.value, v.why] for v in s] for s in record.steps],
    }
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def from_line(line: bytes) -> Record:
    """The record that `to_line` wrote, equal in every field. ValueError, KeyError or TypeError for anything else."""
    row = json.loads(line)
    if row["format"] != FORMAT:
        raise ValueError(f"its format is {row['format']}, and this version of mull reads {FORMAT}")
    trace = Trace(
        Question(**row["question"]),
        row["strategy"],
        [_read_span(span) for span in row["spans"]],
        row["leaves"],
        row["answers"],
        [Verdict(*v) for v in row["verdicts"]],
        row["answer"],
        row["chosen"],
        None if row["verdict"] is None else Verdict(*row["verdict"]),
        row["exhausted"],
        row["lost"],
        Cost(**{name: _read_number(n) for name, n in row["cost"].items()}),
        _read_number(row["evidence"]),
    )
    steps = [
        s if s is None else [StepVerdict(text, ok, StepKind(kind), why) for text, ok, kind, why in s]
        for s in row["steps"]
    ]
    return Record(trace, Made(**row["made"]), row["thoughts"], steps)


def _verdict(verdict: Verdict) -> list[Any]:
    return [verdict.correct, verdict.answer, verdict.error]


_DEFAULTS = {f.name: f.default for f in fields(Span) if f.default is not MISSING}


def _span(span: Span) -> dict[str, Any]:
    """What differs from a new span's fields."""
    row = {
        "kind": span.kind.value,
        "tokens": [int(t) for t in span.tokens],
        "parent": int(span.parent),
        "logprobs": [_number(x) for x in span.logprobs],
        "policy_version": int(span.policy_version),
        "temperature": _number(span.temperature),
        "stop": None if span.stop is None else span.stop.value,
        "kept": None if span.kept is None else _kept(span.kept),
        "score": _number(span.score),
        "visits": int(span.visits),
        "pruned": bool(span.pruned),
    }
    return {k: v for k, v in row.items() if v not in ([], None) and (k not in _DEFAULTS or v != _DEFAULTS[k])} | {
        "tokens": row["tokens"]
    }


def _read_span(row: dict[str, Any]) -> Span:
    span = Span(SpanKind(row["kind"]), tuple(row["tokens"]))
    for name in ("parent", "policy_version", "visits", "pruned"):
        setattr(span, name, row.get(name, getattr(span, name)))
    span.logprobs = tuple(_read_number(x) for x in row.get("logprobs", ()))
    span.temperature = _read_number(row.get("temperature", span.temperature))
    span.stop = StopReason(row["stop"]) if "stop" in row else None
    span.kept = _read_kept(row["kept"]) if "kept" in row else None
    span.score = _read_number(row.get("score"))
    return span


def _kept(kept: Sequence[np.ndarray]) -> dict[str, Any]:
    """Ids per token with the type of each array: one name where all have the same."""
    kinds = [part.dtype.name for part in kept]
    return {"dtype": kinds[0] if len(set(kinds)) == 1 else kinds, "ids": [part.tolist() for part in kept]}


def _read_kept(row: dict[str, Any]) -> tuple[np.ndarray, ...]:
    import numpy as np

    kinds = row["dtype"] if isinstance(row["dtype"], list) else [row["dtype"]] * len(row["ids"])
    return tuple(np.array(ids, dtype=kind) for ids, kind in zip(row["ids"], kinds, strict=True))


def _number(x: Any) -> Any:
    """A number as JSON has it; NaN and infinities, which it has not, as text."""
    if x is None or isinstance(x, int):
        return x
    return float(x) if math.isfinite(x) else repr(float(x))


def _read_number(x: Any) -> Any:
    return float(x) if isinstance(x, str) else x
