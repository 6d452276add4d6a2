import gzip
import itertools
import json
from pathlib import Path

import pytest

from mull.errors import UserError
from mull.graders.math import MathGrader
from mull.tasks.base import SPLITS, Checked
from mull.tasks.dataset import DatasetTask

REAL = Path(__file__).parents[2].parent / "shared" / "data"


def write(path: Path, *rows: object) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def only(task: DatasetTask, level: int = 0):
    (problem,) = task.up_to(level, "test", 0, 99)
    return problem


@pytest.mark.parametrize(
    ("row", "text", "gold", "level"),
    [
        ({"problem": "1+1?", "answer": "2"}, "1+1?", "2", 0),
        ({"question": "1+1?", "answer": 2}, "1+1?", "2", 0),
        ({"prompt": " 1+1? ", "target": "2"}, "1+1?", "2", 0),
        ({"problem": "1/10?", "answer": 0.10}, "1/10?", "0.1", 0),
        ({"problem": "p", "ground_truth": "x+1", "level": "Level 3"}, "p", "x+1", 3),
        ({"problem": "p", "solution": r"so \boxed{\frac{1}{2}}", "level": 5}, "p", r"\frac{1}{2}", 5),
        ({"problem": "p", "solution": r"first \boxed{1}, no: \boxed{2}"}, "p", "2", 0),
        ({"problem": "p", "solution": "7"}, "p", "7", 0),
        ({"problem": "p", "answer": "", "solution": "7"}, "p", "7", 0),
        ({"problem": "p", "answer": None, "target": "7"}, "p", "7", 0),
        ({"question": "q", "answer": "2+3=<<2+3=5>>5\n5*2=<<5*2=10>>10\n#### 1,010"}, "q", "1,010", 0),
        ({"problem": "p", "answer": "3", "solution": r"\boxed{4}"}, "p", "3", 0),  # the answer wins
        ({"problem": "p", "answer": "3", "level": "hard"}, "p", "3", 0),
    ],
)
def test_field_names_and_gold_conventions(tmp_path: Path, row: dict, text: str, gold: str, level: int):
    problem = only(DatasetTask(write(tmp_path / "a.jsonl", row)), level)
    assert (problem.question.text, problem.reference.answer) == (text, gold)
    assert problem.question.level == level and problem.question.id.startswith(f"a/{level}/")
    assert "<<" not in str(problem.reference.data)


def test_a_worked_solution_is_kept_without_calculator_notes(tmp_path: Path):
    problem = only(DatasetTask(write(tmp_path / "a.jsonl", {"question": "q", "answer": "2+3=<<2+3=5>>5\n#### 5"})))
    assert problem.reference.data["solution"] == "2+3=5\n#### 5"


