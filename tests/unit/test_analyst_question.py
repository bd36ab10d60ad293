"""The analyst understands what is asked, in many wordings."""

import pytest
from galley_server.demo.question import Question, read_question


@pytest.mark.parametrize(
    ("text", "count", "noun"),
    [
        ("Analyze sales_data.csv and find the top 5 products by revenue", 5, "products"),
        ("top ten items please", 10, "items"),
        ("What are the 3 best-selling products?", 3, "products"),
        ("Show me our top-20 customers by revenue in orders.csv", 20, "customers"),
        ("Which product sold best?", 1, "product"),
        ("Which products bring in the most?", 5, "products"),
        ("What is the best product", 1, "product"),
        ("the top 7 by revenue", 7, "products"),
        ("the top 3 sellers", 3, "products"),
        ("top 4 highest grossing articles", 4, "articles"),
        ("the five highest revenue countries in x.csv", 5, "countries"),
        ("Analyze the file", 5, "product"),
        ("top 999 products", 100, "products"),
    ],
)
def test_how_many_of_what(text: str, count: int, noun: str) -> None:
    question = read_question(text)
    assert (question.count, question.noun) == (count, noun)


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("Analyze sales_data.csv and find the top 5", "sales_data.csv"),
        ("Look at /mnt/session/uploads/q3/sales.CSV.", "/mnt/session/uploads/q3/sales.CSV"),
        ('Use "my sales 2024.csv", please', "my sales 2024.csv"),
        ("Use `export.tsv`", "export.tsv"),
        ("Rank the products in the file", None),
    ],
)
def test_the_file_is_the_one_that_is_named(text: str, file: str | None) -> None:
    assert read_question(text).file == file


def test_a_file_named_earlier_is_still_meant() -> None:
    assert read_question("And the bottom 3?", "Analyze a.csv\nNo, b.csv").file == "b.csv"


@pytest.mark.parametrize(
    ("text", "measure", "ascending"),
    [
        ("top 5 products by revenue", "revenue", False),
        ("top 5 products by units sold", "quantity", False),
        ("the top 5 products by quantity", "quantity", False),
        ("the 3 most sold products", "quantity", False),
        ("the 5 worst products by revenue", "revenue", True),
        ("bottom 3 products by volume", "quantity", True),
    ],
)
def test_by_what_and_from_which_end(text: str, measure: str, ascending: bool) -> None:
    question = read_question(text)
    assert (question.measure, question.ascending) == (measure, ascending)


@pytest.mark.parametrize("text", ["Hello!", "Thank you.", "Who are you?"])
def test_small_talk_is_not_about_data(text: str) -> None:
    assert read_question(text) == Question(False, None, 5, "product", "revenue", False)
