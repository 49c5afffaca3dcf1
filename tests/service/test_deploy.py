"""The deployment files say what is true: settings, options, files, ports and programs that they name exist."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from configparser import RawConfigParser
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tests.service.brokers import Mosquitto, binary
from tests.service.http.served import served

from tsgdn2.pipelines.service_jobs import Serve
from tsgdn2.service.deploy.alive import alive
from tsgdn2.service.deploy.passwords import make
from tsgdn2.service.limits import Limits
from tsgdn2.service.mapping import read_mapping
from tsgdn2.service.settings import PREFIX, Settings, read_settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "service" / "deploy"
OPTIONS = {field.name for field in fields(Serve)}
STEPS = {
    "ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "LABEL", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK",
    "ENTRYPOINT", "CMD",
}  # fmt: skip
MEMORY = 4 << 30


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return found


def steps() -> list[tuple[str, str]]:
    """Instructions of the Containerfile and what stands behind them."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Containerfile").read_text(), flags=re.M).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def unit(name: str = "tsgdn2.service") -> dict[str, dict[str, list[str]]]:
    """Sections of a unit, in which a key may stand several times."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in (DEPLOY / name).read_text().splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            assert re.fullmatch(r"[A-Z][A-Za-z]+", key), line
            section.setdefault(key, []).append(value)
    return found


def given(pairs: dict[str, str]) -> Settings:
    """The settings of an environment: ConfigError for a name that is none."""
    return read_settings(environ={name: value for name, value in pairs.items() if name.startswith(PREFIX)})


def plain(value: str) -> str:
    """A value of compose with the defaults of its variables."""
    return re.sub(r"\$\{\w+(?::-([^}]*)|:\?[^}]*)?\}", lambda found: found[1] or "", value)


def check_command(words: list[str]) -> None:
    for word in words:
        if word.startswith("--"):
            assert word[2:].split("=")[0] in OPTIONS, word


def test_the_image_copies_what_is_there_runs_as_nobody_and_gets_the_signals() -> None:
    said = steps()
    assert {name for name, _ in said} <= STEPS
    for name, rest in said:
        if name == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
    copied = {word for name, rest in said if name == "COPY" for word in rest.split()[:-1]}
    assert {link.name for link in (ROOT / "tsgdn2").iterdir() if link.is_symlink()} <= copied
    assert {"tsgdn2", "pyproject.toml", "setup.py", "constraints.txt"} <= copied
    last = {name: rest for name, rest in said}
    assert [rest.split()[0] for name, rest in said if name == "FROM"] == ["${PYTHON}", "${PYTHON}"]
    assert last["USER"] == "10001:10001"
    assert json.loads(last["ENTRYPOINT"]) == ["tsgdn2", "serve"]
    check_command(json.loads(last["CMD"]))
    assert json.loads(last["HEALTHCHECK"].split("CMD", 1)[1]) == ["python", "-m", "tsgdn2.service.deploy.alive"]
    variables = dict(word.split("=", 1) for name, rest in said if name == "ENV" for word in shlex.split(rest))
    made = given({**variables, "TSGDN2_SERVE_PORT": variables["TSGDN2_SERVE_PORT"]})
    assert (made.keys, made.port) == ("required", int(last["EXPOSE"]))
    assert Path(made.store).parent == Path(last["VOLUME"]) == Path(last["WORKDIR"])
    ignored = (DEPLOY / "Containerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied - {"/opt/tsgdn2", "--from=build"}
    assert "service/deploy/secrets" in ignored


def test_the_composition_mounts_what_is_there_and_has_limits_checks_and_no_open_port(tmp_path: Path) -> None:
    make(tmp_path)
    whole = compose()
    used = set()
    for name, service in whole["services"].items():
        assert {"healthcheck", "mem_limit", "restart", "read_only", "cap_drop"} <= set(service), name
        assert {"test", "interval", "timeout", "retries"} <= set(service["healthcheck"]), name
        for port in service.get("ports", ()):
            assert plain(port).startswith("127.0.0.1:"), name
        for file in service.get("env_file", ()):
            assert (tmp_path / Path(file).name).is_file(), file
        for volume in service["volumes"]:
            source = re.sub(r"\$\{[^}]*\}", "/model", volume).split(":")[0]
            if source.startswith("./secrets/"):
                assert (tmp_path / Path(source).name).is_file(), source
            elif source.startswith("./"):
                assert (DEPLOY / source).is_file(), source
            elif not source.startswith("/"):
                used.add(source)
        assert set(service.get("depends_on", {})) <= set(whole["services"])
    assert used == set(whole["volumes"])
    ours = whole["services"]["service"]
    assert (ROOT / "service" / "deploy" / ours["build"]["context"]).resolve() == ROOT
    assert (ROOT / ours["build"]["dockerfile"]).is_file()
    assert set(ours["build"]["args"]) <= {rest.split("=")[0] for name, rest in steps() if name == "ARG"}
    check_command([plain(word) for word in ours["command"]])
    variables = {name: plain(str(value)) for name, value in ours["environment"].items()}
    assert Path(variables["TSGDN2_SERVE_MAPPING"]) == Path("/etc/tsgdn2/mapping.yaml")
    made = given(variables | {"TSGDN2_SERVE_MAPPING": str(DEPLOY / "mapping.yaml")})
    assert (made.keys, made.limits.memory_bytes) == ("required", Limits().memory_bytes)
    assert f"127.0.0.1:{made.port}:{made.port}" in [plain(port) for port in ours["ports"]]
    assert str(Path(made.store).parent) in [volume.split(":")[1] for volume in ours["volumes"] if ":" in volume]
    assert ours["mem_limit"] == "4g"
    read_mapping(DEPLOY / "mapping.yaml")


def test_what_is_provisioned_fits_together() -> None:
    services = compose()["services"]
    targets = [target for job in yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
               for one in job["static_configs"] for target in one["targets"]]  # fmt: skip
    assert f"service:{services['service']['environment']['TSGDN2_SERVE_PORT']}" in targets
    (source,) = yaml.safe_load((DEPLOY / "grafana" / "datasource.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((DEPLOY / "grafana" / "dashboards.yaml").read_text())["providers"]
    assert any(volume.split(":")[1].startswith(provider["options"]["path"]) and ".json:" in volume
               for volume in services["grafana"]["volumes"])  # fmt: skip
    assert any(volume.endswith("/etc/prometheus/metrics-key:ro") for volume in services["prometheus"]["volumes"])
    listener = re.search(r"^listener (\d+)", (DEPLOY / "mosquitto.conf").read_text(), re.M)
    assert listener is not None
    assert f"--source=mqtt://mosquitto:{listener[1]}" in services["service"]["command"]


def test_the_unit_is_hardened_names_real_options_and_waits_for_the_snapshots() -> None:
    parser = RawConfigParser(strict=False)
    parser.read(DEPLOY / "tsgdn2.service")
    assert parser.sections() == ["Unit", "Service", "Install"]
    service = unit()["Service"]
    for key, value in {
        "DynamicUser": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "NoNewPrivileges": "yes",
        "StateDirectory": "tsgdn2", "Restart": "on-failure", "Type": "exec", "CapabilityBoundingSet": "",
        "KillSignal": "SIGTERM", "MemoryMax": "4G",
    }.items():  # fmt: skip
        assert service[key] == [value], key
    assert int(service["TimeoutStopSec"][0]) >= 60 + Settings().grace_s
    check_command(service["ExecStart"][0].split())
    words = " ".join(service["Environment"]).split() + [
        line for line in (DEPLOY / "tsgdn2.env").read_text().splitlines() if line and line[0] != "#"
    ]
    variables = dict(word.split("=", 1) for word in words)
    assert given(variables).keys == "required"
    for variable in re.findall(r"\$\{?(\w+)", service["ExecStart"][0]):
        assert variable in variables
    credentials = unit("tsgdn2.service.d/tls.conf")["Service"]
    handed = {one.split(":")[0] for one in credentials["LoadCredential"]}
    for one in credentials["Environment"]:
        name, _, value = one.partition("=")
        assert name.removeprefix(PREFIX).lower() in Settings.model_fields
        assert value.removeprefix("%d/") in handed


def test_all_files_mean_the_same_memory() -> None:
    alerts = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"][0]["rules"]
    (memory,) = [rule["expr"] for rule in alerts if rule["alert"] == "Tsgdn2Memory"]
    assert int(memory.split(">")[1]) == int(0.9 * MEMORY)


def test_the_page_names_every_file_and_its_commands_name_files_and_modules_that_are_there() -> None:
    page = (DEPLOY / "README.md").read_text()
    for path in DEPLOY.iterdir():
        assert path.name in page or path.name in ("__pycache__", "README.md"), path.name
    for named in re.findall(r"service/deploy/[\w.]+\w", page):
        assert (ROOT / named).exists(), named
    for module in re.findall(r"python -m (tsgdn2\.[\w.]+)", page):
        assert (ROOT / Path(*module.split(".")[1:])).with_suffix(".py").is_file(), module
    for variable in re.findall(r"\b(TSGDN2_SERVE_\w+)", page):
        assert variable.removeprefix(PREFIX).lower() in Settings.model_fields, variable
    for variable in re.findall(r"\b(TSGDN2_(?!SERVE)\w+)=", page):
        assert f"${{{variable}" in (DEPLOY / "compose.yaml").read_text(), variable


def test_a_container_is_alive_when_its_service_answers_and_not_before(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        assert not alive({"TSGDN2_SERVE_PORT": str(nobody.getsockname()[1])})
    with served(tmp_path, keys="required") as client:
        environ = {"TSGDN2_SERVE_PORT": str(client.base_url.port)}
        assert alive(environ)
        done = subprocess.run(
            [sys.executable, "-m", "tsgdn2.service.deploy.alive"], env=os.environ | environ, cwd=ROOT, check=False,
            timeout=20,
        )  # fmt: skip
        assert done.returncode == 0


@pytest.mark.parametrize("both", [False, True])
def test_a_container_is_alive_behind_tls_too_and_where_clients_need_a_certificate(tmp_path: Path, both: bool) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "elsewhere")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1)).sign(key, hashes.SHA256())
    )  # fmt: skip
    file = tmp_path / "both.pem"
    file.write_bytes(made.public_bytes(Encoding.PEM) + key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    ))  # fmt: skip
    settings = {"certificate": str(file)} | ({"client_authority": str(file)} if both else {})
    with served(tmp_path, **settings) as client:
        port = client.base_url.port
        environ = {f"{PREFIX}{name.upper()}": value for name, value in settings.items()}
        assert alive(environ | {"TSGDN2_SERVE_PORT": str(port)})
    assert not alive(environ | {"TSGDN2_SERVE_PORT": str(port)})


class Guarded(Mosquitto):
    """A broker with our configuration and passwords."""

    def command(self) -> list[str]:
        ours = (DEPLOY / "mosquitto.conf").read_text()
        made = self.folder / "secrets"
        if not made.exists():
            make(made)
            (self.folder / "data").mkdir()
        for before, after in (
            ("listener 1883", f"listener {self.port} 127.0.0.1\nuser root"),
            ("/mosquitto/config/passwd", str(made / "mosquitto.passwd")),
            ("/mosquitto/data", str(self.folder / "data")),
        ):
            assert before in ours
            ours = ours.replace(before, after)
        (self.folder / "mosquitto.conf").write_text(ours)
        return ["-c", str(self.folder / "mosquitto.conf")]


@pytest.mark.parametrize("user", ["tsgdn2", "sender", "nobody"])
def test_the_broker_takes_the_passwords_that_were_made_and_no_others(user: str) -> None:
    with Guarded() as broker:
        files = broker.folder / "secrets"
        words = dict(line.split("=", 1) for line in (files / "mqtt.env").read_text().split())
        password = {"tsgdn2": words["TSGDN2_MQTT_PASSWORD"], "sender": (files / "sender").read_text().strip()}
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        client.username_pw_set(user, password.get(user, "guess"))
        answers: list[bool] = []
        client.on_connect = lambda *about: answers.append(about[3].is_failure)
        client.connect("127.0.0.1", broker.port)
        deadline = time.monotonic() + 20
        while not answers and time.monotonic() < deadline:
            client.loop(0.1)
        client.disconnect()
        assert answers[:1] == [user not in password]


def test_passwords_are_made_once_for_their_owner_and_are_never_the_same(tmp_path: Path) -> None:
    first = make(tmp_path / "a")
    kept = {name: (tmp_path / "a" / name).read_text() for name in first}
    assert make(tmp_path / "a") == []
    assert kept == {name: (tmp_path / "a" / name).read_text() for name in first}
    make(tmp_path / "b")
    for name in set(first) - {"metrics-key"}:
        assert kept[name] != (tmp_path / "b" / name).read_text()
    assert (tmp_path / "a").stat().st_mode & 0o77 == 0
    for name in ("mqtt.env", "postgres.env", "sender"):
        assert (tmp_path / "a" / name).stat().st_mode & 0o77 == 0


def test_the_alerts_are_rules_and_each_fires_for_its_cause_alone(tmp_path: Path) -> None:
    binary("prometheus")
    for name in ("alerts.yml", "alerts.test.yml", "prometheus.yml"):
        (tmp_path / name).write_text((DEPLOY / name).read_text())
    (tmp_path / "metrics-key").touch()
    for command in (["check", "config", "prometheus.yml"], ["test", "rules", "alerts.test.yml"]):
        done = subprocess.run(
            [binary("promtool"), *command], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
    named = {rule["alert"] for rule in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"][0]["rules"]}
    tried = yaml.safe_load((DEPLOY / "alerts.test.yml").read_text())["tests"]
    fired = {found for test in tried for one in test.get("promql_expr_test", ()) for sample in one["exp_samples"]
             for found in re.findall(r'alertname="(\w+)"', sample["labels"])}  # fmt: skip
    assert fired == named