def test_numbers_are_read_as_written(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"problem": "p", "answer": 0.10000000000000000001}\n')
    assert only(DatasetTask(path)).reference.answer == "0.10000000000000000001"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{'problem': 1}", r"a.jsonl:2: not a JSON object \(Expecting property name"),
        ('{"problem": "p", "answer": "1"', r"a.jsonl:2: not a JSON object"),
        ("[1, 2]", r"a.jsonl:2: a JSON list, not an object"),
        ("3", r"a.jsonl:2: a JSON number, not an object"),
        ("null", r"a.jsonl:2: a JSON null"),
        (
            "{}",
            r"a.jsonl:2: no question in this line \(it is empty\): give it a field named problem, question or prompt",
        ),
        ('{"q": "1+1", "answer": "2"}', r"a.jsonl:2: no question in this line \(it has 'q', 'answer'\)"),
        ('{"problem": "1+1"}', r"a.jsonl:2: no answer in this line .*give it a field named answer, .* or solution"),
        ('{"problem": "1+1", "answer": ""}', r"a.jsonl:2: no answer"),
        ('{"problem": "1+1", "answer": "  "}', r"a.jsonl:2: the final answer in the field 'answer' is empty"),
        ('{"problem": "  ", "answer": "2"}', r"a.jsonl:2: the field 'problem' must be a text that is not blank"),
        ('{"problem": ["p"], "answer": "2"}', r"a.jsonl:2: the field 'problem' must be a text .*not a list"),
        (
            '{"problem": "p", "answer": true}',
            r"a.jsonl:2: the field 'answer' must be a text or a number, not a boolean",
        ),
        ('{"problem": "p", "answer": ["2"]}', r"a.jsonl:2: the field 'answer' must be .*not a list"),
        ('{"problem": "p", "solution": "long\\nwork"}', r"a.jsonl:2: the field 'solution' holds no final answer"),
        ('{"problem": "p", "solution": "so \\\\boxed{}"}', r"a.jsonl:2: the final answer .* is empty"),
        ('{"problem": "p", "answer": "work\\n#### "}', r"a.jsonl:2: the final answer .* is empty"),
        ('{"problem": "p", "answer": ' + "9" * 5000 + "}", r"a.jsonl:2: not a JSON object"),
        ("[" * 100_000, r"a.jsonl:2: not a JSON object"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, sentence: str):
    path = write(tmp_path / "a.jsonl", {"problem": "p", "answer": "1"}, line)
    with pytest.raises(UserError, match=sentence) as caught:
        DatasetTask(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_bad_files(tmp_path: Path):
    write(tmp_path / "math.jsonl", {"problem": "p", "answer": "1"})
    with pytest.raises(UserError, match=r"maths.jsonl does not exist; did you mean 'math.jsonl'\?"):
        DatasetTask(tmp_path / "maths.jsonl")
    with pytest.raises(UserError, match="is a folder"):
        DatasetTask(tmp_path)
    with pytest.raises(UserError, match="holds no problems"):
        DatasetTask(write(tmp_path / "empty.jsonl"))
    with pytest.raises(UserError, match="holds no problems"):
        DatasetTask(write(tmp_path / "blank.jsonl", "", "  "))
    (tmp_path / "latin.jsonl").write_bytes('{"problem": "é", "answer": "1"}'.encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.jsonl:1: not UTF-8"):
        DatasetTask(tmp_path / "latin.jsonl")
    (tmp_path / "text.jsonl.gz").write_text("not gzip")
    with pytest.raises(UserError, match="cannot be read after line 0"):
        DatasetTask(tmp_path / "text.jsonl.gz")
    whole = gzip.compress(b"".join(b'{"problem": "p%d", "answer": "1"}\n' % n for n in range(5000)))
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cannot be read after line [1-9]"):
        DatasetTask(tmp_path / "cut.jsonl.gz")


def test_gz_bom_and_blank_lines(tmp_path: Path):
    rows = [{"problem": "é?", "answer": "1"}, {"problem": "b", "answer": "2"}]
    lines = "\ufeff" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    with gzip.open(tmp_path / "x.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(lines)
    task = DatasetTask(tmp_path / "x.jsonl.gz")
    assert task.name == "x" and {p.question.text for p in task.up_to(0, "test", 0, 9)} == {"é?", "b"}


def test_duplicates_are_dropped_and_counted(tmp_path: Path):
    rows = [{"problem": p, "answer": a} for p, a in [("1 + 1", "2"), ("1  +\n1", "2"), ("1 + 1", "3"), ("2", "2")]]
    task = DatasetTask(write(tmp_path / "a.jsonl", *rows))
    assert (len(task), task.duplicates, task.conflicts) == (2, 2, 1)


# --------------------------------------------------------------------------------------------- splits


def numbered(tmp_path: Path, n: int = 400) -> Path:
    return write(tmp_path / "n.jsonl", *({"problem": f"{k}+1?", "answer": k + 1, "level": k % 2} for k in range(n)))


@pytest.mark.parametrize("split", ["test", "train", "valid"])
def test_a_file_named_for_one_split_is_wholly_that(tmp_path: Path, split):
    task = DatasetTask(numbered(tmp_path), split=split)
    assert isinstance(task, Checked) and task.levels == (0, 1)
    assert sum(len(task.up_to(level, split, 0, 999)) for level in task.levels) == 400
    other = next(s for s in SPLITS if s != split)
    with pytest.raises(
        UserError, match=rf"0 {other} problems .*used as {split}: write .*n.jsonl:{other} .*n.jsonl:hash"
    ):
        task.problems(0, other, 0, 1)
    with pytest.raises(UserError, match=f"no {other} problems"):
        next(task.stream(0, other, 0))


def test_hashed_splits_cover_the_file_and_never_overlap(tmp_path: Path):
    path = numbered(tmp_path)
    task = DatasetTask(path, split="hash")
    texts = {split: {p.question.text for level in (0, 1) for p in task.up_to(level, split, 0, 999)} for split in SPLITS}
    assert sum(map(len, texts.values())) == 400 == len(set.union(*texts.values()))
    assert 20 < len(texts["test"]) < 90 and 8 < len(texts["valid"]) < 50
    # a property of the problem, not of the file: half the file puts the same problems into the same splits
    rows = path.read_text().splitlines()[::2]
    half = DatasetTask(write(tmp_path / "half.jsonl", *rows), split="hash")
    for split in SPLITS:
        assert {p.question.text for p in half.up_to(0, split, 1, 999)} <= texts[split]


def test_order_is_fixed_by_the_seed_and_a_stream_visits_every_problem_once_a_round(tmp_path: Path):
    task = DatasetTask(numbered(tmp_path, 20))
    first = [p.question.id for p in task.problems(0, "test", 3, 10)]
    assert first == [p.question.id for p in task.problems(0, "test", 3, 10)]
    assert first != [p.question.id for p in task.problems(0, "test", 4, 10)] and set(first) == set(
        p.question.id for p in task.problems(0, "test", 4, 10)
    )
    rounds = [p.question.id for p in itertools.islice(task.stream(0, "test", 3), 30)]
    assert all(set(rounds[i : i + 10]) == set(first) for i in (0, 10, 20)) and rounds[:10] != rounds[10:20]
    with pytest.raises(UserError, match="10 test problems of level 0, 11 were asked for"):
        task.problems(0, "test", 0, 11)
    with pytest.raises(UserError, match="has no level 7; its levels are 0 to 1"):
        task.problems(7, "test", 0, 1)
    with pytest.raises(UserError, match=r"unknown split 'tset'; did you mean 'test'\?"):
        task.problems(0, "tset", 0, 1)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"unknown split 'hsh' .*did you mean 'hash'"):
        DatasetTask(task.path, split="hsh")  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------- checks


def test_checks_judge_the_extracted_answer(tmp_path: Path):
    task = DatasetTask(write(tmp_path / "a.jsonl", {"problem": "p", "answer": "1/2"}))
    problem = only(task)
    for right in (r"so \boxed{0.5}", "0.5", "Answer: 2/4", "<think>3</think>\n#### 1/2"):
        assert task.check(problem, right).correct is True
        assert task.canonical(problem.question, right) == "1/2"
    for wrong in (r"\boxed{0.5} or \boxed{3}", "no idea\nat all", "", "0.5 or 3", r"<think>\boxed{0.5}"):
        assert task.check(problem, wrong).correct is False
    assert task.canonical(problem.question, "no\nidea") is None
    steps = task.check_steps(problem, "1/2 = 0.5\n\n so 0.5 ")
    assert [(step.text, step.ok) for step in steps] == [("1/2 = 0.5", None), ("so 0.5", None)]


@pytest.mark.parametrize(
    ("name", "n", "sample"), [("gsm8k_test.jsonl", 1319, 150), ("math500.jsonl", 500, 60), ("aime2024.jsonl", 30, 30)]
)
def test_real_sets(name: str, n: int, sample: int):
    if not (REAL / name).exists():
        pytest.skip(f"{name} is not in {REAL.parent.name}/{REAL.name} beside the repository")
    pytest.importorskip("math_verify", reason="math-verify is not installed: pip install 'mull[tasks]'")
    with MathGrader(deadline_s=30) as grader:
        task = DatasetTask(REAL / name, grader=grader)
        assert (len(task), task.duplicates) == (n, 0)
        found = task.validate(n=sample)
        assert found.checked == sample and found.failures == []
        # every gold against itself takes no sympy; and no gold is a markup leftover
        for level in task.levels:
            for problem in task.up_to(level, "test", 0, n):
                gold = problem.reference.answer
                assert grader.grade(gold, gold).correct is True and "<<" not in gold and "####" not in gold


def test_a_red_team_that_is_paid_is_reported(tmp_path: Path):
    class Generous:
        def grade(self, gold, answer):
            from mull.types import Verdict

            return Verdict(gold in answer)

    task = DatasetTask(numbered(tmp_path, 5), grader=Generous())  # type: ignore[arg-type]
    assert len(task.validate(n=2).failures) >= 4
