"""Ranks what a CSV file sold. The demo's analyst writes this file into the sandbox and runs it there.

Standard library only, Python 3.8 and newer; nothing of Galley is imported. Two passes over the file, row by row: the
first learns how the file writes its numbers, the second adds up. It only reads, so running it twice does no harm.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections import Counter
from decimal import Decimal, InvalidOperation, getcontext
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from collections.abc import Iterator

CURRENCIES = "$€£¥₹₽₩₪฿₴₺₫"
CODE = r"(?:USD|EUR|GBP|JPY|CHF|CAD|AUD|INR|CNY|SEK|NOK|DKK|PLN|CZK|BRL|MXN|Rs\.?|kr\.?|zł|Kč|R\$)"
UNITS = r"(?:pcs?|pieces?|units?|ea|each|stk|st|x)\.?"
NUMBER = re.compile(r"[+-]?(\d[\d.,]*|[.,]\d+)")
CURRENCY = re.compile(f"[{re.escape(CURRENCIES)}]|{CODE}", re.IGNORECASE)
MISSING = frozenset(
    ("", "-", "--", "?", "n/a", "na", "#n/a", "nan", "null", "none", "nil", "tbd", "missing", "unknown")
)
TOTALS = frozenset(("total", "totals", "grand total", "subtotal", "sub total", "sum", "summe", "gesamt"))
EXAMPLES = 3


class Settings(TypedDict):
    path: str
    delimiter: str
    header_row: int
    header: list[str]
    columns: dict[str, int]
    group: str
    measure: str
    ascending: bool
    count: int


def clean(cell: str) -> str | None:
    """Return the digits of a cell with its sign and separators, or None if it is no number."""
    text = re.sub("[\\s\u00a0\u2009\u202f'’_]", "", cell).replace("\u2212", "-")
    negative = text.startswith("(") and text.endswith(")")
    text = text.strip("()")
    text = re.sub(f"[{re.escape(CURRENCIES)}]", "", text)
    text = re.sub(f"^(-?){CODE}", r"\1", text, flags=re.IGNORECASE)
    text = re.sub(f"(?<=\\d)({CODE}|{UNITS})$", "", text, flags=re.IGNORECASE)
    if text.endswith("-"):
        negative, text = True, text[:-1]
    if not NUMBER.fullmatch(text):
        return None
    return "-" + text.lstrip("+-") if negative else text


def vote(text: str, votes: Counter[str]) -> None:
    """Say which mark this number uses for its decimals, if it shows that at all."""
    dots, commas = text.count("."), text.count(",")
    if dots and commas:
        votes["." if text.rfind(".") > text.rfind(",") else ","] += 1
    elif dots > 1 or commas > 1:
        votes["," if dots > 1 else "."] += 1
    elif dots or commas:
        mark = "." if dots else ","
        whole, _, part = text.lstrip("+-").partition(mark)
        if len(part) != 3 or len(whole) > 3 or whole in ("", "0"):
            votes[mark] += 1
        else:
            votes[f"ambiguous {mark}"] += 1


def number(cell: str, mark: str) -> Decimal | None:
    """Read a cell whose decimals follow `mark`; None if it is no number."""
    text = clean(cell)
    group = "," if mark == "." else "."
    shape = rf"[+-]?(\d+|\d{{1,3}}({re.escape(group)}\d{{2,3}})+|)({re.escape(mark)}\d*)?"
    if text is None or not re.fullmatch(shape, text):
        return None
    try:
        return Decimal(text.replace(group, "").replace(mark, "."))
    except InvalidOperation:
        return None


def encoding_of(path: str) -> str:
    with open(path, "rb") as file:
        try:
            for line in file:
                line.decode("utf-8")
        except UnicodeDecodeError:
            return "cp1252"
    return "utf-8-sig"


def rows_of(settings: Settings, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of every row after the header that is not blank."""
    csv.field_size_limit(2**31 - 1)
    width = len(settings["header"])
    with open(settings["path"], newline="", encoding=encoding, errors="replace") as file:
        reader = csv.reader((line.replace("\0", "") for line in file), delimiter=settings["delimiter"])
        for index, row in enumerate(reader):
            if index <= settings["header_row"]:
                continue
            cells = [cell.strip() for cell in row]
            while len(cells) > width and not cells[-1]:
                cells.pop()
            if any(cells):
                yield reader.line_num, cells


def decimal_mark(settings: Settings, encoding: str) -> tuple[str, bool]:
    """Return the mark before the decimals, and whether that is only a guess."""
    votes: Counter[str] = Counter()
    numeric = [index for role, index in settings["columns"].items() if role != "group"]
    for _, cells in rows_of(settings, encoding):
        for index in numeric:
            text = clean(cells[index]) if index < len(cells) else None
            if text:
                vote(text, votes)
    mark = "," if votes[","] > votes["."] else "."
    return mark, votes[f"ambiguous {mark}"] > 0 and votes[mark] == 0


