from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.config import Option, describe, load, refuse_unread, to_toml
from mull.errors import UserError


@dataclass(frozen=True)
class Optim:
    lr: float = 1e-4  # peak learning rate
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 1.0
    kind: Literal["adamw", "muon"] = "adamw"


@dataclass(frozen=True)
class Rollout:
    group: int = field(default=8, metadata={"help": "answers per question"})
    optim: Optim = field(default_factory=lambda: Optim(lr=0.5))


@dataclass(frozen=True)
class Run:
    model: Path  # folder of the model
    steps: int = 100  # optimiser steps
    name: str = "a run"
    note: Optional[str] = None  # noqa: UP045
    compile: bool = False
    tasks: tuple[str, ...] = ("chain",)
    levels: tuple[int, ...] = ()
    width: Literal[1, 2, "auto"] = "auto"
    optim: Optim = Optim()
    rollout: Rollout = Rollout()
    extra: Optim | None = None


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


def refused(tmp_path: Path, text: str | None = None, *overrides: str) -> str:
    path = None if text is None else write(tmp_path, text)
    with pytest.raises(UserError) as e:
        load(Run, path, list(overrides))
    assert "\n" not in str(e.value)
    return str(e.value)


def test_defaults_file_and_overrides_in_that_order(tmp_path: Path):
    path = write(
        tmp_path, 'model = "m"\nsteps = 7\nname="file"\n[optim]\nlr = 1\nclip = "none"\n[rollout.optim]\nkind="muon"'
    )
    cfg = load(Run, path, ["steps=8", "optim.betas=[0.8, 1]", "steps=9"])
    assert cfg.model == Path("m") and cfg.steps == 9 and cfg.name == "file" and cfg.compile is False
    assert cfg.optim == Optim(lr=1.0, betas=(0.8, 1.0), clip=None)
    assert isinstance(cfg.optim.lr, float) and isinstance(cfg.optim.betas[1], float)
    # a section's default is the field's default instance, not the class's own defaults
    assert cfg.rollout.optim == Optim(lr=0.5, kind="muon")
    assert cfg.extra is None


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("name=hello world", "name", "hello world"),
        ("name=123", "name", "123"),
        ("name=true", "name", "true"),
        ('name="quoted"', "name", "quoted"),
        ("name=a=b", "name", "a=b"),
        ("name=", "name", ""),
        ("name=1\nsteps = 5", "name", "1\nsteps = 5"),
        ("note=none", "note", None),
        ("note=7", "note", "7"),
        ("steps=1_000", "steps", 1000),
        (" steps = 3 ", "steps", 3),
        ("compile=true", "compile", True),
        ("model=runs/x", "model", Path("runs/x")),
        ("tasks=chain,maze", "tasks", ("chain", "maze")),
        ("tasks=[chain, maze]", "tasks", ("chain", "maze")),
        ('tasks=["chain"]', "tasks", ("chain",)),
        ("tasks=chain", "tasks", ("chain",)),
        ("tasks=[]", "tasks", ()),
        ("levels=1,2", "levels", (1, 2)),
        ("levels=3", "levels", (3,)),
        ("width=2", "width", 2),
        ("width=auto", "width", "auto"),
        ("extra.lr=3", "extra", Optim(lr=3.0)),
        ("optim={lr = 2, kind='muon'}", "optim", Optim(lr=2.0, kind="muon")),
    ],
)
def test_an_override_is_read_as_its_field_demands(override: str, key: str, value: object):
    got = getattr(load(Run, None, ["model=m", override]), key)
    assert got == value and type(got) is type(value)


