"""The official TypeScript SDK, unmodified: `tests/sdk_ts` drives a running server under Node.js."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.contract.sdk_server import Galley

pytest_plugins = ["tests.contract.galley_fixture"]

PROJECT = Path(__file__).parents[1] / "sdk_ts"


@pytest.fixture(scope="session")
def installed() -> Path:
    """The SDK of the lock file, installed unless it is."""
    stamp = PROJECT / "node_modules" / ".installed"
    wanted = hashlib.sha256((PROJECT / "package-lock.json").read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run(["npm", "ci", "--ignore-scripts", "--loglevel=error"], cwd=PROJECT, check=True, timeout=300)
        stamp.write_text(wanted)
    return PROJECT


@pytest.mark.node
def test_the_typescript_sdk_drives_every_endpoint(installed: Path, galley: Galley) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "GALLEY_TEST_URL": galley.url,
        "GALLEY_TEST_KEY": galley.key,
    }
    run = subprocess.run(
        ["node", "--test", "galley.test.mjs"],
        cwd=installed,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert run.returncode == 0, run.stdout + run.stderr
