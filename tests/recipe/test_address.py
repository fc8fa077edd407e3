"""Addresses of servers: what is none is refused in words, and no secret is repeated."""

import pytest

from allo.recipe.address import why_no_address


@pytest.mark.parametrize(
    "address",
    ["http://localhost:8000/v1", "https://host/v1", "http://[::1]:8000/v1", "https://host/run/@me/v1"],
)
def test_an_address_is_one(address: str) -> None:
    assert why_no_address(address) is None


@pytest.mark.parametrize(
    "address",
    [
        "sk-aSecret@host/v1",
        "http://sk-aSecret@host/v1",
        "http://me:sk-aSecret@host/v1",
        "http://me:sk-aSecret@[bad/v1",
        "http://me:sk-aSecret@host:abc/v1",
        "http://me:sk-aSecret@/v1",
        "http:/me:sk-aSecret@host/v1",
        "http://host/v1?key=sk-aSecret",
        "http://host/v1#key=sk-aSecret",
        "host/v1?key=sk-aSecret",
        "host/v1#sk-aSecret",
    ],
)
def test_a_secret_in_an_address_is_refused_and_not_repeated(address: str) -> None:
    why = why_no_address(address)
    assert why is not None and why.startswith("base_url") and "aSecret" not in why


@pytest.mark.parametrize(
    "address",
    [
        "localhost:8000",
        "ftp://host/v1",
        "http://[bad/v1",
        "http://host:abc/v1",
        "http://host:99999/v1",
        "http:///v1",
        "http://my host/v1",
        "http://host/v1\n",
        "http://host\0/v1",
        "",
    ],
)
def test_what_is_no_address_is_repeated_with_one_that_is(address: str) -> None:
    why = why_no_address(address)
    assert why is not None and f"base_url {address!r}: give an address such as http://" in why
