"""A run's metrics as the report's curves and series: pure functions of the rows of its metrics.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Rows = Sequence[dict[str, Any]]
Series = Sequence[tuple[str, str, str]]  # key of a row, what the page calls it, unit ("share" is a percentage there)

RL: Series = (
    ("reward", "reward (training problems)", "share"),
    ("length", "length of a chain", "tokens"),
    ("entropy", "entropy per token", "nats"),
    ("ratio", "importance ratio, mean", ""),
    ("constant_groups", "groups without a difference, dropped", "share"),
    ("truncated", "chains cut off", "share"),
    ("grad_norm", "norm of the gradient", ""),
    ("tokens_per_second", "sampled tokens per second of a step", "tokens/s"),
)
ACTOR_CRITIC: Series = (
    ("truth", "right answers (training problems)", "share"),
    ("scorer", "the scorer's opinion of the same chains", "share"),
    ("explained_variance", "variance of returns that the critic explains", ""),
    ("critic_right", "chains that the implicit reward model takes for what they are", "share"),
    ("length", "length of a chain", "tokens"),
    ("entropy", "entropy per token", "nats"),
    ("ratio", "importance ratio, mean", ""),
    ("truncated", "chains cut off", "share"),
    ("grad_norm", "norm of the gradient", ""),
    ("tokens_per_second", "sampled tokens per second of a step", "tokens/s"),
)
STAR: Series = (
    ("solved", "problems solved, by iteration (training problems)", "share"),
    ("rationalized", "failures that reached the answer with its hint", "share"),
    ("learnt", "chains to learn from", ""),
    ("loss", "loss per token", "nats"),
    ("grad_norm", "norm of the gradient", ""),
    ("tokens_per_second", "trained tokens per second", "tokens/s"),
)
FLYWHEEL: Series = (
    ("solved", "right chains of those sampled, by turn (training problems)", "share"),
    ("learnt", "lessons", ""),
    ("loss_ce", "loss per token", "nats"),
    ("loss_pairs", "loss of a preference", "nats"),
    ("right", "pairs told apart", "share"),
    ("grad_norm", "norm of the gradient", ""),
    ("tokens_per_second", "trained tokens per second", "tokens/s"),
)
DISTILL: Series = (
    ("loss", "loss per token", "nats"),
    ("kl", "divergence from the teacher, per token", "nats"),
    ("reward", "right answers of the student (training problems)", "share"),
    ("length", "length of a chain", "tokens"),
    ("truncated", "chains cut off", "share"),
    ("grad_norm", "norm of the gradient", ""),
    ("tokens_per_second", "trained tokens per second", "tokens/s"),
)
DPO: Series = FLYWHEEL[2:]
SFT: Series = STAR[3:]
CORRECT: Series = (
    ("reward", "reward (training problems)", "share"),
    ("first", "right first attempts (training problems)", "share"),
    ("second", "right second attempts (training problems)", "share"),
    ("mended", "wrong first, right second", "share"),
    ("spoiled", "right first, wrong second", "share"),
    ("length", "length of an attempt", "tokens"),
    ("entropy", "entropy per token", "nats"),
    ("truncated", "chains cut off", "share"),
    ("grad_norm", "norm of the gradient", ""),
)
REFLECT: Series = (
    ("loss", "loss per token", "nats"),
    ("grad_norm", "norm of the gradient", ""),
)


def metric_series(rows: Rows, series: Series = RL) -> list[dict[str, Any]]:
    """`report_data.Metric` of every quantity that was measured at some step."""
    steps = [row for row in rows if row["step"] > 0]
    return [
        {"name": label, "unit": unit, "steps": [r["step"] for r in steps], "values": [r.get(key) for r in steps]}
        for key, label, unit in series
        if any(r.get(key) is not None for r in steps)
    ]


def opinion(rows: Rows) -> dict[str, Any] | None:
    """`report_data.Opinion` of a run that asked a scorer; None of one that did not."""
    asked = [row for row in rows if row.get("scorer") is not None]
    if not asked:
        return None
    return {"steps": [r["step"] for r in asked], **{key: [r.get(key) for r in asked] for key in ("scorer", "truth")}}


def train_curves(rows: Rows, role: str = "task", mean: str = "mean of tasks") -> list[dict[str, Any]]:
    """`report_data.TrainCurve`s, from the evaluations: that of all problems (called `mean`), then one for each task. A
    control has the first alone. A row's "label" names its points, else its step."""
    measured = [row for row in rows if row.get("eval")]

    def curve(name: str, role: str, estimates: Sequence[dict[str, Any]]) -> dict[str, Any]:
        points = []
        for row, e in zip(measured, estimates, strict=True):
            compute = {"flops": row["flops"], "tokens": row["total_sampled_tokens"] + row["trained_tokens"]}
            value = {"accuracy": e["mean"], "low": e["low"], "high": e["high"], "n": e["n"]}
            points.append({**compute, **value, "label": row.get("label", f"step {row['step']}")})
        return {"name": name, "role": role, "points": points}

    every = [row["eval"]["all"] for row in measured]
    if role == "control":
        return [curve("random rewards", "control", every)] if measured else []
    names = list(measured[0]["eval"]["tasks"]) if measured else []
    single = [curve(name, "task", [row["eval"]["tasks"][name] for row in measured]) for name in names]
    return [curve(mean, "mean", every), *single]


# -------------------------------------------------------------------------- rows of other recipes, in that form


def star_rows(rows: Rows) -> list[dict[str, Any]]:
    """Tasks and levels take the place of tasks; the first step of an iteration knows what was asked for it."""
    out = []
    for row in rows:
        new: dict[str, Any] = {**row, "label": f"iteration {row['iteration']}" if row["iteration"] else "base"}
        if asked := row.get("asked"):
            hints = asked["with_hint"]
            new["solved"] = asked["right"] / max(asked["problems"], 1)
            new["rationalized"] = asked["rationalized"] / hints if hints else None
            new["learnt"] = asked["learnt"]
        if found := row.get("eval"):
            new["eval"] = {"all": found["all"], "tasks": found["cells"]}
        out.append(new)
    return out


def flywheel_rows(rows: Rows) -> list[dict[str, Any]]:
    """Accuracy on test problems, and beside it that on valid ones, by which the run decides; without test problems the
    latter alone."""
    out = []
    for row in rows:
        new: dict[str, Any] = {**row, "label": f"turn {row['turn']}" if row["turn"] else "base"}
        new["trained_tokens"] = row["total_trained_tokens"]
        if asked := row.get("asked"):
            new["solved"] = asked["right"] / max(asked["chains"], 1)
        new["learnt"] = row["learnt"]["lessons"] if "learnt" in row else None
        if found := row.get("eval"):
            beside = {"valid problems, by which it decides": found["valid"]} if "test" in found else {}
            new["eval"] = {"all": found.get("test", found["valid"]), "tasks": beside}
        out.append(new)
    return out


def taught_rows(rows: Rows) -> list[dict[str, Any]]:
    """Of what learns from chains that were sampled before: their FLOPs are training's, too. Tokens are those learnt."""
    searched = rows[0].get("search_flops", 0.0) if rows else 0.0
    return [
        {"total_sampled_tokens": 0, **row, "flops": row["flops"] + row.get("rollout_flops", 0.0) + searched}
        for row in rows
    ]


def correct_rows(rows: Rows) -> list[dict[str, Any]]:
    """Second attempts, and beside them the first ones."""
    return [
        {**row, "eval": {"all": e["all"]["second"], "tasks": {"first attempts": e["all"]["first"]}}}
        if (e := row.get("eval"))
        else row
        for row in rows
    ]
