"""Files: arriving in pieces, shared contents, expiry, and nothing left behind."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from anthropic.types import beta
from galley_server.errors import InvalidRequest, NotFound, TooLarge
from galley_server.log.instant import to_micros
from galley_server.runtime.attachments import Attachments
from galley_server.settings import Limits
from galley_server.wire.query import FileQuery

from tests.contract.catalogue_kit import MIB, Kitchen, open_kitchen, pieces
from tests.contract.sdk_strict import left_out, validate

pytestmark = pytest.mark.anyio


def contents(kitchen: Kitchen) -> list[Path]:
    return [path for path in (kitchen.runtime.settings.home / "files").rglob("*") if path.is_file()]


async def read(kitchen: Kitchen, file_id: str) -> bytes:
    return b"".join([piece async for piece in kitchen.runtime.files.content(file_id)])


async def expire(kitchen: Kitchen, file_id: str) -> None:
    past = to_micros((await kitchen.runtime.files.retrieve(file_id)).created_at - timedelta(seconds=1))
    sql = "UPDATE files SET expires_at = ? WHERE id = ?"
    await kitchen.database.write(lambda connection: connection.execute(sql, (past, file_id)).rowcount)


async def test_a_file_validates_against_the_sdks_own_type(kitchen: Kitchen) -> None:
    for file in (await kitchen.file(), await kitchen.file(expires_in_seconds=3600)):
        validate(beta.BetaFileMetadata, file.model_dump_json())
        assert set(left_out(beta.BetaFileMetadata, file.model_dump(mode="json"))) == set()
        assert await kitchen.runtime.files.retrieve(file.id) == file


async def test_a_file_comes_back_as_it_came_in_pieces_of_at_most_a_mebibyte(kitchen: Kitchen) -> None:
    parts = [bytes([number]) * (MIB // 3) for number in range(10)]
    file = await kitchen.runtime.files.upload("big.bin", None, pieces(*parts))
    got = [piece async for piece in kitchen.runtime.files.content(file.id)]
    assert b"".join(got) == b"".join(parts)
    assert max(map(len, got)) <= MIB
    assert file.size_bytes == len(b"".join(parts))


async def test_an_empty_file_is_a_file(kitchen: Kitchen) -> None:
    file = await kitchen.file(b"")
    assert (file.size_bytes, await read(kitchen, file.id)) == (0, b"")


async def test_a_file_above_the_limit_is_refused_while_it_comes_and_leaves_nothing(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path / "home", limits=Limits(file_mb=1)) as kitchen:
        with pytest.raises(TooLarge, match=r"^file: larger than 1048576 bytes"):
            await kitchen.file(b"x" * (MIB + 1))
        assert contents(kitchen) == []
        await kitchen.file(b"x" * MIB)


async def test_an_upload_that_breaks_off_leaves_nothing(kitchen: Kitchen) -> None:
    async def hang_up() -> AsyncIterator[bytes]:
        yield b"x" * 2 * MIB
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await kitchen.runtime.files.upload("a", None, hang_up())
    assert contents(kitchen) == []
    assert (await kitchen.runtime.files.list(FileQuery())).data == ()


async def test_equal_contents_are_kept_once_and_go_with_their_last_file(kitchen: Kitchen) -> None:
    first, second = await kitchen.file(b"same", "a"), await kitchen.file(b"same", "b")
    assert [path.name for path in contents(kitchen)] == [hashlib.sha256(b"same").hexdigest()]
    deleted = await kitchen.runtime.files.delete(first.id)
    validate(beta.BetaDeletedFile, deleted.model_dump_json())
    assert await read(kitchen, second.id) == b"same"
    await kitchen.runtime.files.delete(second.id)
    assert contents(kitchen) == []


async def test_deleting_and_uploading_the_same_content_at_once_loses_nothing(kitchen: Kitchen) -> None:
    for _ in range(10):
        old = await kitchen.file(b"same")
        _, new = await asyncio.gather(kitchen.runtime.files.delete(old.id), kitchen.file(b"same"))
        assert await read(kitchen, new.id) == b"same"
        await kitchen.runtime.files.delete(new.id)


async def test_contents_are_closed_to_other_users(kitchen: Kitchen) -> None:
    await kitchen.file()
    folder = kitchen.runtime.settings.home / "files"
    assert {path.stat().st_mode & 0o077 for path in (folder, *folder.rglob("*"))} == {0}


async def test_a_restart_removes_what_a_crash_left(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path / "home") as kitchen:
        kept = await kitchen.file(b"kept")
        orphan = await kitchen.runtime.files.upload("a", None, pieces(b"orphan"), session_id="sesn_never_begun")
        folder = kitchen.runtime.settings.home / "files"
        (folder / "arriving-0123").write_bytes(b"half")
        (folder / "ab").mkdir()
        (folder / "ab" / ("ab" * 32)).write_bytes(b"nobody's")
    async with open_kitchen(tmp_path / "home") as kitchen:
        assert await read(kitchen, kept.id) == b"kept"
        assert len(contents(kitchen)) == 1
        with pytest.raises(NotFound):
            await kitchen.runtime.files.retrieve(orphan.id)


async def test_an_expired_file_is_still_listed_but_has_no_content(kitchen: Kitchen) -> None:
    file = await kitchen.file(expires_in_seconds=3600)
    assert file.expires_at == file.created_at + timedelta(hours=1)
    await expire(kitchen, file.id)
    with pytest.raises(NotFound, match="has expired") as refused:
        await read(kitchen, file.id)
    assert refused.value.error_code == "file_expired"
    assert len((await kitchen.runtime.files.list(FileQuery())).data) == 1


async def test_a_list_is_walked_to_its_end_newest_first(kitchen: Kitchen) -> None:
    made = [(await kitchen.file(name=str(number))).id for number in range(3)]
    first = await kitchen.runtime.files.list(FileQuery(limit=2))
    assert first.next_page is not None
    assert first.next_page.startswith("page_")
    rest = await kitchen.runtime.files.list(FileQuery(limit=2, page=first.next_page))
    assert [file.id for file in (*first.data, *rest.data)] == made[::-1]
    assert rest.next_page is None


async def test_a_list_by_ids_leaves_out_what_is_not_there(kitchen: Kitchen) -> None:
    file = await kitchen.file()
    found = await kitchen.runtime.files.list(FileQuery(ids=(file.id, "file_x", file.id)))
    assert (found.data, found.next_page) == ((file,), None)


async def test_a_list_by_scope_shows_the_files_of_a_session(kitchen: Kitchen) -> None:
    file = await kitchen.file()
    session = await kitchen.session(resources=[{"type": "file", "file_id": file.id}])
    (copy,) = (await kitchen.runtime.files.list(FileQuery(scope_id=session.id))).data
    assert copy.id == session.resources[0].file_id != file.id
    assert copy.scope is not None
    assert copy.scope.id == session.id


async def test_what_a_model_is_shown_of_a_file_depends_on_its_type(kitchen: Kitchen) -> None:
    text, image, other = [await kitchen.file(b"\xffa", name) for name in ("notes.txt", "photo.png", "archive.zip")]
    shown = await Attachments(kitchen.runtime.files).contents([text.id, image.id, other.id, "file_x"])
    assert {key: value.model_dump() for key, value in shown.items()} == {
        text.id: {"type": "text", "media_type": "text/plain", "data": "\ufffda"},
        image.id: {"type": "base64", "media_type": "image/png", "data": "/2E="},
    }


async def test_a_bad_name_is_refused_before_anything_is_kept(kitchen: Kitchen) -> None:
    with pytest.raises(InvalidRequest):
        await kitchen.file(name="a\x00b")
    assert contents(kitchen) == []
