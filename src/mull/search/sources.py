"""What a strategy runs on: a model folder or an endpoint, and the scorer and critic that judge.

--model DIR                                a Hugging Face folder, or nano
--endpoint URL --tokenizer DIR             any OpenAI-compatible server; the tokenizer's folder stays local
--scorer DIR | logprob | certainty         a folder that mull reward made; the others need no training
--critic DIR                               a critic that mull reward made
--device cuda --dtype bfloat16             where they compute, and the weights' numbers
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.engine.sampler import Sampler
from mull.errors import UserError, nearest
from mull.files import read_object
from mull.models import hf
from mull.models.device import DTYPES, DType
from mull.models.nano import model_folder
from mull.scorers.base import Scorer
from mull.scorers.confidence import Confidence, Measure, SampledLogprob
from mull.scorers.critic import Critic
from mull.scorers.value import load_scorer
from mull.search.choose import Aggregate, Canonical
from mull.search.named import Named, Strategy
from mull.search.roles import Role

UNTRAINED: dict[str, Measure] = {"logprob": "logprob", "certainty": "self-certainty"}


@dataclass(frozen=True)
class Source:
    model: str = "nano"
    endpoint: str = ""
    tokenizer: str = ""
    endpoint_model: str = ""
    scorer: str = ""
    critic: str = ""
    endpoint_params: float = 0  # of the served model, for FLOPs; 0: they are unknown
    generator: str = ""
    max_sequences: int = 512
    memory_bytes: int = 0  # of keys and values, of the model's own engine; 0: the engine's default
    device: str = "cpu"  # cpu, cuda or cuda:N: of all that is loaded here, trained scorers and critics among it
    dtype: DType = "float32"  # of their weights; on a GPU of keys and values, too (the CPU's kernel keeps float32)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            names = ", ".join(DTYPES)
            raise UserError(f"unknown dtype {self.dtype!r}{nearest(self.dtype, DTYPES)}; there are {names}")
        if self.endpoint and not self.tokenizer:
            raise UserError("--endpoint needs --tokenizer DIR: the folder of the served model's tokenizer")
        if self.endpoint and self.scorer == "certainty":
            raise UserError(
                "the scorer certainty reads the model itself: give logprob or a trained one with an endpoint"
            )
        if self.endpoint and (self.device, self.dtype) != ("cpu", "float32") and not self.loads:
            raise UserError(
                f"device {self.device} and dtype {self.dtype} are for what is loaded here, and with --endpoint and no"
                " trained scorer or critic that is nothing: leave them out"
            )

    @property
    def loads(self) -> bool:
        """Whether any weights are loaded in this process."""
        trained = self.scorer and self.scorer not in UNTRAINED
        return bool(not self.endpoint or trained or self.critic or self.generator)

    @property
    def flops_known(self) -> bool:
        return not self.endpoint or self.endpoint_params > 0

    @property
    def name(self) -> str:
        """How to call it in tables and titles."""
        if self.endpoint:
            return f"{self.endpoint_model or 'the model'} at {self.endpoint}"
        return self.model


@dataclass
class Opened:
    sampler: Sampler
    chat: Chat
    scorer: Scorer | None
    critic: Any
    generator: Role | None
    aggregate: Aggregate | None  # of step scores, as the scorer's folder says; None: the strategy's own default
    context: int | None  # tokens; None: only the server knows

    def forget(self) -> None:
        """Empties every cache: a measurement must not be paid for by the one before it."""
        for one in (self.sampler, self.scorer, self.critic, self.generator and self.generator.sampler):
            if hasattr(one, "forget"):
                one.forget()  # type: ignore[union-attr]

    def troubles(self) -> dict[str, int]:
        """What a server did not do at the first time of asking, or did not say: sentences with counts."""
        s: Any = self.sampler
        counts = {
            "requests were sent again": getattr(s, "retried", 0),
            "requests failed for good": getattr(s, "failed", 0),
            "completions ended for a reason that had to be guessed": getattr(s, "guessed_stops", 0),
            "prompts were read as another number of tokens": getattr(s, "retokenised", 0),
        }
        return {what: n for what, n in counts.items() if n}

    def bind(self, strategy: Named, canonical: Canonical, calibration: str = "") -> Strategy:
        """The strategy with what it needs of these; an `aggregate` that was typed comes before the scorer's own."""
        return strategy.bind(
            canonical,
            self.scorer,
            self.critic,
            calibration=calibration or None,
            aggregate=self.aggregate,
            generator=self.generator,
        )


