"""mull scale train on a tiny model: predictions before their run, that stay; what was found; resuming; refusals."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mull.errors import UserError
from mull.evals.fits import read_predictions
from mull.recipes import scale as recipe
from mull.recipes.rl import RLConfig
from mull.recipes.scale import ScaleConfig, scale_train
from mull.recipes.scale_points import Points, found_at, held_out_errors, on_curve, read_points
from tests.recipes.tiny import ENDS, save_tiny


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "tiny")
    (tmp_path / "any.py").write_text(ENDS)
    return tmp_path


def config(**changes: Any) -> ScaleConfig:
    training = RLConfig(
        model="tiny",
        tasks=("any.py:Any",),
        levels=(1,),
        groups=2,
        group_size=4,
        think_tokens=10,
        answer_tokens=6,
        lr=0.0003,
        eval_every=1,
        eval_problems=6,
        eval_samples=2,
        compile=False,
    )
    settings: dict[str, Any] = {"out": Path("law"), "steps": 5, "seeds": 2, "targets": (1.4, 2.0), "resamples": 100}
    return ScaleConfig(**{**settings, "threads": 1, "rl": training, **changes})


def steps(out: Path, seed: int) -> list[int]:
    return [json.loads(line)["step"] for line in (out / f"seed{seed}" / "metrics.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------------ the recipe


def test_from_nothing_to_a_page_with_the_prediction_first(home: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    inside, calls = recipe.rl, []

    def watched(cfg: RLConfig, *args: Any, **options: Any) -> Path:
        out = cfg.out.parent
        before = steps(out, cfg.seed) if (cfg.out / "metrics.jsonl").exists() else []
        calls.append((cfg.seed, cfg.flops > 0, (out / "predictions.json").exists(), max(before, default=-1)))
        if cfg.flops:
            files.append({name: (out / name).read_bytes() for name in ("law.json", "predictions.json")})
        return inside(cfg, *args, **options)

    files: list[dict[str, bytes]] = []
    monkeypatch.setattr(recipe, "rl", watched)
    page = scale_train(config(), mode="quiet")
    # (seed, second half, predictions are there, last step): both first halves, then both second ones
    assert calls == [(0, False, False, -1), (1, False, False, -1), (0, True, True, 5), (1, True, True, 5)]
    out = home / "law"
    assert files[0] == files[1] and (out / "law.json").read_bytes() == files[0]["law.json"]
    law = json.loads(files[0]["law.json"])
    assert all(p["observed"] is None for p in json.loads(files[0]["predictions.json"])["predictions"])
    for s in (0, 1):
        rows = [json.loads(line) for line in (out / f"seed{s}" / "metrics.jsonl").read_text().splitlines()]
        assert rows[-1]["flops"] >= 2 * law["up_to"] > rows[-2]["flops"]
    kept = ("strategy", "task", "law", "compute", "value", "low", "high", "made", "commit", "up_to")
    before = [{k: p[k] for k in kept} for p in json.loads(files[0]["predictions.json"])["predictions"]]
    after = [{k: p.as_dict()[k] for k in kept} for p in read_predictions(out / "predictions.json")]
    assert before == after and len(after) == 2 * 3  # targets, laws
    assert all(p.observed is not None and p.observed.n == 6 for p in read_predictions(out / "predictions.json"))

    data = json.loads((out / "scale.json").read_text())
    assert data["published"] <= data["begun"] and data["problems"] == 6 and data["seeds"] == [0, 1]
    [chart] = data["charts"]
    assert {p["held_out"] for p in chart["points"]} == {True, False}
    assert all(p["held_out"] == (p["step"] > 5) for p in chart["points"] if p["compute"] != law["up_to"])
    assert {line["law"] for line in chart["lines"]} == {"sigmoid", "log", "error", "refit"}
    assert {row["law"] for row in data["errors"]} == {"sigmoid", "log", "error"} and data["errors"][0][
        "evaluations"
    ] > 2
    assert [row["to"] for row in data["fits"]] == ["first half"] * 3 + ["everything"]
    assert data["summary"][0] in page.read_text()
    recipe.show(page)
    assert "the runs found" in capsys.readouterr().out.splitlines()[0]

    # a finished one makes its page again, and nothing else
    calls.clear()
    scale_train(config(), resume=True, mode="quiet")
    assert all(second for _, second, _, _ in calls) and (out / "law.json").read_bytes() == files[0]["law.json"]
    again = json.loads((out / "scale.json").read_text())
    assert again["predictions"] == data["predictions"] and again["charts"] == data["charts"]


def test_killed_between_any_two_pieces_it_goes_on_to_the_same_end(home: Path, monkeypatch: pytest.MonkeyPatch):
    """After each training run, and in the midst of publishing."""
    whole = config(out=Path("whole"))
    scale_train(whole, mode="quiet")
    broken = config(out=Path("broken"))
    training, logging = recipe.rl, recipe.RunFolder.log
    done: list[int] = []

    def dies_after_one(cfg: RLConfig, *args: Any, **options: Any) -> Path:
        last = max(steps(cfg.out.parent, cfg.seed)) if (cfg.out / "metrics.jsonl").exists() else -1
        folder = training(cfg, *args, **options)
        if max(steps(cfg.out.parent, cfg.seed)) > last:
            done.append(cfg.seed)
            raise KeyboardInterrupt
        return folder

    def dies_before_the_hash(run: Any, step: int, row: Any) -> None:
        if "published" in row and not published:
            published.append(row)
            raise KeyboardInterrupt
        logging(run, step, row)

    published: list[Any] = []
    monkeypatch.setattr(recipe, "rl", dies_after_one)
    monkeypatch.setattr(recipe.RunFolder, "log", dies_before_the_hash)
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            scale_train(broken, resume=True, mode="quiet")
    assert done == [0, 1, 0, 1] and len(published) == 1
    scale_train(broken, resume=True, mode="quiet")

    def numbers(out: str) -> list[Any]:
        read = read_predictions(home / out / "predictions.json")
        return [(p.task, p.law, p.compute, p.value, p.low, p.high, p.observed) for p in read]

    assert numbers("whole") == numbers("broken")
    charts = [json.loads((home / out / "scale.json").read_text())["charts"] for out in ("whole", "broken")]
    assert charts[0] == charts[1]


def test_what_was_published_cannot_be_changed(home: Path, monkeypatch: pytest.MonkeyPatch):
    inside = recipe.rl

    def stops_at_the_half(cfg: RLConfig, *args: Any, **options: Any) -> Path:
        if cfg.flops:
            raise KeyboardInterrupt
        return inside(cfg, *args, **options)

    monkeypatch.setattr(recipe, "rl", stops_at_the_half)
    with pytest.raises(KeyboardInterrupt):
        scale_train(config(), mode="quiet")
    monkeypatch.setattr(recipe, "rl", inside)
    for name, number in (("law.json", '"value": '), ("predictions.json", '"high": ')):
        path = home / "law" / name
        before = path.read_text()
        at = before.index(number) + len(number)
        path.write_text(before[:at] + "0.99" + before[before.index(",", at) :])
        with pytest.raises(UserError, match=f"{name} is not what was published"):
            scale_train(config(), resume=True, mode="quiet")
        path.unlink()
        with pytest.raises(UserError, match=f"{name} is not what was published"):
            scale_train(config(), resume=True, mode="quiet")
        path.write_text(before)
    assert max(steps(home / "law", 0)) == 5, "a second half was begun on changed predictions"

    # nor made up afterwards
    scale_train(config(), resume=True, mode="quiet")
    (home / "law" / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="what is known cannot be predicted"):
        scale_train(config(), resume=True, mode="quiet")


def test_a_run_that_does_not_get_there_leaves_its_prediction_open(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recipe, "PATIENCE", 1)
    scale_train(config(), mode="quiet")
    assert all(p.observed is None for p in read_predictions(home / "law" / "predictions.json"))
    data = json.loads((home / "law" / "scale.json").read_text())
    assert "not yet run" in data["summary"][0] and data["errors"] == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rl": RLConfig(steps=7, eval_every=1)}, "rl.steps is set for each run"),
        ({"rl": RLConfig(seed=7, eval_every=1)}, "rl.seed is set for each run"),
        ({"rl": RLConfig()}, "rl.eval_every must be at least 1"),
        ({"targets": (1.0, 2.0)}, "each above 1"),
        ({"targets": (2.0, 1.5)}, "ascending"),
        ({"targets": ()}, "ascending"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"steps": 4, "skip_steps": 2}, "leave 3 evaluations to fit, fewer than 5"),
    ],
)
def test_mistakes(changes: dict[str, Any], sentence: str):
    with pytest.raises(UserError, match=sentence):
        config(**changes)


def test_the_steps_of_the_fit_are_those_that_rl_evaluates():
    cfg = replace(config(), steps=22, skip_steps=2, rl=replace(config().rl, eval_every=5))
    assert cfg.fitted_steps() == [2, 4, 5, 8, 10, 15, 16, 20, 22]


# ------------------------------------------------------------------------------------------------ the points


def points(tmp_path: Path, rows: list[list[dict[str, Any]]]) -> Points:
    files = []
    for seed, lines in enumerate(rows):
        file = tmp_path / f"{seed}.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        files.append(file)
    return read_points(files)


def row(step: int, flops: float, a: list[float | None], b: list[float | None]) -> dict[str, Any]:
    rates = {"chain": {f"c{i}": v for i, v in enumerate(a)}, "maze": {f"m{i}": v for i, v in enumerate(b)}}
    return {"step": step, "flops": flops, "eval": {"rates": rates}}


def test_points_of_two_runs(tmp_path: Path):
    zero = row(0, 0.0, [0.0, 0.5], [0.0])
    got = points(
        tmp_path,
        [
            [zero, row(1, 10.0, [0.5, 0.5], [None]), {"step": 2, "flops": 15.0}, row(3, 40.0, [1.0, 0.5], [1.0])],
            [zero, row(1, 12.0, [0.0, 0.0], [0.0]), row(3, 48.0, [1.0, 1.0], [1.0])],
        ],
    )
    assert got.shown() == ["mean", "chain", "maze"] and got.seeds == 2
    assert got.step_X.tolist() == [1, 3, 1, 3] and got.seed_X.tolist() == [0, 0, 1, 1]
    assert got.compute_X.tolist() == [10.0, 40.0, 12.0, 48.0]
    assert got.rates("chain").T.tolist() == [[0.5, 0.5], [1.0, 0.5], [0.0, 0.0], [1.0, 1.0]]
    assert np.isnan(got.rates("maze")[0, 0]) and got.start("mean").tolist() == [[0.0, 0.0], [0.5, 0.5], [0.0, 0.0]]
    assert got.where(got.step_X <= 1).compute_X.tolist() == [10.0, 12.0]
    # 20 is half of the way from 10 to 40 in log compute; 24 from 12 to 48
    assert got.between(0, 20.0, "chain") == pytest.approx([0.75, 0.5])
    assert got.between(1, 24.0, "mean") == pytest.approx([0.5, 0.5, 0.5])
    assert got.between(0, 40.0, "chain") == pytest.approx([1.0, 0.5])
    assert got.between(0, 41.0, "chain") is None and got.between(1, 11.0, "chain") is None
    found = found_at(got, 20.0, "chain", samples=4)
    share = np.log(20 / 12) / np.log(4)
    assert found is not None and found.mean == pytest.approx((0.75 + 0.5 + 2 * share) / 4)
    assert (found.n, found.samples) == (2, 16) and found_at(got, 44.0, "chain", 4) is None
    assert found_at(got, 20.0, "maze", 4).mean == pytest.approx(share)  # type: ignore[union-attr]  # one seed's is unknown


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path):
    zero = row(0, 0.0, [0.0], [0.0])
    with pytest.raises(UserError, match="other problems than"):
        points(tmp_path, [[zero], [row(0, 0.0, [0.0, 1.0], [0.0])]])
    with pytest.raises(UserError, match="no evaluation before training"):
        points(tmp_path, [[row(1, 5.0, [0.0], [0.0])]])
    with pytest.raises(UserError, match="no rates of single problems"):
        points(tmp_path, [[{"step": 0, "flops": 0.0, "eval": {"all": {}}}]])


def test_held_out_errors_by_hand(tmp_path: Path):
    zero = row(0, 0.0, [0.0, 0.0], [0.0])
    later = points(tmp_path, [[zero, row(5, 20.0, [0.5, 0.5], [0.5]), row(6, 40.0, [1.0, 1.0], [0.0])]])
    curve = [{"compute": 10.0, "value": 0.2}, {"compute": 40.0, "value": 0.6}]
    assert on_curve(curve, np.array([20.0, 40.0])) == pytest.approx([0.4, 0.6])
    [mean, chain] = held_out_errors(later, [{"task": t, "law": "log", "curve": curve} for t in ("mean", "chain")])
    assert mean["off"]["mean"] == pytest.approx((0.1 + 2 / 3 - 0.6) / 2) and mean["evaluations"] == 2
    assert mean["rms"] == pytest.approx(np.sqrt((0.1**2 + (2 / 3 - 0.6) ** 2) / 2))
    assert chain["rms"] == pytest.approx(np.sqrt((0.1**2 + 0.4**2) / 2))
    assert mean["off"]["low"] < mean["off"]["mean"] < mean["off"]["high"]
    assert held_out_errors(later.where(later.step_X > 9), [{"task": "mean", "law": "log", "curve": curve}]) == []
