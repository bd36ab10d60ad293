"""What the deployment's files promise: only settings that exist, least privilege, secrets where they belong alone."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from galley_server.settings import NAMES as SERVER_NAMES
from galley_vault_proxy import bootstrap, hand_over
from galley_vault_proxy.__main__ import COMMANDS
from galley_vault_proxy.cli import serve
from galley_vault_proxy.settings import NAMES, Settings

from tests.acceptance.compose_file import FOLDER, ROOT, Service, compose

OVERRIDES: Final = ("server", "stdio", "tunnel")
SYSTEMD: Final = FOLDER / "systemd"
UNIT: Final = (SYSTEMD / "galley-vault-proxy.service").read_text()
GUIDE: Final = (FOLDER / "README.md").read_text()
# What only these services may see, of the volumes that hold something worth stealing.
KEEPERS: Final = {
    "operator": {"prepare", "unseal", "bootstrap", "login"},
    "login": {"prepare", "login", "proxy"},
    "service-key": {"prepare", "proxy", "credentials", "runner", "server"},
    "store-tls": {"prepare", "store"},
    "store-data": {"prepare", "store"},
    "proxy-home": {"prepare", "proxy"},
    "proxy-sockets": {"prepare", "proxy", "tunnel", "server"},
    "greeting": {"prepare", "runner", "tunnel"},
    "outside-secrets": {"prepare", "outside", "credentials"},
}


def services(*overrides: str) -> list[Service]:
    return list(compose(*overrides).services.values())


def every_service() -> Iterator[Service]:
    for overrides in ((), *((name,) for name in OVERRIDES), OVERRIDES):
        yield from services(*overrides)


def test_every_variable_is_a_setting() -> None:
    ours = {service.name: service.environment for service in every_service()}
    unknown = {
        f"{service}: {name}"
        for service, environment in ours.items()
        for name in environment
        if name.startswith(("GALLEY_", "VAULT_")) and name not in NAMES | SERVER_NAMES
    }
    assert unknown == set()


def test_the_proxys_settings_are_ones_that_it_starts_with() -> None:
    for overrides in ((), OVERRIDES):
        settings = Settings.from_env(compose(*overrides).services["proxy"].environment)
        assert settings.vault is not None
        assert settings.vault.address.startswith("https://")


def test_the_commands_are_ones_that_the_programs_take() -> None:
    found = compose(*OVERRIDES).services
    parsers: Mapping[str, argparse.ArgumentParser] = {
        "proxy": serve.parser(),
        "bootstrap": bootstrap._parser(),
        "login": hand_over._parser(),
    }
    for name, parser in parsers.items():
        words = list(found[name].raw["command"])
        assert words[0] in COMMANDS
        parser.parse_args(words[1:])  # a wrong one ends the test


def test_every_container_has_what_it_needs_and_nothing_more() -> None:
    for service in every_service():
        raw = service.raw
        assert raw["read_only"] is True, service.name
        assert raw["cap_drop"] == ["ALL"], service.name
        assert raw["security_opt"][0] == "no-new-privileges:true", service.name
        assert raw["pids_limit"], service.name
        assert raw["mem_limit"], service.name
        assert "privileged" not in raw, service.name
        uid = int(raw["user"].split(":")[0])
        if service.name == "prepare":
            assert (uid, service.has_network, raw["cap_add"]) == (0, False, ["CHOWN", "DAC_OVERRIDE", "FOWNER"])
        else:
            assert uid >= 100, service.name
            assert "cap_add" not in raw, service.name


def test_only_whoever_makes_sandboxes_inside_is_given_namespaces() -> None:
    opened = {
        (overrides, service.name)
        for overrides in ((), *((name,) for name in OVERRIDES))
        for service in services(*overrides)
        if len(service.raw["security_opt"]) > 1
    }
    assert opened == {(("stdio",), "proxy"), (("server",), "server")}


def test_what_is_worth_stealing_is_seen_by_its_keepers_alone() -> None:
    seen: dict[str, set[str]] = {}
    for service in every_service():
        for source, _, _ in service.volumes:
            seen.setdefault(source, set()).add(service.name)
    assert {name: seen[name] for name in KEEPERS} == KEEPERS


def test_a_sandbox_is_given_its_grant_its_tunnel_and_nothing_else() -> None:
    for overrides in ((), *((name,) for name in OVERRIDES), OVERRIDES):
        sandbox = compose(*overrides).services["sandbox"]
        assert {source for source, _, writable in sandbox.volumes} <= {"sandbox", "tunnel"}
        assert not any(writable for _, _, writable in sandbox.volumes)
        assert sandbox.networks == ([] if "tunnel" in overrides else ["sandbox"])
        assert sandbox.has_network is ("tunnel" not in overrides)


def test_a_tunnel_has_no_network_and_no_key() -> None:
    tunnel = compose("tunnel").services["tunnel"]
    assert not tunnel.has_network
    assert {source for source, _, _ in tunnel.volumes} == {"greeting", "proxy-sockets", "tunnel"}


def test_networks_lead_nowhere_else_and_nothing_is_published_but_the_server_on_loopback() -> None:
    networks = compose(*OVERRIDES).networks
    assert {name for name, how in networks.items() if not (how or {}).get("internal")} == {"server"}
    assert networks["sandbox"]["driver_opts"] == {"com.docker.network.bridge.gateway_mode_ipv4": "isolated"}
    on = {name: {service.name for service in services() if name in service.networks} for name in networks}
    assert on["sandbox"] == {"proxy", "sandbox", "runner", "credentials"}
    assert "proxy" in on["store"] & on["outside"]
    published = {service.name: service.raw["ports"] for service in every_service() if "ports" in service.raw}
    assert published == {"server": ["127.0.0.1:8420:8420"]}


def test_no_secret_is_in_an_environment() -> None:
    """Except the model's key, which the server reads from nowhere else."""
    secret = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|_ID)$")
    found = {name for service in every_service() for name in service.environment if secret.search(name)}
    assert found == {"GALLEY_MODEL_API_KEY"}


