import json
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mull.errors import UserError
from mull.evals import evidence, tables

REPOSITORY = Path(__file__).parents[2]


def row(**changes) -> Any:
    base = {
        "claim": "pass@1 of the trained model",
        "value": 0.61,
        "low": 0.58,
        "high": 0.64,
        "n": 500,
        "seeds": [0, 1],
        "unit": "share",
        "command": "mull demo",
        "commit": "abc",
        "machine": "AMD EPYC, 2 cores",
    }
    return {**base, **changes}


def test_round_trip_with_fields_in_order(tmp_path):
    path = evidence.write("demo-curves", [dict(reversed(row().items()))], root=tmp_path)
    assert path == tmp_path / "demo-curves.json"
    assert evidence.read("demo-curves", tmp_path) == [row()]
    assert list(json.loads(path.read_text())[0]) == list(evidence.Row.__annotations__)
    assert [p.name for p in tmp_path.iterdir()] == ["demo-curves.json"]


def test_commit_and_machine_are_filled_in(tmp_path):
    bare = {k: v for k, v in row().items() if k not in ("commit", "machine")}
    evidence.write("bare", [bare], root=tmp_path)
    (written,) = evidence.read("bare", tmp_path)
    assert written["machine"] == evidence.machine() and socket.gethostname() not in written["machine"]
    assert written["commit"] == evidence.commit()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"value": float("nan")}, "finite"),
        ({"value": "0.6"}, "finite"),
        ({"value": True}, "finite"),
        ({"value": 0.7}, "outside its interval"),
        ({"low": None}, "both null"),
        ({"low": float("-inf")}, "low and high"),
        ({"n": 0}, "positive"),
        ({"n": 2.0}, "whole number"),
        ({"seeds": 3}, "list of whole numbers"),
        ({"seeds": [0.5]}, "list of whole numbers"),
        ({"claim": " "}, "claim"),
        ({"machine": ""}, "machine"),
        ({"hgih": 1}, "did you mean 'high'"),
    ],
)
def test_what_is_no_evidence_is_not_written(tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        evidence.write("bad", [row(), row(**changes)], root=tmp_path)
    assert not list(tmp_path.iterdir())


def test_host_names_stay_out(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "build-7.lan")
    with pytest.raises(UserError, match="build-7"):
        evidence.write("host", [row(machine="AMD EPYC (build-7)")], root=tmp_path)
    evidence.write("host", [row()], root=tmp_path)


def test_bad_names_and_files(tmp_path):
    for name in ("../up", "Upper", "a b", ""):
        with pytest.raises(UserError, match="lower-case"):
            evidence.write(name, [row()], root=tmp_path)
    with pytest.raises(UserError, match="no rows"):
        evidence.write("empty", [], root=tmp_path)
    evidence.write("speed", [row()], root=tmp_path)
    with pytest.raises(UserError, match="did you mean 'speed'"):
        evidence.read("sped", tmp_path)
    (tmp_path / "broken.json").write_text("[{")
    with pytest.raises(UserError, match="not JSON"):
        evidence.read("broken", tmp_path)
    (tmp_path / "shape.json").write_text("{}")
    with pytest.raises(UserError, match="list of rows"):
        evidence.read("shape", tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = evidence.write("kept", [row()], root=tmp_path)

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError):
        evidence.write("kept", [row(value=0.6)], root=tmp_path)
    assert evidence.read("kept", tmp_path) == [row()] and list(tmp_path.iterdir()) == [path]


def test_commit_says_when_code_changed_and_documents_do_not_count(tmp_path):
    def git(*arguments):
        identity = ("-c", "user.name=t", "-c", "user.email=t@t")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    assert evidence.commit(tmp_path) == "unknown"
    git("init", "-q")
    for name in ("code.py", "README.md", "docs/evidence/a.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    git("add", ".")
    git("commit", "-q", "-m", "x")
    clean = evidence.commit(tmp_path)
    assert len(clean) == 12
    (tmp_path / "README.md").write_text("2")
    (tmp_path / "docs/evidence/a.json").write_text("2")
    assert evidence.commit(tmp_path) == clean
    (tmp_path / "code.py").write_text("2")
    assert evidence.commit(tmp_path) == clean + "+changes"


# ----------------------------------------------------------------------------------------------- tables

MARKED = "# Title\n\n<!-- evidence:speed -->\n<!-- /evidence -->\n\ntail without newline"


@pytest.fixture
def documents(tmp_path):
    evidence.write("speed", [row(), row(claim="a|b", value=3.2, low=None, high=None, unit="x")], root=tmp_path / "ev")
    (tmp_path / "docs" / "deep").mkdir(parents=True)
    (tmp_path / "README.md").write_text(MARKED)
    (tmp_path / "docs" / "deep" / "x.md").write_text(MARKED)
    return tmp_path


def run(documents, *flags):
    return tables.main([str(documents / "README.md"), str(documents / "docs"), "--root", str(documents / "ev"), *flags])


def test_tables_are_drawn_and_drift_is_found(documents, capsys):
    assert run(documents, "--check") == 1  # an empty table is drift
    assert (documents / "README.md").read_text() == MARKED  # and a check writes nothing
    assert run(documents) == 0
    for file in ("README.md", "docs/deep/x.md"):
        text = (documents / file).read_text()
        assert "| pass@1 of the trained model | 61.0% | 58.0% to 64.0% | 500 | 0, 1 |" in text
        assert r"| a\|b | 3.2x | - | 500 | 0, 1 |" in text
        assert text.startswith("# Title\n\n<!-- evidence:speed -->\n\n| what")
        assert text.endswith("AMD EPYC, 2 cores\n\n<!-- /evidence -->\n\ntail without newline")
    assert run(documents, "--check") == 0
    before = (documents / "README.md").read_text()
    assert run(documents) == 0 and (documents / "README.md").read_text() == before

    # somebody edits a figure in the document
    (documents / "README.md").write_text(before.replace("61.0%", "91.0%"))
    capsys.readouterr()
    assert run(documents, "--check") == 1
    assert "README.md: speed differs" in capsys.readouterr().out
    assert run(documents) == 0 and (documents / "README.md").read_text() == before

    # somebody measures anew and forgets the documents
    evidence.write("speed", [row(value=0.6)], root=documents / "ev")
    assert run(documents, "--check") == 1


def test_markers_in_code_blocks_are_left_alone(documents):
    text = "```\n<!-- evidence:nothing -->\n```\n~~~~ md\n```\n<!-- evidence:nothing -->\n~~~~\n" + MARKED
    drawn, changed = tables.redraw(text, "x.md", documents / "ev")
    assert changed == ["speed"] and drawn.startswith(text[:60])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<!-- evidence:speed -->\n", "has no"),
        ("<!-- evidence:speed -->\n<!-- evidence:speed -->\n<!-- /evidence -->\n", "line 2"),
        ("<!-- /evidence -->\n", "without a table"),
        ("<!-- evidence:spede -->\n<!-- /evidence -->\n", "did you mean 'speed'"),
    ],
)
def test_broken_markers_change_no_document(documents, capsys, text, says):
    (documents / "docs" / "y.md").write_text(text)
    assert run(documents) == 2
    assert says in capsys.readouterr().err
    assert (documents / "README.md").read_text() == MARKED