def test_overrides_of_one_section_add_up():
    cfg = load(Run, None, ["model=m", "optim={lr=2}", "optim.kind=muon", "extra.lr=1", "extra=none", "extra.clip=2"])
    assert cfg.optim == Optim(lr=2.0, kind="muon")
    assert cfg.extra == Optim(clip=2.0)  # none in between cleared the section


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('model="m"\nstep = 3', ["run.toml", "unknown key 'step'", "did you mean 'steps'?"]),
        ('model="m"\n[optim]\nlearn = 3', ["unknown key 'optim.learn'", "optim.lr"]),
        ('model="m"\n[optin]\nlr = 3', ["unknown key 'optin'", "'optim'"]),
        ('model="m"\nkind = "muon"', ["unknown key 'kind'", "did you mean 'optim.kind'?"]),
        ('model="m"\nsteps = 3.0', ["run.toml", "'steps' must be a whole number", "3.0"]),
        ('model="m"\nsteps = true', ["'steps' must be a whole number", "not true"]),
        ('model="m"\nsteps = "3"', ["'steps' must be a whole number", "the text '3'"]),
        ('model="m"\ncompile = 1', ["'compile' must be true or false"]),
        ("model=3", ["'model' must be a path"]),
        ('model="m"\nname = [1]', ["'name' must be text"]),
        ('model="m"\nname = 1979-05-27', ["'name' must be text", "1979"]),
        ('model="m"\ntasks = "chain"', ["'tasks' must be a list, each text"]),
        ('model="m"\nlevels = [1, "x"]', ["'levels' must be a list, each a whole number", "'x'"]),
        ('model="m"\n[optim]\nbetas = [1, 2, 3]', ["'optim.betas' must be a list of 2", "3 values"]),
        ('model="m"\n[optim]\nkind = "adam"', ["one of adamw, muon", "did you mean 'adamw'?"]),
        ('model="m"\n[optim]\nclip = "off"', ["'optim.clip' must be a number, or none"]),
        ('model="m"\noptim = 3', ["'optim' is a section"]),
        ('model="m"\n[steps]\na = 3', ["'steps' must be a whole number", "a section"]),
        ('model="m"\nwidth = 3', ["one of 1, 2, auto"]),
        ("steps = 3", ["needs a value for 'model'"]),
        ('model="m"\n\nsteps = = 3', ["run.toml", "line 3"]),
        ('model="m"\nname = """\nabc\n', ["run.toml", "line 3"]),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, text: str, wanted: list[str]):
    message = refused(tmp_path, text)
    for part in wanted:
        assert part in message, message


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("steps", "key=value"),
        ("=3", "key=value"),
        ("optim..lr=3", "key=value"),
        ("stepz=3", "did you mean 'steps'?"),
        ("optim.lrr=3", "did you mean 'optim.lr'?"),
        ("lr=3", "did you mean 'optim.lr'?"),
        ("steps=many", "must be a whole number, not the text 'many'"),
        ("steps.x=3", "not a section"),
        ("optim=3", "is a section"),
        ("optim={lrr=3}", "did you mean 'optim.lr'?"),
        ("compile=True", "true or false"),
        ("levels=1,x", "whole number"),
        ("optim.kind=sgd", "one of adamw, muon"),
    ],
)
def test_a_bad_override_is_one_sentence_that_quotes_it(tmp_path: Path, override: str, wanted: str):
    message = refused(tmp_path, None, "model=m", override)
    assert wanted in message and repr(override) in message, message