def test_grants_lie_in_memory_for_one_user() -> None:
    for name in ("sandbox", "tunnel"):
        how = compose("tunnel").volumes[name]["driver_opts"]
        assert how["type"] == "tmpfs"
    assert "mode=0700,uid=10002" in compose().volumes["sandbox"]["driver_opts"]["o"]


def test_a_program_is_healthy_when_it_would_serve_and_is_given_time_to_end() -> None:
    found = compose("server", "tunnel").services
    assert found["proxy"].raw["healthcheck"]["test"] == ["CMD", "healthcheck", "/readyz"]
    assert 'CMD ["healthcheck", "/healthz"]' in dockerfile()
    for name in ("proxy", "server", "store"):
        assert int(found[name].raw["stop_grace_period"].removesuffix("s")) >= 10
        assert found[name].raw["restart"] == "unless-stopped"
        assert "healthcheck" in found[name].raw


def test_every_file_that_is_mounted_or_copied_is_there() -> None:
    mounted = {source for service in every_service() for source, _, _ in service.volumes if source.startswith("./")}
    assert mounted
    assert [source for source in mounted if not (FOLDER / source).is_file()] == []
    copied = [line.split()[1:-1] for line in dockerfile().splitlines() if re.match(r"COPY (?!--from)", line)]
    assert [path for paths in copied for path in paths if not any(ROOT.glob(path))] == []
    # The context is what the ignore file lets in.
    let_in = [line[1:] for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"]
    assert [path for paths in copied for path in paths if not path.startswith(tuple(let_in))] == []


def test_images_are_built_from_hashes_and_run_as_somebody() -> None:
    text = dockerfile()
    assert "--require-hashes -r /src/requirements/galley.lock" in text
    assert "--no-index /src" in text
    for stage in re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]:
        if stage.split()[2] in ("proxy", "sandbox", "server"):
            assert re.findall(r"^USER (\d+):", stage, re.MULTILINE)[-1] in ("10001", "10002")


def test_the_store_is_configured_as_the_proxy_needs_it() -> None:
    config = (FOLDER / "openbao.hcl").read_text()
    assert re.search(r"^disable_standby_reads = true$", config, re.MULTILINE)
    assert 'audit "file"' in config
    assert 'storage "raft"' in config
    assert "tls_cert_file" in config
    assert "tls_disable" not in config


def test_what_nested_sandboxes_may_not_is_what_the_guide_says() -> None:
    profile = json.loads((FOLDER / "nested-sandboxes.seccomp.json").read_text())
    assert profile["defaultAction"] == "SCMP_ACT_ALLOW"
    (rule,) = profile["syscalls"]
    assert rule["action"] == "SCMP_ACT_ERRNO"
    refused = {"ptrace", "bpf", "init_module", "keyctl", "io_uring_setup", "perf_event_open", "kexec_load"}
    assert refused <= set(rule["names"])
    assert not {"clone", "unshare", "mount", "pivot_root", "setns"} & set(rule["names"])


def unit_values(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE)


def test_the_units_variables_are_settings_that_start_a_proxy() -> None:
    given = dict(line.split("=", 1) for line in unit_values("Environment"))
    lines = (SYSTEMD / "environment").read_text().splitlines()
    given |= dict(line.lstrip("#").split("=", 1) for line in lines if re.match(r"#?[A-Z_]+=", line))
    assert set(given) <= NAMES
    assert Settings.from_env(given).vault is not None
    # What they name is handed over by systemd, from root's files.
    wanted = {value.removeprefix("%d/") for value in given.values() if value.startswith("%d/")}
    assert {line.split(":")[0] for line in unit_values("LoadCredential")} == wanted
    assert {hand_over.ROLE_ID, hand_over.SECRET_ID} < wanted


