"""The analyst's tool calls are run for real on odd files, and its answers held against an independent computation."""

import asyncio
import contextlib
import csv
import random
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from importlib.resources import files
from pathlib import Path

import anthropic
import pytest
from anthropic.types import MessageParam, ToolParam
from galley_server.demo import dialogue
from galley_server.demo.analyst import Analyst
from galley_server.demo.frames import compose
from galley_server.demo.messages import serve_scripted
from galley_server.demo.reply import AT_ONCE, Reply, Usage
from galley_server.demo.shape import read_request
from galley_server.demo.transcript import JSON, Request, Text, ToolUse

ASK = "Analyze sales_data.csv and find the top 5 products by revenue"
Sale = tuple[str, Decimal, int]


@dataclass
class Desk:
    """Runs what the analyst calls, in a directory of its own, and keeps the transcript."""

    root: Path
    tools: tuple[str, ...] = ("bash", "write")
    break_: Callable[[ToolUse, int], str | None] = lambda call, number: None
    calls: list[ToolUse] = field(default_factory=list)
    messages: list[JSON] = field(default_factory=list)

    def ask(self, question: str) -> str:
        analyst = Analyst(AT_ONCE, workspace=f"{self.root}/work", roots=(f"{self.root}/work", f"{self.root}/uploads"))
        self.messages.append({"role": "user", "content": question})
        for _ in range(15):
            reply = analyst(self._request())
            assert isinstance(reply, Reply)
            said = compose(reply, model="m", usage=Usage(0, 0)).content
            texts = [block.text for block in said if isinstance(block, Text)]
            calls = [block for block in said if isinstance(block, ToolUse)]
            content: list[JSON] = [{"type": "text", "text": text} for text in texts]
            for call in calls:
                content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": dict(call.input)})
            self.messages.append({"role": "assistant", "content": content})
            if not calls:
                return texts[-1]
            self.messages.append({"role": "user", "content": [self._run(call) for call in calls]})
        raise AssertionError("the analyst did not come to an end")

    def _request(self) -> Request:
        tools: list[JSON] = [{"name": name, "input_schema": {"type": "object"}} for name in self.tools]
        body: dict[str, JSON] = {"model": "m", "max_tokens": 1000, "messages": self.messages, "tools": tools}
        request = read_request(body, betas=False)
        dialogue.check(request)
        return request

    def _run(self, call: ToolUse) -> JSON:
        self.calls.append(call)
        broken = self.break_(call, len(self.calls))
        text, is_error = (broken, True) if broken is not None else self._really_run(call)
        result: dict[str, JSON] = {"type": "tool_result", "tool_use_id": call.id, "content": text}
        return {**result, "is_error": True} if is_error else result

    def _really_run(self, call: ToolUse) -> tuple[str, bool]:
        if call.name == "write":
            Path(str(call.input["file_path"])).write_text(str(call.input["content"]))
            return "written", False
        command = ["bash", "-c", str(call.input["command"])]
        ended = subprocess.run(command, cwd=self.root, capture_output=True, timeout=30, check=False)
        output = (ended.stdout + ended.stderr).decode(errors="replace")
        return output or "(no output)", ended.returncode != 0


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    (tmp_path / "work").mkdir()
    (tmp_path / "uploads").mkdir()
    return Desk(tmp_path)


def put(desk: Desk, text: str, name: str = "sales_data.csv", encoding: str = "utf-8") -> None:
    (desk.root / "uploads" / name).write_bytes(text.encode(encoding))


def sales(seed: int = 1) -> list[Sale]:
    chance = random.Random(seed)
    names = ["Coffee Grinder", "Tea Kettle", "Milk Frother", "Café crème", "Scale", "Dripper", "Mug", "Filter | paper"]
    return [
        (name, Decimal(chance.randint(99, 250_000)) / 100, chance.randint(1, 40))
        for name in (chance.choice(names) for _ in range(120))
    ]


def ranked(rows: Sequence[Sale]) -> list[tuple[str, Decimal]]:
    revenue: Counter[str] = Counter()
    for name, price, quantity in rows:
        revenue[name] += price * quantity  # type: ignore[assignment]
    return [(name, Decimal(value)) for name, value in revenue.most_common()]


def table(answer: str) -> list[list[str]]:
    lines = [line for line in answer.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.replace("\\|", "¦").strip("|").split("|")] for line in lines[2:]]


def shown(answer: str) -> list[tuple[str, str]]:
    return [(cells[1].replace("¦", "|"), cells[2]) for cells in table(answer)]


def us(value: Decimal) -> str:
    return f"{value:,.2f}"


def german(value: Decimal) -> str:
    return us(value).translate(str.maketrans(",.", ".,"))


def plain_file(rows: Sequence[Sale]) -> str:
    return "product,price,quantity\n" + "".join(f'"{name}",{price},{quantity}\n' for name, price, quantity in rows)


