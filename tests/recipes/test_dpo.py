"""From a search to a model: lessons from the trees of any strategy, the loop, and the same again after a kill."""

from __future__ import annotations

import contextlib
import json
import math
import random
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mull.errors import UserError
from mull.learn.pairs import Pair
from mull.learn.samples import supervised
from mull.models import hf
from mull.recipes.dpo import DPOConfig, dpo, fits, lessons, size_of
from mull.recipes.search_data import row_of, trace_of
from mull.types import Sample, Trace
from tests.learn.test_dpo import graded, span, tree
from tests.recipes.test_resume import broken_run, finish, same_run
from tests.recipes.tiny import ENDS, save_tiny, weights


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "any.py").write_text(ENDS)
    return save_tiny(tmp_path / "base", 3)


def config(base: Path, out: str, **options: Any) -> DPOConfig:
    given: dict[str, Any] = dict(
        model=str(base),
        out=base.parent / out,
        traces=base.parent / "traces",
        tasks=(f"{base.parent / 'any.py'}:Any",),
        levels=(1,),
        strategy="mcts:value=rollout,expand=2",
        problems=5,
        samples=8,
        think_tokens=24,
        answer_tokens=8,
        epochs=3,
        step_tokens=300,
        micro_tokens=400,
        lr=1e-2,
        eval_problems=4,
        eval_samples=1,
        checkpoint_every=2,
        threads=1,
    )
    return DPOConfig(**{**given, **options})


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").open()]


def traces_of(cfg: DPOConfig) -> list[Trace]:
    assert cfg.traces is not None
    return [trace_of(json.loads(line)) for line in (cfg.traces / "traces.jsonl").open()]


# ------------------------------------------------------------------------------------------------ end to end


@pytest.mark.parametrize("method", ["sft", "dpo", "both"])
def test_every_method_learns_from_a_search_and_is_measured_before_and_after(base: Path, method: str):
    cfg = config(base, "run", method=method)
    folder = dpo(cfg, mode="quiet")
    log = rows(cfg.out)
    first, last = log[0], log[-1]
    assert [row["step"] for row in log] == list(range(len(log))) and len(log) > 3
    assert first["search_flops"] > 0 and first["lessons"]["questions"] == 5 and first["flops"] == 0
    assert (first["lessons"]["paths"] > 0) == (method != "dpo")
    assert (first["lessons"]["steps"] + first["lessons"]["chains"] > 0) == (method != "sft")
    for row in (first, last):
        assert row["eval"]["all"]["n"] == 4 and row["eval"]["all"]["tokens"] > 0
    assert all(row["grad_norm"] > 0 and row["skipped_updates"] == 0 for row in log[1:])
    if method != "sft":
        compared = [row for row in log[1:] if "loss_pairs" in row]
        assert compared[0]["loss_pairs"] == pytest.approx(math.log(2), abs=1e-3), "at the reference to begin with"
        assert compared[-1]["right"] > 0.9 and compared[-1]["margin"] > 0
    if method != "dpo":
        imitated = [row["loss_ce"] for row in log[1:] if "loss_ce" in row]
        assert imitated[-1] < imitated[0]
    before, after = hf.load(base).state_dict(), hf.load(folder).state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_seeds_and_methods_learn_from_the_same_search(base: Path):
    cfg = config(base, "one", eval_problems=0, epochs=1)
    dpo(cfg, mode="quiet")
    assert cfg.traces is not None
    kept = {path.name: path.stat().st_mtime_ns for path in cfg.traces.iterdir()}
    assert set(kept) == {"settings.json", "traces.jsonl"}
    dpo(replace(cfg, out=base.parent / "two", method="sft", seed=5), mode="quiet")
    assert kept == {path.name: path.stat().st_mtime_ns for path in cfg.traces.iterdir()}
    assert rows(cfg.out)[0]["search_flops"] == rows(base.parent / "two")[0]["search_flops"] > 0
    with pytest.raises(UserError, match="samples=8, not 4"):
        dpo(replace(cfg, out=base.parent / "three", samples=4), mode="quiet")


def test_the_stored_reference_is_the_starting_model_and_the_model_s_costs_more(base: Path):
    """At temperature 1 the two are the same to rounding, at every step."""
    one, two = config(base, "stored", eval_problems=0), config(base, "model", eval_problems=0, reference="model")
    for cfg in (one, two):
        dpo(cfg, mode="quiet")
    stored, computed = rows(one.out), rows(two.out)
    for a, b in zip(stored[1:], computed[1:], strict=True):
        assert a["loss_pairs"] == pytest.approx(b["loss_pairs"], rel=1e-2, abs=1e-4)
    assert computed[-1]["flops"] == pytest.approx(4 / 3 * stored[-1]["flops"], rel=1e-3)


