"""The demo's figures as evidence, and pictures of its page: docs/evidence/demo.json, docs/img/*.png.

    python runs/demo_evidence.py [RUN FOLDER]

The pictures need Chromium and are left out, with a word, where there is none.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from mull.evals import evidence

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.evals.chromium import FLAGS, find

IMAGES = Path("docs/img")


def rows(run: Path) -> list[dict]:
    found = json.loads((run / "summary.json").read_text())
    common = {
        "seeds": [found["seed"]],
        "command": "runs/demo.sh",
        "commit": found["commit"],
        "machine": found["machine"],
    }
    before, after, gain = (found["pass_at_1"][key] for key in ("base", "trained", "gain"))
    control = found["control"]["random_reward"]
    tasks = " and ".join(found["tasks"])

    def interval(claim: str, e: dict, unit: str = "share") -> dict:
        return {
            "claim": claim,
            "value": e["mean"],
            "low": e["low"],
            "high": e["high"],
            "n": e["n"],
            "unit": unit,
            **common,
        }

    out = [
        interval(f"pass@1 on held-out {tasks}, before", before),
        interval("pass@1 after reinforcement learning", after),
        interval("gain, paired by problem", gain, "points"),
        interval("pass@1 of the control, trained with random rewards", control),
    ]
    page = json.loads((run / "report_data.json").read_text())
    for method, label in (("budget", "thinking budget of"), ("vote", "majority over")):
        curve = next(c for c in page["test"] if (c["task"], c["model"], c["method"]) == ("mean", "trained", method))
        for point in (curve["points"][0], curve["points"][-1]):
            what = point["label"].replace(" thinking tokens", " tokens").replace("vote", "chain")
            e = {"mean": point["accuracy"], "low": point["low"], "high": point["high"], "n": point["n"]}
            out.append(interval(f"trained model, {label} {what} ({point['flops']:.1e} FLOPs a problem)", e))
    out.append(
        {"claim": "the whole demo", "value": found["seconds"], "low": None, "high": None, "n": 1, "unit": "s", **common}
    )
    return out


def pictures(run: Path) -> None:
    browser = find()
    if browser is None:
        print("no Chromium was found: docs/img/ is left as it is")
        return
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, width, height in (("report", 1280, 2400), ("curves", 1280, 980)):
        with tempfile.TemporaryDirectory() as profile:
            flags = ["--hide-scrollbars", *(f for f in FLAGS if "debugging" not in f)]
            size = f"--window-size={width},{height}"
            shot = f"--screenshot={(IMAGES / f'{name}.png').resolve()}"
            page = (run / "report.html").resolve().as_uri()
            command = [browser, *flags, f"--user-data-dir={profile}", size, shot, "--virtual-time-budget=4000", page]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            print(f"wrote {IMAGES / f'{name}.png'}")


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    print(f"wrote {evidence.write('demo', rows(folder))}")
    pictures(folder)