def test_missing_document_is_named(tmp_path, capsys):
    assert tables.main([str(tmp_path / "none.md")]) == 2
    assert "none.md" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.0, "share", "100.0%"),
        (-0.031, "points", "-3.1 points"),
        (412, "s", "412 s"),
        (412.26, "s", "412.3 s"),
        (1.5e12, "FLOPs", "1.50e+12 FLOPs"),
        (1.5e12, "tokens", "1,500,000,000,000 tokens"),
        (12345678.9, "FLOPs", "1.23e+07 FLOPs"),
        (0.0000123, "s", "1.23e-05 s"),
        (0, "s", "0 s"),
    ],
)
def test_quantities(value, unit, text):
    assert tables.quantity(value, unit) == text


def test_commands_with_backticks_stay_code():
    assert "``  echo `date` | wc ``".replace("  ", " ") in tables.table([row(command="echo `date` | wc")])


def test_this_repository_has_no_drift():
    paths = [p for p in (REPOSITORY / "README.md", REPOSITORY / "docs") if p.exists()]
    assert tables.update(paths, REPOSITORY / evidence.ROOT, check=True) == []


def test_columns_of_numbers_stand_in_their_order(tmp_path):
    def heads(*columns: str) -> str:
        return tables.grid([row(claim=f"g / row {i} / {column}") for i, column in enumerate(columns)]).splitlines()[0]

    assert heads("4 chains", "16 chains", "1 chains").split(" | ")[1:] == ["1 chains", "4 chains", "16 chains |"]
    assert heads("1,024", "1.5", "256").split(" | ")[1:] == ["1.5", "256", "1,024 |"]
    assert heads("last", "3 digits", "1 digits").split(" | ")[1:] == ["last", "3 digits", "1 digits |"]


def test_cells_of_a_grid_are_short(tmp_path):
    def cell(column: str, unit: str, *figures: float) -> str:
        value, low, high = figures
        drawn = tables.grid([row(claim=f"g / arm / {column}", unit=unit, value=value, low=low, high=high)])
        return drawn.splitlines()[2].split(" | ")[1].removesuffix(" |")

    assert cell("pass@1", "points", 0.031, -0.004, 0.066) == "+3.1 (-0.4 to +6.6)", "each end has its sign"
    assert cell("pass@1", "share", 0.6134, 0.58, 0.64) == "61.3 (58–64)"
    assert cell("pass@1", "points", -0.0001, -0.02, 0.02) == "+0.0 (-2.0 to +2.0)"
    assert cell("tokens", "tokens", 1507214, 1, 2) == "1,507,214" and cell("spent", "tokens", 7, 1, 9) == "7 tokens"
    assert cell("FLOPs of the search", "FLOPs of the search", 771129116672, 1, 2) == "7.71e+11"


def test_a_grid_has_a_table_for_each_group(tmp_path):
    figures = [("chain", "ORM", "1", 0.3), ("chain", "ORM", "4", 0.5), ("chain", "PRM", "4", 0.6)]
    figures.append(("addition", "ORM", "1", 0.2))
    rows = [row(claim=" / ".join(what), value=v, low=v - 0.1, high=v + 0.1) for *what, v in figures]
    evidence.write("grid", rows, tmp_path)
    page = tmp_path / "page.md"
    page.write_text("<!-- grid:grid -->\n<!-- /evidence -->\n")
    assert tables.update([page], tmp_path) == [f"{page}: grid"]
    text = page.read_text()
    assert "| chain (n = " in text and "| ORM | 30.0 (20–40) | 50.0 (40–60) |" in text
    assert "| PRM |  | 60.0 (50–70) |" in text and text.count("|---|") == 2
    assert tables.update([page], tmp_path, check=True) == []
    evidence.write("flat", [row()], tmp_path)
    page.write_text("<!-- grid:flat -->\n<!-- /evidence -->\n")
    with pytest.raises(UserError, match="no grid"):
        tables.update([page], tmp_path)
