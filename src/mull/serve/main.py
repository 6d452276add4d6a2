"""The server process: one event loop, one uvicorn, and an orderly end.

While the model is loaded and while the server drains, the port is open and answers 503. SIGTERM or SIGINT: nobody new
is let in, who is under way has `drain_seconds`, then answers with what there is, and is cancelled only if that fails,
too. A second signal ends the process at once. SIGHUP loads the weights again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from mull.errors import MissingExtra, UserError
from mull.serve.settings import Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from mull.search.sources import Opened
    from mull.serve.files import Files
    from mull.serve.service import Service

ANSWER = 15.0  # seconds that jobs have to answer at once, at the end of the drain: job.GRACE and some more
FLUSH = 5.0  # seconds that responses have to be sent after that
HEAD = 20.0  # seconds in which the head of a request must arrive
log = logging.getLogger("mull.serve")


def serve(settings: Settings) -> None:
    """Serves until a signal. UserError for what cannot be loaded or listened at."""
    for package in ("fastapi", "uvicorn", "prometheus_client", "cryptography"):
        try:
            __import__(package)
        except ImportError:
            raise MissingExtra(package.replace("_", "-"), "serve", "mull serve") from None
    from mull.serve import logs
    from mull.serve.auth import is_loopback
    from mull.serve.files import opened

    logs.setup(settings.log_prompts)
    settings.names()  # two of one name are a mistake that need not wait
    listener = bound(settings.host, settings.port)
    try:
        if not is_loopback(settings.host) and settings.keys is None:
            print(
                f"warning: {settings.host} can be reached from other machines and no API key is asked for:"
                " give a file of keys with --keys",
                file=sys.stderr,
            )
        files = opened(settings)
        with contextlib.closing(files.store):
            asyncio.run(_run(settings, files, listener))
    finally:
        listener.close()


def bound(host: str, port: int) -> socket.socket:
    """A socket at the address, before anything is loaded. UserError where there cannot be one."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as problem:
        raise UserError(f"the host {host!r} is no address of this machine ({problem.strerror})") from None
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as problem:
        listener.close()
        if isinstance(problem, PermissionError):
            raise UserError(f"port {port} may not be used by you: give one above 1023 with --port") from None
        if problem.errno == 98 or "in use" in (problem.strerror or ""):
            raise UserError(
                f"port {port} of {host} is in use: stop what runs there, or give another with --port"
            ) from None
        raise UserError(f"nothing can listen at {host}, port {port}: {problem.strerror}") from None
    listener.setblocking(False)
    return listener


