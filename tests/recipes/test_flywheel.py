"""The flywheel: what each option changes, the rule that stops it, held-out questions, shared stores, kills."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mull.chat import Chat
from mull.errors import MissingExtra, UserError
from mull.evals.metrics import Marks
from mull.learn.samples import supervised
from mull.models import hf
from mull.recipes import flywheel as recipe
from mull.recipes import flywheel_data
from mull.recipes.flywheel import FlywheelConfig, flywheel
from mull.recipes.flywheel_data import Pool, counted, held_against, histogram, lessons_of, shared
from mull.recipes.flywheel_report import points
from mull.recipes.flywheel_rule import Turn, best_of, judged, stopped
from mull.store import Count, Made, Store
from mull.store.curriculum import Curriculum
from mull.store.decontaminate import contaminated
from mull.store.export import plain_tags
from mull.tasks.base import split_of
from mull.tasks.load import load_task
from mull.types import Sample, Verdict
from tests.learn.test_dpo import tree
from tests.recipes.test_resume import broken_run, equal, finish, same_run, start
from tests.recipes.tiny import ENDS, save_tiny
from tests.store.made import chain

MORE = '''

class Sure(Any):
    """Whatever anybody says is right, so nothing can be learnt that makes it better."""
    name = "sure"

    def check(self, problem, answer):
        return Verdict(True, answer)


class Lines(Any):
    """Lines that are false in every other thought."""
    name = "lines"

    def check_steps(self, problem, thought):
        return [StepVerdict(thought, len(thought) % 2 == 0)]


class Fading(Any):
    """Everything is right until more questions were judged than a first turn has: 16 held out and 10 asked."""
    name = "fading"

    def check(self, problem, answer):
        self.seen = getattr(self, "seen", set()) | {problem.question.id}
        return Verdict(len(self.seen) <= 26, answer)


class Few(Any):
    """A hundred questions in all."""
    name = "few"

    def draw(self, level, rng):
        text = str(rng.randrange(100))
        return text, text, Reference("x")
'''


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    (folder / "any.py").write_text(ENDS + MORE)
    return save_tiny(folder / "base", 3)


def config(base: Path, out: Path, task: str = "Any", **more: Any) -> FlywheelConfig:
    small = FlywheelConfig(
        model=str(base),
        out=out,
        tasks=(f"{base.parent / 'any.py'}:{task}",),
        levels=(1,),
        turns=1,
        problems=10,
        again=0.5,
        samples=5,
        think_tokens=24,
        answer_tokens=8,
        each=2,
        step_tokens=150,
        micro_tokens=256,
        lr=1e-2,
        warmup=1,
        threshold=-1.0,  # so that every turn pays
        valid_problems=8,
        test_problems=8,
        eval_samples=1,
        threads=1,
    )
    return replace(small, **more)


def report(cfg: FlywheelConfig) -> dict[str, Any]:
    return json.loads((cfg.out / "report.json").read_text())


def file(cfg: FlywheelConfig, turn: int, name: str) -> Any:
    return json.loads((cfg.out / "turns" / f"{turn:02d}" / name).read_text())


def asked(cfg: FlywheelConfig, turn: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (cfg.out / "turns" / f"{turn:02d}" / "asked.jsonl").open()]


def without(rows: tuple[dict[str, Any], dict[str, Any]], *keys: str) -> tuple[dict[str, Any], dict[str, Any]]:
    one, two = ({k: v for k, v in row.items() if k not in keys} for row in rows)
    return one, two


def weights(cfg: FlywheelConfig) -> torch.Tensor:
    return torch.cat([p.flatten() for p in hf.load(cfg.out / "model").parameters()])


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


# ---------------------------------------------------------------------------------------------------- the rule


def marks(right: int, of: int = 100) -> Marks:
    return [[i < right] for i in range(of)]


def turns(*right_and_flops: tuple[int, float]) -> list[Turn]:
    return [Turn(n, marks(right), flops) for n, (right, flops) in enumerate(right_and_flops)]


def test_gains_are_weighed_against_doublings_of_compute():
    found = judged(turns((50, 0), (60, 1e9), (66, 2e9), (66, 8e9)), threshold=0.06)
    assert [t.gain.mean for t in found] == pytest.approx([0.1, 0.06, 0.0])
    assert [t.doublings for t in found] == [1, 1, 2], "the first turn counts as one; the last spent four times as much"
    assert [t.paid for t in found] == [True, True, False]
    assert found[0].per_doubling and found[0].per_doubling[0] == pytest.approx(0.1)
    slower = judged(turns((50, 0), (60, 1e9), (66, 4e9)), threshold=0.06)
    assert slower[1].doublings == 2 and not slower[1].paid, "the same gain for twice the doublings"


def test_a_dip_that_is_made_good_is_no_gain():
    """Over the turn before, turn 3 would have gained ten points."""
    found = judged(turns((50, 0), (60, 1e9), (50, 2e9), (60, 4e9), (64, 8e9)), threshold=0.01)
    assert [t.best for t in found] == [0, 1, 1, 1]
    assert found[2].gain.mean == pytest.approx(0.1) and found[2].over_best.mean == 0 and not found[2].paid
    assert [t.doublings for t in found] == [1, 1, 2, 3] and found[3].paid


@pytest.mark.parametrize(("evidence", "paid"), [("low", False), ("mean", True), ("high", True)])
def test_the_evidence_is_the_mean_or_an_end_of_the_interval(evidence: Any, paid: bool):
    found = judged(turns((50, 0), (56, 1e9)), threshold=0.05, evidence=evidence)
    assert found[0].over_best.low < 0.05 < found[0].over_best.mean and found[0].paid is paid
    found = judged(turns((50, 0), (54, 1e9)), threshold=0.05, evidence=evidence)
    assert found[0].paid is (evidence == "high")


def test_patience_counts_turns_in_a_row():
    history = turns((50, 0), (50, 1e9), (60, 2e9), (60, 4e9), (60, 8e9))
    for patience, end in [(1, 1), (2, 4)]:
        ends = [stopped(history[: n + 1], 0.01, "mean", patience, 9) is not None for n in range(len(history))]
        assert ends.index(True) == end
    kind, sentence = stopped(history, 0.01, "mean", 2, 9) or ("", "")
    assert kind == "stopped paying" and sentence.startswith("turn 4 gained 0.0 points over turn 2 on valid problems")
    assert sentence.endswith("below the threshold of 1.0; 2 turns in a row did not pay")
    assert stopped(history, 0.01, "mean", 3, 9) is None
    assert stopped(history, 0.01, "mean", 3, 4) == ("all turns done", "all 4 turns are done")
    assert stopped(history[:3], 0.01, "mean", 3, 2) == ("all turns done", "all 2 turns are done, and the last one paid")


def test_the_best_is_the_earliest_of_equals_and_never_one_that_nobody_could_judge():
    assert best_of(turns((50, 0), (60, 1), (60, 2), (59, 3))) == 1
    blind = Turn(1, [[None]] * 100, 1e9)
    assert best_of([blind, *turns((0, 0))]) == 1
    [found] = judged([*turns((50, 0)), blind], threshold=-1.0)
    assert not found.paid and math.isnan(found.gain.mean)
    assert points(found.gain.mean) == "?" and points(-0.0001) == "0.0"


# ------------------------------------------------------------------------------------------- what options change


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> FlywheelConfig:
    cfg = config(base, tmp_path_factory.mktemp("plain") / "run", "Lines")
    flywheel(cfg, mode="quiet")
    return cfg


CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("questions", {"problems": 12}),
    ("questions", {"seed": 1}),
    ("chains", {"samples": 4}),
    ("chains", {"strategy": "forced"}),
    ("chains", {"tokens": 40}),
    ("chains", {"think_tokens": 4}),
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
    ("export", {"export": ()}),
    ("export", {"export": ("jsonl", "parquet")}),
]


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


# ------------------------------------------------------------------------------------------------ turn by turn


@pytest.fixture(scope="module")
def three(base: Path, tmp_path_factory: pytest.TempPathFactory) -> FlywheelConfig:
    cfg = config(base, tmp_path_factory.mktemp("three") / "run", turns=3)
    flywheel(cfg, mode="quiet")
    return cfg


def test_every_turn_asks_new_and_old_questions_and_learns_from_all_turns(three: FlywheelConfig):
    rows = report(three)["turns"]
    assert [row["turn"] for row in rows] == [0, 1, 2, 3]
    assert [(row["asked"]["new"], row["asked"]["again"]) for row in rows[1:]] == [(10, 0), (5, 5), (5, 5)]
    files = [file(three, n, "questions.json") for n in (1, 2, 3)]
    new = [question for f in files for question in f["new"]]
    assert len(set(new)) == 20 and set(files[1]["again"]) <= set(files[0]["new"])
    kept = [{tuple(name) for name in file(three, n, "lessons.json")["kept"]} for n in (1, 2, 3)]
    own = [{row["trace"] for row in asked(three, n)} for n in (1, 2, 3)]
    assert {trace for trace, _ in kept[2]} & own[0] and {trace for trace, _ in kept[2]} & own[2]
    for row, names in zip(rows[1:], kept, strict=True):
        assert row["curated"]["kept"] == row["learnt"]["lessons"] == len(names) > 0
    chains = sum(row["asked"]["chains"] for row in rows[1:])
    assert sum(rows[3]["curated"].values()) == chains, "every chain of every turn is kept, or there is a reason"


def test_the_store_knows_who_made_what(three: FlywheelConfig):
    from mull.store import weights_hash

    with Store.open(three.out / "store") as store:
        made = {store.record(row["trace"]).made.version: store.record(row["trace"]).made for row in asked(three, 1)}
        made |= {store.record(row["trace"]).made.version: store.record(row["trace"]).made for row in asked(three, 3)}
        assert len(store) == 30
    assert made[0].weights == weights_hash(three.model) and made[0].split == "train"
    assert made[0].decoding == {"temperature": 1.0} and made[0].run == str(three.out)
    last = torch.load(sorted(three.out.glob("checkpoints/*"))[-1] / "state.pt", weights_only=True)
    assert last["done"] == 3 and made[2].weights not in ("", made[0].weights)


def test_everything_is_charged_by_phase_and_turn(three: FlywheelConfig):
    found = report(three)
    assert set(found["ledger"]) == {"turn 0 evaluation"} | {
        f"turn {n} {what}" for n in (1, 2, 3) for what in ("sampling", "training", "evaluation")
    }
    spent = 0.0
    with Store.open(three.out / "store") as store:
        for n in (1, 2, 3):
            row, traces = found["turns"][n], [store.trace(r["trace"]) for r in asked(three, n)]
            assert row["tokens"]["sampled"] == sum(t.cost.sampled_tokens for t in traces) > 0
            assert row["flops"]["sampling"] == pytest.approx(sum(t.cost.flops for t in traces))
            assert row["tokens"]["trained"] > 0 and row["flops"]["training"] > 0
            assert all(seconds > 0 for seconds in row["seconds"].values())
            spent += row["flops"]["sampling"] + row["flops"]["training"]
            assert row["spent_flops"] == pytest.approx(spent), "measuring is not counted"
    flops = [row["spent_flops"] for row in found["turns"]]
    since = {0: 0.0} | {n: 1 + math.log2(flops[n] / flops[1]) for n in (1, 2, 3)}
    last = found["turns"][3]
    assert last["doublings"] == pytest.approx(since[3] - since[last["over_best"]["turn"]])


def test_the_model_is_the_best_by_valid_and_the_table_says_so(three: FlywheelConfig, capsys: pytest.CaptureFixture):
    found = report(three)
    accuracy = [row["valid"]["mean"] for row in found["turns"]]
    assert found["final"]["turn"] == accuracy.index(max(accuracy))
    assert found["final"]["test"] == found["turns"][found["final"]["turn"]]["test"]
    best = [p for p in three.out.glob("checkpoints/step_*") if json.loads((p / "meta.json").read_text())["score"]]
    states = {torch.load(p / "state.pt", weights_only=True)["done"]: p for p in best}
    held = hf.load(states[found["final"]["turn"]] / "model" / "hf").state_dict()
    assert all(torch.equal(value, held[name]) for name, value in hf.load(three.out / "model").state_dict().items())
    recipe.show(three.out / "model")
    table = capsys.readouterr().out
    assert table.startswith("# A flywheel on") and f"The model is that of turn {found['final']['turn']}" in table
    assert len([line for line in table.splitlines() if line.startswith("|")]) == 2 + 4


def test_the_export_is_what_was_kept(three: FlywheelConfig):
    read = {
        name: [json.loads(line) for line in (three.out / "export" / f"{name}.jsonl").open()]
        for name in ("chains", "chat", "pairs")
    }
    lessons = file(three, 3, "lessons.json")
    assert [[row["trace"], row["leaf"]] for row in read["chains"]] == lessons["kept"]
    with Store.open(three.out / "store") as store:
        rows = {(row.trace, row.leaf): row for row in store.chains()}
        sides = [[rows[a, i], rows[b, j]] for a, i, b, j in lessons["pairs"]]
        sayable = [all(plain_tags(worked) for worked in store.worked(pair)) for pair in sides]
    assert len(read["pairs"]) == sum(sayable) > 0
    assert all(row["correct"] for row in read["chains"])
    spoken = {row["messages"][1]["content"] for row in read["chat"]}
    assert {pair["chosen"][0]["content"] for pair in read["pairs"]} <= spoken


def test_the_curriculum_s_histogram():
    counts = {
        "a": Count(0, 0),
        "b": Count(0, 8),
        "c": Count(1, 4),
        "d": Count(3, 4),
        "e": Count(9, 9),
        "f": Count(7, 8),
    }
    found = histogram(counts, Curriculum())
    assert list(found["rates"].values()) == [1, 0, 1, 0, 2, 1]
    assert found["standing"] == {"open": 4, "solved": 1, "never": 1}


def test_a_pool_that_is_empty_gives_way_to_what_was_asked_before(base: Path, tmp_path: Path):
    task = load_task(f"{base.parent / 'any.py'}:Few")
    whole = Pool([task], (1,), 0)
    every = whole.take(1000)
    assert len(set(every)) == len(every) == sum(split_of(str(i)) == "train" for i in range(100))
    assert Pool([task], (1,), 0).take(7) == every[:7]
    few = len(every) - 3
    cfg = config(base, tmp_path / "run", "Few", problems=few, turns=2, again=0.0, samples=1)
    flywheel(cfg, mode="quiet")
    second = file(cfg, 2, "questions.json")
    assert second["new"] == every[few:] and len(second["again"]) == few - 3


# ------------------------------------------------------------------------------------------------- how it stops


def test_what_nothing_improves_stops_by_the_rule(base: Path, tmp_path: Path):
    cfg = config(base, tmp_path / "run", "Sure", turns=9, threshold=0.01, patience=2)
    flywheel(cfg, mode="quiet")
    final = report(cfg)["final"]
    assert final["stopped"] == "stopped paying" and "2 turns in a row did not pay" in final["reason"]
    assert final["turn"] == 0 and len(report(cfg)["turns"]) == 3
    assert [row["paid"] for row in report(cfg)["turns"][1:]] == [False, False]
    start = torch.cat([p.flatten() for p in hf.load(base).parameters()])
    assert torch.equal(weights(cfg), start), "no turn was better than the base, so the base it is"
    assert final["reason"] in (cfg.out / "report.md").read_text()


def test_a_task_that_is_never_right_leaves_nothing_to_learn(base: Path, tmp_path: Path):
    cfg = config(base, tmp_path / "run", "Same", turns=3)
    flywheel(cfg, mode="quiet")
    found = report(cfg)
    assert found["final"]["stopped"] == "nothing to learn" and "wrong answer" in found["final"]["reason"]
    assert [row["turn"] for row in found["turns"]] == [0, 1] and "valid" not in found["turns"][1]
    assert found["turns"][1]["flops"]["sampling"] > 0 == found["turns"][1]["flops"]["training"], "it is paid for"
    before = (cfg.out / "report.json").read_text()
    flywheel(cfg, resume=True, mode="quiet")
    equal(json.loads(before), found)


def test_a_turn_that_finds_what_the_one_before_learnt_ends_it(base: Path, tmp_path: Path):
    cfg = config(base, tmp_path / "run", "Fading", turns=9, again=0.0)
    flywheel(cfg, mode="quiet")
    found = report(cfg)
    lessons = file(cfg, 1, "lessons.json")["kept"]
    assert found["final"]["stopped"] == "nothing to learn" and lessons == file(cfg, 2, "lessons.json")["kept"] != []
    assert f"turn 2 found the same {len(lessons)} lessons as the turn before it" in found["final"]["reason"]
    assert len(found["turns"]) == 3 and found["turns"][2]["asked"]["right"] == 0


def test_test_results_enter_no_decision(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With every verdict on a test problem turned round, everything but the test figures is the same."""
    honest, turned = (config(base, tmp_path / name, turns=3, threshold=0.0, patience=1) for name in ("a", "b"))
    flywheel(honest, mode="quiet")
    evaluate = recipe.evaluate

    async def inverted(held: Any, *parts: Any, **options: Any) -> Any:
        found = await evaluate(held, *parts, **options)
        if held and split_of(held[0].problem.question.text) == "test":
            for trace in found.traces:
                trace.verdicts = [Verdict(not v.correct, v.answer) for v in trace.verdicts]
        return found

    monkeypatch.setattr(recipe, "evaluate", inverted)
    flywheel(turned, mode="quiet")
    a, b = report(honest), report(turned)
    assert torch.equal(weights(honest), weights(turned))
    assert a["final"]["reason"] == b["final"]["reason"] and a["final"]["turn"] == b["final"]["turn"]
    assert len(a["turns"]) == len(b["turns"])
    for x, y in zip(a["turns"], b["turns"], strict=True):
        assert x["test"]["mean"] == pytest.approx(1 - y["test"]["mean"])
        equal(*without((x, y), "test", "seconds"))


