"""The embedded store's file: what lies in it, what a rotation of its key survives, what it refuses."""

import asyncio
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import pytest
from blockbuster import blockbuster_ctx
from galley_vault_proxy.cli import rotate_key
from galley_vault_proxy.errors import AccessRefused, ConfigError, ProxyError, StoreUnavailable
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.store.embedded import EmbeddedStore
from galley_vault_proxy.store.keys import KeyFile
from galley_vault_proxy.store.port import SecretRef
from galley_vault_proxy.store.sealing import Keys

REF = SecretRef("vlt_one", "vcrd_one")
CANARY = "canary-6f1f2c9d"


class Crash(Exception):
    """The process died here."""


class CrashingPlace(KeyFile):
    """A key file at whose n-th saving the process dies."""

    def __init__(self, path: Path, dies_at: int) -> None:
        super().__init__(path)
        self._left = dies_at

    def save(self, keys: Keys) -> None:
        self._left -= 1
        if self._left == 0:
            raise Crash
        super().save(keys)


async def _write(store: EmbeddedStore, ref: SecretRef = REF, value: str = CANARY) -> None:
    await store.write(ref, {"token": Secret(value)}, expected=None)


async def _token(store: EmbeddedStore, ref: SecretRef = REF) -> str:
    return (await store.read_own(ref)).fields["token"].reveal()


def _everything(home: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(home.iterdir()) if path.is_file())


def _modes(home: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in home.iterdir()}


def _sealed(home: Path, ref: SecretRef = REF) -> bytes:
    with closing(sqlite3.connect(home / "secrets.db")) as db:
        query = "SELECT sealed FROM secrets WHERE credential_id = ?"
        return bytes(db.execute(query, (ref.credential_id,)).fetchone()[0])


def _tamper(home: Path, statement: str) -> None:
    with closing(sqlite3.connect(home / "secrets.db")) as db, db:
        assert db.execute(statement).rowcount == 1


@pytest.mark.anyio
async def test_no_secret_is_in_any_file(tmp_path: Path) -> None:
    async with EmbeddedStore.open(tmp_path) as store:
        await _write(store)
        assert CANARY.encode() not in _everything(tmp_path)
    assert CANARY.encode() not in _everything(tmp_path)


@pytest.mark.anyio
async def test_every_file_is_the_owners_alone(tmp_path: Path) -> None:
    async with EmbeddedStore.open(tmp_path) as store:
        await _write(store)
        modes = _modes(tmp_path)
    assert {"secrets.db", "secrets.db-wal", "store_key"} <= set(modes)
    assert set(modes.values()) == {0o600}


@pytest.mark.anyio
async def test_a_purge_leaves_no_ciphertext_behind(tmp_path: Path) -> None:
    async with EmbeddedStore.open(tmp_path) as store:
        for number in range(40):
            await _write(store, SecretRef("vlt_one", f"vcrd_{number}"), CANARY * 40)
        sealed = [_sealed(tmp_path, SecretRef("vlt_one", f"vcrd_{number}")) for number in range(40)]
        await store.purge(SecretRef("vlt_one", "vcrd_7"))
        left = _everything(tmp_path)
        assert [number for number in range(40) if sealed[number][:64] not in left] == [7]
        await store.purge_vault("vlt_one")
        left = _everything(tmp_path)
        assert not [number for number in range(40) if sealed[number][:64] in left]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "change",
    [
        "UPDATE secrets SET version = 2 WHERE credential_id = 'vcrd_one'",
        "UPDATE secrets SET credential_id = 'vcrd_one' , vault_id = 'vlt_one' WHERE credential_id = 'vcrd_two'",
        "UPDATE secrets SET sealed = zeroblob(40) WHERE credential_id = 'vcrd_one'",
        "UPDATE secrets SET sealed = x'00' WHERE credential_id = 'vcrd_one'",
    ],
)
async def test_a_ciphertext_is_bound_to_its_place_and_version(tmp_path: Path, change: str) -> None:
    async with EmbeddedStore.open(tmp_path) as store:
        await _write(store)
        await _write(store, SecretRef("vlt_two", "vcrd_two"), "other")
        if "vcrd_two" in change:
            await store.purge(REF)
        _tamper(tmp_path, change)
        with pytest.raises(StoreUnavailable, match="changed by something else"):
            await store.read_own(REF)


