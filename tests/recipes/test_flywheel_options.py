"""The flywheel's options: which stage of a run each one changes, and what a user gets wrong."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from mull.errors import MissingExtra, UserError
from mull.recipes import flywheel as recipe
from mull.recipes.flywheel import FlywheelConfig, flywheel
from mull.store import Store
from mull.store.curriculum import Curriculum
from mull.tasks.base import split_of
from tests.recipes.flywheel_tools import asked, config, file, report, save_base
from tests.store.made import chain


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> FlywheelConfig:
    cfg = config(base, tmp_path_factory.mktemp("plain") / "run", "Lines")
    flywheel(cfg, mode="quiet")
    return cfg


def stages(cfg: FlywheelConfig, turn: int = 1) -> dict[str, Any]:
    """What a run did, by stage."""
    log = [json.loads(line) for line in (cfg.out / "metrics.jsonl").open()]
    final = dict(report(cfg)["final"])
    return {
        "questions": file(cfg, turn, "questions.json"),
        "chains": [row["trace"] for row in asked(cfg, turn)],
        "kept": {k: v for k, v in file(cfg, turn, "lessons.json").items() if k in ("kept", "counts")},
        "pairs": file(cfg, turn, "lessons.json")["pairs"],
        "training": [
            {k: v for k, v in row.items() if k.startswith("loss") or k in ("lr", "grad_norm")}
            for row in log
            if row["turn"] == turn
        ],
        "valid": file(cfg, turn, "valid.json"),
        "test": file(cfg, turn, "test.json"),
        "final": final,
        "export": sorted(p.name for p in (cfg.out / "export").glob("*")),
    }


CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("questions", {"problems": 12}),
    ("questions", {"seed": 1}),
    ("chains", {"samples": 4}),
    ("chains", {"strategy": "forced"}),
    ("chains", {"tokens": 40}),
    ("chains", {"think_tokens": 4}),
    ("chains", {"answer_tokens": 2}),
    ("chains", {"temperature": 0.5}),
    ("kept", {"each": 1}),
    ("kept", {"order": "random"}),
    ("kept", {"near": 0.01}),
    ("kept", {"no_false_step": True}),
    ("pairs", {"pairs": 1}),
    ("training", {"method": "dpo"}),
    ("training", {"epochs": 1}),
    ("training", {"step_tokens": 400}),
    ("training", {"lr": 1e-3}),
    ("training", {"warmup": 3}),
    ("training", {"max_grad_norm": 0.1}),
    ("training", {"weight_decay": 5.0}),
    ("training", {"micro_tokens": 40}),
    ("training", {"dtype": "bfloat16"}),
    ("valid", {"valid_problems": 6}),
    ("valid", {"eval_samples": 2}),
    ("test", {"test_problems": 0}),
    ("final", {"threshold": 1.0, "patience": 1}),
    ("final", {"threshold": 0.0, "evidence": "low", "patience": 1}),
    ("export", {"export": ()}),
    ("export", {"export": ("jsonl", "parquet")}),
]


ELSEWHERE = {
    *("again", "curriculum", "restart", "scorer", "beta", "nll"),  # below
    *("model", "out", "tasks", "levels", "turns", "store", "share", "against"),  # the other files of the flywheel
    "critic",  # opened like the scorer: tests/search/test_sources.py
    *("checkpoint_every", "max_sequences", "threads"),  # whatever they are, the run is the same
    *("compile", "device"),  # tests/models/test_compiled.py, tests/recipes/test_device.py
}


def test_no_option_is_left_untested():
    assert {key for _, change in CHANGES for key in change} | ELSEWHERE == {f.name for f in fields(FlywheelConfig)}


@pytest.mark.parametrize(("stage", "change"), CHANGES, ids=[str(change) for _, change in CHANGES])
def test_an_option_changes_its_stage_and_none_before_it(
    plain: FlywheelConfig, tmp_path: Path, stage: str, change: dict[str, Any]
):
    if "parquet" in change.get("export", ()):
        pytest.importorskip("pyarrow")
    cfg = replace(plain, out=tmp_path / "run", **change)
    flywheel(cfg, mode="quiet")
    before, after = stages(plain), stages(cfg)
    names = list(before)
    for name in names[: names.index(stage)]:
        if name != "pairs" or stage not in ("training",):
            assert before[name] == after[name], name
    assert before[stage] != after[stage]


@pytest.mark.parametrize(("near", "kept"), [(0.8, 1), (0.95, 2), (None, 2)])
def test_near_duplicates_are_left_out_by_their_similarity(base: Path, tmp_path: Path, near: float | None, kept: int):
    words = [f"step {i} makes {i + 1}" for i in range(8)]
    text = next(str(i) for i in range(100) if split_of(str(i)) == "train")
    with Store.open(tmp_path / "store") as store:
        store.add(chain("any/1/x", "\n".join(lines), task="any", text=text) for lines in (words, [*words, "so 8"]))
    cfg = config(base, tmp_path / "run", store=tmp_path / "store", share=True, near=near)
    flywheel(cfg, mode="quiet")
    with Store.open(cfg.store or "") as store:
        names = {name for name, _ in file(cfg, 1, "lessons.json")["kept"]}
        assert [store.trace(name).question.id for name in names].count("any/1/x") == kept


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        ({"again": 0.0}, "questions"),
        ({"curriculum": Curriculum(target=0.01, sharpness=60.0)}, "questions"),
        ({"restart": False}, "training"),
    ],
    ids=str,
)
def test_options_of_later_turns_change_the_second_and_not_the_first(
    base: Path, tmp_path: Path, change: dict[str, Any], stage: str
):
    one, two = config(base, tmp_path / "one", turns=2), config(base, tmp_path / "two", turns=2, **change)
    for cfg in (one, two):
        flywheel(cfg, mode="quiet")
    first = [{k: v for k, v in stages(cfg, 1).items() if k not in ("final", "export")} for cfg in (one, two)]
    assert first[0] == first[1]
    assert stages(one, 2)[stage] != stages(two, 2)[stage]
    if stage == "training":
        assert stages(one, 2)["kept"] == stages(two, 2)["kept"]


def test_a_strategy_is_judged_by_the_scorer_that_was_named(base: Path, tmp_path: Path):
    """Untrained scorers read the model that learns: the second turn's differs from the base's."""
    chains = []
    for scorer in ("logprob", "certainty"):
        cfg = config(base, tmp_path / scorer, strategy="beam:expand=2", scorer=scorer, samples=6, turns=2)
        flywheel(cfg, mode="quiet")
        chains.append(stages(cfg)["chains"])
        with Store.open(cfg.out / "store") as store:
            traces = [store.trace(row["trace"]) for n in (1, 2) for row in asked(cfg, n)]
        assert {trace.strategy.partition(":")[0] for trace in traces} == {"beam"}
        assert all(any(span.score is not None for span in trace.spans) for trace in traces)
    assert chains[0] != chains[1]


def test_options_of_preferences_change_their_loss(base: Path, tmp_path: Path):
    losses, changes = [], list[dict[str, Any]](({}, {"beta": 1.0}, {"nll": 1.0}))
    for i, change in enumerate(changes):
        cfg = config(base, tmp_path / str(i), method="dpo", **change)
        flywheel(cfg, mode="quiet")
        losses.append([row["loss_pairs"] for row in stages(cfg)["training"]])
    assert losses[0][0] == pytest.approx(math.log(2), abs=1e-5), "at its reference, the model that the turn starts from"
    assert losses[0] != losses[1] != losses[2]


def test_what_a_user_gets_wrong_is_one_sentence(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for change, said in [
        ({"turns": 0}, "turns=0"),
        ({"again": 1.5}, "again must be a share"),
        ({"near": 0.0}, "near=0.0"),
        ({"strategy": "beam"}, "needs a scorer"),
        ({"levels": (7,)}, "has a level among"),
        ({"think_tokens": 300}, "do not fit"),
    ]:
        with pytest.raises(UserError, match=said):
            flywheel(config(base, tmp_path / "run", **change), mode="quiet")
    monkeypatch.setattr(recipe.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra):
        flywheel(config(base, tmp_path / "run", export=("parquet",)), mode="quiet")
    assert not (tmp_path / "run").exists(), "said before anything is written"