@pytest.mark.parametrize("method", ["dpo", "both"])
def test_killed_and_resumed_is_bitwise_the_same(base: Path, method: str):
    def cfg(name: str) -> DPOConfig:
        return config(base, name, method=method, traces=None, step_tokens=80, epochs=30, checkpoint_every=5)

    seconds = finish(dpo, cfg("whole"))
    broken_run(dpo, cfg("broken"), 3, random.Random(4), seconds / 60)
    same_run(base.parent / "whole", base.parent / "broken")
    searches = [(base.parent / name / "search" / "traces.jsonl").read_bytes() for name in ("whole", "broken")]
    assert searches[0] == searches[1]


# ------------------------------------------------------------------------------------------------ lessons


def other() -> Trace:
    """Two steps with two chains below each, of which the wrong ones are longer."""
    trace = graded(
        [span([30]), span([31]), span([40, 99], 1), span([41, 99], 1), span([42, 99], 2), span([43, 44, 45, 99], 2)],
        {3: True, 4: True, 5: False, 6: False},
        name="q/2",
    )
    trace.spans[0].tokens = (1, 3)
    trace.spans[1].visits = 2
    return trace


def said(todo: list) -> list[tuple]:
    return [(x.prompt, x.chosen.tokens, x.rejected.tokens) if isinstance(x, Pair) else tuple(x.ce or ()) for x in todo]


def test_every_option_of_the_lessons_changes_them(base: Path):
    two_lengths = graded([span([50, 99]), span([51, 52, 53, 99])], {1: True, 2: True}, name="q/3")
    for step in two_lengths.spans:
        step.visits = 1
    searched = [tree(), other(), two_lengths]

    def of(**options: Any) -> tuple:
        todo, counts = lessons(config(base, "x", **{"pairs": "both", "method": "both", **options}), searched)
        assert counts["steps"] + counts["chains"] == sum(isinstance(x, Pair) for x in todo)
        assert counts["paths"] == sum(isinstance(x, Sample) for x in todo)
        return tuple(said(todo))

    found = {
        "both": of(),
        "sft": of(method="sft"),
        "dpo": of(method="dpo"),
        "steps": of(pairs="steps"),
        "chains": of(pairs="chains"),
        "short": of(pairs="short"),
        "theta": of(theta=0.7),
        "outcomes": of(outcomes=0.0),
        "least": of(least=2),
        "most": of(most=1),
        "paths": of(paths=2),
        "weight": of(weight="visits"),
        "longer": of(pairs="short", longer=100.0),
    }
    names = list(found)
    assert set(names) - {"both", "dpo", "steps", "chains", "short", "sft"} | {"method", "pairs"} == OF_LESSONS
    assert not [(a, b) for i, a in enumerate(names) for b in names[:i] if found[a] == found[b]]
    assert of(pairs="both", theta=2.0, seed=0) == of(pairs="chains", seed=0), "no pair comes twice"


OF_LESSONS = {"method", "pairs", "theta", "outcomes", "least", "most", "paths", "weight", "longer"}
OF_LOSS: list[dict[str, Any]] = [
    {},
    {"beta": 0.1},
    {"form": "ipo"},
    {"normalised": True},
    {"nll": 1.0},
    {"sft_weight": 0.3},
    {"lr": 2e-4},
    {"warmup": 4},
    {"weight_decay": 5.0},
    {"max_grad_norm": 0.01},
    {"dtype": "bfloat16"},
    {"seed": 1},
    {"epochs": 2},
    {"step_tokens": 160},
]
OF_SEARCH: list[dict[str, Any]] = [
    {},
    {"trace_seed": 1},
    {"problems": 7},
    {"samples": 4},
    {"tokens": 20},
    {"think_tokens": 10},
    {"answer_tokens": 3},
    {"temperature": 0.7},
    {"strategy": "sample"},
    {"strategy": "mcts:expand=2", "scorer": "logprob"},
    {"strategy": "mcts:expand=2", "scorer": "certainty"},
]
ELSEWHERE = {
    *("model", "out", "tasks", "levels", "traces", "reference", "micro_tokens"),
    "critic",  # opened like the scorer: tests/search/test_sources.py
    *("eval_every", "eval_problems", "eval_samples"),
    *("checkpoint_every", "threads"),  # whatever they are, the run is the same: the test of kills
    *("compile", "device"),  # tests/models/test_compiled.py, tests/recipes/test_device.py
}


def test_no_option_is_left_untested():
    tested = OF_LESSONS | {key for given in (*OF_LOSS, *OF_SEARCH) for key in given} | ELSEWHERE
    assert tested == {f.name for f in fields(DPOConfig)}


