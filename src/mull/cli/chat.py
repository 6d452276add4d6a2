"""`mull chat`: a conversation in the terminal, with a model in this process or at any OpenAI-compatible server."""

from __future__ import annotations

from typing import Annotated, Any, cast

import typer

from mull.errors import UserError, nearest

Device = Annotated[
    str, typer.Option("--device", metavar="cpu|cuda|cuda:N", help="Where the model and its scorer compute.")
]
Weights = Annotated[
    str, typer.Option("--dtype", metavar="float32|bfloat16", help="Of the weights; bfloat16 takes half the memory.")
]


def chat_command(
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="DIR", help="Default: runs/demo/model where it exists, else nano."),
    ] = None,
    endpoint: Annotated[
        str,
        typer.Option("--endpoint", metavar="URL", help="A server instead: mull serve, or any that speaks OpenAI's."),
    ] = "",
    name: Annotated[
        str, typer.Option("--name", metavar="MODEL", help="Which of the server's models; default: its only one.")
    ] = "",
    key: Annotated[
        str, typer.Option("--key", metavar="KEY", help="The server's API key; default: what OPENAI_API_KEY holds.")
    ] = "",
    effort: Annotated[
        str,
        typer.Option(
            "--effort", metavar="none|low|medium|high", help="Default: medium; with --endpoint, the server's own."
        ),
    ] = "",
    strategy: Annotated[
        str, typer.Option("--strategy", metavar="NAME[:key=value,…]", help="Instead of the effort's: mull strategies.")
    ] = "",
    samples: Annotated[int | None, typer.Option("--samples", "-n", min=1, help="Chains, or the strategy's N.")] = None,
    scorer: Annotated[
        str,
        typer.Option("--scorer", metavar="DIR|logprob|certainty", help="What judges steps: mull reward trains one."),
    ] = "",
    calibration: Annotated[
        str, typer.Option("--calibration", metavar="FILE", help="What mull calibrate made: efforts follow it.")
    ] = "",
    think_tokens: Annotated[
        int | None,
        typer.Option("--think-tokens", min=0, help="Of one chain, at most; with --endpoint, of all that is thought."),
    ] = None,
    answer_tokens: Annotated[
        int | None, typer.Option("--answer-tokens", min=1, help="Kept for the answer, beside the thought.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0.0, max=2.0, help="Of a single chain; 0 is greedy.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Another seed gives other thoughts.")] = None,
    device: Device = "cpu",
    dtype: Weights = "float32",
    thoughts: Annotated[
        bool, typer.Option("--thoughts", help="Show raw thoughts, not their summary, where there are any to see.")
    ] = False,
) -> None:
    """Talk to a model and watch it think. Ctrl-C while it thinks: answer now; again: stop. /help has the commands."""
    from mull.serve.plan import WORDS

    if effort and effort not in WORDS:
        raise UserError(f"unknown effort {effort!r}{nearest(effort, WORDS)}; there are {', '.join(WORDS)}")
    if endpoint and model is not None:
        raise UserError("--model and --endpoint exclude each other: the model is either here or there")
    for flag, value in (("--name", name), ("--key", key)):
        if value and not endpoint:
            raise UserError(f"{flag} is for a server: give its address with --endpoint URL")
    given = {"--scorer": scorer, "--calibration": calibration}
    given |= {"--device": device != "cpu", "--dtype": dtype != "float32"}
    for flag, value in given.items():
        if value and endpoint:
            raise UserError(f"{flag} is for a model in this process: at an endpoint, the server has its own")
    if endpoint and answer_tokens is not None and think_tokens is None:
        raise UserError("--answer-tokens needs --think-tokens with --endpoint: servers bound the two together")
    from mull.cli.chat_loop import converse
    from mull.cli.chat_models import Local, Wants

    wants = Wants(effort, strategy, samples, think_tokens, answer_tokens, temperature, seed, thoughts)
    if endpoint:
        from mull.cli.chat_remote import Remote

        talker, said = Remote(endpoint, name, key), ""
    else:
        from mull.recipes.think import default_model
        from mull.search.sources import Source, loaded

        where, said = default_model() if model is None else (model, model)
        source = Source(where, scorer=scorer, device=device, dtype=cast(Any, dtype))
        talker = Local(where, loaded(source), calibration)
    raise typer.Exit(converse(talker, wants, said))


def add_chat(app: typer.Typer) -> None:
    app.command("chat")(chat_command)
