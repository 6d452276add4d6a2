"""The command line. The commands that train are rows of `training.COMMANDS`; those that use a model are here.

Every command imports what it needs inside its own function, so that `mull --help` answers at once. What a person did
wrong is one sentence and exit code 2; a bug keeps its traceback.
"""

from __future__ import annotations

import difflib
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from mull import __version__
from mull.cli.chat import Device, Weights, add_chat
from mull.cli.serve import add_serve
from mull.cli.training import Override, Quiet, RecipeCommand, add_to, config_rows, row_of
from mull.errors import UserError, nearest

app = typer.Typer(
    name="mull",
    help="An open o1: teach a model to think before it answers, and make longer thinking pay.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: a fifth of a second faster
    pretty_exceptions_enable=False,
)

add_to(app)


@app.callback(invoke_without_command=True)
def top(ctx: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False):
    if version:
        print(f"mull {__version__}")
        raise typer.Exit()


# ------------------------------------------------------------------------------------------ using a model

Strategy = Annotated[
    str, typer.Option("--strategy", metavar="NAME[:key=value,…]", help="How the thinking is spent: mull strategies.")
]
Scorer = Annotated[
    str, typer.Option("--scorer", metavar="DIR|logprob|certainty", help="What judges steps: mull reward trains one.")
]
Critic = Annotated[str, typer.Option("--critic", metavar="DIR", help="A critic that mull reward trained, for revise.")]
Generator = Annotated[
    str, typer.Option("--generator", metavar="DIR", help="A model that proposes how to begin, for the strategy roles.")
]
Calibration = Annotated[
    str, typer.Option("--calibration", metavar="FILE", help="What mull calibrate made, for the strategy auto.")
]
Endpoint = Annotated[
    str, typer.Option("--endpoint", metavar="URL", help="An OpenAI-compatible server instead of --model.")
]
Tokenizer = Annotated[
    str, typer.Option("--tokenizer", metavar="DIR", help="The served model's tokenizer, with --endpoint.")
]
Served = Annotated[
    str, typer.Option("--endpoint-model", metavar="NAME", help="Which of the server's models; default: its only one.")
]

Params = Annotated[
    float, typer.Option("--endpoint-params", min=0, help="Parameters of the served model, for FLOPs; else unknown.")
]

Effort = Annotated[
    str,
    typer.Option(
        "--effort", metavar="low|medium|high|TOKENS", help="Ask for it in the prompt: for models trained to obey."
    ),
]


@app.command("strategies")
def strategies_command() -> None:
    """List the strategies, what their N is, and their options."""
    from mull.search.named import STRATEGIES, options_of

    for name, (_, _, n) in STRATEGIES.items():
        print(f"{name}\n    N: {n}")
        shown = [f"{key}={p.default}" for key, p in options_of(name).items()]
        if shown:
            print(f"    options: {', '.join(shown)}")