def german_file(rows: Sequence[Sale]) -> str:
    lines = (f'"{name}";{german(price)} €;{quantity};Meier' for name, price, quantity in rows)
    return "Artikel;Einzelpreis;Menge;Kunde\r\n" + "\r\n".join(lines)


def tab_file(rows: Sequence[Sale]) -> str:
    lines = (f"7\t{quantity} pcs\t{name}\tUSD {us(price)}" for name, price, quantity in rows)
    return "ORDER NO\tUNITS SOLD\tITEM NAME\tSALE PRICE\n" + "\n".join(lines)


def revenue_file(rows: Sequence[Sale]) -> str:
    lines = (f'{name.upper() if at % 2 else name},"${us(price * n)}"' for at, (name, price, n) in enumerate(rows))
    return "\ufeffProduct Name,Total Amount\n" + "\n".join(lines)


def bar_file(rows: Sequence[Sale]) -> str:
    lines = (f'\'{quantity}|"{name}"|£{us(price)}|' for name, price, quantity in rows)
    return "Weekly report\n\nqty|product|unit_price|\n" + "\n".join(line.lstrip("'") for line in lines)


@pytest.mark.parametrize(
    ("write", "encoding", "symbol"),
    [
        (plain_file, "utf-8", "{}"),
        (german_file, "cp1252", "€{}"),
        (tab_file, "utf-8", "{} USD"),
        (bar_file, "utf-8", "£{}"),
    ],
)
def test_the_answer_is_right_however_the_file_is_written(
    desk: Desk, write: Callable[[Sequence[Sale]], str], encoding: str, symbol: str
) -> None:
    rows = sales()
    put(desk, write(rows), encoding=encoding)
    answer = desk.ask(ASK)
    expected = ranked(rows)
    assert shown(answer) == [(name, symbol.format(us(value))) for name, value in expected[:5]]
    assert f"**{symbol.format(us(sum((value for _, value in expected), Decimal(0))))}**" in answer
    assert "No row was skipped: all 120 could be used." in answer


def test_a_revenue_column_is_summed_and_spellings_are_merged(desk: Desk) -> None:
    rows = sales(2)
    put(desk, revenue_file(rows))
    answer = desk.ask("top ten products by revenue in sales_data.csv")
    expected = ranked(rows)
    assert [(name.lower(), value) for name, value in shown(answer)] == [(n.lower(), f"${us(v)}") for n, v in expected]
    assert "The file has only 8." in answer
    assert "written in several ways" in answer
    assert "Revenue is the sum of `Total Amount`." in answer


def test_skipped_rows_are_counted_with_their_reasons(desk: Desk) -> None:
    put(
        desk,
        "product,price,quantity\nA,2.50,4\n,1.00,1\nB,N/A,2\nC,3.00,three\nproduct,price,quantity\nD,1\n"
        "E,1,2,extra\n\nTOTAL,,99\nF,4.00,-1\n",
    )
    answer = desk.ask(ASK)
    assert shown(answer) == [("A", "10.00"), ("F", "-4.00")]
    assert "Skipped 7 of 9 rows:" in answer
    for reason in ("no product", "no price", "the quantity is not a number (for example line 5: `C,3.00,three`)"):
        assert f"- 1: {reason}" in answer
    for reason in ("the header is repeated", "too few columns", "too many columns", "a line of totals"):
        assert f"- 1: {reason}" in answer
    assert "Counted as they stand: 1 row with a negative value" in answer


def test_the_sample_of_the_demo_gets_the_right_answer(desk: Desk) -> None:
    text = (files("galley_server.demo") / "sales_data.csv").read_text()
    put(desk, text)
    rows: list[Sale] = []
    for row in csv.DictReader(text.splitlines()):
        with contextlib.suppress(ArithmeticError, TypeError, ValueError):
            if row["product"]:
                rows.append((row["product"].title(), Decimal(row["unit_price"]), int(row["quantity"])))
    answer = desk.ask(ASK)
    assert [(name.title(), value) for name, value in shown(answer)] == [(n, us(v)) for n, v in ranked(rows)[:5]]
    assert f"over 16 products and {len(rows)} rows." in answer
    assert "Skipped 8 of 357 rows:" in answer


def test_a_turn_looks_reads_writes_runs_and_then_answers(desk: Desk) -> None:
    put(desk, plain_file(sales()))
    desk.ask(ASK)
    assert [call.name for call in desk.calls] == ["bash", "bash", "write", "bash"]
    commands = [str(call.input.get("command", "write")).split()[0] for call in desk.calls]
    assert commands == ["find", "head", "write", "python3"]


def test_without_a_write_tool_the_program_is_written_by_the_shell(desk: Desk) -> None:
    desk.tools = ("bash",)
    put(desk, plain_file(sales()))
    assert len(table(desk.ask(ASK))) == 5


