"""What was planted is found, and what is clean stays."""

import json
import random
import re

import pytest

from mull.store.decontaminate import HeldOut, Membership, contaminated
from mull.tasks.base import SPLITS, Task
from mull.tasks.dataset import DatasetTask
from mull.tasks.load import PUZZLES, load_task
from mull.types import Question

HELD = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many in all?"
SHORT = "What is the sum of 17 and 25?"


def why(text: str, held: HeldOut | None = None, **more) -> str:
    if held is None:
        held = HeldOut()
        for one in (HELD, SHORT, "2+2"):
            held.add(one, "bench")
    return held.contaminated({"q": text}, **more).get("q", "")


def test_planted_copies_are_found():
    assert why(HELD) == "equal to a held-out question of bench"
    assert why(HELD.upper().replace(",", " ,\n").replace("?", "")) == "equal to a held-out question of bench"
    assert why("Here is one. " + HELD + " Think first.").startswith("13 words in a row")
    assert why("Ada sold clips to 48 of her friends in April, and then she sold ten more.").startswith("13 words")
    assert why("Say it: what is the sum of 17 and 25").startswith("8 words in a row as in a held-out question of bench")
    assert why("2 + 2") == "equal to a held-out question of bench"


def test_what_is_clean_stays():
    assert why("Ada sold clips to 49 of her friends in April, and then she sold ten more. How many in all?") == ""
    assert why(" ".join(HELD.split()[:12])) == ""  # twelve words in a row are not thirteen
    assert why("What is the sum of 17 and 26?") == why("What is the product of 17 and 25?") == ""
    assert why("1+2+2+5") == ""  # of a very short question only an equal one is a copy
    assert why("2*2") == why("") == ""


def test_boilerplate_does_not_drop_whole_data_sets():
    template = "Work out the following expression step by step and give the final answer alone as a number: {}*{}"
    held = HeldOut()
    held.add(template.format(3, 4), "bench")
    texts = {str(i): template.format(5, i) for i in range(11)}
    assert held.contaminated(dict(list(texts.items())[:10])).keys() == set("0123456789")  # ten may be copies,
    assert held.contaminated(texts) == {}  # eleven are a template, as in GPT-3's appendix C,
    assert held.contaminated(texts, common=11).keys() == texts.keys()
    planted = texts | {"copy": template.format(3, 4)}
    assert held.contaminated(planted) == {
        "copy": "equal to a held-out question of bench"
    }  # an equal one is a copy still
    for i in range(11):
        held.add(template.format(7, i), "bench")
    assert why(template.format(9, 9), held) == ""


def test_a_likeness_to_a_source_of_ones_own_is_not_held_against_it():
    held = HeldOut()
    held.add(HELD, "bench")
    assert held.contaminated({"q": HELD}, own={"q": "bench"}) == {}
    held.add(HELD, "other")
    assert held.contaminated({"q": HELD}, own={"q": "bench"}) == {"q": "equal to a held-out question of other"}


@pytest.mark.parametrize("name", PUZZLES)
def test_a_puzzle_question_says_its_split(name: str):
    task = load_task(name)
    members = Membership([task])
    for split in ("train", "valid", "test"):
        for level in task.levels[2:5]:
            for problem in task.up_to(level, split, 5, 10):
                assert members.split(problem.question) == split
    q = task.up_to(task.levels[2], "train", 0, 1)[0].question
    assert members.split(Question(q.id, "unknown", q.text)) is None
    assert members.split(Question(q.id[:-1] + "x", q.task, q.text)) is None
    assert members.split(Question("x/1/0", q.task, "no such question")) is None


def test_a_task_with_a_key_of_its_own_that_says_nothing_is_not_believed():
    class Odd(Task):
        name, levels, description = "odd", (1,), ""
        check = check_steps = canonical = solve = imperfect = red_team = None  # type: ignore[assignment]

        def draw(self, level, rng):
            key = f"hidden {rng.randrange(1000)}"
            return key, f"text of {key[-1]}", None  # type: ignore[return-value]

    task = Odd()
    _, problem = task.problem(1, random.Random(0))
    assert Membership([task]).split(problem.question) is None


