"""The maze task: hand-judged lines and answers, brute force against the checker, splits, habits and slips."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.tasks import maze as module
from mull.tasks.base import Solution
from mull.tasks.maze import STEP, MazeTask, _follow, parse
from mull.types import Problem, Question, Reference, StepKind, Verdict

TASK = MazeTask()
GRID = "S.#\n#..\n..G"  # distances: 01 1, 11 2, 12 and 21 3, 22 (G) and 20 4
HAND = Problem(Question("maze/1/hand", "maze", GRID, 1), Reference("RDRD", {"distance": 4}))
WORK, CHECK, BACK, OTHER = StepKind.WORK, StepKind.CHECK, StepKind.BACKTRACK, StepKind.OTHER


def right(problem: Problem, answer: str) -> bool:
    correct = TASK.check(problem, answer).correct
    assert correct is not None
    return correct


@pytest.mark.parametrize(
    ("line", "ok", "kind"),
    [
        ("S00 G22", True, WORK),
        ("S00 G21", False, WORK),
        ("S22 G00", False, WORK),
        ("0:00", True, WORK),
        ("1:01", True, WORK),
        ("1:01 10", False, WORK),  # 10 is a wall
        ("2:11", True, WORK),
        ("3:12 21", True, WORK),
        ("3:21 12", True, WORK),  # any order
        ("3:12", False, WORK),  # one is missing
        ("3:12 21 21", False, WORK),
        ("4:22 20", True, WORK),
        ("4:22", False, WORK),
        ("5:", True, WORK),  # true: nothing is at distance 5
        ("3:", False, WORK),
        ("5:22", False, WORK),
        ("03:12 21", True, WORK),
        ("3: 12 21", False, WORK),
        ("3:12, 21", False, WORK),
        ("path 00 01 11 12 22", True, WORK),
        ("path 00 01 11 21 22", True, WORK),
        ("path 00 01 11 21 20 21 22", True, WORK),  # a way, though not a shortest
        ("path 00 10 11 12 22", False, WORK),  # through a wall
        ("path 00 11 12 22", False, WORK),  # diagonal
        ("path 00 00 01 11 12 22", False, WORK),  # standing still
        ("path 00 01 11 12", False, WORK),  # does not arrive
        ("path 01 11 12 22", False, WORK),  # does not begin at S
        ("path 00 01 02 12 22", False, WORK),  # 02 is a wall
        ("path 22 12 11 01 00", False, WORK),
        ("path", False, WORK),
        ("trace 22 12 11 01 00", True, WORK),
        ("trace 00 01 11 12 22", False, WORK),
        ("trace 22 12 11 01", False, WORK),
        ("trace 22 12 02 01 00", False, WORK),
        ("00 01 11 12 22 goal", True, WORK),
        ("00 01 11 12 goal", False, WORK),  # not at G
        ("00 01 11 21 20 back", True, BACK),
        ("00 10 20 back", False, BACK),
        ("00 01 11", True, WORK),
        ("00 01 11 21 31", False, WORK),  # off the grid
        ("redo path 00 01 11 12 22", True, BACK),
        ("redo 00 01 11 12 22 goal", True, BACK),
        ("redo 00 10 goal", False, BACK),
        ("path 00 01 11 12 22 goal", False, WORK),  # not a form
        ("check", False, CHECK),
        ("check 4 moves wave 4 ok", False, CHECK),  # nothing to check yet
        ("give up", None, OTHER),
        ("hmm", None, OTHER),
    ],
)
def test_one_line_is_judged_as_by_hand(line, ok, kind):
    (verdict,) = TASK.check_steps(HAND, line)
    assert (verdict.text, verdict.ok, verdict.kind) == (line, ok, kind)
    assert bool(verdict.why) == (ok is False)


SHORT, LONG, WALLED = "path 00 01 11 12 22", "00 01 11 21 20 21 22 goal", "path 00 10 11 12 22"


@pytest.mark.parametrize(
    ("way", "check", "ok"),
    [
        (SHORT, "check 4 moves wave 4 ok", True),
        (SHORT, "check 4 moves wave 4 no", False),
        (SHORT, "check 5 moves wave 4 no", False),  # miscounted
        (SHORT, "check 4 moves wave 3 no", False),  # G is at 4
        (SHORT, "check 4 moves 4 away ok", True),
        (LONG, "check 6 moves 4 away no", True),
        (LONG, "check 6 moves wave 4 no", True),
        (LONG, "check 6 moves wave 6 ok", False),
        (LONG, "check 6 moves 4 away ok", False),
        (SHORT, "check S...G ok", True),
        (SHORT, "check S...G no", False),
        (SHORT, "check S#..G no", False),
        (WALLED, "check S#..G no", True),
        (WALLED, "check S#..G ok", False),
        (WALLED, "check S...G ok", False),
        (WALLED, "check 4 moves wave 4 ok", True),  # true of its length
        ("00 01 back", "check 1 moves 4 away no", False),  # a walk that was given up is no way to check
        (SHORT, "check 4 moves wave 4", False),
        (SHORT, "check 99999 moves wave 4 no", False),
    ],
)
def test_a_check_speaks_of_the_latest_way(way, check, ok):
    verdict = TASK.check_steps(HAND, f"{way}\n{check}")[1]
    assert (verdict.ok, verdict.kind) == (ok, CHECK)


def test_a_check_after_a_redo_speaks_of_the_new_way():
    thought = f"{LONG}\ncheck 6 moves 4 away no\nredo 00 01 11 12 22 goal\ncheck 4 moves 4 away ok"
    assert [v.ok for v in TASK.check_steps(HAND, thought)] == [True] * 4


def test_away_is_rows_plus_columns_where_walls_force_a_detour():
    problem = Problem(Question("", "maze", "S#G\n.#.\n...", 1), Reference("DDRRUU"))
    path = "path 00 10 20 21 22 12 02"
    verdicts = TASK.check_steps(problem, f"{path}\ncheck 6 moves 2 away no\ncheck 6 moves wave 6 ok")
    assert [v.ok for v in verdicts] == [True, True, True]
    assert right(problem, "DDRRUU") and not right(problem, "RR")


@pytest.mark.parametrize("answer", ["RDRD", "RDDR"])
def test_every_shortest_path_is_right(answer):
    assert right(HAND, answer)
    assert TASK.canonical(HAND.question, answer) == answer


WRONG = ["", "rdrd", "RDRD ", " RDRD", "RDRD\n", "R D R D", "RDRDR", "RDR", "DRRD", "RDRDUD", "RLRDRD", "URDRDD"]
WRONG += ["RDRD RDDR", "RRDD", "path RDRD", "RDRD.", "RDRDRDRD", "(RDRD)", "RDRÐ", "↓→", "LLLLRDRD", "RDLDRR", "DDRR"]


@pytest.mark.parametrize("answer", WRONG)
def test_everything_else_is_wrong(answer):
    assert not right(HAND, answer)


def test_the_checker_agrees_with_brute_force():
    """All move strings up to the shortest length, walked on a plain list of lists."""

    def arrives(rows, answer):
        r, c = next((r, c) for r, row in enumerate(rows) for c, x in enumerate(row) if x == "S")
        for move in answer:
            r, c = r + (move == "D") - (move == "U"), c + (move == "R") - (move == "L")
            if r < 0 or c < 0 or r >= len(rows) or c >= len(rows[0]) or rows[r][c] == "#":
                return False
        return rows[r][c] == "G"

    tried = 0
    for problem in TASK.problems(1, "train", 5, 40):
        if problem.reference.data["distance"] > 5:
            continue
        rows = problem.question.text.split("\n")
        found: set[str] = set()
        for length in itertools.count(1):
            answers = ["".join(a) for a in itertools.product("UDLR", repeat=length)]
            found = {a for a in answers if arrives(rows, a)}
            assert {a for a in answers if right(problem, a)} == found
            if found:
                break
        assert problem.reference.answer in found
        tried += 1
    assert tried > 20


def test_a_wave_is_refused_when_any_one_cell_is_dropped_added_or_repeated():
    for problem in TASK.problems(3, "train", 1, 10):
        cells = list(parse(problem.question.text).glyph)
        for line in TASK.solve(problem).thought.split("\n"):
            if ":" not in line:
                continue
            k, wave = line.split(":")[0], line.split(":")[1].split()
            assert TASK.check_steps(problem, f"{k}:{' '.join(reversed(wave))}")[0].ok
            broken = [wave[:i] + wave[i + 1 :] for i in range(len(wave))] + [[*wave, cell] for cell in cells]
            for other in broken:
                assert TASK.check_steps(problem, f"{k}:{' '.join(other)}")[0].ok is False


def test_validate_finds_no_failure():
    result = TASK.validate(60, seed=3)
    assert result.checked == 60 * len(TASK.levels)
    assert result.failures == []


@pytest.mark.parametrize(
    "pays",
    [
        lambda maze, gold, answer: gold in answer,  # a superset
        lambda maze, gold, answer: answer.strip().upper() == gold,
        lambda maze, gold, answer: set(answer) <= set(STEP) and _follow(maze, answer) == maze.goal,  # of any length
        lambda maze, gold, answer: len(answer) == len(gold) and set(answer) <= set(STEP),  # of the right length
    ],
)
def test_validate_notices_a_sloppy_checker(pays, monkeypatch):
    def check(self: MazeTask, problem: Problem, answer: str) -> Verdict:
        return Verdict(pays(parse(problem.question.text), problem.reference.answer, answer))

    monkeypatch.setattr(MazeTask, "check", check)
    assert any("is paid" in failure for failure in TASK.validate(10).failures)


@pytest.mark.parametrize("level", TASK.levels)
def test_mazes_are_as_documented(level):
    for problem in TASK.problems(level, "train", 2, 60):
        rows = problem.question.text.split("\n")
        assert (len(rows), len(rows[0])) in module.SIZES[level]
        assert sorted(c for c in problem.question.text if c in "SG") == ["G", "S"]
        assert set(problem.question.text) <= set(".#SG\n")
        assert problem.reference.data["distance"] == len(problem.reference.answer) >= module.NEAREST[level] > 1


def written(level: int, n: int = 500) -> list[tuple[Problem, Solution]]:
    rng = random.Random(level)
    return [(p, TASK.imperfect(p, rng)) for p in TASK.problems(level, "train", 11, n)]


@pytest.mark.parametrize(
    ("level", "low", "high"), [(1, 0.38, 0.56), (2, 0.26, 0.45), (3, 0.18, 0.38), (4, 0.12, 0.3), (5, 0.08, 0.26)]
)
def test_imperfect_solutions_are_right_as_often_as_they_should_be(level, low, high):
    solutions = written(level)
    assert low < sum(right(p, s.answer) for p, s in solutions) / len(solutions) < high
    lengths = sorted(len(s.thought) for _, s in solutions)
    assert lengths[-1] <= TASK.max_thought
    assert level > 4 or lengths[-1] <= 420
    assert level > 2 or lengths[int(0.9 * len(lengths))] < 150


@pytest.mark.parametrize("level", TASK.levels)
def test_imperfect_lines_have_known_forms_and_natural_faults(level):
    verdicts = [v for p, s in written(level, 300) for v in TASK.check_steps(p, s.thought)]
    assert all("known form" not in v.why for v in verdicts)
    assert all(v.text == "give up" for v in verdicts if v.kind is OTHER)
    for kind in (WORK, CHECK, BACK):
        assert any(v.ok for v in verdicts if v.kind is kind)
    assert any(v.ok is False for v in verdicts if v.kind is WORK)
    assert any(v.text.endswith("no") for v in verdicts) and any(v.text.endswith("ok") for v in verdicts)


def test_a_thought_without_a_false_line_that_found_its_length_right_holds_a_shortest_path():
    proven = 0
    for problem, solution in written(2, 800):
        lines = solution.thought.split("\n")
        verdicts = TASK.check_steps(problem, solution.thought)
        if all(v.ok for v in verdicts) and "moves" in lines[-1] and lines[-1].endswith("ok"):
            way = next(line for line in reversed(lines) if "path" in line or "goal" in line)
            cells = [word for word in way.split() if word.isdigit()]
            assert right(problem, module.moves(cells))
            proven += 1
    assert proven > 30


def test_diligence_and_fewer_slips_pay(monkeypatch):
    def rate(**habits: float) -> float:
        with monkeypatch.context() as patch:
            for name, value in habits.items():
                patch.setattr(module, name, value)
            solutions = written(2, 300)
        return sum(right(p, s.answer) for p, s in solutions) / len(solutions)

    base, diligent = rate(), rate(WAVES=1.0, TRACE=1.0)
    assert diligent > base + 0.3
    assert rate(WAVES=1.0, TRACE=1.0, CARE=0.0, MISS=0.0) == 1.0 > diligent
    assert rate(WAVES=0.0, WALK=0.0) < base


PROBLEMS = [p for level in TASK.levels for p in TASK.problems(level, "train", 13, 3)]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PROBLEMS), st.text(max_size=60) | st.text("0123456789 :SG.#\npathcekgoltrm", max_size=60))
def test_no_text_breaks_the_checks(problem, text):
    assert len(TASK.check_steps(problem, text)) == len([x for x in text.split("\n") if x.strip()])
    verdict = TASK.check(problem, text)
    assert verdict.correct is (text == TASK.canonical(problem.question, text) and right(problem, text))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PROBLEMS), st.data())
def test_no_mutation_of_the_gold_breaks_the_checks(problem, data):
    gold = TASK.solve(problem)
    text = gold.thought
    for _ in range(data.draw(st.integers(1, 4))):
        i = data.draw(st.integers(0, len(text)))
        j = data.draw(st.integers(i, min(len(text), i + 6)))
        text = text[:i] + data.draw(st.text("0123456789 :#SGokn\n٣²", max_size=4)) + text[j:]
    assert len(TASK.check_steps(problem, text)) == len([x for x in text.split("\n") if x.strip()])
    i = data.draw(st.integers(0, len(gold.answer)))
    answer = gold.answer[:i] + data.draw(st.text("UDLR u\n", min_size=1, max_size=3)) + gold.answer[i:]
    assert not right(problem, answer)  # longer than the shortest