class Report:
    def __init__(self, settings: Settings, mark: str) -> None:
        self.settings = settings
        self.columns = settings["columns"]
        self.mark = mark
        self.rows = 0
        self.negative = 0
        self.skipped: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self.revenue: dict[str, Decimal] = {}
        self.quantity: dict[str, Decimal] = {}
        self.spellings: dict[str, Counter[str]] = {}
        self.currencies: Counter[str] = Counter()

    def add(self, line: int, cells: list[str]) -> None:
        self.rows += 1
        problem = self.problem_of(cells)
        values: dict[str, Decimal] = {}
        for role, index in self.columns.items():
            if problem is None and role != "group":
                value = number(cells[index], self.mark)
                if value is None:
                    missing = cells[index].lower() in MISSING
                    problem = f"no {role}" if missing else f"the {role} is not a number"
                else:
                    values[role] = value
        if problem is None:
            self.count(cells, values)
            return
        self.skipped[problem] += 1
        examples = self.examples.setdefault(problem, [])
        if len(examples) < EXAMPLES:
            examples.append(f"line {line}: {self.settings['delimiter'].join(cells)[:120]}")

    def problem_of(self, cells: list[str]) -> str | None:
        if [cell.lower() for cell in cells] == self.settings["header"]:
            return "the header is repeated"
        if len(cells) > len(self.settings["header"]):
            return "too many columns"
        if len(cells) <= max(self.columns.values()):
            return "too few columns"
        name = cells[self.columns["group"]].lower()
        if name in MISSING:
            return f"no {self.settings['group']}"
        return "a line of totals" if name.rstrip(":") in TOTALS else None

    def count(self, cells: list[str], values: dict[str, Decimal]) -> None:
        name = re.sub(r"\s+", " ", cells[self.columns["group"]])
        key = name.casefold()
        self.spellings.setdefault(key, Counter())[name] += 1
        for role in ("revenue", "price"):
            found = CURRENCY.search(cells[self.columns[role]]) if role in self.columns else None
            if found:
                self.currencies[found.group()] += 1
        zero = Decimal(0)
        quantity = values.get("quantity", zero)
        revenue = values["revenue"] if "revenue" in values else values.get("price", zero) * quantity
        self.revenue[key] = self.revenue.get(key, zero) + revenue
        self.quantity[key] = self.quantity.get(key, zero) + quantity
        self.negative += revenue < 0 or quantity < 0

    def top(self) -> list[dict[str, object]]:
        ranked = self.revenue if self.settings["measure"] == "revenue" else self.quantity
        sign = 1 if self.settings["ascending"] else -1
        return [
            {
                "name": self.spellings[key].most_common(1)[0][0][:200],
                "revenue": str(self.revenue[key]),
                "quantity": str(self.quantity[key]),
            }
            for key in sorted(ranked, key=lambda key: (sign * ranked[key], key))[: self.settings["count"]]
        ]

    def result(self, unsure: bool) -> dict[str, object]:
        return {
            "rows": self.rows,
            "groups": len(self.revenue),
            "top": self.top(),
            "total_revenue": str(sum(self.revenue.values(), Decimal(0))),
            "total_quantity": str(sum(self.quantity.values(), Decimal(0))),
            "skipped": [
                {"reason": reason, "rows": rows, "examples": self.examples[reason]}
                for reason, rows in self.skipped.most_common()
            ],
            "currencies": [symbol for symbol, _ in self.currencies.most_common()],
            "negative_rows": self.negative,
            "merged_spellings": sum(len(names) > 1 for names in self.spellings.values()),
            "numbers_unsure": unsure,
        }


def main(settings: Settings) -> None:
    getcontext().prec = 50
    encoding = encoding_of(settings["path"])
    mark, unsure = decimal_mark(settings, encoding)
    report = Report(settings, mark)
    for line, cells in rows_of(settings, encoding):
        report.add(line, cells)
    lines = [f"{report.rows} rows read, {sum(report.skipped.values())} skipped"]
    for rank, each in enumerate(report.top(), 1):
        lines.append(f"{rank:3}. {each['name']!s:40} {each[settings['measure']]!s:>16}")
    # Bytes, for the sandbox may have no UTF-8 locale.
    sys.stdout.buffer.write(("\n".join(lines) + "\n").encode())
    sys.stdout.buffer.write(f"RESULT {json.dumps(report.result(unsure))}\n".encode())
