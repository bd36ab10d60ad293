"""What each sandbox tool accepts, checked before anything is sent: a bad input is the model's to correct."""

from collections.abc import Mapping
from typing import Annotated, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from galley_server.wire.base import JSON


def _encodable(text: str) -> str:
    """Half a surrogate pair is possible in JSON and in nothing that leaves this process."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("unicode", "not valid Unicode text") from None
    return text


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise PydanticCustomError("nul", "must not contain a NUL character")
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Command = Annotated[Text, AfterValidator(_no_nul)]
Path = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_encodable), AfterValidator(_no_nul)]
Pattern = Annotated[str, Field(min_length=1, max_length=100_000), AfterValidator(_encodable), AfterValidator(_no_nul)]


class ToolInput(BaseModel):
    # Strict: a number given as a string is a mistake to point out, not to guess about.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class BashInput(ToolInput):
    command: Command | None = None
    restart: bool | None = None
    timeout_ms: Annotated[int | None, Field(ge=0)] = None

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        if self.restart and self.command:
            raise PydanticCustomError("both", "give either command or restart, not both")
        if not self.restart and not (self.command and self.command.strip()):
            raise PydanticCustomError("neither", "command is required")
        return self


class ReadInput(ToolInput):
    file_path: Path
    view_range: Annotated[list[int] | None, Field(min_length=2, max_length=2)] = None

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.view_range is None:
            return self
        start, end = self.view_range
        if start < 1:
            raise PydanticCustomError("start", "view_range: the first line is 1")
        if 0 < end < start:
            raise PydanticCustomError("end", "view_range: the last line is before the first")
        return self


class WriteInput(ToolInput):
    file_path: Path
    content: Text


class EditInput(ToolInput):
    file_path: Path
    old_string: Annotated[str, Field(min_length=1), AfterValidator(_encodable)]
    new_string: Text
    replace_all: bool | None = None


class GlobInput(ToolInput):
    pattern: Pattern
    path: Path | None = None


class GrepInput(ToolInput):
    pattern: Pattern
    path: Path | None = None


INPUTS: Final[Mapping[str, type[ToolInput]]] = {
    "bash": BashInput,
    "read": ReadInput,
    "write": WriteInput,
    "edit": EditInput,
    "glob": GlobInput,
    "grep": GrepInput,
}


def complaint(tool: str, given: Mapping[str, JSON]) -> str | None:
    """Say what is wrong with the input of a sandbox tool, naming the field, or return None if nothing is."""
    try:
        INPUTS[tool].model_validate(dict(given))
    except ValidationError as error:
        return f"{tool}: " + "; ".join(
            _sentence(".".join(map(str, detail["loc"])), detail["type"], detail["msg"])
            for detail in error.errors(include_url=False, include_context=False, include_input=False)[:3]
        )
    return None


def _sentence(field: str, kind: str, message: str) -> str:
    if not field:
        return message
    match kind:
        case "missing":
            return f"{field} is required"
        case "extra_forbidden":
            return f"{field!r} is not an input of this tool"
        case "string_too_short":
            return f"{field} must not be empty"
        case _:
            return f"{field}: {message[:1].lower()}{message[1:]}"