def test_every_option_of_the_loss_changes_the_model(base: Path):
    def trained(name: str, **options: Any) -> torch.Tensor:
        given = {"method": "both", "step_tokens": 80, **options}
        return weights(dpo(config(base, name, eval_problems=0, **given), mode="quiet"))

    models = [trained(f"run-{i}", **given) for i, given in enumerate(OF_LOSS)]
    assert not [(i, j) for i in range(len(models)) for j in range(i) if torch.allclose(models[i], models[j], atol=1e-6)]


def test_every_option_of_the_search_changes_the_traces(base: Path):
    found = []
    for i, given in enumerate(OF_SEARCH):
        more: dict[str, Any] = {"traces": base.parent / f"traces-{i}", "method": "sft", "epochs": 1, "problems": 8}
        cfg = config(base, f"run-{i}", eval_problems=0, **{**more, **given})
        with contextlib.suppress(UserError):  # not all of them hold something to learn from
            dpo(cfg, mode="quiet")
        found.append([(t.question.id, [s.tokens for s in t.spans], [s.score for s in t.spans]) for t in traces_of(cfg)])
    same = [(OF_SEARCH[i], OF_SEARCH[j]) for i in range(len(found)) for j in range(i) if found[i] == found[j]]
    assert not same


def test_traces_are_kept_whole(base: Path):
    cfg = config(base, "run", eval_problems=0, epochs=1, strategy="beam:expand=2", scorer="logprob", samples=4)
    dpo(cfg, mode="quiet")
    for trace in traces_of(cfg):
        assert trace_of(json.loads(json.dumps(row_of(trace)))) == trace
        assert trace.verdict is not None and len(trace.verdicts) == len(trace.leaves)
        assert any(span.score is not None for span in trace.spans) and any(span.visits for span in trace.spans)
        assert all(len(span.logprobs) == len(span.tokens) for span in trace.spans if span.kind == "sampled")
    cut = traces_of(cfg)[0]
    cut.spans[1].kept = (torch.zeros(1).numpy(),)
    with pytest.raises(ValueError, match="top-p"):
        row_of(cut)


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"problems": 0}, "must be 1 or more"),
        ({"beta": 0.0}, "beta above 0"),
        ({"outcomes": 1.1}, "outcomes must be between"),
        ({"temperature": 0.7}, "reference=model"),
        ({"strategy": "beam"}, "needs a scorer"),
        ({"strategy": "mtcs"}, "did you mean 'mcts'"),
        ({"levels": (7,)}, "a level among [7]"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(base: Path, options: dict[str, Any], sentence: str):
    with pytest.raises(UserError) as caught:
        dpo(config(base, "run", **options), mode="quiet")
    assert sentence in str(caught.value)
    assert not (base.parent / "run").exists()


def test_a_search_that_teaches_nothing_is_said(base: Path):
    with pytest.raises(UserError, match="nothing to learn from"):
        dpo(config(base, "run", tasks=(f"{base.parent / 'any.py'}:Same",), method="both"), mode="quiet")
    with pytest.raises(UserError, match="counts no visits"):
        given = {"strategy": "sample", "traces": None, "method": "sft", "weight": "visits"}
        dpo(config(base, "other", **given), mode="quiet")


def test_what_does_not_fit_is_left_out_whole_and_counted(base: Path):
    cfg = config(base, "run", eval_problems=0)
    dpo(cfg, mode="quiet")
    sizes = sorted({-(-(size_of(x) - isinstance(x, Sample)) // 8) * 8 for x in lessons(cfg, traces_of(cfg))[0]})
    assert len(sizes) > 1
    dpo(replace(cfg, out=base.parent / "less", micro_tokens=sizes[-1] - 1), mode="quiet")
    whole, less = (rows(base.parent / name)[0]["lessons"] for name in ("run", "less"))
    assert whole["too_long"] == 0 < less["too_long"] < whole["steps"] + whole["chains"] + whole["paths"]
    with pytest.raises(UserError, match=r"nothing to learn from .* too long"):
        dpo(replace(cfg, out=base.parent / "none", micro_tokens=sizes[0] - 1), mode="quiet")


def test_sizes_are_those_of_the_rows():
    nine, ten = (supervised([1], [2] * (n - 1)) for n in (9, 10))
    assert fits(nine, 8) and not fits(ten, 8) and fits(ten, 16)
    assert [fits(x, 8) for x in lessons(DPOConfig(pairs="steps"), [tree()])[0]] == [True] * 3
    [sample] = lessons(DPOConfig(method="sft"), [tree()])[0]
    assert size_of(sample) == 5
    assert [size_of(x) for x in lessons(DPOConfig(pairs="steps"), [tree()])[0]] == [2, 5, 5]
