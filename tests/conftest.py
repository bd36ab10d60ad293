"""Fixtures every tier shares, and the rule for what a machine may lack.

A test marked with one of BACKENDS, e.g. `docker`, is skipped, with the reason, where that is missing. Where it is named
in GALLEY_REQUIRE_BACKENDS (as in CI) the same test fails instead, whatever made it skip.
"""

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Generator, Mapping
from typing import Any, Final

import docker
import pytest
from docker.errors import DockerException

# Taken out of the environment: servers that tests start refuse a GALLEY_ variable that is no setting.
REQUIRED: Final = frozenset(filter(None, os.environ.pop("GALLEY_REQUIRE_BACKENDS", "").split(",")))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@functools.cache
def _no_docker() -> str | None:
    try:
        client = docker.from_env(timeout=10)
    except DockerException as error:
        return f"no Docker engine answers: {error}"
    client.close()
    return None


@functools.cache
def _no_bubblewrap() -> str | None:
    if shutil.which("bwrap") is None:
        return "bwrap is not installed"
    run = subprocess.run(
        ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "true"], capture_output=True, text=True, timeout=20
    )
    return f"bwrap cannot make a sandbox here: {run.stderr.strip()}" if run.returncode else None


@functools.cache
def _no_compose() -> str | None:
    if shutil.which("docker") is None:
        return "docker is not installed"
    run = subprocess.run(["docker", "compose", "version"], capture_output=True, text=True, timeout=20)
    return f"docker has no compose: {run.stderr.strip()[:100]}" if run.returncode else None


@functools.cache
def _no_systemd() -> str | None:
    return None if shutil.which("systemd-analyze") else "systemd-analyze is not installed"


@functools.cache
def _no_node() -> str | None:
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "node or npm is not installed"
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, timeout=20).stdout
    major = re.match(r"v(\d+)", version)
    return None if major and int(major[1]) >= 20 else f"node is {version.strip()}, the SDK needs 20"


BACKENDS: Final[Mapping[str, Callable[[], str | None]]] = {
    "docker": _no_docker,
    "bubblewrap": _no_bubblewrap,
    "node": _no_node,
    "compose": _no_compose,
    "systemd": _no_systemd,
}


def _needs(item: pytest.Item) -> list[str]:
    return [name for name in BACKENDS if item.get_closest_marker(name)]


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name in _needs(item):
        missing = BACKENDS[name]()
        if missing is not None:
            pytest.skip(f"needs {name}: {missing}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    required = REQUIRED.intersection(_needs(item))
    if required and report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{', '.join(sorted(required))} is required here, and this test was skipped: {reason}"
    return report
