"""An OpenAI-compatible server that follows a script, in a thread of the test's process. It can also be a bad one.

It "generates" by tokenising what `says(prompt text, seed)` returns and stopping there as real servers do: at its end
tokens, at stop strings and tokens, at max_tokens. Its traits say which kind of server it is.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mull.chat import Chat

OPENAI_FIELDS = {
    "model", "prompt", "messages", "max_tokens", "temperature", "top_p", "stop", "seed", "logprobs", "n", "stream",
}  # fmt: skip


@dataclass
class Traits:
    """The defaults are vLLM's."""

    fields: set[str] | None = None  # the request fields that it knows and does not refuse; None: all
    refusal: int = 400  # the status of a refusal
    token_prompts: bool = True
    ids: bool = True  # gives token ids where asked
    logprobs: bool = True
    says_why: str = "stop_reason"  # the field that tells why it stopped; "": none
    keeps_stop: bool | None = None  # leaves stop strings in the text; None: where asked
    special: bool = True  # leaves control tokens in the text where asked
    usage: bool = True
    cached: int = 0
    routes: tuple[str, ...] = ("/completions", "/chat/completions")
    models: tuple[dict[str, Any], ...] | int = ({"id": "nano", "max_model_len": 1024},)  # or a status
    key: str = ""
    context: int | None = None  # refuses longer requests
    continues: bool = True  # the chat route knows continue_final_message
    splits_thought: bool = False  # the chat route gives the thought as reasoning_content
    adds_bos: bool = False


TRANSFORMERS = Traits(
    fields=(OPENAI_FIELDS - {"n"}) | {"generation_config", "chat_template_kwargs"}, refusal=422, token_prompts=False,
    ids=False, logprobs=False, says_why="", keeps_stop=True, special=False, models=500, splits_thought=True,
)  # fmt: skip
OPENAI = Traits(fields=OPENAI_FIELDS, ids=False, says_why="", keeps_stop=False, special=False)
BARE = Traits(
    fields=OPENAI_FIELDS - {"seed", "logprobs"}, token_prompts=False, ids=False, logprobs=False, says_why="",
    keeps_stop=False, special=False, usage=False, models=404,
)  # fmt: skip


