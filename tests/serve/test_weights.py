"""New weights under way: each job ends on those it began with, and answers as that model would alone."""

import asyncio
import gc
import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import pytest

from mull.errors import UserError
from mull.models import hf
from mull.models.nano import shipped_folder
from mull.models.value import ScorerInfo, ValueModel, save_value
from mull.search.sources import Source, loaded
from mull.serve.job import answered
from mull.serve.plan import Wish
from mull.serve.service import Service
from mull.serve.settings import Settings
from mull.serve.weights import reload, signature, source_of
from tests.serve.beside import changed
from tests.serve.tools import QUESTION, call

TALK = ({"role": "user", "content": QUESTION},)
WISH = Wish(TALK, effort="high", strategy="vote", samples=6, seed=7)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers otherwise than the shipped one."""
    return changed(tmp_path_factory.mktemp("models") / "other", 0.01)


def service_of(model: str = "nano", **settings) -> Service:
    made = Settings(model=model, max_sequences=32, memory_bytes=32 << 20, think_tokens=48, answer_tokens=16, **settings)
    return Service(made, loaded(source_of(made)))


async def ask(service: Service, name: str, wish: Wish = WISH):
    async with service.job(wish, name) as job:
        return await answered(job)


def seen(result):
    return result.content, result.votes, [step.text for step in result.steps], result.completion_tokens


def test_jobs_under_way_end_on_their_weights_and_new_ones_get_the_new(other: Path):
    service = service_of()
    alone = [seen(asyncio.run(ask(service_of(model), "a"))) for model in ("nano", str(other))]
    assert alone[0] != alone[1]

    async def run():
        first = asyncio.ensure_future(ask(service, "first"))
        while not (service.jobs and service.jobs["first"].live.sampled > 10):
            await asyncio.sleep(0)
        old = weakref.ref(service.main.tools.sampler)
        assert "error" not in await reload(service.main, str(other))
        # It took many steps of the engine; so that both are at work together, each is asked for more.
        again = asyncio.ensure_future(ask(service, "again"))
        both = await asyncio.gather(first, again)
        del first, again
        await asyncio.sleep(0.7)
        gc.collect()
        return both, old

    (first, again), old = asyncio.run(run())
    assert [seen(first), seen(again)] == alone
    assert (first.policy_version, again.policy_version) == (0, 1)
    del first, again
    gc.collect()
    assert old() is None and not service.main.weights.before  # its memory is free


def test_two_versions_work_side_by_side(other: Path):
    """The old job is still sampling when the new one begins: they share nothing."""
    service = service_of()
    alone = [seen(asyncio.run(ask(service_of(model), "a"))) for model in ("nano", str(other))]

    async def run():
        async with service.job(WISH, "old") as job:  # admitted, not begun
            await reload(service.main, str(other))
            assert len(service.main.weights.before) == 1 and service.main.tools is not job.tools
            both = await asyncio.gather(answered(job), ask(service, "new"))
            assert len(service.main.weights.before) == 1
        assert not service.main.weights.before
        return both

    assert [seen(one) for one in asyncio.run(run())] == alone


def test_the_loop_answers_others_while_weights_are_loaded(other: Path):
    service = service_of()

    async def run():
        work = asyncio.ensure_future(reload(service.main, str(other)))
        beats = 0
        while not work.done():
            await asyncio.sleep(0.001)
            beats += 1
        assert beats > 3
        first, second = await asyncio.gather(reload(service.main, str(other)), reload(service.main))
        assert (first["policy_version"], second["policy_version"]) == (2, 3)

    asyncio.run(run())
    assert service.main.weights.reloads == 3


@pytest.mark.parametrize("fault", ["missing", "truncated", "other shape", "not finite", "no tokenizer", "a file"])
def test_a_folder_that_cannot_be_loaded_leaves_the_old_weights(fault: str, tmp_path: Path, caplog):
    service, folder = service_of(), tmp_path / "broken"
    before = service.main.tools
    if fault == "a file":
        folder.write_text("no folder")
    elif fault != "missing":
        shutil.copytree(shipped_folder(), folder)
        weights = folder / "model.safetensors"
        if fault == "truncated":
            weights.write_bytes(weights.read_bytes()[: 1 << 16])
        elif fault == "other shape":
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
        elif fault == "not finite":
            shutil.rmtree(folder)
            changed(folder, float("nan"))
        else:
            (folder / "tokenizer.json").unlink()
    told = asyncio.run(reload(service.main, str(folder)))
    assert set(told) == {"error"} and str(folder) in told["error"]
    weights = service.main.weights
    assert service.main.tools is before and weights.failures == 1 and weights.source.model == "nano"
    assert asyncio.run(ask(service, "a")).policy_version == 0
    assert "reload failed" in caplog.text
    assert asyncio.run(reload(service.main))["policy_version"] == 1  # and the folder that works can be loaded again


def test_the_gate_follows_the_memory_of_the_new_engine(other: Path, tmp_path: Path):
    shorter = tmp_path / "shorter"
    shutil.copytree(other, shorter)
    config = json.loads((shorter / "config.json").read_text())
    (shorter / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 256}))
    service = service_of()
    before = service.main.gate.capacity.pages
    asyncio.run(reload(service.main, str(shorter)))
    assert service.main.gate.capacity.pages == service.main.tools.sampler.pool.num_pages != before


def test_trained_scorers_stay_and_those_that_read_the_model_read_the_new_one(other: Path, tmp_path: Path):
    scorer = tmp_path / "scorer"
    made = ValueModel(hf.load(shipped_folder()))
    save_value(made, scorer, ScorerInfo(kind="orm"), source=shipped_folder())
    kept = service_of(scorer=str(scorer))
    before = kept.main.tools
    asyncio.run(reload(kept.main, str(other)))
    assert kept.main.tools.scorer is before.scorer and kept.main.tools.sampler is not before.sampler
    assert kept.main.tools.aggregate == before.aggregate
    reading = service_of(scorer="logprob")
    asyncio.run(reload(reading.main, str(other)))
    assert reading.main.tools.scorer.engine is reading.main.tools.sampler  # type: ignore[union-attr]
    found = asyncio.run(ask(reading, "a", replace(WISH, strategy="best-of-n")))
    alone = asyncio.run(ask(service_of(str(other), scorer="logprob"), "a", replace(WISH, strategy="best-of-n")))
    assert seen(found) == seen(alone)


def test_the_numbers_that_were_asked_for_are_kept(other: Path):
    service = service_of(dtype="bfloat16", scorer="logprob")
    assert str(service.main.tools.sampler.model.dtype) == "torch.bfloat16"  # type: ignore[attr-defined]
    wish = replace(WISH, strategy="best-of-n")
    first = asyncio.run(ask(service, "a", wish))
    assert seen(first) == seen(asyncio.run(ask(service_of(dtype="bfloat16", scorer="logprob"), "a", wish)))
    assert seen(first) != seen(asyncio.run(ask(service_of(scorer="logprob"), "a", wish)))
    assert "error" not in asyncio.run(reload(service.main, str(other)))
    assert str(service.main.tools.sampler.model.dtype) == "torch.bfloat16"  # type: ignore[attr-defined]


def test_an_endpoint_serves_from_its_own_device():
    made = Settings(endpoint="http://localhost:9/v1", tokenizer="dir", device="cuda")
    with pytest.raises(UserError, match="leave them out"):
        source_of(made)
    judged = replace(made, scorer="a folder", dtype="bfloat16")
    assert (source_of(judged).device, source_of(judged).dtype) == ("cuda", "bfloat16")


def test_a_watched_folder_is_loaded_once_it_is_whole(other: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(shipped_folder(), folder)
    service = service_of(str(folder))

    async def versions(n: int) -> None:
        for _ in range(200):
            if service.main.weights.reloads >= n:
                return
            await asyncio.sleep(0.02)

    async def run():
        watching = asyncio.ensure_future(service.main.weights.watch(0.2, service.main))
        await asyncio.sleep(0.5)
        assert service.main.weights.reloads == 0
        whole = (other / "model.safetensors").read_bytes()
        with (folder / "model.safetensors").open("wb") as file:
            for at in range(0, len(whole), len(whole) // 8):  # slowly: no part of it is taken for all
                file.write(whole[at : at + len(whole) // 8])
                file.flush()
                await asyncio.sleep(0.02)
        await versions(1)
        assert (service.main.weights.reloads, service.main.weights.failures) == (1, 0)
        shutil.copy(shipped_folder() / "config.json", folder / "config.json")
        (folder / "model.safetensors").write_bytes(b"nothing")
        for _ in range(100):
            if service.main.weights.failures:
                break
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.7)
        assert (service.main.weights.reloads, service.main.weights.failures) == (1, 1)  # it was not tried over and over
        watching.cancel()
        return await ask(service, "a")

    assert asyncio.run(run()).policy_version == 1


def test_an_endpoint_has_no_weights_to_load():
    service = service_of()
    service.main.weights.source = Source(endpoint="http://127.0.0.1:9/v1", tokenizer="x")
    with pytest.raises(UserError, match="endpoint"):
        asyncio.run(service.main.weights.reload())
    assert signature("/nowhere") == ()


# ---------------------------------------------------------------------------------------------------- over HTTP

KEY = "a key of the operator"


def test_only_the_admin_key_may_reload(other: Path, tmp_path: Path):
    keys, admin = tmp_path / "keys", tmp_path / "admin"
    keys.write_text("client-key\n")
    admin.write_text(KEY + "\n")

    def ask(service: Service, headers: dict[str, str], **body):
        return call(service, "POST", "/mull/reload", headers=headers, **body)

    shut = service_of(name="nano")
    assert ask(shut, {"x-mull-admin": KEY})[0] == 403 and ask(shut, {})[2]["error"]["code"] == "reload_off"
    service = service_of(name="nano", admin=admin)
    for given in ({}, {"x-mull-admin": ""}, {"x-mull-admin": KEY[:-1]}, {"Authorization": f"Bearer {KEY}"}):
        assert ask(service, given)[0] == 401
    assert service.main.weights.reloads == 0
    status, _, body = ask(service, {"x-mull-admin": KEY}, json={"model": str(other)})
    assert status == 200 and body["policy_version"] == 1 and body["model"] == "nano"
    status, _, body = ask(service, {"x-mull-admin": KEY})  # the folder it has
    assert status == 200 and body["policy_version"] == 2 and service.main.weights.source.model == str(other)
    for wrong in ({"model": 3}, {"model": "a\0b"}, {"modle": "x"}, {"model": str(tmp_path / "none")}):
        status, _, body = ask(service, {"x-mull-admin": KEY}, json=wrong)
        assert status == 400 and body["error"]["param"] in ("model", "modle")
    with_keys = service_of(name="nano", admin=admin, keys=keys)
    assert ask(with_keys, {"x-mull-admin": KEY})[0] == 401
    assert ask(with_keys, {"x-mull-admin": KEY, "Authorization": "Bearer client-key"})[0] == 200


@pytest.mark.parametrize("text", ["", "short", "a key of the operator\nand another"])
def test_an_admin_file_without_a_good_key_is_a_mistake(text: str, tmp_path: Path):
    path = tmp_path / "admin"
    path.write_text(text)
    with pytest.raises(UserError, match="16"):
        call(service_of(admin=path), "GET", "/health")
    with pytest.raises(UserError, match="cannot be read"):
        call(service_of(admin=tmp_path / "none"), "GET", "/health")


def test_metrics_and_efforts_are_told():
    service = service_of()
    asyncio.run(ask(service, "a", replace(WISH, strategy="", samples=None, effort="low")))
    status, headers, text = call(service, "GET", "/metrics")
    assert status == 200 and headers["content-type"].count("charset") == 1
    assert 'mull_requests_total{effort="low",outcome="answered"} 1.0' in text
    assert "mull_memory_pages_used 0.0" in text and "mull_policy_version 0.0" in text
    assert f"mull_memory_pages_total {float(service.main.tools.sampler.pool.num_pages)}" in text
    status, _, body = call(service, "GET", "/mull/efforts")
    assert status == 200 and body["efforts"]["low"]["requests"] == 1 and body["efforts"]["high"]["expected"] is None
