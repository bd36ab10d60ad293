"""What clients may send into a session, by itself; the rules about the session's state are the runtime's. No I/O here.

Source of the shapes: `anthropic.types.beta.sessions`, package 2.12.
"""

import base64
import binascii
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from galley_server.wire.base import Wire
from galley_server.wire.bounds import HttpUrl, Id
from galley_server.wire.union import ByType
from galley_server.wire.validation import RuleBroken

MAX_EVENTS: Final = 1000
MAX_INITIAL_EVENTS: Final = 50
MAX_FILE_DOCUMENTS: Final = 100

NO_REDACTED: Final = ByType(refused=(("redacted", "A redacted block cannot be sent"),))
NO_OUTCOMES: Final = ByType(
    refused=(
        ("user.define_outcome", "Outcomes are not supported in this release of Galley"),
        ("user.tool_result", "user.tool_result is for self-hosted environments, which Galley does not have"),
    )
)
NOT_INITIAL: Final = ByType(refused=(("user.define_outcome", "Outcomes are not supported in this release of Galley"),))


def _check_base64(data: str) -> str:
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise RuleBroken("Input should be base64, in the standard alphabet and with padding") from None
    return data


class UserTextParam(Wire):
    type: Literal["text"]
    text: str

    @field_validator("text")
    @classmethod
    def _check_text(cls, text: str) -> str:
        # The Messages API refuses blank text, and by then it would be an error of the session.
        if not text.strip():
            raise RuleBroken("Text should hold more than white space")
        return text


class ResultTextParam(Wire):
    """A tool may well answer with nothing."""

    type: Literal["text"]
    text: str


class Base64ImageParam(Wire):
    type: Literal["base64"]
    media_type: Literal["image/png", "image/jpeg", "image/gif", "image/webp"]
    data: Annotated[str, Field(min_length=1)]

    @field_validator("data")
    @classmethod
    def _data(cls, data: str) -> str:
        return _check_base64(data)


class Base64DocumentParam(Wire):
    type: Literal["base64"]
    media_type: Literal["application/pdf"]
    data: Annotated[str, Field(min_length=1)]

    @field_validator("data")
    @classmethod
    def _data(cls, data: str) -> str:
        return _check_base64(data)


class PlainTextParam(Wire):
    type: Literal["text"]
    media_type: Literal["text/plain"]
    data: Annotated[str, Field(min_length=1)]


class UrlParam(Wire):
    type: Literal["url"]
    url: HttpUrl


class FileParam(Wire):
    type: Literal["file"]
    file_id: Id


class ImageParam(Wire):
    type: Literal["image"]
    source: Annotated[Base64ImageParam | UrlParam | FileParam, ByType()]


class DocumentParam(Wire):
    type: Literal["document"]
    source: Annotated[Base64DocumentParam | PlainTextParam | UrlParam | FileParam, ByType()]
    title: Annotated[str, Field(max_length=2048)] | None = None
    context: str | None = None


class CitationsParam(Wire):
    enabled: bool


class SearchResultParam(Wire):
    type: Literal["search_result"]
    source: Annotated[str, Field(min_length=1)]
    title: Annotated[str, Field(min_length=1)]
    content: Annotated[tuple[UserTextParam, ...], Field(min_length=1)]
    citations: CitationsParam


UserBlockParam: TypeAlias = Annotated[UserTextParam | ImageParam | DocumentParam, NO_REDACTED]
ResultBlockParam: TypeAlias = Annotated[ResultTextParam | ImageParam | DocumentParam | SearchResultParam, NO_REDACTED]


class UserMessageParam(Wire):
    type: Literal["user.message"]
    content: Annotated[tuple[UserBlockParam, ...], Field(min_length=1)]


class UserInterruptParam(Wire):
    type: Literal["user.interrupt"]
    session_thread_id: Id | None = None


class UserToolConfirmationParam(Wire):
    type: Literal["user.tool_confirmation"]
    tool_use_id: Id
    result: Literal["allow", "deny"]
    deny_message: Annotated[str, Field(max_length=10_000)] | None = None

    @model_validator(mode="after")
    def _check_message(self) -> "UserToolConfirmationParam":
        if self.result == "allow" and self.deny_message is not None:
            raise RuleBroken("Only allowed when result is 'deny'", "deny_message")
        return self


class UserCustomToolResultParam(Wire):
    type: Literal["user.custom_tool_result"]
    custom_tool_use_id: Id
    content: tuple[ResultBlockParam, ...] | None = None
    is_error: bool | None = None


class SystemMessageParam(Wire):
    type: Literal["system.message"]
    content: Annotated[tuple[UserTextParam, ...], Field(min_length=1, max_length=1000)]


ClientEventParam: TypeAlias = Annotated[
    UserMessageParam | UserInterruptParam | UserToolConfirmationParam | UserCustomToolResultParam | SystemMessageParam,
    NO_OUTCOMES,
]
InitialEventParam: TypeAlias = Annotated[UserMessageParam, NOT_INITIAL]

AnyClientEvent: TypeAlias = (
    UserMessageParam | UserInterruptParam | UserToolConfirmationParam | UserCustomToolResultParam | SystemMessageParam
)


class EventsSend(Wire):
    events: Annotated[tuple[ClientEventParam, ...], Field(min_length=1, max_length=MAX_EVENTS)]

    @field_validator("events")
    @classmethod
    def _check_system_message(cls, events: tuple[AnyClientEvent, ...]) -> tuple[AnyClientEvent, ...]:
        check_system_message(events)
        return events


def check_system_message(events: tuple[AnyClientEvent, ...]) -> None:
    """At most one, in the last place, right behind the message or the tool result that it accompanies."""
    last = len(events) - 1
    for index, event in enumerate(events):
        if not isinstance(event, SystemMessageParam):
            continue
        if index != last:
            raise RuleBroken("system.message should be the last event of the request", index)
        if last == 0 or not isinstance(events[last - 1], UserMessageParam | UserCustomToolResultParam):
            raise RuleBroken(
                "system.message should directly follow a user.message or user.custom_tool_result in the same request",
                index,
            )


def file_references(event: AnyClientEvent) -> list[tuple[tuple[str | int, ...], Literal["image", "document"], str]]:
    """The files an event refers to: the place in the event, what the file is shown as, and its id."""
    if not isinstance(event, UserMessageParam | UserCustomToolResultParam):
        return []
    return [
        (("content", index, "source", "file_id"), block.type, block.source.file_id)
        for index, block in enumerate(event.content or ())
        if isinstance(block, ImageParam | DocumentParam) and isinstance(block.source, FileParam)
    ]