@dataclass
class FakeServer:
    """`with FakeServer(chat, says) as server: … server.url`. Each entry of `faults` spoils one POST, in order:
    a status (or (status, headers)), "hang", "die" (no answer), "cut" (half an answer), None (none)."""

    chat: Chat
    says: Callable[[str, int], str] | str
    traits: Traits = field(default_factory=Traits)
    faults: list[Any] = field(default_factory=list)
    delay: float = 0.0
    requests: list[dict[str, Any]] = field(default_factory=list)  # bodies of POSTs, with "route" and "authorization"
    lists: int = 0  # GETs of /models
    running: int = 0
    peak: int = 0
    aborted: int = 0  # requests whose client went away

    def __enter__(self) -> FakeServer:
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve(started)), daemon=True)
        self._thread.start()
        assert started.wait(5)
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Goes away, with whatever it is doing."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(5)
            self._loop.close()

    def wait_idle(self) -> None:
        """Until it has noticed that its clients are gone."""
        deadline = time.monotonic() + 5
        while self.running and time.monotonic() < deadline:
            time.sleep(0.002)
        assert not self.running

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    # --- HTTP

    async def _serve(self, started: threading.Event) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await self._stop.wait()
        server.close()
        tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or stop() was called
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines if line)}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = first.split(" ")
        route = path.removeprefix("/v1")
        if method == "GET":
            self.lists += 1
            given = self.traits.models
            status, answer = (given, "no") if isinstance(given, int) else (200, {"data": list(given)})
            return self._write(writer, status if route == "/models" else 404, answer)
        body = json.loads(raw)
        self.requests.append({**body, "route": route, "authorization": headers.get("authorization")})
        self.running += 1
        self.peak = max(self.peak, self.running)
        work = asyncio.ensure_future(self._answer(route, body, headers, writer))
        try:
            while not (await asyncio.wait((work,), timeout=0.005))[0]:
                if reader.at_eof():  # the client has left
                    self.aborted += 1
                    return False
            return work.result()
        finally:
            self.running -= 1
            work.cancel()

    def _write(self, writer: asyncio.StreamWriter, status: int, answer: Any, cut: bool = False, **more: str) -> bool:
        data = json.dumps(answer).encode()
        lines = [f"HTTP/1.1 {status} X", f"content-length: {len(data)}", *(f"{k}: {v}" for k, v in more.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode() + (data[: len(data) // 2] if cut else data))
        return not cut

    async def _answer(self, route: str, body: dict, headers: dict, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(self.delay)
        fault = self.faults.pop(0) if self.faults else None
        if fault == "die":
            return False
        if fault == "hang":
            await asyncio.sleep(60)
        if isinstance(fault, (int, tuple)):
            status, more = fault if isinstance(fault, tuple) else (fault, {})
            return self._write(writer, status, {"error": {"message": f"fault {status}"}}, **more)
        status, answer = self._respond(route, body, headers)
        return self._write(writer, status, answer, cut=fault == "cut")

    # --- the model

    def _respond(self, route: str, body: dict, headers: dict) -> tuple[int, Any]:
        t = self.traits
        key = headers.get("authorization", "").removeprefix("Bearer ")
        if t.key and key != t.key:
            return 401, {"error": {"message": f"Incorrect API key provided: {key}"}}
        if route not in t.routes:
            return 404, {"detail": "Not Found"}
        if t.models and not isinstance(t.models, int) and body["model"] not in [m["id"] for m in t.models]:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        if t.fields is not None and (unknown := sorted(set(body) - t.fields)):
            return t.refusal, {"detail": f"Unexpected fields in the request: {unknown}"}
        prompt = body.get("prompt")
        if isinstance(prompt, list) and not t.token_prompts:
            return 400, {"detail": "prompt must be a string."}
        ids = self._prompt(body)
        if t.context is not None and len(ids) + body["max_tokens"] > t.context:
            return 400, {"error": {"message": f"This model's maximum context length is {t.context} tokens."}}
        return 200, self._completion(ids, body, chat=route.startswith("/chat"))

    def _prompt(self, body: dict) -> list[int]:
        if "messages" not in body:
            prompt = body["prompt"]
            if isinstance(prompt, list):
                return prompt
            return [256] * self.traits.adds_bos + encode(self.chat, prompt)
        messages = list(body["messages"])
        think = body.get("chat_template_kwargs", {}).get("enable_thinking", True)
        if body.get("continue_final_message") and self.traits.continues:
            begun = messages.pop()["content"]
            return encode(
                self.chat, self.chat.decode(self.chat.prompt(messages, think)).removesuffix("<think>") + begun
            )
        return self.chat.prompt(messages, think)

    def _completion(self, prompt: list[int], body: dict, chat: bool) -> dict:
        t, text = self.traits, self.chat.decode(prompt)
        said = self.says if isinstance(self.says, str) else self.says(text, body.get("seed", 0))
        stops = [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop") or []
        config = json.loads(body.get("generation_config", "{}"))
        ends = {*self.chat.end_ids, *config.get("eos_token_id", [])}
        limit = body.get("max_tokens", body.get("max_completion_tokens"))
        ids, finish, why, hit = [], "length", None, ""
        for token in encode(self.chat, said)[:limit]:
            ids.append(token)
            hit = next((s for s in stops if self.chat.decode(ids).endswith(s)), "")
            if token in ends or token in body.get("stop_token_ids", []) or hit:
                finish, why = "stop", hit or (token if token not in ends else None)
                break
        shown, keep = list(ids), t.keeps_stop if t.keeps_stop is not None else body.get("include_stop_str_in_output")
        if finish == "stop" and not hit and not keep:
            shown = shown[:-1]
        if not (t.special and body.get("skip_special_tokens") is False):
            shown = [i for i in shown if i < 256 or i in (261, 262)]
        said = self.chat.decode(shown)
        if hit and not keep:
            said = said[: said.rindex(hit)]
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        if chat:
            thought, closed, answer = said.partition("</think>")
            split = t.splits_thought and (closed or "</think>" not in text)
            message = {"reasoning_content": thought, "content": answer or None} if split else {"content": said}
            choice["message"] = {"role": "assistant", **message}
        else:
            choice["text"] = said
        if t.says_why:
            choice[t.says_why] = why
        if t.logprobs and body.get("logprobs"):
            spelled = [self.chat.decode([i]) for i in ids]
            values = [-0.01 * (i % 100) for i in range(1, len(ids) + 1)]
            listed = [{"token": s, "logprob": v} for s, v in zip(spelled, values, strict=True)]
            choice["logprobs"] = {"content": listed} if chat else {"tokens": spelled, "token_logprobs": values}
        answer: dict[str, Any] = {"choices": [choice]}
        if t.ids and body.get("return_token_ids"):
            choice["token_ids"], choice["prompt_token_ids"] = ids, prompt
        if t.usage:
            answer["usage"] = {"prompt_tokens": len(prompt), "completion_tokens": len(ids)}
            if t.cached:
                answer["usage"]["prompt_tokens_details"] = {"cached_tokens": t.cached}
        return answer


def encode(chat: Chat, text: str) -> list[int]:
    """As a server's tokenizer reads a prompt: control tokens that it spells are control tokens."""
    return chat._tokenizer.encode(text, add_special_tokens=False).ids