def test_a_second_question_in_the_session_means_the_same_file(desk: Desk) -> None:
    rows = sales()
    put(desk, plain_file(rows))
    put(desk, plain_file(sales(9)), "other.csv")
    desk.ask(ASK)
    answer = desk.ask("And the 2 worst products?")
    assert shown(answer) == [(name, us(value)) for name, value in reversed(ranked(rows)[-2:])]


def test_a_guess_is_named_as_a_guess(desk: Desk) -> None:
    put(desk, "book;price;copies\nEmma;9,50;2\nDune;7,00;1\n")
    answer = desk.ask(ASK)
    assert shown(answer) == [("Emma", "19.00"), ("Dune", "7.00")]
    assert "I take `book` for the product, for no column is called so." in answer


def test_it_ranks_by_units_and_by_other_columns(desk: Desk) -> None:
    put(desk, "customer,product,price,qty\nAnn,A,1,5\nBob,B,9,2\nAnn,B,9,1\n")
    assert [row[1:] for row in table(desk.ask("top 2 products by units sold"))] == [
        ["A", "5", "62.5%"],
        ["B", "3", "37.5%"],
    ]
    assert shown(desk.ask("top 2 customers by revenue")) == [("Bob", "18.00"), ("Ann", "14.00")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("date,temperature\n1,2\n", "a column that names the product"),
        ("product,price\nA,1\n", "a quantity to go with `price`, or a column with the revenue itself"),
        ("product,color\nA,red\n", "a price and a quantity, or a column with the revenue itself"),
        ("", "does not look like a table"),
        ("Dear Sir\n", "does not look like a table"),
        ("product,price,qty\n", "has 0 rows below its header"),
        ("product,price,qty\nA,x,y\n", "has 1 row below its header, and I could use none of them"),
    ],
)
def test_what_cannot_be_ranked_is_said_plainly_and_without_numbers(desk: Desk, text: str, words: str) -> None:
    put(desk, text)
    answer = desk.ask(ASK)
    assert words in answer
    assert table(answer) == []


def test_a_missing_file_is_said_with_what_is_there_instead(desk: Desk) -> None:
    assert "there is no CSV file under" in desk.ask(ASK)
    put(desk, plain_file(sales()), "orders.csv")
    assert "`sales_data.csv`" in (answer := desk.ask(ASK))
    assert "orders.csv" in answer


def test_a_path_that_is_wrong_leads_to_a_search_by_name(desk: Desk) -> None:
    put(desk, plain_file(sales()))
    assert len(table(desk.ask("Find the top 5 products in /data/sales_data.csv"))) == 5


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_an_interrupted_step_is_done_again(desk: Desk, number: int) -> None:
    put(desk, plain_file(sales()))
    desk.break_ = lambda call, at: "interrupted, may have run" if at == number else None
    assert len(table(desk.ask(ASK))) == 5
    assert desk.calls[number - 1].input == desk.calls[number].input


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("resource_limit_exceeded: memory", "resource_limit_exceeded: memory"),
        ("The user rejected this call: not today", "I was not allowed to use `bash`"),
        ("interrupted, may have run", "I could not finish"),
    ],
)
def test_what_does_not_work_is_said_honestly_and_comes_to_an_end(desk: Desk, error: str, words: str) -> None:
    put(desk, plain_file(sales()))
    desk.break_ = lambda call, at: error if at >= 4 else None
    answer = desk.ask(ASK)
    assert words in answer
    assert table(answer) == []


def test_a_workspace_that_cannot_be_written_is_stepped_around(desk: Desk) -> None:
    put(desk, plain_file(sales()))
    desk.break_ = lambda call, at: "write: permission denied" if call.name == "write" else None
    assert len(table(desk.ask(ASK))) == 5


def test_another_python_is_looked_for(desk: Desk) -> None:
    put(desk, plain_file(sales()))
    desk.break_ = lambda call, at: (
        "bash: python3: command not found" if str(call.input.get("command")).startswith("python3 ") else None
    )
    assert len(table(desk.ask(ASK))) == 5


def test_without_tools_or_without_a_question_it_says_so(desk: Desk) -> None:
    assert "top 5 products by revenue" in desk.ask("Hello!")
    desk.tools = ()
    assert "I need the `bash` tool" in desk.ask(ASK)


def schemas() -> Iterator[ToolParam]:
    for name in ("bash", "write"):
        yield {"name": name, "input_schema": {"type": "object", "properties": {}}}


@pytest.mark.anyio
async def test_over_the_real_wire_it_thinks_talks_and_calls_tools() -> None:
    question: MessageParam = {"role": "user", "content": ASK}
    async with (
        asyncio.timeout(20),
        serve_scripted(Analyst(AT_ONCE)) as url,
        anthropic.AsyncAnthropic(api_key="k", base_url=url, max_retries=0) as client,
        client.messages.stream(
            model="claude-sonnet-5-5",
            max_tokens=4096,
            thinking={"type": "adaptive"},
            tools=list(schemas()),
            messages=[question],
        ) as stream,
    ):
        message = await stream.get_final_message()
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
