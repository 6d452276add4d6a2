"""A `Sampler` over any OpenAI-compatible server: vLLM, SGLang, llama.cpp, `transformers serve`, or a hosted one.

`/v1/completions` is preferred, because it continues any prefix. With its first request the sampler finds out what the
server takes (`endpoint_forms.py`); `endpoint_tokens.py` says how answers become tokens, and what is honest about them.
docs/endpoints.md says which server knows what.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mull.chat import Chat
from mull.engine.endpoint_chat import dialogue
from mull.engine.endpoint_forms import Dialogue, Fields, Form, body, forms
from mull.engine.endpoint_http import Http, Refused
from mull.engine.endpoint_tokens import Reading, read
from mull.engine.sampler import derive_seed
from mull.errors import SamplerLost, StopReason, UserError
from mull.types import Completion, Cost, SamplingParams


class EndpointSampler:
    """Samples from the server at `base_url` (such as http://localhost:8000/v1).

    `chat` is the tokenizer of the model that the server runs. Where the server gives no token ids, its text is
    tokenised again by it: such completions can be searched but not trained on, and their log-probabilities are NaN
    unless the server gave some that fit. The n-th sample of a seed asks the server for the seed
    `derive_seed(seed, n)` mod 2^31; whether that repeats anything is the server's business. Weights are the server's
    own, so `policy_version` is 0 for ever.

    - `model`: None asks the server, which must then list exactly one.
    - `context`: the model's context in tokens; None asks the server. Requests are cut to it where it is known.
    - `api_key`: None takes OPENAI_API_KEY. It is sent to the server and appears nowhere else.
    - `mode`: "completions", "chat", or "auto", which tries them in this order.
    - `timeout`: seconds that one request may take, its wait inside the server included.
    - `params_count`: of the model, for FLOPs (2 per parameter and token). None leaves `flops_known` False and counts 0.
    - `processed_logprobs`: the server's log-probabilities are those after temperature (vLLM's
      `--logprobs-mode processed_logprobs`); else they are used at temperature 0 and 1 alone.

    Costs: tokens as the server counts them in `usage`, else by `chat`; `seconds` are of the request that was answered,
    so that those of n samples overlap. What a retried, failed or cancelled request consumed cannot be known;
    `retried` and `failed` count them. Raises SamplerLost when the server stops answering, with those of the n
    completions that came; UserError when it refuses.
    """

    policy_version = 0

    def __init__(
        self,
        base_url: str,
        model: str | None,
        chat: Chat,
        *,
        api_key: str | None = None,
        mode: str = "auto",
        context: int | None = None,
        max_concurrent: int = 32,
        timeout: float = 600.0,
        retries: int = 5,
        backoff: float = 0.5,
        params_count: float | None = None,
        processed_logprobs: bool = False,
    ):
        key = api_key or os.environ.get("OPENAI_API_KEY") or None
        self._http = Http(base_url, key, max_concurrent, timeout, retries, backoff)
        self.model, self.chat, self.context = model, chat, context
        self.params_count, self.processed_logprobs = params_count, processed_logprobs
        self.form: Form | None = None  # how the server is asked, once that is known
        self.spent = Cost()  # of everything that was answered
        self.guessed_stops = 0  # completions whose end had to be guessed: rule 5 of endpoint_tokens.py
        self.retokenised = 0  # requests whose prompt the server read as another number of tokens than it has
        self._forms = forms(mode)
        self._listed = False
        self._drop_bos = False

    @property
    def flops_known(self) -> bool:
        return self.params_count is not None

    @property
    def retried(self) -> int:
        return self._http.retried

    @property
    def failed(self) -> int:
        return self._http.failed

    async def __aenter__(self) -> EndpointSampler:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.close()

    async def ready(self) -> None:
        """Finds the model's name and context where they were not given. UserError when nothing listens there."""
        self._http.enter_loop()
        async with self._http.settling:
            await self._look()

    async def sample(self, prefix_tokens: Sequence[int], params: SamplingParams, n: int = 1) -> list[Completion]:
        """See `Sampler.sample`; forced tokens have no log-probabilities (NaN)."""
        prefix = tuple(prefix_tokens)
        _check(prefix, params, n)
        if n == 0:
            return []
        await self.ready()
        known = (*prefix, *params.forced)
        max_tokens = params.max_tokens - len(params.forced)
        if self.context is not None:
            if len(known) >= self.context:
                raise UserError(
                    f"the prompt has {len(known)} tokens and the model's context is {self.context}: shorten it"
                )
            max_tokens = min(max_tokens, self.context - len(known))
        if max_tokens == 0:  # the forced tokens fill the limit
            unscored = (math.nan,) * len(params.forced)
            return [
                Completion(params.forced, unscored, StopReason.LENGTH, 0, params.temperature, len(params.forced))
            ] * n
        tasks = [asyncio.ensure_future(self._one(known, params, max_tokens, i)) for i in range(n)]
        try:
            results = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        came = [result for result in results if isinstance(result, Completion)]
        for result in results:
            if isinstance(result, SamplerLost):
                raise SamplerLost(str(result), came) from result
        return came

    # ------------------------------------------------------------------------------------------------ inside

    async def _look(self) -> None:
        """Reads /models once, for the model's name and context."""
        if self._listed or (self.model is not None and self.context is not None):
            return
        try:
            listed = await self._http.get("/models")
            data = listed.get("data") if isinstance(listed, Mapping) else listed
            entries = data if isinstance(data, list) else []
            known = {str(m["id"]): m for m in entries if isinstance(m, Mapping) and "id" in m}
        except (Refused, SamplerLost) as e:
            if self.model is None:
                raise UserError(
                    f"{self._http.url} does not list its models ({e}): name the model (--endpoint-model)"
                ) from e
            known = {}
        if self.model is None:
            if len(known) != 1:
                some = ", ".join(list(known)[:8]) or "none"
                raise UserError(
                    f"{self._http.url} serves {len(known)} models ({some}): name one of them (--endpoint-model)"
                )
            self.model = next(iter(known))
        entry = known.get(self.model, {})
        lengths = [entry.get(name) for name in ("max_model_len", "context_length")]
        self.context = self.context or next((n for n in lengths if isinstance(n, int) and n > 0), None)
        self._listed = True

    async def _one(
        self, known: tuple[int, ...], params: SamplingParams, max_tokens: int, index: int
    ) -> Completion | SamplerLost:
        seed = derive_seed(params.seed, params.first + index) & 0x7FFFFFFF
        try:
            if self.form is None:
                async with self._http.settling:
                    if self.form is None:
                        return await self._settle(known, params, max_tokens, seed)
            return await self._ask(self.form, known, params, max_tokens, seed)
        except Refused as e:
            raise self._refusal(e, known) from e
        except SamplerLost as e:
            return e

    async def _settle(self, known: tuple[int, ...], params: SamplingParams, max_tokens: int, seed: int) -> Completion:
        """Asks in one form after another, and stays with the first that the server takes."""
        last: Refused | UserError | None = None
        no_route = False
        for form in self._forms:
            # Chat is for servers without the other route, not for those that do not like the request.
            if last is not None and form.chat != self._forms[0].chat and not no_route:
                break
            if no_route and not form.chat:
                continue
            try:
                completion = await self._ask(form, known, params, max_tokens, seed)
            except Refused as e:
                if _too_long(e) or e.status not in (400, 404, 405, 422, 501):
                    raise
                last, no_route = e, no_route or e.status in (404, 405, 501)
            except UserError as e:
                if not isinstance(e, _Unaskable):
                    raise
                last = e
            else:
                self.form = form
                return completion
        assert last is not None
        raise last

    async def _ask(
        self, form: Form, known: tuple[int, ...], params: SamplingParams, max_tokens: int, seed: int
    ) -> Completion:
        """One request in one form, and its completion."""
        if params.banned:
            raise _Unaskable(f"{self._http.url} bans no token sequences: sample from a model folder for that")
        if params.top_k and not form.extended:
            raise _Unaskable(f"{self._http.url} takes no top_k: sample without it")
        prompt = self._prompt(form, known)
        if isinstance(prompt, Dialogue) and prompt.continues and form.fields is not Fields.VLLM:
            raise _Unaskable(
                f"{self._http.url} cannot continue an answer that has begun, only answer whole prompts: use a server"
                " with /v1/completions, or a strategy that samples whole answers"
            )
        assert self.model is not None
        asked = body(form, self.model, prompt, params, max_tokens, seed, self.chat)
        answer, seconds = await self._http.post(form.route, asked)
        choices = answer.get("choices") if isinstance(answer, Mapping) else None
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
            said = f" ({str(answer['error'])[:200]})" if isinstance(answer, Mapping) and "error" in answer else ""
            raise UserError(f"{self._http.url} answers without choices{said}: it is no OpenAI-compatible API")
        usage = answer.get("usage")
        usage = usage if isinstance(usage, Mapping) else {}
        read_tokens, sampled = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
        reading = read(form, choices[0], sampled, known, params, self.chat, self.processed_logprobs)
        cost = self._cost(usage, known, reading, seconds)
        self.spent = self.spent + cost
        if form.may_add_bos and not self._drop_bos and read_tokens == len(known) + 1 and self._starts_with_bos(known):
            self._drop_bos = True
            again = await self._ask(form, known, params, max_tokens, seed)
            return replace(again, cost=cost + again.cost)
        if isinstance(prompt, Dialogue) and prompt.continues:
            self._prove_continued(answer, choices[0], read_tokens, known)
        self.retokenised += read_tokens is not None and read_tokens != len(known)
        self.guessed_stops += reading.guessed
        return Completion(
            tokens=(*params.forced, *reading.tokens),
            logprobs=(*[math.nan] * len(params.forced), *reading.logprobs),
            stop=reading.stop,
            policy_version=0,
            temperature=params.temperature,
            forced=len(params.forced),
            cost=cost,
        )

    def _prompt(self, form: Form, known: tuple[int, ...]) -> Sequence[int] | str | Dialogue:
        if form.chat:
            return dialogue(self.chat, known)
        if form.ids:
            return known
        text = self.chat.decode(known)
        if form.may_add_bos and self._drop_bos and self._starts_with_bos(known):
            text = text[len(self.chat.special["bos_token"]) :]  # the server writes it
        return text

    def _starts_with_bos(self, known: tuple[int, ...]) -> bool:
        bos = self.chat.special.get("bos_token", "")
        return bool(bos) and self.chat.decode(known[:1]) == bos

    def _prove_continued(
        self, answer: Mapping[str, Any], choice: Mapping[str, Any], read_tokens: int | None, known: tuple[int, ...]
    ) -> None:
        """UserError when the server continued anything but the prefix: templates rewrite what an assistant said."""
        ids = answer.get("prompt_token_ids") or choice.get("prompt_token_ids")
        continued = tuple(ids) == known if isinstance(ids, list) else read_tokens == len(known)
        if not continued:
            raise UserError(
                f"the chat template at {self._http.url} changes the beginning of an answer, so that it cannot be"
                " continued: use the server's /v1/completions"
            )

    def _cost(self, usage: Mapping[str, Any], known: tuple[int, ...], reading: Reading, seconds: float) -> Cost:
        details = usage.get("prompt_tokens_details")
        cached = _count(details.get("cached_tokens")) if isinstance(details, Mapping) else None
        prompt = _count(usage.get("prompt_tokens"))
        prompt = len(known) if prompt is None else prompt
        sampled = _count(usage.get("completion_tokens"))
        sampled = len(reading.tokens) if sampled is None else sampled
        cached = min(cached or 0, prompt)
        return Cost(
            sampled_tokens=sampled,
            prefill_tokens=prompt - cached,
            cached_tokens=cached,
            flops=2.0 * (self.params_count or 0.0) * (prompt - cached + sampled),
            seconds=seconds,
        )

    def _refusal(self, refused: Refused, known: tuple[int, ...]) -> UserError:
        if _too_long(refused):
            return UserError(
                f"a prompt of {len(known)} tokens does not fit into the model's context at {self._http.url}:"
                f" {refused.message}"
            )
        if refused.status == 404:
            return UserError(
                f"{self._http.url} knows no model {self.model!r}, or it is no OpenAI-compatible address:"
                f" {refused.message}"
            )
        return UserError(f"{self._http.url} refuses the request ({refused.status}): {refused.message}")


class _Unaskable(UserError):
    """What is asked cannot be said in one form; another may be able to."""


def _check(prefix: tuple[int, ...], params: SamplingParams, n: int) -> None:
    if n < 0:
        raise UserError(f"n={n} samples were asked for: ask for at least one")
    if not prefix:
        raise UserError("the prefix is empty: the model needs at least one token to continue")
    if params.max_tokens < max(1, len(params.forced)):
        raise UserError(f"max_tokens={params.max_tokens} leaves no room for a token: raise it")
    if "" in params.stop:
        raise UserError("a stop string is empty: it would end everything at once")


def _too_long(refused: Refused) -> bool:
    """Whether a refusal is about the model's context: there is no common code for it."""
    said = refused.message.lower()
    return (
        refused.status in (400, 413, 422) and "context" in said and any(w in said for w in ("length", "window", "size"))
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