# --------------------------------------------------------------------------------------------- held-out questions


def test_nothing_of_the_held_out_splits_reaches_training(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Not even where others put right chains of test and valid questions into the store, and called them train."""
    text = {
        split: next(str(i) for i in range(10**6) if split_of(str(i)) == split) for split in ("test", "valid", "train")
    }
    task = load_task(f"{base.parent / 'any.py'}:Any")
    problems = {split: task.up_to(1, split, 5, 1)[0] for split in text}  # type: ignore[arg-type]
    other = Made("somebody's", split="train", run="elsewhere")
    with Store.open(tmp_path / "store") as store:
        store.add(
            chain(p.question.id, f"of {split}", task="any", text=p.question.text, made=other)
            for split, p in problems.items()
        )
    cfg = config(base, tmp_path / "run", turns=2, store=tmp_path / "store", share=True)
    learn, learnt = recipe.learn, set()

    def watched(lesson: Any, model: Any, reference: Any, chosen: Any) -> Any:
        chat = Chat.load(base)
        learnt.update(chat.decode(sample.tokens) for sample in chosen)
        return learn(lesson, model, reference, chosen)

    monkeypatch.setattr(recipe, "learn", watched)
    flywheel(cfg, mode="quiet")
    known = {question for n in (1, 2) for q in file(cfg, n, "questions.json").values() for question in q}
    assert len(learnt) > 10
    for document in learnt:
        digits = next(word for word in document.replace("<", " ").replace(">", " ").split() if word.isdigit())
        assert split_of(digits) == "train", document
    assert any("of train" in document for document in learnt), "what others may be learnt from was learnt"
    lessons = file(cfg, 2, "lessons.json")
    assert lessons["counts"]["contaminated"] == 2 and set(lessons["contaminated"]) == {
        problems[split].question.id for split in ("test", "valid")
    }
    assert all(split_of(load.problem.question.text) == "train" for load in Pool([task], (1,), 0).known.values())
    assert report(cfg)["turns"][2]["contaminated"] == lessons["contaminated"] and known


def test_a_question_of_a_benchmark_is_dropped(base: Path, tmp_path: Path):
    """A train question that a data set of another name holds out, asked for by `against`."""
    pool = Pool([load_task(f"{base.parent / 'any.py'}:Any")], (1,), 0)
    first = pool.known[pool.take(10)[3]].problem.question
    bench = tmp_path / "bench.jsonl"
    bench.write_text(json.dumps({"question": first.text, "answer": "7"}) + "\n")
    cfg = config(base, tmp_path / "run", against=(str(bench),))
    flywheel(cfg, mode="quiet")
    lessons = file(cfg, 1, "lessons.json")
    assert lessons["contaminated"] == {first.id: "equal to a held-out question of bench"}
    with Store.open(cfg.out / "store") as store:
        assert first.id not in {store.trace(trace).question.id for trace, _ in lessons["kept"]}


def test_a_data_set_s_own_held_out_lines_are_known(tmp_path: Path):
    """Its train lines may be copies of them but for a comma, which a procedural task's cannot be."""
    lines = [f"Add {i} and {j}{end}" for i in range(12) for j in range(12) for end in ("", "!")]
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps({"question": line, "answer": "1"}) + "\n" for line in lines))
    task = load_task(f"{path}:hash")
    train = [p.question for p in task.up_to(0, "train", 0, 999)]
    found = contaminated(train, [task], held_against([task], [], []))
    twins = [q for q in train if split_of(q.text[:-1] if q.text.endswith("!") else q.text + "!") != "train"]
    assert set(found) == {q.id for q in twins} and 10 < len(twins) < len(train)