@app.command("think")
def think_command(
    question: Annotated[str | None, typer.Argument(metavar="QUESTION", help="Left out with --task.")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="DIR", help="Default: runs/demo/model where it exists, else nano."),
    ] = None,
    task: Annotated[str | None, typer.Option("--task", metavar="NAME", help="Draw a held-out problem of it.")] = None,
    level: Annotated[int | None, typer.Option("--level", help="The level of that problem; default: easiest.")] = None,
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, help="Chains, or the strategy's N.")] = 1,
    budget: Annotated[int | None, typer.Option("--budget", min=0, help="Thinking tokens of each chain.")] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            "--strategy", metavar="NAME[:key=value,…]", help="Default: vote with several samples, else sample."
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, help="Tokens to sample in all, abandoned branches included.")
    ] = None,
    scorer: Scorer = "",
    critic: Critic = "",
    generator: Generator = "",
    calibration: Calibration = "",
    endpoint: Endpoint = "",
    tokenizer: Tokenizer = "",
    endpoint_model: Served = "",
    endpoint_params: Params = 0,
    device: Device = "cpu",
    dtype: Weights = "float32",
    effort: Effort = "",
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Another seed gives another thought or problem.")] = 0,
    raw: Annotated[bool, typer.Option("--raw", help="Print the model's own text, and the usage on stderr.")] = False,
) -> None:
    """Ask: the thought, the answer, what they cost."""
    from mull.recipes import think
    from mull.search.sources import Source

    if (question is None) == (task is None):
        raise UserError("give one question in quotes, or --task NAME for a held-out problem (not both)")
    if level is not None and task is None:
        raise UserError("--level chooses among a task's problems: give --task NAME with it")
    chosen = strategy or ("vote" if samples > 1 else "sample")
    where, said = think.default_model() if model is None and not endpoint else (model or "", model or "")
    judges = (scorer, critic, endpoint_params, generator)
    weights = cast(Any, dtype)
    source = Source(where, endpoint, tokenizer, endpoint_model, *judges, device=device, dtype=weights)
    asked = think.Ask(
        question or "",
        task,
        level,
        samples,
        budget,
        chosen,
        temperature,
        seed,
        tokens=tokens,
        calibration=calibration,
        effort=effort,
    )
    think.show(think.think(asked, source), source.name if endpoint else said, raw)


@app.command("eval")
def eval_command(
    ctx: typer.Context,
    task: Annotated[
        list[str], typer.Option("--task", metavar="NAME", help="A puzzle, gym:NAME, file.jsonl or file.py:Class.")
    ],
    model: Annotated[str, typer.Option("--model", metavar="DIR", help="A Hugging Face folder, or nano.")] = "nano",
    level: Annotated[
        list[int] | None, typer.Option("--level", help="May be repeated; default: all levels of the task.")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Problems of each task, spread over its levels.")] = 256,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Chains for each problem, or the strategy's N.")] = 4,
    strategy: Strategy = "sample",
    scorer: Scorer = "",
    critic: Critic = "",
    generator: Generator = "",
    calibration: Calibration = "",
    endpoint: Endpoint = "",
    tokenizer: Tokenizer = "",
    endpoint_model: Served = "",
    endpoint_params: Params = 0,
    device: Device = "cpu",
    dtype: Weights = "float32",
    budget: Annotated[int, typer.Option("--budget", min=0, help="Thinking tokens of each chain.")] = 512,
    answer: Annotated[int, typer.Option("--answer", min=1, help="Answer tokens of each chain.")] = 64,
    tokens: Annotated[
        int, typer.Option("--tokens", min=0, help="Tokens to sample for one problem in all; 0: no limit.")
    ] = 0,
    effort: Effort = "",
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")] = 1.0,
    split: Annotated[str, typer.Option("--split", metavar="train|valid|test")] = "test",
    seed: Annotated[int, typer.Option("--seed", help="Of the problems and the sampling.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the same figures there.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Measure a model on held-out problems."""
    from mull.recipes import measure

    wanted = measure.Measure(
        model=model,
        tasks=tuple(task),
        levels=tuple(level or ()),
        problems=n,
        samples=samples,
        strategy=strategy,
        think_tokens=budget,
        answer_tokens=answer,
        temperature=temperature,
        split=split,
        seed=seed,
        tokens=tokens,
        endpoint=endpoint,
        tokenizer=tokenizer,
        endpoint_model=endpoint_model,
        endpoint_params=endpoint_params,
        scorer=scorer,
        critic=critic,
        generator=generator,
        calibration=calibration,
        effort=effort,
        device=device,
        dtype=cast(Any, dtype),
    )
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise UserError(f"--json {json_file}: the folder {json_file.parent} does not exist")
    result = measure.measure(wanted, "quiet" if quiet else "auto")
    measure.show(result)
    if json_file is not None:
        measure.write_json(result, ctx.obj, json_file)


@app.command("report")
def report_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a training run, or of mull demo.")],
    control: Annotated[
        list[Path] | None,
        typer.Option("--control", metavar="DIR", help="A run or a model to hold it against; may be repeated."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Build a run's report.html again: before and after on the same held-out problems, curves, costs, controls."""
    from mull.recipes.report import report

    print(f"report: {report(run, control or (), 'quiet' if quiet else 'auto')}")


add_serve(app)
add_chat(app)


@app.command("bench")
def bench_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="rollout, rl-step, …")],
    override: Override = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there.")] = None,
) -> None:
    """Compare speed with other libraries."""
    from mull.recipes.bench import bench

    options = {}
    for text in override or ():
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"override {text!r} is not of the form key=value")
        options[key.strip()] = value.strip()
    raise typer.Exit(bench(name, json_file, options))