def test_files_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(UserError, match=r"absent\.toml does not exist"):
        load(Run, tmp_path / "absent.toml")
    with pytest.raises(UserError, match="cannot be read"):
        load(Run, tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(UserError, match="UTF-8"):
        load(Run, tmp_path / "latin.toml")


def test_a_range_check_of_the_dataclass_is_the_users_error():
    @dataclass
    class Positive:
        steps: int = 1

        def __post_init__(self) -> None:
            if self.steps < 1:
                raise UserError(f"steps must be at least 1, not {self.steps}")

    with pytest.raises(UserError, match="at least 1"):
        load(Positive, None, ["steps=0"])


@dataclass
class Odd:
    x: int | str = 1


def test_an_impossible_annotation_is_a_bug_and_not_the_users():
    with pytest.raises(TypeError, match="only X or None"):
        load(Odd, None, ["x=1"])


numbers = st.floats(allow_nan=False)
optims = st.builds(
    Optim,
    lr=numbers,
    betas=st.tuples(numbers, numbers),
    clip=st.none() | numbers,
    kind=st.sampled_from(["adamw", "muon"]),
)
texts = st.text()
runs = st.builds(
    Run,
    model=texts.map(Path),
    steps=st.integers(-(2**63), 2**63 - 1),
    name=texts,
    note=st.none() | texts.filter(lambda t: t != "none"),
    compile=st.booleans(),
    tasks=st.lists(texts).map(tuple),
    levels=st.lists(st.integers(-(2**63), 2**63 - 1)).map(tuple),
    width=st.sampled_from([1, 2, "auto"]),
    optim=optims,
    rollout=st.builds(Rollout, group=st.integers(0, 9), optim=optims),
    extra=st.none() | optims,
)


@settings(max_examples=60)
@given(cfg=runs)
def test_a_resolved_config_round_trips(tmp_path_factory: pytest.TempPathFactory, cfg: Run):
    path = tmp_path_factory.mktemp("toml") / "config.toml"
    path.write_bytes(to_toml(cfg).encode())
    again = load(Run, path)
    assert again == cfg
    assert to_toml(again) == to_toml(cfg)


@settings(max_examples=100)
@given(
    key=st.sampled_from(["steps", "name", "tasks", "levels", "optim.clip", "optim", "width", "extra"]), text=st.text()
)
def test_no_override_text_does_worse_than_a_sentence(key: str, text: str):
    try:
        load(Run, None, ["model=m", f"{key}={text}"])
    except UserError as e:
        assert "override" in str(e)


def test_nan_and_none_round_trip(tmp_path: Path):
    cfg = Run(model=Path("m"), optim=Optim(lr=math.nan, clip=None), extra=None)
    again = load(Run, write(tmp_path, to_toml(cfg)))
    assert math.isnan(again.optim.lr) and again.optim.clip is None
    assert replace(again, optim=Optim()) == replace(cfg, optim=Optim())
    # None also where the default is something else
    assert load(Run, write(tmp_path, to_toml(replace(cfg, optim=Optim(clip=None))))).optim.clip is None


def test_the_text_none_in_an_optional_field_is_refused_rather_than_lost():
    with pytest.raises(ValueError, match="none"):
        to_toml(Run(model=Path("m"), note="none"))


def test_describe_lists_every_key_with_type_default_and_help():
    options = {o.key: o for o in describe(Run)}
    assert options["model"] == Option("model", "a path", "", "folder of the model")
    assert options["steps"] == Option("steps", "a whole number", "100", "optimiser steps")
    assert options["optim.lr"] == Option("optim.lr", "a number", "0.0001", "peak learning rate")
    assert options["rollout.group"].help == "answers per question"
    assert options["rollout.optim.lr"].default == "0.5"  # the default of the instance
    assert options["tasks"].default == '["chain"]' and options["note"].default == '"none"'
    # every listed key can be overridden with its own default
    for option in options.values():
        if option.default:
            assert load(Run, None, ["model=m", f"{option.key}={option.default}"]).steps == 100


def test_a_given_key_that_nothing_reads_is_refused():
    @dataclass(frozen=True)
    class Two:
        method: Literal["a", "b", "c"] = "a"
        on: bool = False
        rate: float = 1.0
        words: tuple[str, ...] = ()

        def __post_init__(self) -> None:
            refuse_unread(self, "method", {"rate": ("b", "c"), "words": ("a",)})
            refuse_unread(self, "on", {"words": (True,)})

    assert Two(rate=1.0).rate == Two().rate  # at its default it was not given
    assert Two(method="b", rate=2.0).rate == 2.0
    assert Two(on=True, words=("x",)).words == ("x",)
    with pytest.raises(UserError, match=r"^rate does nothing with method=a: leave it out, or give method=b or c$"):
        Two(rate=2.0)
    with pytest.raises(UserError, match=r"^words does nothing with on=false: leave it out, or give on=true$"):
        Two(words=("x",))