# --------------------------------------------------------------------------------------------------- shared stores


def same_result(one: FlywheelConfig, two: FlywheelConfig) -> None:
    assert torch.equal(weights(one), weights(two))
    for row, other in zip(report(one)["turns"], report(two)["turns"], strict=True):
        equal(*without((row, other), "seconds"))


def test_a_run_does_not_notice_who_else_uses_its_store(base: Path, tmp_path: Path, three: FlywheelConfig):
    """Two runs of one seed at once, which sample the same traces, and a third one of another seed."""
    store = tmp_path / "store"
    cfgs = [
        config(base, tmp_path / name, turns=3, store=store, seed=seed) for name, seed in [("a", 0), ("b", 0), ("c", 4)]
    ]
    processes = [start(flywheel, cfg) for cfg in cfgs]
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
    same_result(three, cfgs[0])
    same_result(three, cfgs[1])
    with Store.open(store) as found:
        assert found.check().sound
        traces = {row["trace"] for cfg in cfgs for n in (1, 2, 3) for row in asked(cfg, n)}
        assert len(found) == len(traces) and 30 < len(traces) <= 60


def test_chains_of_others_are_learnt_where_that_is_asked_for(base: Path, tmp_path: Path):
    first = config(base, tmp_path / "first", store=tmp_path / "store", seed=4)
    alone = config(base, tmp_path / "alone")
    sharing = config(base, tmp_path / "sharing", store=tmp_path / "store", share=True)
    for cfg in (first, alone, sharing):
        flywheel(cfg, mode="quiet")
    a, b = (report(cfg)["turns"][1] for cfg in (alone, sharing))
    assert a["learnt"]["borrowed"] == 0 < b["learnt"]["borrowed"] and b["learnt"]["lessons"] > a["learnt"]["lessons"]
    assert b["learnt"]["respelled"] == 0 and a["flops"]["sampling"] == b["flops"]["sampling"]
    assert b["flops"]["training"] > a["flops"]["training"]


