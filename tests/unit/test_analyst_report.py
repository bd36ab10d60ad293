"""The program that the analyst writes reads numbers as the file writes them, on any Python from 3.8."""

import ast
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from galley_server.demo import report


@pytest.mark.parametrize(
    ("cell", "mark", "value"),
    [
        ("12.50", ".", "12.50"),
        ("$1,234.50", ".", "1234.50"),
        ("1.234,50 €", ",", "1234.50"),
        ("1 234,50", ",", "1234.50"),
        ("1'234.50 CHF", ".", "1234.50"),
        ("USD 7", ".", "7"),
        ("(3.00)", ".", "-3.00"),
        ("5-", ".", "-5"),
        ("-$4", ".", "-4"),
        ("3 pcs", ".", "3"),
        (".5", ".", "0.5"),
        ("1,23,456", ".", "123456"),
        ("12%", ".", None),
        ("1,2,3", ".", None),
        ("three", ".", None),
        ("2024-01-05", ".", None),
        ("1.2.3", ".", None),
        ("", ".", None),
        ("$", ".", None),
    ],
)
def test_a_cell_is_read_as_a_number_or_not_at_all(cell: str, mark: str, value: str | None) -> None:
    assert report.number(cell, mark) == (None if value is None else Decimal(value))


@pytest.mark.parametrize(
    ("cells", "mark", "unsure"),
    [
        (["1.50", "2"], ".", False),
        (["1,50", "2"], ",", False),
        (["1.234,50"], ",", False),
        (["1,234", "2,500"], ".", False),
        (["1,234", "2,5"], ",", False),
        (["1.234", "2.500"], ".", True),
        (["1.234.567"], ",", False),
        (["7"], ".", False),
    ],
)
def test_the_whole_column_decides_what_stands_before_the_decimals(
    tmp_path: Path, cells: list[str], mark: str, unsure: bool
) -> None:
    path = tmp_path / "x.csv"
    path.write_text("p;n\n" + "".join(f"a;{cell}\n" for cell in cells))
    settings = report.Settings(
        path=str(path),
        delimiter=";",
        header_row=0,
        header=["p", "n"],
        columns={"group": 0, "revenue": 1},
        group="product",
        measure="revenue",
        ascending=False,
        count=5,
    )
    assert report.decimal_mark(settings, "utf-8") == (mark, unsure)


def test_it_uses_only_the_standard_library_and_the_syntax_of_python_3_8() -> None:
    tree = ast.parse(Path(report.__file__).read_text(), feature_version=(3, 8))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert {(name or "").partition(".")[0] for name in modules} <= {*sys.stdlib_module_names}
