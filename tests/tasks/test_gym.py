"""reasoning-gym under a strict check. The audit itself (61 sets, a minute) is run by hand: see audit_gym.py."""

import json
import sys

import pytest

from mull.errors import MissingExtra, Unscorable, UserError
from mull.tasks.base import SPLITS, Checked, split_of
from mull.tasks.gym import AUDITED, MAX_ANSWER, GymTask, final_answer, is_superset
from mull.types import Problem, Question, Reference

SOME = ("chain_sum", "maze", "mini_sudoku", "word_sorting", "letter_jumble")


@pytest.fixture(scope="module")
def audit():
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed: pip install 'mull[tasks]'")
    sys.path.insert(0, __file__.rpartition("/")[0])
    import audit_gym

    sys.path.pop(0)
    return audit_gym


@pytest.mark.parametrize("name", SOME)
def test_gold_is_paid_and_supersets_are_not(audit, name: str):
    task = GymTask(name)
    assert isinstance(task, Checked)
    for problem in task.problems(0, "train", seed=3, n=4):
        gold = problem.reference.answer
        for right in (gold, f"\n{gold} ", f"Let me see.\n<answer>{gold}</answer>", f"<think>no</think>Answer: {gold}"):
            assert task.check(problem, right).correct is True
        for wrong in audit.wrong_answers(gold, []):
            assert task.check(problem, wrong).correct is False, wrong


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("game_of_life_halting", "pays"),  # 1.0 for any text where the gold is truthy
        ("boxnet", "a gold answer is missing"),
        ("spiral_matrix", "calls eval"),  # on the model's text
        ("prime_factorization", "raises"),
        ("knights_knaves", "pays"),
        ("tower_of_hanoi", "repeats"),
    ],
)
def test_the_audit_refuses_the_known_hazards(audit, name: str, reason: str):
    assert name not in AUDITED and reason in audit.audit(name)[0]


@pytest.mark.parametrize("name", ["leg_counting", "kakurasu"])
def test_the_audit_passes_what_is_listed(audit, name: str):
    assert name in AUDITED and audit.audit(name) == []


def test_the_list_names_sets_that_exist():
    factory = pytest.importorskip("reasoning_gym.factory", reason="reasoning-gym is not installed")
    assert len(set(AUDITED)) == len(AUDITED) >= 40 and set(AUDITED) <= set(factory.DATASETS)


def test_splits_share_nothing_and_seeds_repeat():
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    task = GymTask("chain_sum")
    ids = {s: [p.question.id for p in task.problems(0, s, 0, 40)] for s in SPLITS}
    assert all(len(set(found)) == 40 for found in ids.values())
    assert not any(set(ids[a]) & set(ids[b]) for a in SPLITS for b in SPLITS if a != b)
    assert ids["train"] == [p.question.id for p in GymTask("chain_sum").problems(0, "train", 0, 40)]
    assert ids["train"] != [p.question.id for p in task.problems(0, "train", 1, 40)]
    problem = task.problems(0, "train", 0, 1)[0]
    assert problem.question.id.startswith("gym:chain_sum/0/") and json.dumps(problem.reference.data)
    with pytest.raises(UserError, match="has no level 1; its levels are only 0"):
        task.problems(1, "train", 0, 1)


def test_duplicates_are_dropped_and_a_small_set_says_so():
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    task = GymTask("chain_sum")
    entry = {"question": "1 + 1 =", "answer": "2", "metadata": {}}
    task._generator = lambda seed: [entry] * 5000  # type: ignore[method-assign]
    split = split_of("1 + 1 =")
    assert len(task.up_to(0, split, 0, 3)) == 1
    with pytest.raises(UserError, match=f"only about 1 different {split} problems, 3 were asked for"):
        task.problems(0, split, 0, 3)
    other = next(s for s in SPLITS if s != split)
    task._generator = lambda seed: [entry] * 6000  # type: ignore[method-assign]
    with pytest.raises(UserError, match=f"level 0 has no {other} problems"):  # an endless search, once
        task.up_to(0, other, 0, 1)


class Scorer:
    def __init__(self, score):
        self.score = score

    def score_answer(self, answer, entry):
        return self.score(answer)


def with_scorer(score) -> tuple[GymTask, Problem]:
    task = GymTask.__new__(GymTask)
    task.set_name, task.name, task._scorer = "fake", "gym:fake", Scorer(score)
    return task, Problem(Question("gym:fake/0/x", "gym:fake", "q"), Reference("12", {"entry": {"answer": "12"}}))


def test_a_scorer_that_raises_on_the_answer_alone_says_wrong():
    task, problem = with_scorer(lambda answer: float(int(answer) == 12))
    assert task.check(problem, "12").correct is True
    assert task.check(problem, "twelve").correct is False


def test_a_scorer_that_cannot_score_the_gold_is_unscorable():
    def broken(answer):
        raise KeyError("metadata")

    task, problem = with_scorer(broken)
    with pytest.raises(Unscorable, match="fake cannot score: KeyError"):
        task.check(problem, "7")
    task, problem = with_scorer(lambda answer: 0.0 if answer == "12" else int("x"))
    with pytest.raises(Unscorable):
        task.check(problem, "7")


def test_partial_and_superset_scores_are_not_rewards():
    task, problem = with_scorer(lambda answer: 0.99)
    assert task.check(problem, "12").correct is False
    task, problem = with_scorer(lambda answer: 1.0)  # pays for anything, as game_of_life_halting does
    assert task.check(problem, "12 or 13").correct is False
    assert task.check(problem, "").correct is False and task.check(problem, "12" * MAX_ANSWER).correct is False
    assert is_superset("the 12", "12") and is_superset("Yes, A.", "yes") and not is_superset(" 1\n2 ", "1 2")


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("<answer>1 2\n3 4</answer>", "1 2\n3 4"),
        ("<answer>1</answer> no, <answer>2</answer>", "2"),
        ("<answer>1 <answer>2</answer>", "2"),
        ("<answer></answer>", None),
        ("We get\nAnswer:\n1 2\n3 4", "1 2\n3 4"),
        ("Answer: 3\nFinal answer: 4", "4"),
        (r"Answer: \boxed{5}", "5"),
        ("<think>Answer: 3</think>\n4", "4"),
        ("<think>Answer: 3", None),
        ("7", "7"),
    ],
)
def test_final_answer(text: str, final: str | None):
    assert final_answer(text) == final


def test_canonical_ignores_layout():
    task, problem = with_scorer(lambda answer: 1.0)
    assert task.canonical(problem.question, "<answer>1  2\n3</answer>") == "1 2 3"
    assert task.canonical(problem.question, "  ") is None


def test_a_set_that_was_not_audited_is_refused():
    with pytest.raises(UserError, match=r"'game_of_live' is not among the \d+ .*did you mean 'game_of_life'"):
        GymTask("game_of_live")


def test_without_reasoning_gym_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(MissingExtra, match=r"needs the package reasoning-gym.*pip install 'mull\[tasks\]'"):
        GymTask("chain_sum")