def test_chains_in_another_policy_s_tokens_are_learnt_as_text(base: Path, tmp_path: Path):
    chat, cfg = Chat.load(base), config(base, tmp_path / "run")
    with Store.open(tmp_path / "store") as store:
        record = chain("any/1/x", "a\nb", "12", text="5 and 7")
        store.add([record])
        made, counts = lessons_of(cfg, store, chat, {"kept": [[record.hash, 0]], "pairs": []})
    expected = supervised(chat.prompt("5 and 7"), chat.reply("a\nb", "12"))
    assert counts == {"respelled": 1} and len(made) == 1 and isinstance(made[0], Sample)
    assert list(made[0].tokens) == list(expected.tokens) and made[0].ce == expected.ce


def test_what_chains_of_one_tree_share_is_learnt_once():
    trace, learnt = tree(), set()
    assert shared(trace, 0, learnt) == 0  # spans 1 and 5
    assert shared(trace, 1, learnt) == 1  # spans 1 and 6: the step a was learnt
    assert shared(trace, 2, learnt) == 0  # spans 4 and 7: a sampled anew


def test_trees_of_a_search_are_learnt_from(base: Path, tmp_path: Path):
    cfg = config(base, tmp_path / "run", strategy="mcts:value=rollout,expand=2", each=4, near=None)
    flywheel(cfg, mode="quiet")
    lessons = file(cfg, 1, "lessons.json")
    with Store.open(cfg.out / "store") as store:
        made, _ = lessons_of(cfg, store, Chat.load(base), lessons)
        spans = {(t, i): s for t, _ in lessons["kept"] for i, s in enumerate(store.trace(t).spans)}
        learnt = set()
        for name, leaf in lessons["kept"]:
            trace = store.trace(name)
            at = trace.leaves[leaf]
            while at >= 0:
                learnt.add((name, at))
                at = trace.spans[at].parent
    tokens = sum(len(spans[name].tokens) for name in learnt if spans[name].kind == "sampled")
    assert sum(1 for sample in made if isinstance(sample, Sample) for w in sample.ce or () if w) == tokens
    assert all(store_trace.startswith("mcts") for store_trace in {row["strategy"] for row in exported_chains(cfg)})