@pytest.mark.anyio
async def test_a_rotation_keeps_every_secret_and_forgets_the_old_key(tmp_path: Path) -> None:
    async with EmbeddedStore.open(tmp_path) as store:
        await _write(store)
        sealed = await store.seal("vlt_one", b"state")
        before, old_key = _sealed(tmp_path), (tmp_path / "store_key").read_text()
        rotation = await store.rotate()
        assert (await _token(store), await store.unseal("vlt_one", sealed)) == (CANARY, b"state")
        now = (tmp_path / "store_key").read_text()
        assert rotation.secrets == 1
        assert now.startswith(rotation.key_id)
        assert len(now.splitlines()) == 1
        assert now != old_key
        assert before[:40] not in _everything(tmp_path)
    async with EmbeddedStore.open(tmp_path) as store:
        assert (await _token(store), await store.unseal("vlt_one", sealed)) == (CANARY, b"state")


@pytest.mark.anyio
async def test_a_stolen_old_key_opens_nothing_after_a_rotation(tmp_path: Path) -> None:
    async with EmbeddedStore.open(tmp_path) as store:
        await _write(store)
        old = (tmp_path / "store_key").read_bytes()
        await store.rotate()
    (tmp_path / "store_key").write_bytes(old)
    with pytest.raises(ConfigError, match="does not hold the key"):
        async with EmbeddedStore.open(tmp_path):
            pass


@pytest.mark.anyio
async def test_another_process_goes_on_reading_and_writing_through_rotations(tmp_path: Path) -> None:
    async with EmbeddedStore.open(tmp_path) as store, EmbeddedStore.open(tmp_path) as other:
        await _write(store)
        for number in range(3):
            await store.rotate()
            assert await _token(other) == (CANARY if number == 0 else f"by other {number - 1}")
            await _write(other, value=f"by other {number}")
        assert await _token(store) == "by other 2"


@pytest.mark.anyio
@pytest.mark.parametrize("dies_at", [1, 2])
async def test_a_rotation_cut_off_loses_nothing_and_is_finished_by_the_next_start(tmp_path: Path, dies_at: int) -> None:
    async with EmbeddedStore.open(tmp_path) as store:
        await _write(store)
    with pytest.raises(Crash):
        async with EmbeddedStore.open(tmp_path, place=CrashingPlace(tmp_path / "store_key", dies_at)) as store:
            await store.rotate()
    async with EmbeddedStore.open(tmp_path) as store:
        assert await _token(store) == CANARY
    assert len((tmp_path / "store_key").read_text().splitlines()) == 1


@pytest.mark.anyio
async def test_a_rotation_cut_off_before_the_file_was_sealed_anew_is_finished(tmp_path: Path) -> None:
    async with EmbeddedStore.open(tmp_path) as store:
        await _write(store)
    place = KeyFile(tmp_path / "store_key")
    old = place.load()
    assert old is not None
    place.save(old.with_active(Keys.new()))
    async with EmbeddedStore.open(tmp_path) as store:
        assert await _token(store) == CANARY
    assert old.active not in (tmp_path / "store_key").read_text()


@pytest.mark.anyio
async def test_two_processes_that_make_the_store_together_share_its_key(tmp_path: Path) -> None:
    async with EmbeddedStore.open(tmp_path) as one, EmbeddedStore.open(tmp_path) as two:
        await _write(one)
        assert await _token(two) == CANARY


