"""deploy/ holds: its command lines start a server, its unit and proxies are taken by the programs that read them, and
its times and sizes fit the server's. What is not installed here is skipped, by name.
"""

from __future__ import annotations

import configparser
import contextlib
import itertools
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from mull.cli import main
from mull.config import load
from mull.serve import job
from mull.serve import main as serve_main
from mull.serve.settings import Settings
from tests.serve.tools import ask, scripted_service, serving, thinking, until
from tests.server_process import BIN, environment, settings_of, started

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
PAGE = (ROOT / "docs" / "serving.md").read_text()
KEY, ADMIN = "sk-deploy-0123456789", "an-admin-key-0123456789"
AFTER = serve_main.ANSWER + serve_main.FLUSH  # seconds that a drain may take beyond drain_seconds

# ---------------------------------------------------------------------------------------------------- Dockerfile


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


def only(kind: str) -> str:
    [found] = [rest for name, rest in instructions() if name == kind]
    return found


def entry() -> list[str]:
    """The words of the image's command, without `mull`."""
    words = [*json.loads(only("ENTRYPOINT")), *json.loads(only("CMD"))]
    assert words[0] == "mull"
    return words[1:]


def test_what_the_image_copies_exists_and_is_let_through():
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    sources = [word for name, rest in instructions() if name == "COPY" for word in rest.split()[:-1]]
    assert "*" in ignored
    for source in sources:
        path = source.removeprefix("./")
        assert (ROOT / path).exists() and f"!{path}" in ignored
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml", "src"}
    assert needed <= {source.removeprefix("./") for source in sources}


def test_the_image_installs_what_the_page_says():
    [install] = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    words = shlex.split(install[install.index("pip install") :])
    assert words[-1] == ".[serve]" and "pip install '.[serve]'" in PAGE
    assert "serve" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pins = words[words.index("--constraint") + 1]
    version = re.fullmatch(r"python:3\.(\d+)-slim", only("FROM"))
    assert (ROOT / pins).exists() and version and pins.endswith(f"py3{version[1]}.txt")
    assert "--build-arg PIP_EXTRA_INDEX_URL=" in PAGE and only("ARG") == "PIP_EXTRA_INDEX_URL"


def test_the_image_is_nobody_special_and_stops_in_order():
    names = [name for name, _ in instructions()]
    assert only("USER") == "mull" and names.index("USER") < names.index("ENTRYPOINT")
    assert "--uid 10001 " in (DEPLOY / "Dockerfile").read_text() and "10001" in PAGE
    assert only("STOPSIGNAL") == "SIGTERM"
    waits = {int(n) for n in re.findall(r"--stop-timeout (\d+)", PAGE + (DEPLOY / "Dockerfile").read_text())}
    assert waits and min(waits) > Settings.drain_seconds + AFTER


def test_the_image_asks_for_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    settings = settings_of(entry(), monkeypatch)
    assert (settings.host, str(settings.keys)) == ("0.0.0.0", "/run/secrets/keys")
    assert {str(settings.store), str(settings.secret)} == {"/state/responses.sqlite", "/state/secret"}
    assert only("VOLUME") == "/state" and "MULL_CACHE=/state/" in only("ENV")
    assert (
        f"-v mull-state:{only('VOLUME')}" in PAGE and f":{settings.model}:ro" in PAGE and f":{settings.keys}:ro" in PAGE
    )
    monkeypatch.undo()
    words = [str(tmp_path / "none") if word == "/run/secrets/keys" else word for word in entry()]
    words = ["nano" if word == settings.model else word.replace("/state/", f"{tmp_path}/") for word in words]
    assert main(["0" if word == "8000" else word for word in words]) == 2
    assert "keys file" in capsys.readouterr().err