def data(path, texts) -> None:
    path.write_text("".join(json.dumps({"question": t, "answer": "1"}) + "\n" for t in texts))


def test_questions_of_every_kind_together(tmp_path):
    data(tmp_path / "bench.jsonl", [HELD, SHORT])
    chain = load_task("chain")
    pasted = chain.problems(2, "test", 0, 1)[0].question.text
    own = [f"{n} birds sat on tree number {n + 1}; how many of the birds flew away to the north?" for n in range(60)]
    data(tmp_path / "mine.jsonl", [*own, HELD + " Hurry!", f"Solve this: {pasted}"])
    bench, mine = DatasetTask(tmp_path / "bench.jsonl"), DatasetTask(tmp_path / "mine.jsonl", "train")
    divided = DatasetTask(tmp_path / "mine.jsonl", "hash")
    tasks = [chain, bench, mine]
    held = HeldOut()
    held.add_task(bench)
    held.add_task(chain, most=5)
    trained = [p.question for p in chain.problems(2, "train", 0, 40)]
    tested = [p.question for p in chain.problems(2, "test", 1, 5)] + [
        p.question for p in chain.problems(1, "valid", 1, 5)
    ]
    foreign = [p.question for p in mine.problems(0, "train", 0, len(mine))]
    found = contaminated([*trained, *tested, *foreign], tasks, held)
    reasons = {q.text: found[q.id] for q in [*tested, *foreign] if q.id in found}
    assert not any(q.id in found for q in trained)
    assert {reasons.pop(q.text) for q in tested} == {"a test question of chain", "a valid question of chain"}
    assert reasons == {
        HELD + " Hurry!": "13 words in a row as in a held-out question of bench",
        f"Solve this: {pasted}": "a held-out question of chain is in it",
    }
    members = Membership([divided])
    for split in ("train", "test"):
        assert {members.split(p.question) for p in divided.up_to(0, split, 0, 99)} == {split}


@pytest.mark.parametrize("name", PUZZLES)
def test_no_held_out_problem_of_a_puzzle_hides_in_other_text(tmp_path, name: str):
    """Whoever drew them, with whatever seed: problems are far more than can be listed."""
    task = load_task(name)
    assert isinstance(task, Task)
    held = HeldOut(generators=[task])
    for level in task.levels:
        for split in SPLITS:
            texts = [p.question.text for p in task.up_to(level, split, 12345, 20)]
            assert texts and [re.findall(task.form, f"Solve {text}\nor not") for text in texts] == [[t] for t in texts]
            foreign = {
                f"{i}{way}": way.format(text) for i, text in enumerate(texts) for way in ("{}", "Solve: {}\nNow.")
            }
            found = held.contaminated(foreign)
            assert set(found) == (set() if split == "train" else set(foreign))
            assert not held.contaminated(foreign, dict.fromkeys(foreign, name)), "its own are known by membership"
    assert not held.contaminated({"a": "a=b;c?", "b": "1 2 ->", "c": "S.G", "d": "x=((;x?", "e": ""})


def test_lines_of_a_data_set_may_be_copies_of_each_other(tmp_path):
    """A train line that is like a test line of the same file is dropped, though its split is proved."""
    rng = random.Random(0)
    texts = [HELD] + [f"{HELD} Hint {rng.random()}." for _ in range(40)]
    data(tmp_path / "set.jsonl", texts)
    task = DatasetTask(tmp_path / "set.jsonl", "hash")
    held = HeldOut()
    held.add_task(task)
    train = task.up_to(0, "train", 0, 5)
    assert contaminated([p.question for p in train], [task], held).keys() == {p.question.id for p in train}
