"""Reads the head of a CSV file: its delimiter, its header, and which column is product, price, quantity or revenue.

Pure: the text comes from the output of a tool.
"""

import csv
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias


def stem(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us")) else word


def _stems(words: str) -> tuple[str, ...]:
    return tuple(stem(word) for word in words.split())


Role: TypeAlias = Literal["product", "price", "quantity", "revenue"]

# Words of a column's name, by role, best first.
_PRODUCT_PROPER: Final = _stems(
    "product item article produkt artikel producto articulo produit prodotto produto good merchandise"
)
_PRODUCT: Final = (*_PRODUCT_PROPER, *_stems("name title sku description bezeichnung"))
_PRICE: Final = _stems("price preis einzelpreis stuckpreis precio prix prezzo preco prijs pris msrp rate cost")
_QUANTITY: Final = _stems(
    "quantity qty quantite cantidad quantita quantidade menge anzahl stuckzahl aantal antal unit piece pc pcs count "
    "volume stuck copies portions sold ordered"
)
_REVENUE: Final = _stems(
    "revenue turnover umsatz erlos sale subtotal total amount gross net value gesamt summe betrag ingreso importe "
    "venta montant fatturato receita omzet"
)
# A column with one of these is about somebody, somewhere or some time, not about what was sold.
_OTHER: Final = frozenset(
    _stems(
        "customer client kunde buyer user store shop branch seller vendor supplier rep person salesperson employee "
        "region country city state address category segment brand date time day month year order invoice transaction "
        "payment status channel email phone currency id number no code type line family group class"
    )
)
_SAYS_WHICH: Final = frozenset(_stems("id number no code category segment type line family group class"))
_NOT_MONEY_IN: Final = frozenset(
    _stems("tax taxes vat mwst discount rabatt shipping freight fee profit margin cogs commission percent pct rate")
)
_FILLERS: Final = frozenset(_stems("each per of the in"))
_KNOWN: Final = _OTHER.union(_PRODUCT, _PRICE, _QUANTITY, _REVENUE, _NOT_MONEY_IN, _FILLERS)
_LONGEST: Final = 40
_DELIMITERS: Final = ",;\t|"


@dataclass(frozen=True, slots=True)
class Table:
    """The head of a file: how it is cut, where its header stands, and a few rows."""

    delimiter: str
    header_row: int
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Columns:
    """Positions in the header."""

    group: int
    price: int | None
    quantity: int | None
    revenue: int | None
    guessed: bool = False
    """No name says that `group` holds the products: it is the only column of words that is left."""

    @property
    def has_revenue(self) -> bool:
        return self.revenue is not None or (self.price is not None and self.quantity is not None)


def words(name: str) -> tuple[str, ...]:
    """Split a name into plain lower-case words: `unitPrice`, `Unit-Price` and `UNIT_PRICE` are the same."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name.replace("ß", "ss"))
    plain = unicodedata.normalize("NFKD", spaced).encode("ascii", "ignore").decode().lower()
    return tuple(part for word in re.findall(r"[a-z]+", plain) for part in _parts(word))


def _parts(word: str) -> tuple[str, ...]:
    """Cut `PRICEEACH` in two, but only into words that are known."""
    if stem(word) in _KNOWN or len(word) > _LONGEST:
        return (stem(word),)
    for end in range(len(word) - 2, 2, -1):
        if stem(word[:end]) in _KNOWN and _KNOWN.issuperset(rest := _parts(word[end:])):
            return (stem(word[:end]), *rest)
    return (stem(word),)


def read_table(text: str) -> Table | None:
    """Find the delimiter and the header in the first lines of a file; None if nothing looks like a table."""
    lines = text.lstrip("\ufeff").splitlines(keepends=True)
    best: Table | None = None
    for delimiter in _DELIMITERS:
        table = _cut(lines, delimiter)
        if table is not None and (best is None or _rank(table) > _rank(best)):
            best = table
    return best


def choose(table: Table, noun: str) -> Columns | None:
    """Decide which columns answer a question about `noun`; None if none of them holds it."""
    taken: set[int] = set()
    found: dict[Role, int | None] = {}
    roles: tuple[Role, ...] = ("price", "quantity", "revenue")
    for role in roles:
        index = _best(table.header, role, taken)
        found[role] = index
        if index is not None:
            taken.add(index)
    if found["quantity"] is None and found["price"] is not None and _looks_like_a_count(table, found["revenue"]):
        found["quantity"], found["revenue"] = found["revenue"], None
    group = _group(table.header, noun, taken)
    guess = _only_words(table, taken) if group is None and is_product(noun) and taken else None
    if group is None and guess is None:
        return None
    place = group if group is not None else guess or 0
    return Columns(place, found["price"], found["quantity"], found["revenue"], guessed=group is None)


def is_product(noun: str) -> bool:
    return stem(noun) in _PRODUCT


def _cut(lines: Sequence[str], delimiter: str) -> Table | None:
    rows = [tuple(cell.strip() for cell in row) for row in _parsed(lines, delimiter)]
    widths = Counter(len(row) for row in rows if len(row) > 1)
    if not widths:
        return None
    # A report may begin with a title, and a header may lack the name of its last column.
    usual = max(widths, key=lambda width: (widths[width], width))
    for index, row in enumerate(rows):
        named = sum(bool(re.search(r"[^\W\d_]", cell)) for cell in row) * 2 > len(row) > 1
        if named and (len(row) >= usual or _understood(row) >= 2):
            return Table(delimiter, index, _without_empty_end(row), tuple(rows[index + 1 :]))
    return None


def _without_empty_end(row: tuple[str, ...]) -> tuple[str, ...]:
    while row and not row[-1]:
        row = row[:-1]
    return row


def _parsed(lines: Sequence[str], delimiter: str) -> Iterator[list[str]]:
    try:
        yield from csv.reader(lines, delimiter=delimiter)
    except csv.Error:
        # The head may end inside a quoted field: what came before it is enough.
        return


def _rank(table: Table) -> tuple[int, int, int]:
    same_width = sum(len(row) == len(table.header) for row in table.rows)
    return _understood(table.header), same_width, len(table.header)


def _understood(header: Sequence[str]) -> int:
    roles: tuple[Role, ...] = ("product", "price", "quantity", "revenue")
    return sum(_best(header, role, set()) is not None for role in roles)


def _group(header: Sequence[str], noun: str, taken: set[int]) -> int | None:
    if is_product(noun):
        return _best(header, "product", taken)
    named = [index for index, name in enumerate(header) if stem(noun) in words(name) and index not in taken]
    # `customer_name` says more than `customer_id`.
    named.sort(key=lambda index: ("id" in words(header[index]), len(words(header[index]))))
    return named[0] if named else None


def _only_words(table: Table, taken: set[int]) -> int | None:
    """The one column left that holds words and is about nothing else, if there is just one."""
    left = [
        index
        for index, name in enumerate(table.header)
        if index not in taken and _OTHER.isdisjoint(words(name)) and _mostly_letters(table, index)
    ]
    return left[0] if len(left) == 1 else None


def _mostly_letters(table: Table, index: int) -> bool:
    cells = [row[index] for row in table.rows if index < len(row) and row[index]]
    return sum(bool(re.search(r"[^\W\d_]{2}", cell)) for cell in cells) * 2 > len(cells)


def _best(header: Sequence[str], role: Role, taken: set[int]) -> int | None:
    scores = {index: _score(words(name), role) for index, name in enumerate(header) if index not in taken}
    best = max(scores, key=lambda index: (scores[index], -index), default=None)
    return best if best is not None and scores[best] > 0 else None


def _score(name: tuple[str, ...], role: Role) -> float:
    match role:
        case "product":
            return _product_score(name)
        case "price":
            return 0 if _hit(name, ("total", "line", "extended", "gesamt")) else _money_score(name, _PRICE)
        case "quantity":
            if "of" in name and not {"number", "no", "num"}.isdisjoint(name):
                return 1
            # A unit price and a sales value have words of both kinds: the price and the value win.
            return 0 if _hit(name, _PRICE) or _hit(name, ("revenue", "value", "amount")) else _hit(name, _QUANTITY)
        case "revenue":
            if _hit(name, _QUANTITY) and not _hit(name, ("revenue", "turnover", "umsatz")):
                return 0
            priced = _hit(name, _PRICE) > 0 and not _hit(name, ("total", "line", "extended", "gesamt"))
            return 0 if priced else _money_score(name, _REVENUE)


def _product_score(name: tuple[str, ...]) -> float:
    score = _hit(name, _PRODUCT)
    others = [word for word in name if word in _OTHER]
    if not score or not others:
        return score
    # `product_id` or `product line` will do when nothing better is there; `customer name` never does.
    return score / 4 if _SAYS_WHICH.issuperset(others) and _hit(name, _PRODUCT_PROPER) else 0


def _money_score(name: tuple[str, ...], known: Sequence[str]) -> float:
    return 0 if any(word in _NOT_MONEY_IN for word in name if word not in known) else _hit(name, known)


def _hit(name: tuple[str, ...], known: Sequence[str]) -> float:
    """Above 0 if a word is known; more for a better word, and a little more for a shorter name."""
    places = [known.index(word) for word in name if word in known]
    return (1 - min(places) / (len(known) + 1)) + 0.01 / len(name) if places else 0


def _looks_like_a_count(table: Table, index: int | None) -> bool:
    """`amount` beside a price means how many, if the cells are plain whole numbers."""
    if index is None or "amount" not in words(table.header[index]):
        return False
    cells = [row[index] for row in table.rows if index < len(row) and row[index]]
    whole = sum(cell.isdigit() for cell in cells)
    return bool(cells) and whole * 2 > len(cells)