def exported_chains(cfg: FlywheelConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (cfg.out / "export" / "chains.jsonl").open()]


def test_verdicts_are_counted_by_question(tmp_path: Path):
    with Store.open(tmp_path) as store:
        store.add([chain("a", "x"), chain("a", "y", correct=False), chain("a", "z", correct=None), chain("b", "x")])
        rows = store.chains()
    assert counted(rows, ["a", "c"]) == {"a": Count(1, 2), "c": Count(0, 0)}
    assert counted([replace(row, again=True) for row in rows], ["a"]) == {"a": Count(0, 0)}


# ------------------------------------------------------------------------------------------------------- killed


def resumable(base: Path, out: Path, **more: Any) -> FlywheelConfig:
    return config(base, out, turns=2, checkpoint_every=2, **more)


def test_killed_and_resumed_is_bitwise_the_same(base: Path, tmp_path: Path):
    whole, broken = resumable(base, tmp_path / "whole"), resumable(base, tmp_path / "broken")
    seconds = finish(flywheel, whole)
    broken_run(flywheel, broken, 4, random.Random(1), seconds / 8)
    same_run(whole.out, broken.out)
    same_result(whole, broken)


class Killed(BaseException):
    pass


PHASES = {  # in the order in which a run comes to them
    "the second round, sampled": (flywheel_data, "evaluate", 2),
    "a round, committed and not noted": (flywheel_data, "asked_row", 5),
    "curation": (flywheel_data, "outcome_pairs", 1),
    "the first step": (recipe, "learn", 1),
    "a step behind a checkpoint": (recipe, "learn", 4),
    "evaluation": (recipe, "evaluate", 2),
    "the second turn's questions": (recipe, "candidates", 1),
    "a step of the second turn": (recipe, "learn", -1),
    "export": (recipe, "exported", 1),
    "report": (recipe, "write_report", 1),
}


