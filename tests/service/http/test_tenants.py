"""A tenant's streams are its own: nobody else sees, reads, guesses, overwrites or deletes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.service.http.served import BLOB, Served

from tsgdn2.errors import StreamError
from tsgdn2.service.tenants import US, is_of, own, shown, whole

NAMES = st.text(st.characters(exclude_characters="\x00\x1f", exclude_categories=["Cs"]), min_size=1, max_size=40)
TENANTS = st.sampled_from(["", "a", "ab", "a.b", "b"])


@given(NAMES, TENANTS, TENANTS)
def test_a_whole_name_is_of_one_tenant_only(stream: str, tenant: str, other: str) -> None:
    name = whole(tenant, stream)
    assert is_of(tenant, name)
    assert own(tenant, name) == stream
    assert is_of(other, name) == (other == tenant)


@pytest.mark.parametrize("stream", [f"x{US}y", f"a{US}s", US, "", "x\x00", "\ud800", "x" * 520])
def test_a_name_that_could_be_anothers_or_no_name_is_refused(stream: str) -> None:
    for tenant in ("", "b"):
        with pytest.raises(StreamError):
            whole(tenant, stream)


def test_a_message_shows_a_tenant_its_own_names_and_no_others() -> None:
    text = f"stream: {'acme' + US + 'x'!r} and {'other' + US + 'y'!r} and acme{US}z"
    assert shown("acme", text) == "stream: 'x' and '(another tenant's) y' and z"


def test_tenants_with_streams_of_the_same_name_have_two_streams(keyed: Served) -> None:
    acme, other = keyed.keyed("admin", "acme"), keyed.keyed("admin", "other")
    for client, steps in ((acme, [1, 2, 3]), (other, [50]), (keyed, [90, 91])):
        assert client.observe("boiler/1", steps).json()["counts"] == {"new": len(steps)}
    counted = [
        client.get("/v1/streams/boiler%2F1/state").json()["counters"]["observations"]
        for client in (acme, other, keyed)
    ]  # fmt: skip
    assert counted == [3, 1, 2]
    assert acme.delete("/v1/streams/boiler%2F1").status_code == 200
    assert acme.get("/v1/streams/boiler%2F1").status_code == 404
    assert other.get("/v1/streams/boiler%2F1").status_code == 200
    assert keyed.get("/v1/streams/boiler%2F1").status_code == 200


def test_what_is_anothers_is_as_if_it_were_not_there(keyed: Served) -> None:
    acme, other = keyed.keyed("admin", "acme"), keyed.keyed("admin", "other")
    acme.observe("secret", [1, 2, 3, 4])
    acme.put("/v1/streams/secret/import", content=acme.get("/v1/streams/secret/export").content, headers=BLOB)
    for client in (other, keyed):
        for name in ("secret", "acme%1Fsecret", "acme%251Fsecret", "acme/secret"):
            for method, path in (
                ("GET", ""), ("GET", "/state"), ("GET", "/forecast"), ("GET", "/export"), ("DELETE", ""),
            ):  # fmt: skip
                answer = client.request(method, f"/v1/streams/{name}{path}")
                assert answer.status_code in (400, 404), (name, path)
                assert (
                    "acme" not in answer.text.replace("acme%1Fsecret", "").replace("acme/secret", "") or "\\u" in name
                )
            assert client.get(f"/v1/audit/{name}").status_code in (400, 404)
        listed = client.post("/v1/forecast", json={"streams": ["secret"]}).json()
        assert listed["forecasts"] == []
        assert [one["error"] for one in listed["refused"]] == ["unknown_stream"]
        assert "secret" not in client.get("/v1/streams").text
        assert all(entry["stream"] != "secret" for entry in client.get("/v1/ledger").json()["entries"])
    assert [entry["kind"] for entry in acme.get("/v1/ledger").json()["entries"] if entry["stream"] == "secret"] == [
        "imported"
    ]
    refused = other.observe("acme\x1fsecret", [7]).json()
    assert refused["status"] == ["refused"]
    assert acme.get("/v1/streams/secret/state").json()["counters"]["observations"] == 4


def test_a_listing_pages_through_a_tenants_streams_whatever_lies_between(keyed: Served) -> None:
    clients = {tenant: keyed.keyed("write", tenant) for tenant in ("p", "p.q", "q")}
    for tenant, client in clients.items():
        for stream in range(7):
            client.observe(f"{tenant}-{stream}", [1])
        client.observe("\U0010ffff" * 100, [1])
    for stream in ("a", "p", "p ", "p-", "pz", "z"):
        keyed.observe(f"listed-{stream}", [1])
        keyed.observe(stream, [1])

    def pages(client: Served, limit: int) -> list[str]:
        found, after = list[str](), ""
        while after is not None:
            page = client.get("/v1/streams", params={"limit": limit, "after": after}).json()
            assert len(page["streams"]) <= limit
            found += [one["stream"] for one in page["streams"]]
            after = page["next"]
        return found

    for tenant, client in clients.items():
        expected = [f"{tenant}-{stream}" for stream in range(7)] + ["\U0010ffff" * 100]
        for limit in (1, 3, 8, 100):
            assert pages(client, limit) == expected
    everything = pages(keyed, 100)
    assert everything == sorted(set(everything))
    assert {"a", "p", "p ", "p-", "pz", "z"} <= set(everything)
    assert not [name for name in everything if name.startswith(("p-0", "q-", US))]
    assert pages(keyed, 2) == everything


def test_metrics_of_all_tenants_together_are_for_nobodys_key_only(keyed: Served) -> None:
    assert keyed.keyed("admin", "acme").get("/metrics").status_code == 403
    page = keyed.keyed("read").get("/metrics")
    assert page.status_code == 200
    assert "tsgdn2_rows_total" in page.text
    assert "acme" not in page.text
