"""No endpoint answers without its role; keys end when they should, and nothing says which part of one was wrong."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute
from tests.service.http.served import Served

from tsgdn2.errors import ConfigError
from tsgdn2.service.app import ROUTERS
from tsgdn2.service.guard import Guarded, role_of
from tsgdn2.service.keys import KeyRing, allows
from tsgdn2.service.store import KeyRow

OPEN = {"/healthz", "/readyz", "/openapi.json", "/", "/dashboard/{name}"}
FILE = "/dashboard/dashboard.js"
"""What stands for a file of the dashboard."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


def endpoints() -> Iterator[tuple[str, str, str]]:
    """Method, path and role of every endpoint."""
    for router in ROUTERS:
        for route in router.routes:
            assert isinstance(route, APIRoute)
            for method in sorted(route.methods):
                path = FILE if route.path == "/dashboard/{name}" else re.sub(r"{\w+}", "x", route.path)
                yield method, path, role_of(route.endpoint)


def test_every_route_of_the_application_is_in_the_list_that_is_walked(keyed: Served) -> None:
    described = keyed.get("/openapi.json").json()["paths"]
    walked = {route.path for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)}
    assert set(described) == walked
    for path, methods in described.items():
        for operation in methods.values():
            assert (path in OPEN) == ("security" not in operation)


@pytest.mark.parametrize(("method", "path", "needed"), list(endpoints()))
def test_an_endpoint_refuses_no_key_wrong_keys_ended_keys_and_lesser_roles(
    keyed: Served, method: str, path: str, needed: str
) -> None:
    if needed == "open":
        assert path in OPEN | {FILE}
        assert keyed.bare().request(method, path).status_code == 200
        return
    ring = keyed.desk.keys
    withdrawn, expired = ring.issue("admin"), ring.issue("admin", days=1e-9)
    ring.withdraw(withdrawn.row.id)
    good = ring.issue("admin").text
    wrong = ["", "x", good[:-1] + ("A" if good[-1] != "A" else "B"), withdrawn.text, expired.text,
             f"tsgdn2_{'0' * 12}_{'A' * 43}", good.upper()]  # fmt: skip
    for text in wrong:
        answer = keyed.bare(text).request(method, path)
        assert answer.status_code == 401, text
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.json()["error"] == "key_refused"
    for lesser in ("read", "write"):
        if not allows(lesser, needed):
            answer = keyed.keyed(lesser).request(method, path)
            assert answer.status_code == 403
            assert answer.json()["error"] == "forbidden"


def test_other_methods_of_the_same_paths_answer_nothing(keyed: Served) -> None:
    there = {(method, path) for method, path, _ in endpoints()}
    client = keyed.bare()
    for path in {path for _, path in there}:
        for method in METHODS:
            if (method, path) not in there:
                assert client.request(method, path).status_code == 405, (method, path)


def test_a_key_is_also_taken_as_token_and_in_a_header_of_its_own(keyed: Served) -> None:
    text = keyed.desk.keys.issue("read").text
    for headers in ({"Authorization": f"Token {text}"}, {"X-API-Key": text}, {"authorization": f"bearer {text}"}):
        assert keyed.bare().get("/v1/streams", headers=headers).status_code == 200
    assert keyed.bare().get("/v1/streams", headers={"Authorization": f"Basic {text}"}).status_code == 401


def test_rotation_gives_two_valid_keys_and_then_one(keyed: Served) -> None:
    old = keyed.post("/v1/keys", json={"role": "read"}).json()
    new = keyed.post(f"/v1/keys/{old['key']['id']}/rotate", json={"overlap_s": 60}).json()
    for made in (old, new):
        assert keyed.bare(made["text"]).get("/v1/streams").status_code == 200
    keyed.post(f"/v1/keys/{new['key']['id']}/rotate", json={"overlap_s": 0})
    assert keyed.bare(new["text"]).get("/v1/streams").status_code == 401
    assert keyed.delete(f"/v1/keys/{old['key']['id']}").status_code == 200
    assert keyed.bare(old["text"]).get("/v1/streams").status_code == 401


def test_the_store_has_no_secret_and_no_list_shows_a_hash(keyed: Served) -> None:
    made = keyed.post("/v1/keys", json={"role": "write", "tenant": "a", "days": 1}).json()
    secret = made["text"].split("_", 2)[2]
    (row,) = [row for row in keyed.desk.keys.listed() if row.id == made["key"]["id"]]
    assert row.hash == hashlib.sha256(secret.encode()).digest()
    assert (row.role, row.tenant) == ("write", "a")
    shown = keyed.get("/v1/keys").text
    assert made["key"]["id"] in shown
    assert secret not in shown
    assert row.hash.hex() not in shown


def test_a_key_that_another_process_has_withdrawn_ends_when_keys_are_read_again(keyed: Served) -> None:
    made = keyed.desk.keys.issue("read")
    client = keyed.bare(made.text)
    assert client.get("/v1/streams").status_code == 200
    row = made.row
    keyed.desk.store.put_key(KeyRow(id=row.id, hash=row.hash, role="read", tenant="", withdrawn=1))
    keyed.desk.keys._read = -float("inf")
    assert client.get("/v1/streams").status_code == 401


def test_an_administrator_can_not_withdraw_the_key_it_uses_nor_issue_for_another_tenant(keyed: Served) -> None:
    own = keyed.headers["Authorization"].split("_")[1]
    assert keyed.delete(f"/v1/keys/{own}").status_code == 400
    acme = keyed.keyed("admin", "acme")
    assert acme.post("/v1/keys", json={"role": "read", "tenant": "other"}).status_code == 403
    assert acme.post("/v1/keys", json={"role": "read", "tenant": ""}).status_code == 403
    assert acme.post("/v1/keys", json={"role": "read"}).json()["key"]["tenant"] == "acme"
    assert acme.delete(f"/v1/keys/{own}").status_code == 404
    assert acme.post(f"/v1/keys/{own}/rotate", json={}).status_code == 404
    assert {key["tenant"] for key in acme.get("/v1/keys").json()["keys"]} == {"acme"}


def test_roles_tenants_and_ends_are_checked(keyed: Served) -> None:
    ring = KeyRing(keyed.desk.store)
    for role, tenant, days in (("root", "", None), ("read", "A", None), ("read", "a\x1fb", None), ("read", "", 0)):
        with pytest.raises(ConfigError):
            ring.issue(role, tenant, days=days)


def test_a_route_without_a_role_can_not_be_made() -> None:
    router = APIRouter(route_class=Guarded)

    async def nobody() -> None:
        """Say nothing."""

    with pytest.raises(ConfigError, match="declares no role"):
        router.get("/x")(nobody)
