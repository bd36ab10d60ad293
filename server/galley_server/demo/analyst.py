"""The rule-based data analyst of the demo: it decides its next turn from the outputs of its tools, never from the file.

Look for the file, look at its first lines, work out the columns, write a program, run it, answer from what it printed.
Every decision is made from the transcript alone, so a run that was cut off goes on where it stood.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Final

from galley_server.demo import columns, findings
from galley_server.demo.columns import Columns, Table
from galley_server.demo.question import Question, read_question
from galley_server.demo.reply import Answer, Pace, Reply, Said
from galley_server.demo.transcript import JSON, Request, Text, Thinking, ToolResult, ToolUse

LIVELY: Final = Pace(first_token_s=0.15, per_token_s=0.012, chunk_chars=10, input_chunk_chars=240)
_PROGRAM: Final = (files("galley_server.demo") / "report.py").read_text(encoding="utf-8")
_FILE_NAME: Final = "top_sellers.py"
_SPARE_PLACE: Final = "/tmp"
_HEAD_LINES: Final = 20
_MAX_TROUBLES: Final = 3
_ANY_PYTHON: Final = '"$(command -v python || ls /usr/bin/python3* /usr/local/bin/python3* 2>/dev/null | head -n 1)"'
_INTERRUPTED: Final = re.compile(r"interrupted|may have run|session restarted|try again", re.IGNORECASE)
_NO_FILE: Final = re.compile(r"no such file|cannot open|can't open", re.IGNORECASE)
_NO_PYTHON: Final = re.compile(r"python3: (?:command )?not found", re.IGNORECASE)
_NO_ROOM: Final = re.compile(r"permission denied|read-only|no space left|is outside", re.IGNORECASE)
_REFUSED: Final = re.compile(r"reject|(?<!permission )denied|declined|not allowed|not approved", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the steps of this turn have shown so far."""

    found: tuple[str, ...] | None = None
    path: str = ""
    head: str | None = None
    program: str | None = None
    output: str | None = None
    troubles: int = 0
    trouble: tuple[ToolUse, ToolResult] | None = None


class Analyst:
    """A brain. `workspace` is where it writes its program, `roots` where it looks for files."""

    def __init__(
        self,
        pace: Pace = LIVELY,
        *,
        workspace: str = "/workspace",
        roots: Sequence[str] = ("/workspace", "/mnt/session/uploads"),
    ) -> None:
        self._pace = pace
        self._program = f"{workspace}/{_FILE_NAME}"
        self._roots = tuple(roots)

    def __call__(self, request: Request) -> Answer:
        said = self._turn(request)
        if _thinks(request.body) and not request.steps:
            said = (Thinking("I do not know this file. I look at it first and decide from what I see."), *said)
        return Reply(said, pace=self._pace)

    def _turn(self, request: Request) -> tuple[Said, ...]:
        question = read_question(request.asked, request.asked_earlier)
        if not question.about_data:
            return (Text(findings.ABOUT_ME),)
        if "bash" not in request.tool_names:
            return (Text(findings.NO_TOOLS),)
        seen = _Seen()
        for call, result in request.steps:
            seen = _learn(seen, call, result)
        if seen.trouble is not None:
            return self._recover(seen, *seen.trouble)
        if seen.head is None:
            return self._find(question, seen)
        return self._compute(question, seen, seen.head, can_write="write" in request.tool_names)

    def _find(self, question: Question, seen: _Seen) -> tuple[Said, ...]:
        if seen.found is None and question.file is not None and question.file.startswith("/"):
            return (Text(findings.opening(question)), _look(question.file))
        if seen.found is None:
            return (Text(findings.opening(question)), self._search(question.file))
        path = _pick(seen.found, question.file)
        if path is None:
            return (Text(findings.no_file(question.file, seen.found, self._roots)),)
        return (Text(findings.found(path, seen.found)), _look(path))

    def _search(self, file: str | None) -> ToolUse:
        names = ["*.csv", "*.tsv"]
        if file is not None and not file.lower().endswith((".csv", ".tsv")):
            names.append(file.rpartition("/")[2])
        tests = " -o ".join(f"-iname {shlex.quote(name)}" for name in names)
        roots = " ".join(shlex.quote(root) for root in self._roots)
        return _bash(f"find {roots} -maxdepth 6 -type f \\( {tests} \\) 2>/dev/null | sort | head -n 100")

    def _compute(self, question: Question, seen: _Seen, head: str, *, can_write: bool) -> tuple[Said, ...]:
        table = columns.read_table(head)
        if table is None:
            return (Text(findings.no_table(seen.path, head)),)
        chosen = columns.choose(table, question.noun)
        if chosen is None or not (chosen.has_revenue if question.measure == "revenue" else chosen.quantity is not None):
            return (Text(findings.no_columns(seen.path, table, chosen, question)),)
        if seen.program is None:
            source = _source(seen.path, table, chosen, question)
            write = _write(self._program, source, can_write=can_write)
            return (Text(findings.plan(table, chosen, question)), write)
        if seen.output is None:
            return (Text("Now I run it over the whole file."), _bash(f"python3 {shlex.quote(seen.program)}"))
        return (Text(findings.final(seen.path, table, chosen, question, seen.output)),)

    def _recover(self, seen: _Seen, call: ToolUse, result: ToolResult) -> tuple[Said, ...]:
        """Read the error and change what can be changed; otherwise say what happened."""
        command = _command(call)
        what = f"`{command.splitlines()[0][:120]}`" if command else f"the `{call.name}` call"
        if _REFUSED.search(result.text):
            return (Text(findings.refused(call.name, result.text)),)
        if seen.troubles >= _MAX_TROUBLES:
            return (Text(findings.failed(what, result.text)),)
        if _INTERRUPTED.search(result.text):
            # Every step of the analyst reads, or writes the same file again.
            return (Text("That was interrupted. Doing it twice does no harm, so I do it again."), _again(call))
        if command.startswith("head ") and seen.found is None and _NO_FILE.search(result.text):
            name = shlex.split(command)[-1].rpartition("/")[2]
            return (Text("The file is not at that place. I look for it by name."), self._search(name))
        if seen.program is not None and command.startswith("python3 ") and _NO_PYTHON.search(result.text):
            run = _bash(f"{_ANY_PYTHON} {shlex.quote(seen.program)}")
            return (Text("There is no `python3` by that name. I look for another Python."), run)
        if (source := _written(call, self._program)) is not None and _NO_ROOM.search(result.text):
            write = _write(f"{_SPARE_PLACE}/{_FILE_NAME}", source, can_write=False)
            return (Text(f"I cannot write there, so the program goes to `{_SPARE_PLACE}`."), write)
        return (Text(findings.failed(what, result.text)),)


