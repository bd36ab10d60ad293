"""The analyst works out the columns from the head of a file."""

import pytest
from galley_server.demo.columns import Columns, choose, read_table


def columns(header: str, *rows: str, noun: str = "products") -> Columns | None:
    table = read_table("\n".join([header, *rows]))
    return None if table is None else choose(table, noun)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("product,price,quantity", Columns(0, 1, 2, None)),
        ("Order ID,Date,Product Name,Unit Price,Qty,Region", Columns(2, 3, 4, None)),
        ("ITEM;UNITS SOLD;PRICE EACH", Columns(0, 2, 1, None)),
        ("orderDate\tproductName\tunitPrice\tunitsSold", Columns(1, 2, 3, None)),
        ("Artikel;Einzelpreis (€);Menge;Kunde", Columns(0, 1, 2, None)),
        ("Fecha;Producto;Precio unitario;Cantidad", Columns(1, 2, 3, None)),
        ("Désignation;Produit;Prix;Quantité", Columns(1, 2, 3, None)),
        ("customer_name|product_id|product_name|qty|sale price", Columns(2, 4, 3, None)),
        ("Product,Category,Revenue", Columns(0, None, None, 2)),
        ("item,units,price,total", Columns(0, 2, 1, 3)),
        ("Product line,Unit price,Quantity,Tax 5%,Total,gross margin percentage", Columns(0, 1, 2, 4)),
        ("sku,name,price,count", Columns(1, 2, 3, None)),
        ("product,profit,discount,sales", Columns(0, None, None, 3)),
        ("Product Category,Product,Net Sales,Sales Qty", Columns(1, None, 3, 2)),
        ("product,total units,total price", Columns(0, None, 1, 2)),
        ("ORDERNUMBER,QUANTITYORDERED,PRICEEACH,PRODUCTLINE,PRODUCTCODE,CUSTOMERNAME", Columns(3, 2, 1, None)),
        ("name,no. of items,price", Columns(0, 2, 1, None)),
        ("InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID", Columns(2, 5, 3, None)),
    ],
)
def test_names_are_understood_in_any_dress(header: str, expected: Columns) -> None:
    assert columns(header) == expected


def test_an_amount_beside_a_price_is_how_many_if_it_is_whole() -> None:
    assert columns("product,price,amount", "a,2.50,3", "b,1.00,4") == Columns(0, 1, 2, None)
    assert columns("product,price,amount", "a,2.50,$7.50", "b,1.00,$4.00") == Columns(0, 1, None, 2)


def test_another_noun_chooses_its_own_column() -> None:
    header = "customer_id,customer,country,product,revenue"
    assert columns(header, noun="customers") == Columns(1, None, None, 4)
    assert columns(header, noun="countries") == Columns(2, None, None, 4)
    assert columns(header, noun="salespeople") is None


@pytest.mark.parametrize("header", ["date,temperature,humidity", "customer,email,phone", "a,b,c"])
def test_where_no_product_is_named_none_is_guessed(header: str) -> None:
    assert columns(header) is None


def test_the_only_column_of_words_is_taken_for_the_product_and_marked_as_a_guess() -> None:
    assert columns("date,book,price,copies", "2026-01-02,Emma,9.50,2") == Columns(1, 2, 3, None, guessed=True)
    assert columns("book,author,price,copies", "Emma,Austen,9.50,2") is None


def test_a_title_and_blank_lines_before_the_header_are_stepped_over() -> None:
    table = read_table("Sales report 2024\n\nsep=;\nProduct;Price;Qty\nA;1,50;2\nB;2,50;1\n")
    assert table is not None
    assert (table.delimiter, table.header_row, table.header) == (";", 3, ("Product", "Price", "Qty"))


def test_a_decimal_comma_is_not_taken_for_the_delimiter() -> None:
    table = read_table("Produkt;Preis;Menge\nA;1,50;2,0\nB;2,50;1,0\n")
    assert table is not None
    assert table.delimiter == ";"


def test_a_header_may_carry_a_mark_quotes_and_an_empty_end() -> None:
    table = read_table('\ufeff"Product","Unit, price","Qty",\r\n"A",1,2,\r\n')
    assert table is not None
    assert table.header == ("Product", "Unit, price", "Qty")


@pytest.mark.parametrize("text", ["", "\n\n", "Dear Sir,\n\nthis is a letter.\n", "1,2,3\n4,5,6\n", "just words"])
def test_what_is_no_table_with_a_header_is_none(text: str) -> None:
    assert read_table(text) is None
