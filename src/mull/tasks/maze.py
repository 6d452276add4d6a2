"""maze: the shortest way from S to G on a text grid, as a string of the moves U D L R.

A cell is named by its row and column digit, `00` at the top left. The lines of a thought:

    S00 G22                    where start and goal are
    2:02 11                    wave: exactly the free cells at distance 2 (any order)
    trace 22 12 11 01 00       a way from G back to S
    path 00 01 11 12 22        a way from S to G
    00 01 02 back              a walk from S, given up
    00 01 11 12 22 goal        a walk from S that arrives
    check 4 moves wave 4 ok    the latest way has 4 moves, G lies at distance 4, so it is shortest ("no": it is not)
    check 4 moves 4 away ok    the same against the rows and columns between S and G, which no way can beat
    check S...G ok             the grid's characters under the latest way: no wall ("no": there is one)
    redo path ...              a way that replaces an earlier one; also before a walk
    give up                    no claim

The careful way is breadth-first search (Moore 1959); most people just walk towards the goal.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from mull.tasks.base import Solution, Task
from mull.types import Problem, Question, Reference, StepKind, StepVerdict, Verdict

# Habits of the people who write `imperfect` solutions, as probabilities.
WAVES = 0.23  # counts waves from S: diligent
WALK = 0.3  # walks towards G and backs out of dead ends; everyone else answers at a glance
TRACE = 0.5  # of those who count waves: traces back from G before writing the path; the others go forward and may err
AGAIN = 0.5  # whoever is stuck going forward tries again; the others cut straight to G
TOWARDS = 0.2  # a walker takes the step that looks nearest to G, otherwise any step
CHECK = 0.3  # checks the length of the way
LOOK = 0.25  # looks at every cell of the way once more
REPAIR = 0.8  # of those whose check fails: tries another way
# Slips, per occasion.
MISS = 0.024  # overlooks a free cell beside the wave
WALL = 0.04  # takes a wall for free
TURN = 0.05  # writes a wrong move for a step of the way
CARE = 0.4  # factor on the two above for whoever counts waves
COUNT = 0.06  # miscounts moves in a check
PATIENCE = 230  # characters after which nobody starts another try or check

SIZES = {1: ((3, 3), (3, 4), (4, 3)), 2: ((4, 4),), 3: ((5, 5),), 4: ((6, 6),), 5: ((7, 7),)}  # rows, columns
NEAREST = {1: 3, 2: 4, 3: 5, 4: 6, 5: 7}  # the least distance from S to G
DIRECT = 0.1  # of the mazes where S and G are as near as if there were no walls, so many are kept
STEP = {"U": (-1, 0), "L": (0, -1), "R": (0, 1), "D": (1, 0)}
OPPOSITE = {"U": "D", "D": "U", "L": "R", "R": "L"}

_CELLS = r"([0-9]{2}(?: [0-9]{2})*)"
_PLACES = re.compile(r"S([0-9]{2}) G([0-9]{2})")
_WAVE = re.compile(rf"([0-9]{{1,2}}):{_CELLS}?")
_WAY = re.compile(rf"(redo )?(path |trace )?{_CELLS}( back| goal)?")
_LENGTH = re.compile(r"check ([0-9]{1,3}) moves (?:wave ([0-9]{1,3})|([0-9]{1,3}) away) (ok|no)")
_LOOK = re.compile(r"check ([SG.#]+) (ok|no)")
_CLAIM = re.compile(r"[0-9]|S[0-9]|path|trace|check|redo")  # how a line begins that means to claim something


@dataclass(frozen=True, slots=True)
class Maze:
    """A parsed grid. Cells are two-digit strings; `beside[cell]` are the grid's cells next to it, walls included."""

    glyph: dict[str, str]
    start: str
    goal: str
    beside: dict[str, list[str]]
    distance: dict[str, int]  # from the start, of every cell that can be reached

    def free(self, cell: str) -> bool:
        return self.glyph.get(cell, "#") != "#"

    def away(self, cell: str) -> int:
        """Rows plus columns to the goal."""
        return abs(int(cell[0]) - int(self.goal[0])) + abs(int(cell[1]) - int(self.goal[1]))


@lru_cache(32)
def _neighbours(rows: int, cols: int) -> dict[str, list[str]]:
    def inside(r: int, c: int) -> bool:
        return 0 <= r < rows and 0 <= c < cols

    cells = [(r, c) for r in range(rows) for c in range(cols)]
    return {f"{r}{c}": [f"{r + y}{c + x}" for y, x in STEP.values() if inside(r + y, c + x)] for r, c in cells}


