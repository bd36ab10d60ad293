"""Small parts of the runtime: cursors, shown times, names of files, the list of models."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from galley_server.errors import InvalidRequest, NotFound
from galley_server.runtime import cursor
from galley_server.runtime.attachments import is_document, is_image
from galley_server.runtime.clock import first_shown_as, floor, last_shown_as
from galley_server.runtime.files import checked_name, mime_type_of
from galley_server.runtime.models import Models
from galley_server.wire.model import ModelInfo
from galley_server.wire.query import ModelQuery
from galley_server.wire.session_request import mount_path

AT = datetime(2026, 11, 23, 8, 0, 0, 412_345, UTC)
LATEST = datetime.max.replace(tzinfo=UTC)


def test_a_cursor_comes_back_as_it_went() -> None:
    text = cursor.encode("sessions", "desc", 17)
    assert text.startswith("page_")
    assert cursor.decode(text, "sessions", str, int) == ("desc", 17)


@pytest.mark.parametrize(
    "text",
    [
        *[
            "",
            "page_",
            "page_!!",
            "page_bm90IGpzb24",
            cursor.encode("agents", 1),
            cursor.encode("files", "1"),
            "page_W10",
        ],
        *[cursor.encode("files", -1), cursor.encode("files", 10**30)],
    ],
)
def test_a_cursor_of_another_list_or_none_at_all_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^page: not a cursor of this list"):
        cursor.decode(text, "files", int)


@pytest.mark.parametrize("offset_us", [-345, -1, 0, 1, 654, 655])
def test_bounds_of_a_list_compare_times_as_they_are_shown(offset_us: int) -> None:
    stored, asked = AT + timedelta(microseconds=offset_us), floor(AT)
    assert (stored <= last_shown_as(asked)) == (floor(stored) <= asked)
    assert (stored > last_shown_as(asked)) == (floor(stored) > asked)
    assert (stored >= first_shown_as(asked)) == (floor(stored) >= asked)
    assert (stored < first_shown_as(asked)) == (floor(stored) < asked)


def test_a_bound_between_two_shown_times_divides_them() -> None:
    assert first_shown_as(AT) == floor(AT) + timedelta(milliseconds=1)
    assert last_shown_as(AT) == floor(AT) + timedelta(microseconds=999)
    assert first_shown_as(LATEST) == last_shown_as(LATEST) == LATEST


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("sales.csv", "sales.csv"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        (None, "unnamed.csv"),
        ("a/", "unnamed.csv"),
        ("..", "unnamed.csv"),
    ],
)
def test_only_the_last_part_of_a_name_is_kept(given: str | None, kept: str) -> None:
    assert checked_name(given, "text/csv") == kept


@pytest.mark.parametrize("name", ["x" * 256, "a\nb"])
def test_a_name_no_file_should_have_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^file: the filename"):
        checked_name(name, "text/csv")


def test_a_type_is_taken_from_the_client_and_else_from_the_name() -> None:
    assert mime_type_of("Text/CSV; charset=utf-8", "x.json") == "text/csv"
    assert mime_type_of("application/octet-stream", "x.json") == "application/json"
    assert mime_type_of(None, "x") == "application/octet-stream"
    with pytest.raises(InvalidRequest, match=r"^file: 'nonsense' is not a media type"):
        mime_type_of("nonsense", "x")


def test_what_a_model_can_be_shown() -> None:
    assert is_image("image/png")
    assert not is_image("image/tiff")
    assert all(is_document(kind) for kind in ("application/pdf", "text/csv", "application/json", "image/svg+xml"))
    assert not is_document("application/zip")


@pytest.mark.parametrize(
    ("given", "path"),
    [
        (None, "/mnt/session/uploads/file_1"),
        ("data.csv", "/mnt/session/uploads/data.csv"),
        ("/data/a.csv", "/mnt/session/uploads/data/a.csv"),
        ("/workspace/a.csv", "/workspace/a.csv"),
        ("/mnt/session/uploads/a.csv", "/mnt/session/uploads/a.csv"),
        ("/workspace", "/mnt/session/uploads/workspace"),
    ],
)
def test_a_mount_path_is_rooted_in_the_uploads_unless_it_is_in_the_workspace(given: str | None, path: str) -> None:
    assert mount_path(given, "file_1") == path


class Listed:
    """A directory whose answer is set by hand."""

    def __init__(self, *ids: str) -> None:
        self.answer: Sequence[ModelInfo] | None = [info(model_id) for model_id in ids]
        self.asked = 0

    async def offered(self) -> Sequence[ModelInfo] | None:
        self.asked += 1
        return self.answer


def info(model_id: str, **fields: object) -> ModelInfo:
    return ModelInfo.model_validate({"id": model_id, "display_name": model_id, "created_at": AT, **fields})


@pytest.mark.anyio
async def test_the_default_model_is_listed_even_by_an_endpoint_that_lists_nothing() -> None:
    directory = Listed()
    directory.answer = None
    models = Models(directory, default_model="m")
    assert [model.id for model in (await models.list(ModelQuery())).data] == ["m"]
    assert (await models.retrieve("m")).display_name == "m"


@pytest.mark.anyio
async def test_models_are_paged_both_ways() -> None:
    models = Models(Listed("a", "b", "c", "d"), default_model="a")
    first = await models.list(ModelQuery(limit=2))
    assert (first.first_id, first.last_id, first.has_more) == ("a", "b", True)
    rest = await models.list(ModelQuery(limit=2, after_id="b"))
    assert ([model.id for model in rest.data], rest.has_more) == (["c", "d"], False)
    back = await models.list(ModelQuery(limit=2, before_id="d"))
    assert ([model.id for model in back.data], back.has_more) == (["b", "c"], True)


@pytest.mark.anyio
async def test_retired_models_are_listed_only_when_asked_for() -> None:
    directory = Listed("a")
    directory.answer = [info("a"), info("old", lifecycle="retired")]
    models = Models(directory, default_model="a")
    assert [model.id for model in (await models.list(ModelQuery())).data] == ["a"]
    assert [model.id for model in (await models.list(ModelQuery(lifecycle=("retired",)))).data] == ["old"]


@pytest.mark.anyio
async def test_an_endpoint_is_asked_again_only_after_a_while_and_its_last_word_holds_while_it_is_silent() -> None:
    directory, now = Listed("a", "b"), [0.0]
    models = Models(directory, default_model="a", timer=lambda: now[0])
    await models.list(ModelQuery())
    await models.list(ModelQuery())
    assert directory.asked == 1
    now[0], directory.answer = 301.0, None
    assert len((await models.list(ModelQuery())).data) == 2
    assert directory.asked == 2


@pytest.mark.anyio
async def test_an_unknown_model_is_not_found_and_no_cursor() -> None:
    models = Models(Listed("a"), default_model="a")
    with pytest.raises(NotFound, match="Model x was not found"):
        await models.retrieve("x")
    with pytest.raises(InvalidRequest, match=r"^after_id: 'x' is not the id of a listed model"):
        await models.list(ModelQuery(after_id="x"))