def address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Door:
    """The ASGI application that uvicorn sees: 503 until there is an app behind it."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.app is not None:
            return await self.app(scope, receive, send)
        from mull.serve.errors import going_down

        problem = going_down()
        body = json.dumps(problem.body()).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
        raw = [(key.lower().encode(), value.encode()) for key, value in {**headers, **problem.headers}.items()]
        await send({"type": "http.response.start", "status": problem.status, "headers": raw})
        await send({"type": "http.response.body", "body": body})


async def _run(settings: Settings, files: Files, listener: socket.socket) -> None:
    import uvicorn

    class Quiet(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self):  # they are ours
            yield

    stop, door, loop = asyncio.Event(), Door(), asyncio.get_running_loop()
    server = Quiet(
        uvicorn.Config(
            door,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            timeout_keep_alive=75,  # longer than most proxies keep theirs, so that they do not send into a closed one
            timeout_graceful_shutdown=int(FLUSH),
        )
    )
    _on_signals(loop, stop)
    serving = asyncio.ensure_future(server.serve([listener]))
    sweeping = asyncio.ensure_future(sweep(server))
    begun = time.monotonic()
    opening = asyncio.ensure_future(_until_stopped(settings, files, door, listener, stop))
    try:
        await asyncio.wait({opening, serving}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():  # uvicorn has failed
            opening.cancel()
        await asyncio.gather(opening, return_exceptions=serving.done())
    finally:
        server.should_exit = True
        sweeping.cancel()
        await asyncio.gather(serving, sweeping, return_exceptions=True)
    serving.result()  # what made uvicorn fail, if it did
    log.info("stopped", extra={"fields": {"seconds": round(time.monotonic() - begun, 3)}})


async def _until_stopped(
    settings: Settings, files: Files, door: Door, listener: socket.socket, stop: asyncio.Event
) -> None:
    """Loads, serves, and drains once it is told to stop."""
    from mull.serve.app import make_app
    from mull.serve.logs import Logged
    from mull.serve.service import Service
    from mull.serve.weights import reload_all

    begun = time.monotonic()
    async with _tools(settings, stop) as tools:
        if tools is None:  # nothing can stop the thread that loads, and nobody needs what it does
            os._exit(0)
        service = Service(settings, *tools)
        app = make_app(service, files)
        others: list[asyncio.Future[Any]] = []
        async with app.router.lifespan_context(app):
            if hasattr(signal, "SIGHUP"):
                asyncio.get_running_loop().add_signal_handler(
                    signal.SIGHUP, lambda: others.append(asyncio.ensure_future(reload_all(service)))
                )
            if settings.watch_model and not settings.endpoint:
                for model in service.models.values():
                    others.append(asyncio.ensure_future(model.weights.watch(settings.watch_model, model)))
            await _warn_of_torch(settings)
            door.app = Logged(app, settings.log_prompts)
            where, names = address_of(listener), [*service.models]
            served = " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]
            print(f"serving {served} at {where}/v1" + (f", with a page at {where}/" if settings.page else ""))
            sys.stdout.flush()
            told = {"model": service.main.name, "beside": names[1:], "seconds": round(time.monotonic() - begun, 3)}
            log.info("ready", extra={"fields": told})
            await stop.wait()
            await drain(service)
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)


@contextlib.asynccontextmanager
async def _tools(settings: Settings, stop: asyncio.Event) -> AsyncIterator[list[Opened] | None]:
    """What to serve with, of each model, loaded in a thread so that the port answers meanwhile; None when told to stop
    first."""
    from mull.search.sources import opened
    from mull.serve.weights import checked, sources_of

    if settings.threads:
        import torch

        torch.set_num_threads(settings.threads)
    main, *beside = sources_of(settings).values()
    if main.endpoint:
        async with opened(main) as tools:
            yield [tools]
        return
    loading = asyncio.ensure_future(asyncio.to_thread(lambda: [checked(source) for source in (main, *beside)]))
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    yield loading.result() if loading.done() else None


async def _warn_of_torch(settings: Settings) -> None:
    """A line where a model that runs here on the CPU has to do without the kernel for it."""
    from mull.engine import native

    if settings.device == "cpu" and not settings.endpoint:
        library, said = await asyncio.to_thread(native.load)
        if library is None:
            print(f"warning: {said}", file=sys.stderr)


async def drain(service: Service, tick: float = 0.05) -> None:
    """Lets in nobody, and returns when nobody is inside or all has been tried that ends them in an orderly way."""
    s = service.settings
    service.drain()
    log.info("draining", extra={"fields": {"inside": service.inside}})
    if await _empty(service, s.drain_seconds, tick):
        return
    for job in list(service.jobs.values()):
        job.answer_now()
    if not await _empty(service, ANSWER, tick):
        log.warning("cancelled", extra={"fields": {"inside": service.inside}})


async def _empty(service: Service, seconds: float, tick: float) -> bool:
    end = time.monotonic() + seconds
    while service.inside and time.monotonic() < end:
        await asyncio.sleep(tick)
    return not service.inside


async def sweep(server: Any, seconds: float = HEAD, tick: float = 2.0) -> None:
    """Closes connections on which the head of a request does not come to its end. (uvicorn waits for ever: its timer
    runs between requests alone.)"""
    since: dict[Any, float] = {}
    while True:
        await asyncio.sleep(tick)
        now = time.monotonic()
        idle = {c for c in server.server_state.connections if _waits_for_a_head(c)}
        since = {c: since.get(c, now) for c in idle}
        for connection in [c for c, at in since.items() if now - at >= seconds]:
            connection.transport.close()


def _waits_for_a_head(connection: Any) -> bool:
    """Whether a connection has no request under way, and no keep-alive timer that would end it."""
    cycle = getattr(connection, "cycle", None)
    return (cycle is None or cycle.response_complete) and getattr(connection, "timeout_keep_alive_task", 0) is None


def _on_signals(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    def handle(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    if hasattr(signal, "SIGHUP"):  # there is nothing to load again yet
        loop.add_signal_handler(signal.SIGHUP, lambda: None)
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, handle, number)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda got, _: loop.call_soon_threadsafe(handle, got))