@lru_cache(1024)
def parse(text: str) -> Maze:
    """The maze of a question's text (made by `draw`, at most 9 rows and columns)."""
    rows = text.split("\n")
    glyph = {f"{r}{c}": char for r, row in enumerate(rows) for c, char in enumerate(row)}
    start = next(cell for cell, char in glyph.items() if char == "S")
    goal = next(cell for cell, char in glyph.items() if char == "G")
    beside = _neighbours(len(rows), len(rows[0]))
    distance = {start: 0}
    for cell in (queue := [start]):
        for near in beside[cell]:
            if near not in distance and glyph[near] != "#":
                distance[near] = distance[cell] + 1
                queue.append(near)
    return Maze(glyph, start, goal, beside, distance)


def moves(way: Sequence[str]) -> str:
    """The moves along cells of which each lies beside the one before."""
    letter = {step: name for name, step in STEP.items()}
    return "".join(letter[int(b[0]) - int(a[0]), int(b[1]) - int(a[1])] for a, b in pairwise(way))


def _follow(maze: Maze, answer: str) -> str | None:
    """The cell that the moves lead to from S; None as soon as they leave the grid or meet a wall."""
    r, c = int(maze.start[0]), int(maze.start[1])
    for move in answer:
        r, c = r + STEP[move][0], c + STEP[move][1]
        if not maze.free(f"{r}{c}"):
            return None
    return f"{r}{c}"


def _trace(maze: Maze, wave: dict[str, int], pick: Callable[[list[str]], str]) -> list[str]:
    """A way from G back to S down the wave numbers."""
    way = [maze.goal]
    while way[-1] != maze.start:
        way.append(pick([b for b in maze.beside[way[-1]] if wave.get(b) == wave[way[-1]] - 1]))
    return way


def _straight(maze: Maze, cell: str, rng: random.Random) -> list[str]:
    """The cells after `cell` of a direct line of steps to G that takes no notice of walls."""
    way: list[str] = []
    while cell != maze.goal:
        cell = rng.choice([b for b in maze.beside[cell] if maze.away(b) < maze.away(cell)])
        way.append(cell)
    return way


def _walk(maze: Maze, rng: random.Random, lines: list[str], redo: str = "", shun: Collection[str] = ()) -> list[str]:
    """Walks from S, writing one line per try into `lines`; the way to G, through walls where the walker slipped.

    Empty when the walker gave up. What a try ruled out stays ruled out, even where only its own trail was in the way.
    """
    dead = set(shun)
    mistaken: set[str] = set()

    def options(cell: str, way: list[str]) -> list[str]:
        near = [b for b in maze.beside[cell] if b not in dead and b not in way]
        mistaken.update(b for b in near if not maze.free(b) and rng.random() < WALL)
        return [b for b in near if maze.free(b) or b in mistaken]

    while sum(map(len, lines)) < PATIENCE:
        way = [maze.start]
        while way[-1] != maze.goal and (near := options(way[-1], way)):
            nearest = min(map(maze.away, near))
            best = [b for b in near if maze.away(b) == nearest] if rng.random() < TOWARDS else near
            way.append(rng.choice(best))
        if way[-1] == maze.goal:
            lines.append(f"{redo}{' '.join(way)} goal")
            return way
        if len(way) == 1:
            break
        lines.append(f"{redo}{' '.join(way)} back")
        while len(way) > 1 and not options(way[-1], way):
            dead.add(way.pop())
    lines.append("give up")
    return []


def _waves(maze: Maze, rng: random.Random, lines: list[str]) -> list[str]:
    """Counts waves until G is met and finds the path in them, writing into `lines`; the path."""
    wave, last, k = {maze.start: 0}, [maze.start], 0
    lines.append(f"0:{maze.start}")
    while maze.goal not in wave:
        k += 1
        new: list[str] = []
        for cell in last:
            for b in maze.beside[cell]:
                if b not in wave and (rng.random() >= MISS if maze.free(b) else rng.random() < CARE * WALL):
                    wave[b] = k
                    new.append(b)
        if not new:
            return _walk(maze, rng, lines)
        lines.append(f"{k}:{' '.join(new)}")
        last = new
    if rng.random() < TRACE:
        back = _trace(maze, wave, rng.choice)
        lines.append("trace " + " ".join(back))
        way = back[::-1]
    else:
        while True:
            way = [maze.start]
            while way[-1] != maze.goal and (on := [b for b in maze.beside[way[-1]] if wave.get(b) == len(way)]):
                way.append(maze.goal if maze.goal in on else rng.choice(on))
            if way[-1] == maze.goal:
                break
            if sum(map(len, lines)) > PATIENCE or rng.random() >= AGAIN:
                way += _straight(maze, way[-1], rng)
                break
            lines.append(f"{' '.join(way)} back")
    lines.append("path " + " ".join(way))
    return way


