"""`mull bench`: the peers do the same work, what is written is well formed, and mistakes are sentences. No timing."""

import importlib.util
import json
import statistics
import sys
from pathlib import Path

import pytest

from mull import config as configs
from mull.errors import UserError
from mull.evals import evidence
from mull.models import hf
from mull.models.config import ModelConfig
from mull.models.nano import VOCAB_SIZE, write_tokenizer
from mull.recipes import bench, bench_table
from mull.recipes.bench_worker import until_end

TINY = {"groups": "2", "group_size": "3", "think_tokens": "6", "answer_tokens": "4", "rounds": "2", "warmups": "1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    write_tokenizer(folder / "tokenizer")
    config = ModelConfig(
        family="qwen3",
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=32,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        max_positions=256,
        qk_norm=True,
        tied=True,
    )
    hf.save(hf.init(config, 0), folder / "model", source=folder / "tokenizer")
    return folder / "model"


def options(model: Path, **more: str) -> dict[str, str]:
    return {**TINY, "model": str(model), "threads": "1", "python": sys.executable, **more}


@pytest.mark.slow
def test_rollout_runs_and_writes_well_formed_figures(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers, the peer, is not installed")
    # One setting of one peer: each further one costs the seconds that importing transformers takes.
    file = tmp_path / "figures.json"
    with pytest.MonkeyPatch.context() as patch:
        real = bench.available_peers

        def fewer(*args):
            peers, absent = real(*args)
            return [bench.replace(peers[0], settings=peers[0].settings[:1])], absent

        patch.setattr(bench, "available_peers", fewer)
        assert bench.bench("rollout", file, options(model, evidence=str(tmp_path))) == 0

    [row] = json.loads(file.read_text())
    assert set(row) == {"work", "peer", "unit", "mull", "peer_figure", "ratio"}
    assert (row["work"], row["unit"]) == ("rollout", "tokens/s") and row["peer"].endswith(" generate")
    assert row["mull"] > 0 and row["peer_figure"] > 0
    assert row["ratio"] == pytest.approx(row["mull"] / row["peer_figure"])
    kept = evidence.read("bench", tmp_path)
    assert [r["unit"] for r in kept] == ["tokens/s", "tokens/s", "x"]
    assert all(r["n"] == 2 and r["low"] is None for r in kept), "two rounds give no interval"
    assert kept[0]["command"].startswith("mull bench rollout -o groups=2")
    assert "transformers" in capsys.readouterr().out


def test_both_sides_of_a_step_train_on_every_chain(model: Path, tmp_path: Path):
    """The chains' tokens are as many as were sampled, whether their group was mixed or not."""
    cfg = configs.load(bench.BenchConfig, None, [f"{k}={v}" for k, v in options(model).items()])
    work = bench.make_work("rl-step", cfg)
    file = tmp_path / "work.json"
    file.write_text(json.dumps(work))
    system = bench.System("mull", bench.mull_system("rl-step").command, ({"dtype": "float32", "compile": False},))
    [result] = bench.compete([system], file, work)
    assert [r["chains"] for r in result.rounds] == [6, 6]
    assert all(6 <= r["tokens"] <= 6 * 10 and r["seconds"] > 0 for r in result.rounds)
    assert {r["rewarded"] for r in result.rounds} == {0}  # an untrained model answers nothing: every group is constant


def test_no_prompt_comes_twice_and_every_round_has_the_same_mixture(model: Path):
    cfg = configs.load(bench.BenchConfig, None, [f"{k}={v}" for k, v in options(model, groups="4").items()])
    work = bench.make_work("rollout", cfg)
    prompts = [tuple(p["tokens"]) for prompts in work["sets"] for p in prompts]
    assert len(work["sets"]) == 3 and len(prompts) == 12
    assert len(set(prompts)) == len(prompts)
    mixtures = [[(p["task"], p["level"]) for p in prompts] for prompts in work["sets"]]
    assert mixtures[0] == mixtures[1] == mixtures[2] and len(set(mixtures[0])) == 4
    assert work["max_tokens"] == 10


def test_a_worker_that_dies_says_why(tmp_path: Path):
    system = bench.System("broken", (sys.executable, "-c", "raise SystemExit('no such thing')"), ({},))
    with pytest.raises(RuntimeError, match=r"broken with .* code 1:\nno such thing"):
        bench.compete([system], tmp_path / "work.json", {"threads": 1, "warmups": 1, "rounds": 1})


def fake(name: str, seconds: list[float], tokens: int = 100) -> bench.Result:
    rounds = [{"seconds": s, "tokens": tokens, "chains": 4, "load_before": 0.0, "others": 0.0} for s in seconds]
    return bench.Result(name, {}, [({}, 1.0)], {"torch": "2"}, rounds)


def test_the_ratio_is_how_many_times_faster_mull_is_in_either_unit():
    mull, peer = fake("mull", [1.0, 2.0, 3.0]), fake("peer", [8.0, 6.0, 7.0])
    step, speed = bench.rows("rl-step", [mull, peer])
    assert (step["unit"], step["mull"], step["peer_figure"], step["ratio"]) == ("s/step", 2.0, 7.0, 3.5)
    assert (speed["unit"], speed["ratio"]) == ("tokens/s", pytest.approx(3.5))


def test_evidence_of_six_rounds_has_an_interval_and_the_other_benchmarks_rows_stay(tmp_path: Path):
    cfg = bench.BenchConfig(evidence=str(tmp_path))
    results = [fake("mull", [1.0, 1.1, 0.9, 1.2, 1.0, 1.0]), fake("peer", [4.0, 4.4, 3.9, 4.1, 4.2, 4.0])]
    bench.write_evidence("rl-step", cfg, results, "mull bench rl-step")
    bench.write_evidence("rollout", cfg, results, "mull bench rollout")
    bench.write_evidence("rl-step", cfg, results, "mull bench rl-step")  # replaces its own
    rows = evidence.read("bench", tmp_path)
    assert [r["claim"].split(":")[0] for r in rows] == ["rollout"] * 3 + ["rl-step"] * 5
    [times] = [r for r in rows if r["unit"] == "x" and r["claim"].startswith("rl-step")]
    paired = [p["seconds"] / m["seconds"] for m, p in zip(results[0].rounds, results[1].rounds, strict=True)]
    assert (times["low"], times["high"]) == (min(paired), max(paired))
    assert times["value"] == statistics.median([4.0, 4.4, 3.9, 4.1, 4.2, 4.0]) / 1.0


def test_chains_of_unequal_length_and_a_busy_machine_are_said(capsys: pytest.CaptureFixture[str]):
    mull, peer = fake("mull", [1.0]), fake("peer", [2.0], tokens=130)
    peer.rounds[0]["others"] = 0.8
    work = {"groups": 1, "group_size": 4, "max_tokens": 9, "rounds": 1, "threads": 1}
    bench_table.show("rl-step", work, [mull, peer], ["X cannot run"], {"forward": {"matrix products": 1.0}})
    said = capsys.readouterr().out
    assert "differ in length" in said and "0.8 cores busy" in said and "X cannot run" in said
    assert "What limits mull next: matrix products in forward, 100%" in said


@pytest.mark.parametrize(
    ("given", "name", "sentence"),
    [
        ({}, "rolout", "unknown benchmark 'rolout'; did you mean 'rollout'"),
        ({"grups": "2"}, "rollout", "grups.*did you mean 'groups'"),
        ({"rounds": "0"}, "rollout", "at least 1"),
        ({"python": "/nowhere/python"}, "rl-step", "no such interpreter"),
    ],
)
def test_a_mistake_is_one_sentence(given: dict[str, str], name: str, sentence: str):
    with pytest.raises(UserError, match=sentence):
        bench.bench(name, None, given)


def test_without_its_peer_a_benchmark_says_so(model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench, "probe", lambda python: {"mull": "1", "torch": "2"})
    with pytest.raises(UserError, match=r"TRL GRPOTrainer cannot run, because .* has no trl: make bench"):
        bench.bench("rl-step", None, options(model))


def test_what_follows_an_end_token_is_not_counted():
    assert until_end([1, 9, 9, 9], [9]) == [1, 9]
    assert until_end([1, 2, 3], [9]) == [1, 2, 3]


def test_only_the_standard_work_is_evidence():
    assert bench.BenchConfig().standard and bench.BenchConfig(rounds=8, seed=3).standard
    assert not bench.BenchConfig(rounds=3).standard and not bench.BenchConfig(groups=2).standard
