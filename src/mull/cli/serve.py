"""`mull serve`: the reasoning service. A flag is a setting that is used often enough to deserve one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from mull.cli.training import Command, Config, Override, RecipeCommand, Where
from mull.errors import UserError


class Settled(Where):
    """The server's settings, which are no recipe's."""

    def load(self) -> tuple[type, Any]:
        from mull.serve.settings import Settings

        return Settings, None


class ServeCommand(RecipeCommand):
    row = Command("", Settled("", "", ""), ())


def serve_command(
    config: Config = None,
    override: Override = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="DIR", help="Default: runs/demo/model where it exists, else nano."),
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option("--beside", metavar="[NAME=]DIR", help="One more model, asked by its name; may be given again."),
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", metavar="URL", help="An OpenAI-compatible server instead of --model.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", metavar="DIR", help="The served model's tokenizer, with --endpoint.")
    ] = None,
    scorer: Annotated[
        str | None,
        typer.Option("--scorer", metavar="DIR|logprob|certainty", help="What judges steps: mull reward trains one."),
    ] = None,
    calibration: Annotated[
        str | None, typer.Option("--calibration", metavar="FILE", help="What mull calibrate made: efforts follow it.")
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", metavar="ADDRESS", help="Default: 127.0.0.1, this machine alone.")
    ] = None,
    port: Annotated[int | None, typer.Option("--port", metavar="N", help="Default: 8000; 0: any that is free.")] = None,
    keys: Annotated[
        Path | None, typer.Option("--keys", metavar="FILE", help="API keys, one on a line; default: none is asked for.")
    ] = None,
    params: Annotated[
        str | None, typer.Option("--params", metavar="compat|strict_o1", help="Whether to reject what o1 rejects.")
    ] = None,
    thoughts: Annotated[
        str | None, typer.Option("--thoughts", metavar="hidden|shown", help="Whether raw thoughts are returned.")
    ] = None,
) -> None:
    """Serve a reasoning model: OpenAI's APIs with efforts, hidden thoughts and honest usage, and a page to watch it."""
    from mull.config import load
    from mull.serve.settings import Settings

    flags = {"model": model, "beside": beside, "endpoint": endpoint, "tokenizer": tokenizer, "scorer": scorer}
    flags |= {"calibration": calibration, "host": host, "port": port, "keys": keys}
    flags |= {"params": params, "thoughts": thoughts}
    overrides = list(override or ())
    given = {text.partition("=")[0].strip() for text in overrides}
    for key, value in flags.items():
        if value is None or value == []:
            continue
        if key in given:
            raise UserError(f"the key {key!r} is given twice, by -o and by its own flag: leave one of them out")
        plain = value if isinstance(value, int | list) else str(value)
        overrides.append(f"{key}={json.dumps(plain, ensure_ascii=False)}")
    settings = load(Settings, config, overrides)
    if settings.endpoint and settings.model:
        raise UserError("--model and --endpoint exclude each other: the model is either here or there")
    if not settings.model and not settings.endpoint:
        from mull.recipes.think import default_model

        settings = replace(settings, model=default_model()[0])
    from mull.serve.main import serve

    serve(settings)


def add_serve(app: typer.Typer) -> None:
    app.command("serve", cls=ServeCommand)(serve_command)
