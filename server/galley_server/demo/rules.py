"""The rules of a scripted model in a process of its own, read from a file.

Which rule answers is decided by the transcript alone, so a restarted
model, or a restarted client, gets a sensible answer. It is one JSON object:

    {"pace": {"first_token_ms": 0, "per_token_ms": 0, "chunk_chars": 24},          all optional
     "rules": [{"when": {...}, "reply": {...}}, ...]}

The first rule whose every condition holds answers. `when` (none: always) may hold:

    "asked": "REGEX"         found in the newest user text; named groups can be used in the reply
    "results": 2             tool results since that text
    "min_results": 1         at least so many
    "last_result": "REGEX"   found in the newest tool result
    "last_error": true       the newest tool result is an error, or is not
    "question": 1            the number of user messages with text

`reply` is `"echo"` (says the newest user text) or holds what to say, in this order: `"thinking": "..."`,
`"text": "..."`, `"tools": [{"name": "bash", "input": {...}}]`; or `"content"`: a list of `{"text": ...}`,
`{"thinking": ...}` and `{"name": ..., "input": ...}` in any order. Besides, optional: `"stop_reason"`, `"pace"`, and
one of

    "error": {"status": 529, "type": "...", "message": "...", "retry_after": 1}
    "fault": {"kind": "drop" | "stall" | "error", "at": 5 | "text" | "thinking" | "tool_use", "seconds": 2}

`{{asked}}`, `{{last_result}}`, `{{results}}` and `{{NAME}}` of a named group are filled into every string of the reply.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

from galley_server.demo.reply import (
    AT_ONCE,
    Answer,
    ApiError,
    Drop,
    Fault,
    Pace,
    Place,
    Reply,
    Said,
    Stall,
    StopReason,
    StreamError,
    say,
)
from galley_server.demo.transcript import JSON, Request, Text, Thinking, ToolUse
from galley_server.errors import ConfigError

_FILL: Final = re.compile(r"\{\{(\w+)\}\}")
_CONDITIONS: Final = frozenset({"asked", "results", "min_results", "last_result", "last_error", "question"})
_REPLY_FIELDS: Final = frozenset({"thinking", "text", "tools", "content", "stop_reason", "pace", "error", "fault"})


@dataclass(frozen=True, slots=True)
class When:
    asked: re.Pattern[str] | None = None
    results: int | None = None
    min_results: int = 0
    last_result: re.Pattern[str] | None = None
    last_error: bool | None = None
    question: int | None = None

    def match(self, request: Request) -> dict[str, str] | None:
        """Return what the reply may fill in, or None if a condition does not hold."""
        steps = request.steps
        last = steps[-1][1] if steps else None
        found = self.asked.search(request.asked) if self.asked else None
        holds = (
            (self.asked is None or found is not None)
            and self.results in (None, len(steps))
            and len(steps) >= self.min_results
            and (self.last_result is None or (last is not None and self.last_result.search(last.text) is not None))
            and (self.last_error is None or (last is not None and last.is_error == self.last_error))
            and self.question in (None, request.questions)
        )
        if not holds:
            return None
        groups = {name: value or "" for name, value in found.groupdict().items()} if found else {}
        known = {"asked": request.asked, "last_result": last.text if last else "", "results": str(len(steps))}
        return {**known, **groups}


@dataclass(frozen=True, slots=True)
class Rule:
    when: When
    answer: Answer


@dataclass(frozen=True, slots=True)
class Rules:
    """The brain a rule file describes."""

    rules: Sequence[Rule]

    def __call__(self, request: Request) -> Answer:
        for rule in self.rules:
            if (values := rule.when.match(request)) is not None:
                return _filled(rule.answer, values)
        return ApiError(400, message=f"no rule of the script answers {request.gist}")


def load_rules(path: Path, *, pace: Pace = AT_ONCE) -> Rules:
    """Read a rule file; what is wrong with it is said with the number of the rule."""
    try:
        document: JSON = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return read_rules(document, pace=pace)


def read_rules(document: JSON, *, pace: Pace = AT_ONCE) -> Rules:
    top = _object(document, "the script", frozenset({"pace", "rules"}))
    default = _pace(top.get("pace"), pace, "pace")
    return Rules(
        [_rule(rule, default, f"rules.{index}") for index, rule in enumerate(_list(top.get("rules"), "rules"))]
    )


def _rule(value: JSON, pace: Pace, path: str) -> Rule:
    rule = _object(value, path, frozenset({"when", "reply"}))
    return Rule(_when(rule.get("when", {}), f"{path}.when"), _answer(rule.get("reply"), pace, f"{path}.reply"))


def _when(value: JSON, path: str) -> When:
    when = _object(value, path, _CONDITIONS)
    last_error = when.get("last_error")
    return When(
        asked=_pattern(when.get("asked"), f"{path}.asked"),
        results=_count(when.get("results"), f"{path}.results"),
        min_results=_count(when.get("min_results"), f"{path}.min_results") or 0,
        last_result=_pattern(when.get("last_result"), f"{path}.last_result"),
        last_error=last_error if isinstance(last_error, bool) else None,
        question=_count(when.get("question"), f"{path}.question"),
    )


def _answer(value: JSON, pace: Pace, path: str) -> Answer:
    if value == "echo":
        return say("{{asked}}", pace=pace)
    reply = _object(value, path, _REPLY_FIELDS)
    if "error" in reply:
        return _api_error(reply["error"], f"{path}.error")
    content: list[Said] = []
    for field in ("thinking", "text"):
        if field in reply:
            content.append(_said({field: reply[field]}, f"{path}.{field}"))
    for field in ("tools", "content"):
        for index, part in enumerate(_list(reply.get(field, []), f"{path}.{field}")):
            content.append(_said(part, f"{path}.{field}.{index}"))
    stop = reply.get("stop_reason")
    stop_reason: StopReason | None = next((each for each in get_args(StopReason) if each == stop), None)
    if stop is not None and stop_reason is None:
        raise ConfigError(f"{path}.stop_reason: {stop!r} is none of {', '.join(get_args(StopReason))}")
    fault = _fault(reply["fault"], f"{path}.fault") if "fault" in reply else None
    return Reply(tuple(content), stop_reason, pace=_pace(reply.get("pace"), pace, f"{path}.pace"), fault=fault)


def _said(value: JSON, path: str) -> Said:
    part = _object(value, path, frozenset({"text", "thinking", "name", "input"}))
    match part:
        case {"text": str(text)}:
            return Text(text)
        case {"thinking": str(thinking)}:
            return Thinking(thinking)
        case {"name": str(name)}:
            arguments = part.get("input", {})
            if isinstance(arguments, dict):
                return ToolUse(name, arguments)
        case _:
            pass
    raise ConfigError(f"{path}: expected text, thinking, or the name and input of a tool")


def _api_error(value: JSON, path: str) -> ApiError:
    error = _object(value, path, frozenset({"status", "type", "message", "retry_after"}))
    status = error.get("status")
    if not isinstance(status, int) or not 400 <= status <= 599:
        raise ConfigError(f"{path}.status: expected an HTTP status from 400 to 599, got {status!r}")
    retry_after = error.get("retry_after")
    return ApiError(
        status,
        type=str(error.get("type", "")),
        message=str(error.get("message", "")),
        retry_after=retry_after if isinstance(retry_after, int | float) else None,
    )


def _fault(value: JSON, path: str) -> Fault:
    fault = _object(value, path, frozenset({"kind", "at", "seconds", "type", "message"}))
    at = fault.get("at", 3)
    place: Place
    match at:
        case int() | "text" | "thinking" | "tool_use":
            place = at
        case _:
            raise ConfigError(f"{path}.at: expected a number of events, text, thinking or tool_use, got {at!r}")
    seconds = fault.get("seconds", float("inf"))
    match fault.get("kind"):
        case "drop":
            return Drop(place)
        case "stall" if isinstance(seconds, int | float):
            return Stall(place, float(seconds))
        case "error":
            kind, message = fault.get("type", "overloaded_error"), fault.get("message", "Overloaded")
            return StreamError(place, str(kind), str(message))
        case other:
            raise ConfigError(f"{path}.kind: expected drop, stall or error, got {other!r}")


def _pace(value: JSON, default: Pace, path: str) -> Pace:
    if value is None:
        return default
    pace = _object(value, path, frozenset({"first_token_ms", "per_token_ms", "chunk_chars"}))
    numbers = {name: number for name, number in pace.items() if isinstance(number, int | float)}
    return Pace(
        first_token_s=numbers.get("first_token_ms", default.first_token_s * 1000) / 1000,
        per_token_s=numbers.get("per_token_ms", default.per_token_s * 1000) / 1000,
        chunk_chars=int(numbers.get("chunk_chars", default.chunk_chars)),
    )


def _filled(answer: Answer, values: Mapping[str, str]) -> Answer:
    if isinstance(answer, ApiError):
        return answer
    return Reply(
        tuple(_filled_block(block, values) for block in answer.content),
        answer.stop_reason,
        pace=answer.pace,
        fault=answer.fault,
    )


def _filled_block(block: Said, values: Mapping[str, str]) -> Said:
    match block:
        case Text(text=text):
            # The API never sends an empty text block, so neither does an echo of nothing.
            return Text(_fill(text, values) or "(nothing)")
        case Thinking(thinking=thinking):
            return Thinking(_fill(thinking, values))
        case ToolUse(name=name, input=arguments):
            return ToolUse(name, {key: _fill_json(value, values) for key, value in arguments.items()})
        case _:
            return block


def _fill_json(value: JSON, values: Mapping[str, str]) -> JSON:
    if isinstance(value, str):
        return _fill(value, values)
    if isinstance(value, list):
        return [_fill_json(each, values) for each in value]
    if isinstance(value, dict):
        return {key: _fill_json(each, values) for key, each in value.items()}
    return value


def _fill(text: str, values: Mapping[str, str]) -> str:
    return _FILL.sub(lambda found: values.get(found[1], found[0]), text) if "{{" in text else text


def _object(value: JSON, path: str, known: frozenset[str]) -> dict[str, JSON]:
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected an object, got {value!r}")
    if unknown := sorted(set(value) - known):
        raise ConfigError(f"{path}.{unknown[0]}: unknown; known are {', '.join(sorted(known))}")
    return value


def _list(value: JSON, path: str) -> list[JSON]:
    if not isinstance(value, list):
        raise ConfigError(f"{path}: expected a list, got {value!r}")
    return value


def _pattern(value: JSON, path: str) -> re.Pattern[str] | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ConfigError(f"{path}: expected a regular expression, got {value!r}")
    try:
        return re.compile(value)
    except re.error as error:
        raise ConfigError(f"{path}: {error}") from error


def _count(value: JSON, path: str) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise ConfigError(f"{path}: expected a number, got {value!r}")
