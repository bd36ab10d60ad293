"""What the analyst says, in words and numbers taken from the outputs of its tools. Pure."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Final

from galley_server.demo.columns import Columns, Table, stem
from galley_server.demo.question import Question
from galley_server.demo.transcript import JSON

ABOUT_ME: Final = (
    "I am the small rule-based analyst of the demo, not a language model. I can rank what a CSV file sold: ask me, for "
    'example, "Analyze sales_data.csv and find the top 5 products by revenue".'
)
NO_TOOLS: Final = (
    "I need the `bash` tool to look at the file, and this agent does not offer it. Enable `bash` for the agent and ask "
    "again."
)
_RESULT: Final = re.compile(r"^RESULT (\{.*\})\s*$", re.MULTILINE)
_DELIMITERS: Final = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_SYMBOLS: Final = "$€£¥₹₽₩₪฿₴₺₫"
_SHOWN: Final = 600


def opening(question: Question) -> str:
    file = f"`{question.file}`" if question.file else "your CSV file"
    return f"I will find {file}, look at its columns, compute the {_title(question)}, and count what I cannot use."


def found(path: str, paths: Sequence[str]) -> str:
    others = f" ({_many(len(paths) - 1, 'other data file')} beside it.)" if len(paths) > 1 else ""
    return f"Found `{path}`.{others} Let me see how it is built before I trust it."


def plan(table: Table, chosen: Columns, question: Question) -> str:
    return (
        f"The columns are {_names(table.header)}, separated by {_DELIMITERS[table.delimiter]}. "
        f"{_method(table, chosen, question)} I write a short program that reads every row and counts what it skips."
    )


def no_file(wanted: str | None, paths: Sequence[str], roots: Sequence[str]) -> str:
    where = " and ".join(f"`{root}`" for root in roots)
    what = f"`{wanted}`" if wanted else "a CSV file"
    if not paths:
        return f"I could not find {what}: there is no CSV file under {where}. Attach it to the session and ask again."
    return f"I could not find {what} under {where}. These files are there: {_names(paths[:10])}. Which one is it?"


def no_table(path: str, head: str) -> str:
    if not head.strip():
        return f"`{path}` is empty, so there is nothing to rank."
    return (
        f"`{path}` does not look like a table to me: its first lines are not cut by commas, semicolons, tabs or bars "
        f"under a header.\n\n```\n{_short(head)}\n```"
    )


def no_columns(path: str, table: Table, chosen: Columns | None, question: Question) -> str:
    """Say which column is missing, and what is there instead."""
    if chosen is None:
        missing = f"a column that names the {stem(question.noun)}"
    elif question.measure == "quantity":
        missing = "a column that says how many were sold (such as quantity, qty or units)"
    elif chosen.price is not None:
        missing = f"a quantity to go with `{table.header[chosen.price]}`, or a column with the revenue itself"
    elif chosen.quantity is not None:
        missing = f"a price to go with `{table.header[chosen.quantity]}`, or a column with the revenue itself"
    else:
        missing = "a price and a quantity, or a column with the revenue itself"
    return (
        f"I cannot rank by {question.measure} from `{path}`: I do not see {missing}. Its columns are "
        f"{_names(table.header)}. I give no numbers rather than guess."
    )


def refused(tool: str, text: str) -> str:
    return (
        f"I was not allowed to use `{tool}`, so I have no numbers to give you. The answer was: {_short(text)}\n\n"
        "Allow the call and ask again."
    )


def failed(what: str, text: str) -> str:
    return (
        f"I could not finish: {what} failed, and I have no way around it.\n\n```\n{_short(text)}\n```\n\nNothing was "
        "computed, so I give no numbers."
    )


def final(path: str, table: Table, chosen: Columns, question: Question, output: str) -> str:
    matched = _RESULT.findall(output)
    result: JSON = json.loads(matched[-1]) if matched else None
    if not isinstance(result, dict):
        return failed("the program ended without a result; it", output)
    top = _entries(result, "top")
    if not top:
        rows = _many(_integer(result, "rows"), "row")
        return f"`{path}` has {rows} below its header, and I could use none of them.\n\n{_skipped(result)}"
    money = _Money(table, chosen, _texts(result, "currencies"))
    parts = [
        f"**{_title(question)[:1].upper()}{_title(question)[1:]} in `{path.rpartition('/')[2]}`**",
        "\n".join(_rows(top, result, chosen, question, money)),
        _totals(result, len(top), chosen, question, money),
        _skipped(result),
        " ".join([_method(table, chosen, question), *_remarks(result, question, money)]),
    ]
    return "\n\n".join(parts)


class _Money:
    """Writes amounts in the currency of the file, if it names just one."""

    def __init__(self, table: Table, chosen: Columns, currencies: Sequence[str]) -> None:
        named = [table.header[index] for index in (chosen.revenue, chosen.price) if index is not None]
        in_header = re.findall(rf"[{re.escape(_SYMBOLS)}]|\b(?:USD|EUR|GBP|JPY|CHF|CAD|AUD|INR|CNY)\b", " ".join(named))
        self.currencies = tuple(dict.fromkeys(currencies or in_header))

    def __call__(self, amount: Decimal) -> str:
        text = f"{abs(amount).quantize(Decimal('0.01'), ROUND_HALF_UP):,}"
        sign = "-" if amount < 0 else ""
        if len(self.currencies) != 1:
            return sign + text
        (unit,) = self.currencies
        return f"{sign}{unit}{text}" if unit in _SYMBOLS else f"{sign}{text} {unit}"


def _rows(
    top: Sequence[Mapping[str, JSON]],
    result: Mapping[str, JSON],
    chosen: Columns,
    question: Question,
    money: _Money,
) -> Iterator[str]:
    by_revenue = question.measure == "revenue"
    with_units = chosen.quantity is not None and (not by_revenue or chosen.revenue is None)
    head = ["#", stem(question.noun).capitalize()] + ["Revenue"] * by_revenue + ["Units"] * with_units + ["Share"]
    yield "| " + " | ".join(head) + " |"
    yield "| ---: | --- |" + " ---: |" * (len(head) - 2)
    total = _decimal(result, f"total_{question.measure}")
    for rank, each in enumerate(top, 1):
        value = _decimal(each, question.measure)
        share = f"{value / total:.1%}" if total > 0 else "-"
        name = str(each.get("name")).replace("|", "\\|")
        cells = [str(rank), name] + [money(_decimal(each, "revenue"))] * by_revenue
        yield "| " + " | ".join([*cells, *[_plain(_decimal(each, "quantity"))] * with_units, share]) + " |"


def _totals(result: Mapping[str, JSON], shown: int, chosen: Columns, question: Question, money: _Money) -> str:
    groups = _integer(result, "groups")
    used = _integer(result, "rows") - sum(_integer(each, "rows") for each in _entries(result, "skipped"))
    noun = stem(question.noun)
    if question.measure == "revenue":
        total = f"Total revenue: **{money(_decimal(result, 'total_revenue'))}**"
    else:
        total = f"Total: **{_plain(_decimal(result, 'total_quantity'))} units**"
    fewer = f" The file has only {shown}." if shown < question.count else ""
    return f"{total} over {_many(groups, noun)} and {_many(used, 'row')}.{fewer}"


def _skipped(result: Mapping[str, JSON]) -> str:
    rows = _integer(result, "rows")
    skipped = _entries(result, "skipped")
    if not skipped:
        return f"No row was skipped: all {rows:,} could be used."
    count = sum(_integer(each, "rows") for each in skipped)
    lines = [f"Skipped {count:,} of {_many(rows, 'row')}:"]
    for each in skipped:
        example = next(iter(_texts(each, "examples")), "")
        shown = f" (for example {example.partition(':')[0]}: `{example.partition(': ')[2]}`)" if example else ""
        lines.append(f"- {_integer(each, 'rows'):,}: {each.get('reason')}{shown}")
    return "\n".join(lines)


def _method(table: Table, chosen: Columns, question: Question) -> str:
    guess = f"I take `{table.header[chosen.group]}` for the product, for no column is called so. "
    return (guess if chosen.guessed else "") + _sum(table, chosen, question)


def _sum(table: Table, chosen: Columns, question: Question) -> str:
    if question.measure == "quantity" and chosen.quantity is not None:
        return f"Ranked by the sum of `{table.header[chosen.quantity]}`."
    if chosen.revenue is not None:
        return f"Revenue is the sum of `{table.header[chosen.revenue]}`."
    if chosen.price is not None and chosen.quantity is not None:
        return f"Revenue is `{table.header[chosen.price]}` × `{table.header[chosen.quantity]}`, row by row."
    return ""


def _remarks(result: Mapping[str, JSON], question: Question, money: _Money) -> Iterator[str]:
    if len(money.currencies) > 1:
        yield f"The amounts are in several currencies ({', '.join(money.currencies)}) and were added as they stand."
    if negative := _integer(result, "negative_rows"):
        yield f"Counted as they stand: {_many(negative, 'row')} with a negative value (a return, for example)."
    if merged := _integer(result, "merged_spellings"):
        yield f"Counted as one: {_many(merged, stem(question.noun))} written in several ways (capitals, spaces)."
    if result.get("numbers_unsure"):
        yield "No number shows which mark stands before its decimals, so I read a dot as the decimal mark."


def _title(question: Question) -> str:
    rank = "bottom" if question.ascending else "top"
    noun = stem(question.noun)
    if question.count == 1:
        return f"{rank} {noun} by {question.measure}"
    return f"{rank} {question.count} {_plural(noun)} by {question.measure}"


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun if count == 1 else _plural(noun)}"


def _plural(noun: str) -> str:
    return noun[:-1] + "ies" if re.search(r"[^aeiou]y$", noun) else noun + "s"


def _plain(value: Decimal) -> str:
    return f"{value:,.0f}" if value == value.to_integral_value() else f"{value.normalize():,f}"


def _short(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _SHOWN else f"… {text[-_SHOWN:]}"


def _integer(source: Mapping[str, JSON], name: str) -> int:
    value = source.get(name)
    return value if isinstance(value, int) else 0


def _decimal(source: Mapping[str, JSON], name: str) -> Decimal:
    return Decimal(str(source.get(name, "0")))


def _texts(source: Mapping[str, JSON], name: str) -> list[str]:
    value = source.get(name)
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _entries(source: Mapping[str, JSON], name: str) -> list[dict[str, JSON]]:
    value = source.get(name)
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
