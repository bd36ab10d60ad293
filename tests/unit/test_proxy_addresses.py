"""Which addresses are refused, in every spelling that leads to them."""

import ipaddress

import pytest
from galley_vault_proxy.addresses import Net, refused

PRIVATE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "169.254.170.2",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
]
PRIVATE_6 = [
    "::",
    "::1",
    "fe80::1",
    "fe80::1%lo",
    "fec0::1",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "ff0e::1",
    "2001::1",
    "2001:db8::1",
    "3fff::1",
    "100::1",
    "64:ff9b:1::1",
    "5f00::1",
    "4000::1",
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "172.32.0.1", "192.169.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::8"]


def judge(address: str, *opened: str) -> bool:
    nets: list[Net] = [ipaddress.ip_network(text) for text in opened]
    return refused(ipaddress.ip_address(address), nets)


@pytest.mark.parametrize("address", PRIVATE + PRIVATE_6)
def test_what_is_not_public_is_refused(address: str) -> None:
    assert judge(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_public_is_not(address: str) -> None:
    assert not judge(address)


@pytest.mark.parametrize("address", PRIVATE)
@pytest.mark.parametrize(
    "form", ["::ffff:{0}", "::ffff:0:{0}", "::{0}", "64:ff9b::{0}", "2002:{1}::1", "2a00::5efe:{0}"]
)
def test_no_ipv6_form_leads_around(address: str, form: str) -> None:
    assert judge(form.format(address, colons(address)))


@pytest.mark.parametrize("form", ["::ffff:{0}", "64:ff9b::{0}", "2002:{1}::1"])
def test_a_form_of_a_public_address_is_public(form: str) -> None:
    assert not judge(form.format("8.8.8.8", colons("8.8.8.8")))


@pytest.mark.parametrize("form", ["{0}", "::ffff:{0}", "64:ff9b::{0}", "2002:{1}::1"])
def test_what_the_operator_opens_is_open_in_every_form(form: str) -> None:
    assert not judge(form.format("10.1.2.3", colons("10.1.2.3")), "10.1.0.0/16")
    assert judge(form.format("10.2.2.3", colons("10.2.2.3")), "10.1.0.0/16")


def test_opening_one_family_opens_nothing_of_the_other() -> None:
    assert judge("::1", "127.0.0.0/8")
    assert judge("127.0.0.1", "::1/128")
    assert not judge("fd00::5", "fd00::/8")


def colons(address: str) -> str:
    number = int(ipaddress.IPv4Address(address))
    return f"{number >> 16:x}:{number & 0xFFFF:x}"
