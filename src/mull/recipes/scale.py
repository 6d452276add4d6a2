"""The scaling law of reinforcement learning: fitted to the first half of the compute, published, then tested.

    seeds × mull rl, first half ──▶ fit ──▶ predictions, published ──▶ the same runs, to twice the compute ──▶ page

Accuracy on held-out problems against the FLOPs of rollouts and training (evaluations are not counted). The law is
ScaleRL's sigmoid (`mull.evals.sigmoid`); a straight line in log compute and a power law of the error, fitted to the
same points, are what it must beat on the held-out half.

What is published cannot be changed: its hash is in the run's log before a second half starts, and everything after
that refuses to go on with anything else.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from mull import __version__
from mull import config as configs
from mull.errors import UserError
from mull.evals import fits, metrics, sigmoid
from mull.evals import scale_page as page
from mull.evals.fits import Prediction
from mull.evals.metrics import Estimate
from mull.evals.scale_page import write_scale
from mull.files import read_jsonl, write_whole
from mull.machine import commit, machine
from mull.progress import Mode
from mull.recipes.rl import RLConfig, rl
from mull.recipes.rollouts import is_evaluated
from mull.recipes.scale_points import Points, found_at, held_out_errors, read_points
from mull.runfolder import RunFolder

PATIENCE = 4  # a run whose chains become so short that the compute takes more than so many times the steps is left
OWNED = ("out", "steps", "trained_tokens", "flops", "eval_seed", "seed", "threads")  # of `rl`: set for each run


def training() -> RLConfig:
    """The training whose law is sought, by default: an evaluation every fourth step, of as many chains as a few steps
    sample."""
    return RLConfig(think_tokens=320, eval_every=4, eval_problems=256, eval_samples=4)


@dataclass(frozen=True)
class ScaleConfig:
    out: Path = Path("runs/scale")
    steps: int = 64  # of the first half, to which the law is fitted; the second goes on to twice the compute
    seeds: int = 3  # runs
    seed: int = 0  # of the held-out problems, and of the first run
    targets: tuple[float, ...] = (1.25, 1.5, 1.75, 2.0)  # what is predicted: so many times the compute of the fit
    start: Literal["fitted", "measured"] = "fitted"  # R0: a parameter, or what was measured before training, exactly
    skip_steps: int = 0  # evaluations before this step are left out of the fit
    resamples: int = 1000  # of the bootstrap
    threads: int = 0  # of torch; 0: its own choice
    rl: RLConfig = field(default_factory=training)

    def __post_init__(self) -> None:
        for name in OWNED:
            if getattr(self.rl, name) != getattr(RLConfig(), name):
                raise UserError(f"rl.{name} is set for each run by the scaling law itself: leave it out")
        if not self.targets or min(self.targets) <= 1 or list(self.targets) != sorted(set(self.targets)):
            raise UserError("targets are ascending multiples of the fitted compute, each above 1, as in 1.5, 2")
        if self.seeds < 1 or self.resamples < 100:
            raise UserError("seeds must be at least 1 and resamples at least 100")
        if self.rl.eval_every < 1:
            raise UserError("rl.eval_every must be at least 1: without evaluations there is nothing to fit")
        if len(self.fitted_steps()) < sigmoid.LEAST_POINTS:
            raise UserError(
                f"{self.steps} steps with rl.eval_every={self.rl.eval_every} and skip_steps={self.skip_steps} leave "
                f"{len(self.fitted_steps())} evaluations to fit, fewer than {sigmoid.LEAST_POINTS}: raise steps"
            )

    def fitted_steps(self) -> list[int]:
        """After which steps of the first half the evaluations of the fit are: see `rollouts.is_evaluated`."""
        at = {s for s in range(1, self.steps + 1) if is_evaluated(s, self.rl.eval_every)} | {self.steps}
        return sorted(s for s in at if s >= self.skip_steps)


def scale_train(cfg: ScaleConfig, command: str = "mull scale train", resume: bool = False, mode: Mode = "auto") -> Path:
    """Runs what is missing; returns the path of the page. A stopped one goes on where it was."""
    with RunFolder.create(cfg.out, configs.to_toml(cfg), command, cfg.seed, resume, may_change=("threads",)) as run:
        if not published(run):
            refuse_second_half(cfg)
            for run_seed in seeds(cfg):
                rl(replace(of_seed(cfg, run_seed), steps=cfg.steps), command, resume=True, mode=mode)
            publish(cfg, run)
        check_published(run)
        law = read_law(cfg.out)
        for run_seed in seeds(cfg):
            longer = {"steps": PATIENCE * cfg.steps, "flops": law["up_to"] * cfg.targets[-1]}
            rl(replace(of_seed(cfg, run_seed), **longer), command, resume=True, mode=mode)
        check_published(run)
        observe(cfg)
        data = page_data(cfg, command)
        write_whole(cfg.out / "scale.json", (json.dumps(data, indent=1) + "\n").encode())
        return write_scale(data, cfg.out / "scale.html")


def seeds(cfg: ScaleConfig) -> list[int]:
    return [cfg.seed + i for i in range(cfg.seeds)]


def of_seed(cfg: ScaleConfig, run_seed: int) -> RLConfig:
    """One run: its own training problems and chains, the held-out problems of all."""
    return replace(cfg.rl, out=folder(cfg, run_seed), seed=run_seed, eval_seed=cfg.seed, threads=cfg.threads)


def folder(cfg: ScaleConfig, run_seed: int) -> Path:
    return cfg.out / f"seed{run_seed}"


def points_of(cfg: ScaleConfig) -> Points:
    return read_points([folder(cfg, s) / "metrics.jsonl" for s in seeds(cfg)])


# -------------------------------------------------------------------------------------------- publication


def fit(cfg: ScaleConfig, points: Points, task: str) -> sigmoid.SigmoidFit:
    """The sigmoid through the evaluations `points` on a task (or all of them), from `skip_steps` on."""
    kept = points.where(points.step_X >= cfg.skip_steps)
    return sigmoid.fit_sigmoid(
        kept.compute_X,
        kept.seed_X,
        kept.rates(task),
        kept.start(task),
        start=cfg.start,
        seed=cfg.seed,
        resamples=cfg.resamples,
    )


def rivals(cfg: ScaleConfig, points: Points, task: str) -> list[fits.Fit]:
    """Laws that never bend, through the same evaluations."""
    kept = points.where(points.step_X >= cfg.skip_steps)
    given = (kept.compute_X.tolist(), kept.rates(task))
    return [
        fits.fit_line(*given, seed=cfg.seed, resamples=cfg.resamples),
        fits.fit_power(*given, seed=cfg.seed, resamples=cfg.resamples),
    ]


def publish(cfg: ScaleConfig, run: RunFolder) -> None:
    """Fits the first half, writes law.json and predictions.json, and their hashes into the log, in this order."""
    points = points_of(cfg)
    first = points.where(points.step_X <= cfg.steps)
    about = {"made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": commit()}
    up_to = float(first.compute_X.max())
    grid = np.geomspace(first.compute_X.min() / 1.5, up_to * max(2.0, cfg.targets[-1]) * 1.5, 97).tolist()
    laws, predictions = [], []
    for task in first.shown():
        bent, straight = fit(cfg, first, task), rivals(cfg, first, task)
        laws.append({"task": task, **bent.as_dict(), "curve": [_at(sigmoid.predict(bent, c), c) for c in grid]})
        laws += [
            {"task": task, **law.as_dict(), "curve": [_at(fits.predict(law, c), c) for c in grid]} for law in straight
        ]
        for times in cfg.targets:
            compute = times * up_to
            told: dict[str, Any] = {"strategy": cfg.rl.algorithm, "task": task, "unit": "flops", **about}
            e = sigmoid.predict(bent, compute, measured=True, seed=cfg.seed)
            predictions.append(
                Prediction(law="sigmoid", up_to=up_to, compute=compute, value=e.mean, low=e.low, high=e.high, **told)
            )
            predictions += [fits.make_prediction(law, compute, problems=law.n, **told) for law in straight]
    text = json.dumps({**about, "up_to": up_to, "laws": laws}, indent=1, ensure_ascii=False)
    write_whole(cfg.out / "law.json", (text + "\n").encode())
    fits.publish(cfg.out / "predictions.json", predictions)
    run.log(cfg.steps, {"published": {"made": about["made"], **hashes(cfg.out)}})


def _at(e: Estimate, compute: float) -> dict[str, float]:
    return {"compute": compute, "value": e.mean, "low": e.low, "high": e.high}


def hashes(out: Path) -> dict[str, str]:
    """Of the law, and of the predictions without what was observed later."""
    plain = [{**p.as_dict(), "observed": 0, "observed_at": 0, "inside": 0} for p in fits.read_predictions(_file(out))]
    texts = {"law": (out / "law.json").read_bytes(), "predictions": json.dumps(plain, sort_keys=True).encode()}
    return {name: hashlib.sha256(text).hexdigest() for name, text in texts.items()}


def _file(out: Path) -> Path:
    return out / "predictions.json"


def published(run: RunFolder) -> dict[str, str] | None:
    """When, and the hashes; None before."""
    return next((row["published"] for row in read_jsonl(run.path / "metrics.jsonl") if "published" in row), None)


def check_published(run: RunFolder) -> None:
    """UserError when the law or a prediction is not what was published."""
    held = published(run) or {}
    for name, path in (("law", run.path / "law.json"), ("predictions", _file(run.path))):
        if not path.is_file() or hashes(run.path)[name] != held[name]:
            raise UserError(
                f"{path} is not what was published at {held['made']}: a published prediction stays as it is; "
                "restore the file, or start again in another folder"
            )


def refuse_second_half(cfg: ScaleConfig) -> None:
    """UserError when a run has gone beyond the first half and no prediction was published: it would be none."""
    for run_seed in seeds(cfg):
        steps = [row["step"] for row in read_jsonl(folder(cfg, run_seed) / "metrics.jsonl")]
        if steps and max(steps) > cfg.steps:
            raise UserError(
                f"{folder(cfg, run_seed)} has gone on to step {max(steps)} and nothing was published after step "
                f"{cfg.steps}: what is known cannot be predicted; start again in another folder"
            )


def read_law(out: Path) -> dict[str, Any]:
    return json.loads((out / "law.json").read_text(encoding="utf-8"))


# -------------------------------------------------------------------------------------------- observation


def observe(cfg: ScaleConfig) -> None:
    """Writes beside each prediction what the runs found there. One that a run did not reach stays open."""
    points = points_of(cfg)
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for prediction in fits.read_predictions(_file(cfg.out)):
        if prediction.observed is None:
            found = found_at(points, prediction.compute, prediction.task, cfg.rl.eval_samples)
            if found is not None:
                fits.observe(_file(cfg.out), prediction, found, at)


# ------------------------------------------------------------------------------------------------ the page


def page_data(cfg: ScaleConfig, command: str) -> page.ScaleData:
    points, law = points_of(cfg), read_law(cfg.out)
    second_X = points.compute_X > law["up_to"]
    refits = {task: fit(cfg, points, task) for task in points.shown()} if second_X.any() else {}
    curve = [p["compute"] for p in law["laws"][0]["curve"]]
    charts = []
    for task in points.shown():
        accuracy_X, start_P = np.nanmean(points.rates(task), axis=0), np.nanmean(points.start(task), axis=1)
        rows = zip(points.seed_X, points.step_X, points.compute_X, accuracy_X, second_X, strict=True)
        found = [
            page.Point(seed=seeds(cfg)[s], step=int(step), compute=float(c), accuracy=float(a), held_out=bool(later))
            for s, step, c, a, later in rows
        ]
        lines = [page.Line(law=one["law"], points=one["curve"]) for one in law["laws"] if one["task"] == task]
        if task in refits:
            again = [_at(sigmoid.predict(refits[task], c), c) for c in curve]
            lines.append(page.Line(law="refit", points=cast(Any, again)))
        start = cast(Any, metrics.share(start_P.tolist(), len(start_P) * cfg.rl.eval_samples).as_dict())
        charts.append(page.Chart(task=task, start=start, points=found, lines=lines))
    errors = held_out_errors(points.where(second_X), law["laws"], cfg.seed, cfg.resamples)
    predictions = [p.as_dict() for p in fits.read_predictions(_file(cfg.out))]
    fitted = [{**one, "to": "first half"} for one in law["laws"]]
    fitted += [{"task": task, **again.as_dict(), "to": "everything"} for task, again in refits.items()]
    starts = [_start(folder(cfg, s), law["made"]) for s in seeds(cfg)]
    return page.ScaleData(
        title=f"mull scale train: {cfg.out.name}",
        model="nano-base" if cfg.rl.model == "nano" else Path(cfg.rl.model).name,
        algorithm="random rewards" if cfg.rl.random_reward else cfg.rl.algorithm,
        tasks=list(cfg.rl.tasks),
        summary=summary(predictions, law["laws"], errors, refits),
        seeds=seeds(cfg),
        problems=len(points.task_P),
        samples=cfg.rl.eval_samples,
        up_to=law["up_to"],
        published=law["made"],
        begun=min((at for at in starts if at), default=None),
        charts=charts,
        predictions=cast(Any, predictions),
        fits=cast(Any, [{key: value for key, value in one.items() if key != "curve"} for one in fitted]),
        errors=cast(Any, errors),
        seconds=sum(_seconds(folder(cfg, s)) for s in seeds(cfg)),
        date=law["made"][:10],
        command=command,
        commit=commit(),
        machine=machine(),
        versions={"mull": __version__, "torch": torch.__version__, "python": platform.python_version()},
    )


def summary(
    predictions: Sequence[dict[str, Any]],
    laws: Sequence[dict[str, Any]],
    errors: Sequence[dict[str, Any]],
    refits: dict[str, sigmoid.SigmoidFit],
) -> list[str]:
    """What was said and what was found at the largest compute, over all tasks; the asymptote; the rivals."""
    task = laws[0]["task"]
    last = [p for p in predictions if p["law"] == "sigmoid" and p["task"] == task][-1]
    said = f"{last['value']:.1%} [{last['low']:.1%}, {last['high']:.1%}]"
    times = last["compute"] / last["up_to"]
    words = []
    if last["observed"] is None:
        words.append(f"The law fitted to the first half says {said} at {times:g} times its compute; not yet run.")
    else:
        words.append(
            f"The law fitted to the first half said {said} at {times:g} times its compute; the runs found "
            f"{last['observed']['mean']:.1%}, {'inside' if last['inside'] else 'outside'} the interval."
        )
    words.append(laws[0]["sentence"])
    if task in refits:
        words.append(f"Fitted to everything: {refits[task].sentence[0].lower()}{refits[task].sentence[1:]}")
    off = {row["law"]: row["rms"] for row in errors if row["task"] == task}
    if off:
        words.append(
            f"On the held-out half the sigmoid is off by {100 * off['sigmoid']:.1f} points (root mean square), a "
            f"straight line in log compute by {100 * off['log']:.1f}, a power law of the error by "
            f"{100 * off['error']:.1f}."
        )
    return words


def _start(run: Path, after: str) -> str | None:
    """When a run was first started after the time `after`, both ISO."""
    starts = json.loads((run / "run.json").read_text(encoding="utf-8"))["starts"]
    return next((s["started"] for s in starts if s["started"] >= after), None)


def _seconds(run: Path) -> float:
    rows = read_jsonl(run / "metrics.jsonl")
    return sum(row.get("rollout_seconds", 0.0) + row.get("train_seconds", 0.0) for row in rows)


def show(path: Path) -> None:
    """Prints what the page begins with."""
    for sentence in json.loads(path.with_name("scale.json").read_text(encoding="utf-8"))["summary"]:
        print(sentence)