def interrupted(original: Any, nth: int, cfg: FlywheelConfig) -> Any:
    """The function, until its `nth` call; -1: its fourth call in the second turn's training."""
    calls = 0

    def function(*parts: Any, **options: Any) -> Any:
        nonlocal calls
        calls += nth > 0 or [json.loads(line) for line in (cfg.out / "metrics.jsonl").open()][-1]["turn"] == 2
        if calls == (nth if nth > 0 else 4):
            raise Killed
        return original(*parts, **options)

    return function


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_interrupted_in_any_phase_it_ends_the_same(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Any
):
    """One run, stopped once in every phase. The model that DPO starts a turn from is its reference for all of it."""
    monkeypatch.setattr(flywheel_data, "ROUND", 4)
    whole, broken = (
        resumable(base, tmp_path / name, method=method, restart=method == "sft", step_tokens=60)
        for name in ("whole", "broken")
    )
    flywheel(whole, mode="quiet")
    steps = [row["turn"] for row in map(json.loads, (whole.out / "metrics.jsonl").open())]
    assert steps.count(1) > 4 and steps.count(2) > 5, "too few steps to be interrupted in"
    for phase, (module, name, nth) in PHASES.items():
        with monkeypatch.context() as patch:
            patch.setattr(module, name, interrupted(getattr(module, name), nth, broken))
            with pytest.raises(Killed):
                flywheel(broken, resume=True, mode="quiet")
                pytest.fail(f"nothing was interrupted in: {phase}")
    flywheel(broken, resume=True, mode="quiet")
    same_run(whole.out, broken.out)
    same_result(whole, broken)


def test_more_turns_may_be_asked_for_afterwards(base: Path, tmp_path: Path, three: FlywheelConfig):
    cfg = config(base, tmp_path / "run", turns=1)
    flywheel(cfg, mode="quiet")
    assert report(cfg)["final"]["stopped"] == "all turns done" and len(report(cfg)["turns"]) == 2
    flywheel(replace(cfg, turns=3), resume=True, mode="quiet")
    same_result(three, cfg)
    with pytest.raises(UserError, match="differs in each"):
        flywheel(replace(cfg, turns=3, each=3), resume=True, mode="quiet")