def _learn(seen: _Seen, call: ToolUse, result: ToolResult) -> _Seen:
    """Add what one finished call has shown."""
    if result.is_error:
        return replace(seen, troubles=seen.troubles + 1, trouble=(call, result))
    seen = replace(seen, trouble=None)
    command = _command(call)
    if call.name == "write":
        return replace(seen, program=str(call.input.get("file_path")), output=None)
    if command.startswith("cat > "):
        return replace(seen, program=shlex.split(command.splitlines()[0])[2], output=None)
    if command.startswith("find "):
        return replace(seen, found=tuple(line for line in result.text.splitlines() if line.startswith("/")))
    if command.startswith("head "):
        return replace(seen, path=shlex.split(command)[-1], head=result.text)
    return replace(seen, output=result.text)


def _look(path: str) -> ToolUse:
    return _bash(f"head -n {_HEAD_LINES} {shlex.quote(path)}")


def _source(path: str, table: Table, chosen: Columns, question: Question) -> str:
    """The program to run: the report, called with what was learned of the file."""
    places = {"group": chosen.group}
    if question.measure == "revenue" and chosen.revenue is not None:
        places["revenue"] = chosen.revenue
    elif question.measure == "revenue" and chosen.price is not None:
        places["price"] = chosen.price
    if chosen.quantity is not None and "revenue" not in places:
        places["quantity"] = chosen.quantity
    settings: dict[str, JSON] = {
        "path": path,
        "delimiter": table.delimiter,
        "header_row": table.header_row,
        "header": [name.lower() for name in table.header],
        "columns": dict(places),
        "group": columns.stem(question.noun),
        "measure": question.measure,
        "ascending": question.ascending,
        "count": question.count,
    }
    lines = "".join(f"    {name!r}: {value!r},\n" for name, value in settings.items())
    return f"{_PROGRAM}\n\nif __name__ == '__main__':\n    main({{\n{lines}    }})\n"


def _write(path: str, source: str, *, can_write: bool) -> ToolUse:
    if can_write:
        return ToolUse("write", {"file_path": path, "content": source})
    return _bash(f"cat > {shlex.quote(path)} <<'END_OF_PROGRAM'\n{source}END_OF_PROGRAM\n")


def _written(call: ToolUse, path: str) -> str | None:
    """The program that this call tried to write to that path."""
    if call.name == "write" and call.input.get("file_path") == path:
        return str(call.input.get("content"))
    command = _command(call)
    if command.startswith(f"cat > {shlex.quote(path)} "):
        return command.partition("\n")[2].removesuffix("END_OF_PROGRAM\n")
    return None


def _again(call: ToolUse) -> ToolUse:
    return ToolUse(call.name, call.input)


def _bash(command: str) -> ToolUse:
    return ToolUse("bash", {"command": command})


def _command(call: ToolUse) -> str:
    return str(call.input.get("command", ""))


def _pick(found: Sequence[str], wanted: str | None) -> str | None:
    """The file that was asked for; without a name, the one that sounds like sales, or the first."""
    if wanted is not None:
        name = wanted.rpartition("/")[2].lower()
        return next((path for path in found if path.rpartition("/")[2].lower() == name), None)
    likely = [path for path in found if re.search(r"sale|order|revenue|transaction", path, re.IGNORECASE)]
    return next(iter([*likely, *found]), None)


def _thinks(body: Mapping[str, JSON]) -> bool:
    thinking = body.get("thinking")
    return isinstance(thinking, dict) and thinking.get("type") in ("enabled", "adaptive")