def _delete(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    path.write_text(path.read_text()[:40])


def _empty(path: Path) -> None:
    path.write_text("")


def _open_up(path: Path) -> None:
    path.chmod(0o644)


def _another(path: Path) -> None:
    KeyFile(path).save(Keys.new())


@pytest.mark.anyio
@pytest.mark.parametrize("harm", [_delete, _cut, _empty, _open_up, _another])
async def test_a_key_that_cannot_be_the_right_one_is_refused_at_the_start(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    async with EmbeddedStore.open(tmp_path) as store:
        await _write(store)
    key = (tmp_path / "store_key").read_text().split()[1]
    harm(tmp_path / "store_key")
    with pytest.raises(ConfigError, match="store_key") as caught:
        async with EmbeddedStore.open(tmp_path):
            pass
    assert key[:16] not in str(caught.value)


@pytest.mark.anyio
async def test_a_hand_over_ends_with_its_time(tmp_path: Path) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)

    async with EmbeddedStore.open(tmp_path, clock=lambda: now) as store:
        await _write(store)
        await store.open_session("sesn_1", ("vlt_one",), now + timedelta(days=1))
        token = await store.wrap("sesn_1", REF, ttl_s=60)
        now += timedelta(seconds=61)
        with pytest.raises(AccessRefused):
            await store.unwrap(REF, token)


@pytest.mark.anyio
async def test_a_purge_takes_back_what_was_to_be_handed_over(tmp_path: Path) -> None:
    async with EmbeddedStore.open(tmp_path) as store:
        await _write(store)
        await store.open_session("sesn_1", ("vlt_one",), datetime.now(UTC) + timedelta(hours=1))
        token = await store.wrap("sesn_1", REF, ttl_s=60)
        await store.purge(REF)
        with pytest.raises(AccessRefused):
            await store.unwrap(REF, token)


@pytest.mark.anyio
async def test_a_file_that_is_no_store_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "secrets.db").write_text("my shopping list, and a bit more so that it is no short read")
    with pytest.raises(ProxyError):
        async with EmbeddedStore.open(tmp_path):
            pass
    assert (tmp_path / "secrets.db").read_text().startswith("my shopping list")


def test_keys_do_not_print() -> None:
    keys = Keys.new()
    assert keys.by_id[keys.active].hex() not in f"{keys!r} {keys}"


class MemoryRing(ModuleType):
    """A keyring as the `keyring` package shows one."""

    def __init__(self) -> None:
        super().__init__("keyring")
        self.kept: dict[tuple[str, str], str] = {}
        self.locked = False

    def get_password(self, service: str, user: str) -> str | None:
        if self.locked:
            raise RingError
        return self.kept.get((service, user))

    def set_password(self, service: str, user: str, password: str) -> None:
        if self.locked:
            raise RingError
        self.kept[service, user] = password


class RingError(Exception):
    pass


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> MemoryRing:
    made, errors = MemoryRing(), ModuleType("keyring.errors")
    errors.KeyringError = RingError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "keyring", made)
    monkeypatch.setitem(sys.modules, "keyring.errors", errors)
    return made


@pytest.mark.anyio
async def test_the_key_may_lie_in_the_keyring_and_in_no_file(tmp_path: Path, ring: MemoryRing) -> None:
    async with EmbeddedStore.open(tmp_path, key="keyring") as store:
        await _write(store)
        await store.rotate()
    async with EmbeddedStore.open(tmp_path, key="keyring") as store:
        assert await _token(store) == CANARY
    ((place, kept),) = ring.kept.items()
    assert place == ("galley-vault-proxy", str(tmp_path))
    assert kept.split()[1].encode() not in _everything(tmp_path)


@pytest.mark.anyio
async def test_a_locked_keyring_is_named_with_what_helps(tmp_path: Path, ring: MemoryRing) -> None:
    ring.locked = True
    with pytest.raises(ConfigError, match="GALLEY_PROXY_STORE_KEY=file"):
        async with EmbeddedStore.open(tmp_path, key="keyring"):
            pass


@pytest.mark.anyio
async def test_a_keyring_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(ConfigError, match=r"pip install 'galley-agents\[keyring\]'"):
        async with EmbeddedStore.open(tmp_path, key="keyring"):
            pass


@pytest.mark.anyio
async def test_nothing_blocks_the_event_loop(tmp_path: Path) -> None:
    with blockbuster_ctx():
        async with EmbeddedStore.open(tmp_path) as store:
            await _write(store)
            await store.rotate()
            assert await _token(store) == CANARY
            await store.purge(REF)


def test_rotating_the_key_is_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environ = {"GALLEY_PROXY_HOME": str(tmp_path)}
    with pytest.raises(ConfigError, match="GALLEY_PROXY_HOME"):
        rotate_key.main([], environ)
    asyncio.run(_write_one(tmp_path))
    assert rotate_key.main([], environ) == 0
    assert capsys.readouterr().out.startswith("1 secrets are sealed with the new key")
    with pytest.raises(ConfigError, match="VAULT_ADDR"):
        rotate_key.main([], {**environ, "VAULT_ADDR": "http://127.0.0.1:1", "VAULT_TOKEN": "t"})


async def _write_one(home: Path) -> None:
    async with EmbeddedStore.open(home) as store:
        await _write(store)
