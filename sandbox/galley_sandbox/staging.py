"""The hand's own files, as they are laid out for a sandbox: source that any python3 can run, and a little of /etc."""

import hashlib
import secrets
import shutil
import subprocess
from pathlib import Path

_PACKAGE = Path(__file__).parent
_FILES = (
    "__init__.py",
    "channels.py",
    "frames.py",
    "start_hand.py",
    *sorted(f"hand/{path.name}" for path in (_PACKAGE / "hand").glob("*.py")),
)
_ETC = {
    "passwd": "root:x:0:0:hand:/:/bin/false\nagent:x:1000:1000:agent:/home/agent:/bin/bash\n"
    "nobody:x:65534:65534:nobody:/:/bin/false\n",
    "group": "root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}

IN_SANDBOX = "/opt/galley"
ENTRY = f"{IN_SANDBOX}/galley_sandbox/start_hand.py"


def contents() -> dict[str, bytes]:
    """The files by their path below the staging folder."""
    files = {f"galley_sandbox/{name}": (_PACKAGE / name).read_bytes() for name in _FILES}
    files |= {f"etc/{name}": text.encode() for name, text in _ETC.items()}
    return files


def digest(files: dict[str, bytes]) -> str:
    whole = hashlib.sha256()
    for name in sorted(files):
        whole.update(f"{name}\0{len(files[name])}\0".encode())
        whole.update(files[name])
    return whole.hexdigest()[:16]


def stage(root: Path, *, python: str | None = None) -> Path:
    """Lay the files out below `root`, once per version of them, and return the folder."""
    files = contents()
    target = root / f"hand-{digest(files)}"
    if target.is_dir():
        return target
    # Made beside and moved into place, so that a crash half-way leaves nothing that looks whole.
    draft = root / f".draft-{secrets.token_hex(8)}"
    for name, data in files.items():
        path = draft / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        path.write_bytes(data)
        path.chmod(0o644)
    for folder in (draft, *(path for path in draft.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    if python is not None:
        # Only a saving at every start: without it the sandbox's python compiles for itself.
        subprocess.run([python, "-I", "-m", "compileall", "-q", str(draft)], check=False, capture_output=True)
    try:
        draft.rename(target)
    except OSError:
        shutil.rmtree(draft)
        if not target.is_dir():
            raise
    return target