@pytest.mark.slow
def test_the_images_command_serves_and_is_healthy(tmp_path: Path):
    (tmp_path / "keys").write_text(KEY)
    moved = {"/run/secrets/keys": str(tmp_path / "keys"), "/models/demo": "nano", "8000": "0"}
    words = [moved.get(word, word.replace("/state/", f"{tmp_path}/")) for word in entry()]
    check = json.loads(re.search(r"CMD (\[.*\])", only("HEALTHCHECK"))[1])  # type: ignore[index]
    assert check[0] == "python"

    def healthy(url: str) -> bool:
        code = [word.replace("http://127.0.0.1:8000", url) for word in check[1:]]
        return not subprocess.run([sys.executable, *code], env=environment(), capture_output=True).returncode

    with started(words, tmp_path) as server:
        assert healthy(server.url)
        assert server.http().get("/v1/models").status_code == 401
        assert server.http(KEY).get("/v1/models").json()["data"][0]["id"] == "nano"
    assert not healthy(server.url)


# ---------------------------------------------------------------------------------------------------------- systemd


def unit() -> dict[str, list[str]]:
    """The values of every option of [Service], in order."""
    found: dict[str, list[str]] = {}
    section = (DEPLOY / "mull.service").read_text().partition("[Service]")[2].partition("[Install]")[0]
    for line in section.splitlines():
        if line and not line.startswith("#"):
            found.setdefault(line.partition("=")[0], []).append(line.partition("=")[2])
    return found


def unit_words(credentials: str) -> list[str]:
    [line] = unit()["ExecStart"]
    words = shlex.split(line.replace("${CREDENTIALS_DIRECTORY}", credentials))
    assert words[0] == "/opt/mull/bin/mull" and "python3 -m venv /opt/mull\n" in PAGE
    return words[1:]


def test_systemd_takes_the_unit(tmp_path: Path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    path = tmp_path / "mull.service"
    path.write_text((DEPLOY / "mull.service").read_text().replace("/opt/mull/bin/mull", str(BIN / "mull")))
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if "mull" in line]
    assert (done.returncode, ours) == (0, [])
    broken = tmp_path / "broken.service"
    broken.write_text(path.read_text().replace("ProtectSystem=strict", "ProtectSytem=strict"))
    said = subprocess.run(["systemd-analyze", "verify", str(broken)], capture_output=True, text=True).stderr
    assert "ProtectSytem" in said  # it does look
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", str(path)]  # tenths
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_the_unit_is_what_the_page_promises():
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "mull.service")
    assert parser.sections() == ["Unit", "Service", "Install"]
    options = unit()
    assert options.keys() == parser["Service"].keys()
    on = ("DynamicUser", "NoNewPrivileges", "PrivateTmp", "PrivateDevices", "ProtectHome", "RestrictNamespaces")
    assert all(options[name] == ["yes"] for name in on)
    assert options["CapabilityBoundingSet"] == [""] and options["ProtectSystem"] == ["strict"]
    assert (options["IPAddressDeny"], options["IPAddressAllow"]) == (["any"], ["localhost"])
    for name in ("keys", "admin"):
        assert f"{name}:/etc/mull/{name}" in options["LoadCredential"]
        assert f"install -m 600 {name} /etc/mull/{name}" in PAGE
    assert options["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert f"install -m 644 deploy/serve.toml {'/etc/mull/serve.toml'}" in PAGE


def test_the_units_settings(monkeypatch: pytest.MonkeyPatch):
    settings = load(Settings, DEPLOY / "serve.toml")
    words = unit_words("/run/credentials/mull.service")
    words[words.index("/etc/mull/serve.toml")] = str(DEPLOY / "serve.toml")
    full, options = settings_of(words, monkeypatch), unit()
    assert full.keys and full.admin and full.model == "/srv/mull/demo"
    assert f"cp -r runs/demo/model {full.model}\n" in PAGE
    [folder] = options["StateDirectory"]
    assert {path.parent for path in (full.store, full.secret) if path} == {Path("/var/lib") / folder}
    assert options["CacheDirectory"] == [folder] and f"MULL_CACHE=%C/{folder}" in options["Environment"][0]
    assert options["KillSignal"] == ["SIGTERM"]
    assert float(options["TimeoutStopSec"][0]) > settings.drain_seconds + AFTER


@pytest.mark.slow
def test_the_units_command_serves_reloads_and_stops(tmp_path: Path):
    (tmp_path / "keys").write_text(KEY)
    (tmp_path / "admin").write_text(ADMIN)
    text = (DEPLOY / "serve.toml").read_text().replace("/var/lib/mull/", f"{tmp_path}/").replace("8000", "0")
    (tmp_path / "serve.toml").write_text(text.replace("/srv/mull/demo", "nano"))
    words = [word.replace("/etc/mull/", f"{tmp_path}/") for word in unit_words(str(tmp_path))]
    with started(words, tmp_path) as server, server.http(KEY) as client:
        answer = client.post("/mull/reload", headers={"x-mull-admin": ADMIN})
        assert answer.json()["policy_version"] == 1
        [reload] = unit()["ExecReload"]
        command = ["bash", "-c", reload]
        subprocess.run(command, env=environment(MAINPID=str(server.process.pid)), check=True)
        until(lambda: "mull_policy_version 2.0" in client.get("/metrics").text, 60)
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("responses.sqlite", "secret")} == {0o600}