def _check(maze: Maze, rng: random.Random, lines: list[str], way: list[str], bound: str, least: int) -> list[str]:
    """Perhaps checks the way's cells and its length against `bound`, and perhaps repairs it."""
    walls: list[str] = []
    if rng.random() < LOOK and sum(map(len, lines)) < PATIENCE:
        walls = [cell for cell in way if not maze.free(cell)]
        lines.append(f"check {''.join(maze.glyph[cell] for cell in way)} {'no' if walls else 'ok'}")
        if walls and rng.random() < REPAIR:
            return _walk(maze, rng, lines, "redo ", walls) or way
    if rng.random() < CHECK and sum(map(len, lines)) < PATIENCE:
        n = len(way) - 1 + (rng.choice((-1, 1)) if rng.random() < COUNT else 0)
        lines.append(f"check {n} moves {bound} {'ok' if n == least else 'no'}")
        if n != least and rng.random() < REPAIR:
            return min(way, _walk(maze, rng, lines, "redo ") or way, key=len)
    return way


class MazeTask(Task):
    """See the module's docstring for the format of a thought. Levels are grid sizes (`SIZES`)."""

    name = "maze"
    levels = tuple(SIZES)
    description = "the shortest way from S to G through a text grid"
    form = r"(?<![.#SG])[.#SG]+(?:\n[.#SG]+)+(?![.#SG])"
    max_thought = 480

    def draw(self, level: int, rng: random.Random) -> tuple[str, str, Reference]:
        rows, cols = rng.choice(SIZES[level])
        while True:
            density = rng.uniform(0.15, 0.45)
            cells = ["#" if rng.random() < density else "." for _ in range(rows * cols)]
            start, goal = rng.sample(range(rows * cols), 2)
            cells[start], cells[goal] = "S", "G"
            text = "\n".join("".join(cells[r * cols : (r + 1) * cols]) for r in range(rows))
            maze = parse(text)
            far = maze.distance.get(maze.goal, 0)
            if far >= NEAREST[level] and (far > maze.away(maze.start) or rng.random() < DIRECT):
                way = _trace(maze, maze.distance, lambda near: near[0])[::-1]
                return text, text, Reference(moves(way), {"distance": len(way) - 1})

    def canonical(self, question: Question, answer: str) -> str | None:
        return answer if re.fullmatch("[UDLR]+", answer) else None

    def check(self, problem: Problem, answer: str) -> Verdict:
        if self.canonical(problem.question, answer) is None:
            return Verdict(False, error="not a string of the moves U D L R")
        maze = parse(problem.question.text)
        right = len(answer) == maze.distance[maze.goal] and _follow(maze, answer) == maze.goal
        return Verdict(right, answer)

    def check_steps(self, problem: Problem, thought: str) -> list[StepVerdict]:
        maze = parse(problem.question.text)
        way: list[str] = []  # the latest path or walk to the goal, which checks speak of
        out: list[StepVerdict] = []
        for line in filter(str.strip, thought.split("\n")):
            kind, why = StepKind.WORK, ""
            if found := _PLACES.fullmatch(line):
                why = "" if found.groups() == (maze.start, maze.goal) else "S or G is elsewhere"
            elif found := _WAVE.fullmatch(line):
                cells = (found[2] or "").split()
                true = sorted(cell for cell, d in maze.distance.items() if d == int(found[1]))
                why = "" if sorted(cells) == true else f"the wave is {' '.join(true)}"
            elif found := _WAY.fullmatch(line):
                cells, back = found[3].split(), found[4] == " back"
                kind = StepKind.BACKTRACK if back or found[1] else StepKind.WORK
                why = self._way(maze, found[2] or "", cells, found[4] or "")
                if found[2] == "path " or found[4] == " goal":
                    way = cells
            elif line.startswith("check"):
                kind, why = StepKind.CHECK, self._checked(maze, line, way)
            elif _CLAIM.match(line):
                why = "not a line of a known form"
            else:
                out.append(StepVerdict(line, None, StepKind.OTHER))
                continue
            out.append(StepVerdict(line, not why, kind, why))
        return out

    @staticmethod
    def _way(maze: Maze, word: str, cells: list[str], tail: str) -> str:
        """What is wrong with a path, trace or walk; empty when nothing is."""
        first, last = (maze.goal, maze.start) if word == "trace " else (maze.start, maze.goal)
        if word and tail:
            return "not a line of a known form"
        if cells[0] != first:
            return f"does not begin at {first}"
        if (word or tail == " goal") and cells[-1] != last:
            return f"does not end at {last}"
        for a, b in pairwise(cells):
            if b not in maze.beside[a]:
                return f"{b} is not beside {a}"
            if not maze.free(b):
                return f"{b} is a wall"
        return ""

    @staticmethod
    def _checked(maze: Maze, line: str, way: list[str]) -> str:
        """What is wrong with a check of the latest way; empty when nothing is."""
        if not way:
            return "there is no way to check"
        if found := _LENGTH.fullmatch(line):
            bound = int(found[2] or found[3])
            if int(found[1]) != len(way) - 1:
                return f"the way has {len(way) - 1} moves"
            if bound != (maze.distance[maze.goal] if found[2] else maze.away(maze.start)):
                return "G is not that far"
            return "" if (found[4] == "ok") == (int(found[1]) == bound) else f"not {found[4]}"
        if found := _LOOK.fullmatch(line):
            seen = "".join(maze.glyph.get(cell, "#") for cell in way)
            if found[1] != seen:
                return f"the way's cells are {seen}"
            return "" if (found[2] == "ok") == ("#" not in seen) else f"not {found[2]}"
        return "not a line of a known form"

    def solve(self, problem: Problem) -> Solution:
        maze = parse(problem.question.text)
        far = maze.distance[maze.goal]
        lines = [f"S{maze.start} G{maze.goal}"]
        for k in range(far + 1):
            lines.append(f"{k}:{' '.join(cell for cell, d in maze.distance.items() if d == k)}")
        back = _trace(maze, maze.distance, lambda near: near[0])
        lines += ["trace " + " ".join(back), "path " + " ".join(back[::-1]), f"check {far} moves wave {far} ok"]
        return Solution("\n".join(lines), moves(back[::-1]))

    def imperfect(self, problem: Problem, rng: random.Random) -> Solution:
        maze = parse(problem.question.text)
        lines = [f"S{maze.start} G{maze.goal}"]
        mood, way = rng.random(), []
        turn = TURN * CARE if mood < WAVES else TURN
        if mood < WAVES:
            way = _waves(maze, rng, lines)
            if lines[-1].startswith("path"):
                k = len([line for line in lines if ":" in line]) - 1
                way = _check(maze, rng, lines, way, f"wave {k}", k)
        elif mood < WAVES + WALK:
            way = _walk(maze, rng, lines)
            if lines[-1].endswith("goal"):
                away = maze.away(maze.start)
                way = _check(maze, rng, lines, way, f"{away} away", away)
        way = way or [maze.start, *_straight(maze, maze.start, rng)]
        answer = "".join(rng.choice("UDLR") if rng.random() < turn else move for move in moves(way))
        return Solution("\n".join(lines), answer)

    def red_team(self, problem: Problem) -> list[str]:
        maze, gold = parse(problem.question.text), problem.reference.answer
        wrong = ["", gold.lower(), gold + " ", gold + "\n", "\n" + gold, " ".join(gold), gold + gold, gold[:-1]]
        wrong += [f"{gold},{gold}", f"{gold} or {gold}", f"path {gold}", f"{gold}.", ",".join(gold)]
        wrong += [gold[0] + OPPOSITE[gold[0]] + gold]  # there and back first: not shortest
        wrong += [gold + OPPOSITE[gold[-1]] + gold[-1]]  # passes G and comes back
        wrong += [gold + move for move in STEP]
        rows = problem.question.text.split("\n")
        ring = ["." * (len(rows[0]) + 2)]
        for world in (problem.question.text.replace("#", "."), "\n".join([*ring, *(f".{r}." for r in rows), *ring])):
            other = parse(world)  # without walls, and with a way around the outside
            way = moves(_trace(other, other.distance, lambda near: near[0])[::-1])
            if _follow(maze, way) is None:
                wrong.append(way)
        return wrong