# ------------------------------------------------------------------------------------- what a person sees


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 2 for a mistake, 130 after Ctrl-C, 141 for a closed pipe."""
    # Threads that spin while they wait collapse as soon as anything else runs. To be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    arguments = list(sys.argv[1:] if args is None else args)
    command = shlex.join(["mull", *arguments])
    try:
        code = dispatch(arguments, command)
        sys.stdout.flush()
        return code
    except UserError as mistake:
        return complain(str(mistake))
    except KeyboardInterrupt:
        return complain(interrupted(arguments), code=130, label="")
    except BrokenPipeError:
        # Whoever read our output has gone; without this the interpreter complains when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if was_interrupted(error):
            return complain(interrupted(arguments), code=130, label="")
        from mull.files import disk_is_full

        if disk_is_full(error, Path.cwd()):
            return complain("the disk is full: free some space and try again (a training run goes on with --resume)")
        raise


def dispatch(arguments: list[str], command: str) -> int:
    """Parses and runs; a mistake on the command line becomes a UserError."""
    group: Any = typer.main.get_command(app)
    try:
        with group.make_context("mull", arguments, obj=command) as ctx:
            group.invoke(ctx)
        return 0
    except typer.Exit as leave:
        return leave.exit_code
    except Exception as error:
        if not hasattr(error, "format_message"):  # the parser's own errors have it
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())  # type: ignore[attr-defined]
            return 2
        raise UserError(usage_mistake(error)) from None


def usage_mistake(error: Any) -> str:
    """One sentence for what the parser found: the nearest command, flag or config key, and where to read more."""
    ctx = getattr(error, "ctx", None)
    known = ctx.command if ctx else None
    path = ctx.command_path if ctx else "mull"
    sentence = " ".join(error.format_message().split()).rstrip(".")
    sentence = sentence[:1].lower() + sentence[1:]
    if option := getattr(error, "option_name", None) if "o such option" in sentence else None:
        flags = {name: name for p in getattr(known, "params", ()) for name in p.opts}
        if isinstance(known, RecipeCommand):
            for key, _ in config_rows(known.row.where):
                flags.setdefault(f"--{key}", f"-o {key}=…")
        [near] = difflib.get_close_matches(option.replace("_", "-"), flags, n=1, cutoff=0.5) or [""]
        sentence = f"no such option: {option}" + (f"; did you mean {flags[near]}?" if near else "")
    elif "o such command" in sentence:
        typed = sentence.split("'")[1]
        sentence = f"no such command: {typed}{nearest(typed, known.commands)}"  # type: ignore[union-attr]
    return f"{sentence}; see {path} --help"


def was_interrupted(error: BaseException | None) -> bool:
    """Whether a Ctrl-C is behind an error: what is torn down by one (a half-written file) may fail in its own way."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def interrupted(arguments: Sequence[str]) -> str:
    """What to type to go on."""
    if row_of(arguments) is None:
        return "interrupted"
    again = [*arguments, *([] if "--resume" in arguments else ["--resume"])]
    return f"interrupted; go on with: {shlex.join(['mull', *again])}"


def complain(sentence: str, code: int = 2, label: str = "error: ") -> int:
    try:
        print(f"{label}{sentence}", file=sys.stderr)
    except UnicodeEncodeError:
        print(f"{label}{sentence}".encode("ascii", "replace").decode(), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
