"""Strategies by name: `beam:expand=8,aggregate=min` as a function of one question.

A strategy's options are the keyword-only parameters of its function, so that the command line, the calibration file
and the docs cannot disagree with the code.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from mull.chat.effort import parted
from mull.errors import UserError, nearest
from mull.scorers.base import Scorer
from mull.search import (
    adaptive,
    allocate,
    beam,
    best_of_n,
    force,
    mcts,
    particles,
    rebase,
    revise,
    roles,
    sample,
    thoughts,
    vote,
)
from mull.search.choose import Canonical
from mull.types import Trace

Strategy = Callable[..., Awaitable[Trace]]

# What each name runs, with the options that it fixes, and what its N is.
STRATEGIES: dict[str, tuple[Strategy, dict[str, Any], str]] = {
    "sample": (sample.sample, {}, "chains; the first one answers"),
    "forced": (sample.sample_forced, {}, "chains with the thought ended at its budget; the first one answers"),
    "vote": (vote.vote, {}, "chains; the majority answers"),
    "adaptive": (adaptive.adaptive_vote, {}, "chains at most; stops when the majority is clear"),
    "best-of-n": (best_of_n.best_of_n, {}, "chains; the best one by the scorer answers"),
    "weighted-vote": (best_of_n.best_of_n, {"vote": True}, "chains; votes weigh their scores"),
    "adaptive-weighted": (adaptive.adaptive_vote, {"scored": True}, "chains at most; votes weigh their scores"),
    "beam": (beam.beam, {}, "paths, of which N/expand are kept at each step"),
    "lookahead": (beam.beam, {"lookahead": 2}, "paths, scored some steps further on"),
    "dvts": (beam.dvts, {}, "paths, in N/expand separate trees"),
    "rebase": (rebase.rebase, {}, "paths, shared out by score at each step"),
    "mcts": (mcts.mcts, {}, "simulations"),
    "particles": (particles.particles, {}, "particles"),
    "tot-bfs": (thoughts.tot_bfs, {}, "paths kept at each depth"),
    "tot-dfs": (thoughts.tot_dfs, {}, "leaves at most"),
    "revise": (revise.revise, {}, "attempts, one after another"),
    "roles": (roles.roles, {}, "openings by the generator, each gone on from by the model and judged by the scorer"),
    "auto": (allocate.auto, {}, "chains' worth of compute on average, by difficulty"),
    "wait": (force.wait, {}, "chains that are made to think on"),
}


_HOW = {
    "scorer": "--scorer DIR (mull reward trains one), or --scorer logprob, which needs no training",
    "critic": "--critic DIR (mull reward -o kind=critic trains one)",
    "generator": "--generator DIR, a model folder or nano",
    "calibration": "--calibration FILE (mull calibrate makes one)",
}


@dataclass(frozen=True)
class Named:
    """A strategy with the options that its text gave."""

    text: str  # as typed
    name: str
    options: dict[str, Any]

    @property
    def function(self) -> Strategy:
        return STRATEGIES[self.name][0]

    @property
    def needs(self) -> set[str]:
        """Which of scorer, canonical and critic it cannot do without."""
        given = {**STRATEGIES[self.name][1], **self.options}
        found = {
            p.name
            for p in inspect.signature(self.function).parameters.values()
            if p.kind is p.KEYWORD_ONLY and p.default is p.empty
        }
        judged = given.get("scored") or (self.name == "mcts" and given.get("value", "scorer") != "rollout")
        return found | ({"scorer"} if judged else set())

    def bind(self, canonical: Canonical, scorer: Scorer | None = None, critic: Any = None, **more: Any) -> Strategy:
        """The strategy as `f(question, sampler, chat, budget, decoding=…, seed=…)`.

        UserError when it needs a scorer or critic and there is none.
        """
        have = {"canonical": of_the_problem(canonical), "scorer": scorer, "critic": critic, **more}
        have["strategy_of"] = lambda text: named(text).bind(canonical, scorer, critic, **more)
        takes = inspect.signature(self.function).parameters
        for need in sorted(self.needs):
            if have.get(need) is None:
                raise UserError(f"the strategy {self.name} needs a {need}: give {_HOW[need]}")
        return functools.partial(
            self.function,
            **{key: value for key, value in have.items() if key in takes and value is not None}
            | STRATEGIES[self.name][1]
            | self.options,
        )


def of_the_problem(canonical: Canonical) -> Canonical:
    """The same, given the question without what its text says of effort, which is no part of the problem."""
    return lambda question, answer: canonical(replace(question, text=parted(question.text)[0]), answer)


def named(text: str) -> Named:
    """Reads `name` or `name:key=value,key=value`; UserError that names what is wrong and what there is."""
    name, _, rest = text.partition(":")
    if name not in STRATEGIES:
        known = ", ".join(STRATEGIES)
        raise UserError(f"unknown strategy {name!r}{nearest(name, STRATEGIES)}; it is one of {known}")
    known = options_of(name)
    options: dict[str, Any] = {}
    for part in rest.split(",") if rest else ():
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals or key not in known:
            has = f"its options are {', '.join(known)}" if known else "it has no options"
            raise UserError(f"strategy {text!r}: {part!r} is no option of {name}{nearest(key, known)}; {has}")
        options[key] = _read(text, key, value, known[key].annotation)
    return Named(text, name, options)


@functools.lru_cache
def options_of(name: str) -> dict[str, inspect.Parameter]:
    """The plain options of a strategy, with their types and defaults."""
    function, fixed, _ = STRATEGIES[name]
    hints = typing.get_type_hints(function)
    return {
        p.name: p.replace(annotation=hints[p.name])
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.default is not p.empty and p.name not in fixed and _plain(hints[p.name])
    }


def _plain(kind: Any) -> bool:
    return kind in (int, float, bool, str) or typing.get_origin(kind) is Literal


def _read(text: str, key: str, value: str, kind: Any) -> Any:
    if kind is str:
        return value  # its spaces may matter
    value = value.strip()
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value in choices:
            return value
        raise UserError(f"strategy {text!r}: {key} is one of {', '.join(map(str, choices))}, not {value!r}")
    if kind is bool:
        if value.lower() in ("true", "false"):
            return value.lower() == "true"
        raise UserError(f"strategy {text!r}: {key} is true or false, not {value!r}")
    try:
        return kind(value)
    except ValueError:
        raise UserError(
            f"strategy {text!r}: {key} must be {'a whole number' if kind is int else 'a number'}, not {value!r}"
        ) from None