@asynccontextmanager
async def opened(source: Source) -> AsyncIterator[Opened]:
    """Everything loaded, for the event loop that runs; connections are closed at the end."""
    if source.endpoint:
        from mull.engine.endpoint import EndpointSampler

        chat = Chat.load(source.tokenizer, spell_think=True)
        positions = read_object(Path(source.tokenizer) / "config.json").get("max_position_embeddings")
        async with EndpointSampler(
            source.endpoint, source.endpoint_model or None, chat, params_count=source.endpoint_params or None
        ) as server:
            await server.ready()
            server.context = server.context or positions
            yield _judged(source, server, chat, server.context)
        return
    yield loaded(source)


def loaded(source: Source, policy_version: int = 0, keep: Opened | None = None) -> Opened:
    """The same for a model in this process, which needs no event loop: any thread may load it.

    `keep`: what was loaded for the same source before. Its trained scorer, critic and generator are taken as they are,
    while what reads the model itself (logprob, certainty) reads the new one.
    """
    folder = model_folder(source.model)
    chat = Chat.load(folder)
    engine = LocalEngine(
        hf.load(folder, DTYPES[source.dtype], source.device),
        chat,
        max_sequences=source.max_sequences,
        memory_bytes=source.memory_bytes or None,
        policy_version=policy_version,
    )
    return _judged(source, engine, chat, engine.config.max_positions, keep)


def _judged(source: Source, sampler: Any, chat: Chat, context: int | None, keep: Opened | None = None) -> Opened:
    scorer: Scorer | None = None
    aggregate: Aggregate | None = None
    dtype, device = DTYPES[source.dtype], source.device
    if keep is not None:
        for name in (source.critic, "" if source.scorer in UNTRAINED else source.scorer):
            if name:
                _refuse_other_tokens(name, chat)
        if source.scorer in UNTRAINED:
            scorer = Confidence(sampler.model, sampler, chat, UNTRAINED[source.scorer])
        else:
            scorer, aggregate = keep.scorer, keep.aggregate
        return Opened(sampler, chat, scorer, keep.critic, keep.generator, aggregate, context)
    if source.scorer == "logprob" and source.endpoint:
        scorer = SampledLogprob()
    elif source.scorer in UNTRAINED:
        scorer = Confidence(sampler.model, sampler, chat, UNTRAINED[source.scorer])
    elif source.scorer:
        scorer, info = load_scorer(Path(source.scorer), device=device, dtype=dtype)
        _refuse_other_tokens(source.scorer, chat)
        aggregate = cast(Aggregate, info.aggregate)
    critic: Any = None
    if source.critic:
        critic, _ = load_scorer(Path(source.critic), device=device, dtype=dtype)
        if not isinstance(critic, Critic):
            raise UserError(f"{source.critic} holds a scorer that writes no critiques: mull reward -o kind=critic")
        _refuse_other_tokens(source.critic, chat)
    generator = None
    if source.generator:
        folder = model_folder(source.generator)
        its_chat = Chat.load(folder)
        its_model = hf.load(folder, dtype, device)
        generator = Role(LocalEngine(its_model, its_chat, max_sequences=source.max_sequences), its_chat)
    return Opened(sampler, chat, scorer, critic, generator, aggregate, context)


def _refuse_other_tokens(name: str, chat: Chat) -> None:
    """A scorer reads the policy's tokens as they are, so it must know them by the same numbers."""
    its, probe = Chat.load(name), "0123456789 abc xyz +-*/=()\n"
    if its.encode(probe) != chat.encode(probe) or its.end_ids != chat.end_ids:
        raise UserError(f"the scorer {name} has another tokenizer than the model: train one on this model's traces")