# ---------------------------------------------------------------------------------------------------------- proxies


def nginx_seconds(name: str) -> float:
    found = re.findall(rf"^\s*{name} (\d+)s;", (DEPLOY / "nginx.conf").read_text(), re.MULTILINE)
    return float(found[0])


def test_the_proxies_times_and_sizes_fit_the_server():
    nginx, caddy = (DEPLOY / "nginx.conf").read_text(), (DEPLOY / "Caddyfile").read_text()
    longest = Settings.queue_seconds + Settings.max_seconds + job.GRACE
    assert nginx_seconds("proxy_read_timeout") > longest and "`proxy_read_timeout 300s`" in PAGE
    kept = int(re.findall(r"timeout_keep_alive=(\d+)", Path(serve_main.__file__).read_text())[0])
    assert nginx_seconds("keepalive_timeout") < kept
    assert float(re.findall(r"keepalive (\d+)s", caddy)[0]) < kept
    assert "client_max_body_size 1m;" in nginx and Settings.max_body == 1 << 20
    assert nginx_seconds("client_body_timeout") == Settings.body_seconds
    assert not re.search(r"^\s*flush_interval", caddy, re.MULTILINE)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def nginx_files(folder: Path, here: int, there: int) -> list[str]:
    """The command of an nginx that has deploy/nginx.conf, with a certificate of its own."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=mull.example.org -keyout key -out certificate"
    subprocess.run(make.split(), cwd=folder, check=True, capture_output=True)
    text = (DEPLOY / "nginx.conf").read_text().replace("127.0.0.1:8000", f"127.0.0.1:{there}")
    text = text.replace("listen 443", f"listen 127.0.0.1:{here}").replace("    listen [::]:443 ssl;\n", "")
    text = re.sub(r"/etc/letsencrypt/\S+/fullchain.pem", f"{folder}/certificate", text)
    text = re.sub(r"/etc/letsencrypt/\S+/privkey.pem", f"{folder}/key", text)
    assert "letsencrypt" not in text
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "mull.conf").write_text(text)
    (folder / "nginx.conf").write_text(
        f"daemon off;\npid {folder}/pid;\nerror_log stderr;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}include {folder}/mull.conf;\n}}\n"
    )
    return ["nginx", "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]


def caddy_files(folder: Path, here: int, there: int) -> list[str]:
    """The command of a Caddy that has deploy/Caddyfile, without a certificate."""
    text = (DEPLOY / "Caddyfile").read_text().replace("127.0.0.1:8000", f"127.0.0.1:{there}")
    text = re.sub(r"^mull\.example\.org", f"http://127.0.0.1:{here}", text, flags=re.MULTILINE)
    (folder / "Caddyfile").write_text("{\n\tadmin off\n\tauto_https off\n}\n" + text)
    return ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


def test_caddy_takes_its_file(tmp_path: Path):
    if not shutil.which("caddy"):
        pytest.skip("caddy is not installed")
    command = ["caddy", "validate", "--config", str(DEPLOY / "Caddyfile"), "--adapter", "caddyfile"]
    variables = environment(HOME=str(tmp_path), XDG_DATA_HOME=str(tmp_path), XDG_CONFIG_HOME=str(tmp_path))
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(params=["nginx", "caddy"])
def proxied(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, httpx2.Client]]:
    """(a service whose thoughts take two seconds, a client that asks it through a proxy)"""
    name = request.param
    if not shutil.which(name):
        pytest.skip(f"{name} is not installed")
    (tmp_path / "keys").write_text(KEY)
    service = scripted_service(thinking("a thought", "7"), seconds=2.0, keys=tmp_path / "keys", ping_seconds=0.3)
    with serving(service) as server, contextlib.ExitStack() as stack:
        port = free_port()
        command = (nginx_files if name == "nginx" else caddy_files)(tmp_path, port, server.port)
        if name == "nginx":
            subprocess.run([*command, "-t"], check=True)
        process = subprocess.Popen(command, env=environment(HOME=str(tmp_path)), stderr=(tmp_path / "err").open("wb"))
        stack.callback(process.wait, 20)
        stack.callback(process.terminate)
        url = f"http{'s' if name == 'nginx' else ''}://127.0.0.1:{port}"
        headers = {"Authorization": f"Bearer {KEY}", "Host": f"mull.example.org:{port}"}
        headers = headers if name == "nginx" else {"Authorization": headers["Authorization"]}
        client = stack.enter_context(
            httpx2.Client(base_url=url, headers=headers, verify=False, timeout=30, trust_env=False)
        )
        until(lambda: _answers(client), 20)
        yield service, client


def _answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx2.TransportError:
        return False


def test_a_stream_passes_as_it_comes(proxied: tuple[Any, httpx2.Client]):
    begun = time.monotonic()
    with proxied[1].stream("POST", "/v1/chat/completions", json=ask(stream=True)) as stream:
        pieces = [(time.monotonic() - begun, text) for text in stream.iter_text()]
    assert stream.status_code == 200 and pieces[0][0] < 1.9 < 4 < pieces[-1][0]
    pings = [at for at, text in pieces if ": ping" in text]
    assert len(pings) >= 4 and max(b - a for a, b in itertools.pairwise(pings)) < 1
    assert "".join(text for _, text in pieces).endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_ends_the_work(proxied: tuple[Any, httpx2.Client], stream: bool):
    service, client = proxied
    with pytest.raises(httpx2.TimeoutException):  # noqa: SIM117
        with client.stream("POST", "/v1/chat/completions", json=ask(stream=stream), timeout=0.4) as answer:
            for _ in answer.iter_raw():
                assert service.jobs
                raise httpx2.ReadTimeout("we hang up")
    until(lambda: not service.jobs, 1.2)
    assert service.inside == 0


def test_a_proxy_keeps_out_what_the_server_would(proxied: tuple[Any, httpx2.Client]):
    client = proxied[1]
    for path in ("/metrics", "/%6Detrics", "/v1/../metrics"):
        assert client.get(path).status_code == 404, path
    assert client.post("/mull/reload").status_code == 404
    for size in (1 << 20) + 4096, 1 << 23:
        assert client.post("/v1/completions", content=b" " * size).status_code == 413
    assert client.get("/v1/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/v1/models").json()["data"][0]["id"] == "nano"


def test_without_keys_a_proxys_name_is_refused(tmp_path: Path):
    with serving(scripted_service(thinking("a", "7"))) as server:
        answer = server.http().get("/v1/models", headers={"Host": "mull.example.org"})
        assert answer.json()["error"]["code"] == "host_not_allowed"
        assert server.http().get("/v1/models").status_code == 200