def test_the_unit_starts_what_there_is() -> None:
    (command,) = unit_values("ExecStart")
    words = command.split()
    assert words[:2] == ["/opt/galley/bin/galley-vault-proxy", "serve"]
    assert serve.parser().parse_args(words[2:]).uds == Path("%t/galley-vault-proxy/proxy.sock")
    assert unit_values("RestartPreventExitStatus") == ["2"]


@pytest.mark.systemd
def test_systemd_finds_nothing_wrong_with_the_unit_and_much_that_is_right(tmp_path: Path) -> None:
    unit = tmp_path / "galley-vault-proxy.service"
    # The command has to be there.
    unit.write_text(UNIT.replace("/opt/galley/bin/galley-vault-proxy", os.path.realpath(sys.executable)))
    drop_in = tmp_path / "galley-vault-proxy.service.d"
    for servers, most in ((False, 1.5), (True, 4.0)):
        if servers:
            drop_in.mkdir()
            shutil.copy(SYSTEMD / "stdio-servers.conf", drop_in)
        seen = analyze("verify", str(unit))
        # The machine's own units may have faults too.
        ours = [line for line in (seen.stdout + seen.stderr).splitlines() if "galley" in line or "stdio-" in line]
        assert (seen.returncode, ours) == (0, [])
        found = re.search(r"exposure level for \S+: ([0-9.]+)", analyze("security", "--offline=true", str(unit)).stdout)
        assert found is not None
        assert float(found[1]) <= most


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", "--no-pager", *words], capture_output=True, text=True, timeout=60)


@pytest.mark.compose
@pytest.mark.parametrize("overrides", [(), *((name,) for name in OVERRIDES), OVERRIDES])
def test_compose_reads_the_files_as_we_do(overrides: tuple[str, ...]) -> None:
    files = ["compose.yaml", *(f"compose.{name}.yaml" for name in overrides)]
    words = [word for name in files for word in ("-f", str(FOLDER / name))]
    run = subprocess.run(
        ["docker", "compose", *words, "config", "--format", "json"], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    theirs = json.loads(run.stdout)["services"]
    ours = compose(*overrides).services
    assert set(theirs) == set(ours)
    for name, service in ours.items():
        assert gist_of(theirs[name]) == gist(service), name


def gist(service: Service) -> dict[str, Any]:
    return {
        "command": [*service.raw.get("entrypoint", []), *service.raw.get("command", [])],
        "environment": service.environment,
        "networks": sorted(service.networks),
        "no network": not service.has_network,
        "volumes": sorted((source.removeprefix("./"), *rest) for source, *rest in service.volumes),
        "security": service.raw["security_opt"],
    }


def gist_of(theirs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        # They write a dollar as two, so that it can be read again.
        "command": [
            word.replace("$$", "$") for word in [*(theirs.get("entrypoint") or []), *(theirs.get("command") or [])]
        ],
        "environment": theirs.get("environment") or {},
        "networks": sorted(theirs.get("networks") or {}),
        "no network": theirs.get("network_mode") == "none",
        "volumes": sorted(
            (str(volume["source"]).removeprefix(f"{FOLDER}/"), volume["target"], not volume.get("read_only", False))
            for volume in theirs.get("volumes") or []
        ),
        "security": [option.replace(f"{FOLDER}/", "./") for option in theirs["security_opt"]],
    }


def test_the_guide_names_every_file_and_only_files_that_are_there() -> None:
    table = GUIDE.partition("| file | what it is |")[2].partition("\n\n")[0]
    named = set(
        re.findall(r"`([\w./-]+)`", "\n".join(row.split("|")[1] for row in table.splitlines()[1:] if "|" in row))
    )
    there = {
        path.name + ("/" if path.is_dir() else "") for path in FOLDER.iterdir() if not path.name.startswith((".", "_"))
    }
    aside = {"README.md", "Dockerfile.dockerignore", "healthcheck.py", "nested-sandboxes.seccomp.json"}
    assert named == there - aside


def test_the_guides_commands_are_ones_that_there_are() -> None:
    used = set(re.findall(r"galley-vault-proxy ([a-z][a-z-]+)", GUIDE))
    assert {"bootstrap", "hand-over", "doctor", "reconcile"} <= used
    assert used <= COMMANDS.keys()
    for name in re.findall(r"\b(GALLEY_[A-Z_]+|VAULT_[A-Z_]+|SSL_CERT_FILE)\b", GUIDE):
        assert name in NAMES, name
    for path in re.findall(r"deploy/credential-broker/(systemd/[\w.-]+)", GUIDE):
        assert (FOLDER / path).exists(), path


def dockerfile() -> str:
    return (FOLDER / "Dockerfile").read_text()
