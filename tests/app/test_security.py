"""Who is answered: the host's name, origins, the token; and headers of every answer."""

import pytest
from starlette.websockets import WebSocketDisconnect

from patchifier.app import Settings
from patchifier.app.security import COOKIE, Access
from patchifier.config import RequestError
from tests.app.conftest import ADDRESS

TOKEN = "a-long-secret-token"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8756", "localhost:9", "[::1]:8756"])
def test_names_of_this_machine_are_known(client, host):
    assert client.get("/api/status", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "192.168.1.5:8756", "", "localhost@evil", "["],
)
def test_a_name_that_another_site_may_bind_is_refused(client, host):
    answer = client.get("/api/status", headers={"host": host})
    assert answer.status_code == 421
    assert answer.json()["error"]


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_another_site_gets_and_changes_nothing(client, headers):
    assert client.post("/api/job/cancel", headers=headers).status_code == 403
    assert client.get("/api/tracks", headers=headers).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [{"origin": ADDRESS, "sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}, {}],
)
def test_the_page_itself_and_programs_pass(client, headers):
    assert client.post("/api/job/cancel", headers=headers).status_code == 200


def test_a_link_from_another_site_opens_the_page_alone(client):
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=headers).status_code == 200
    assert client.get("/api/tracks", headers=headers).status_code == 403


@pytest.mark.parametrize("address", ["/", "/api/status", "/api/nothing", "/rest/ping"])
def test_every_answer_has_the_headers_that_bound_a_page(client, address):
    headers = client.get(address).headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers


def test_an_option_request_of_another_site_is_not_allowed(client):
    headers = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    answer = client.options("/api/similar", headers=headers)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


@pytest.fixture(scope="module")
def guarded(serve, table):
    return serve(table, Settings(access=Access("0.0.0.0", TOKEN)), follow_redirects=False)


def test_without_the_token_nothing_is_answered(guarded):
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": TOKEN},
        {"cookie": f"{COOKIE}=no"},
    ):
        for address in ("/", "/api/status", "/api/openapi.json"):
            answer = guarded.get(address, headers=headers)
            assert answer.status_code == 401
            assert "token" in answer.json()["error"]


def test_the_token_passes_as_a_header(guarded):
    headers = {"authorization": f"Bearer {TOKEN}"}
    assert guarded.get("/api/status", headers=headers).status_code == 200


def test_the_token_in_an_address_becomes_a_cookie_and_leaves_the_address(guarded):
    answer = guarded.get("/api/tracks", params={"token": TOKEN, "limit": "1"})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/api/tracks?limit=1"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert guarded.get("/api/tracks", headers={"cookie": f"{COOKIE}={TOKEN}"}).status_code == 200


def test_the_redirect_stays_on_this_server(guarded):
    answer = guarded.get("//evil.example/x", params={"token": TOKEN})
    assert not answer.headers["location"].startswith("//")


def test_beyond_loopback_addresses_are_known_and_foreign_names_are_not(guarded):
    headers = {"authorization": f"Bearer {TOKEN}"}
    for host, status in (("192.168.1.5:8756", 200), ("evil.example", 421)):
        assert guarded.get("/api/status", headers=headers | {"host": host}).status_code == status


def test_a_place_that_others_reach_needs_a_token():
    with pytest.raises(RequestError, match="--token"):
        Access("0.0.0.0")
    with pytest.raises(RequestError, match="token"):
        Access("127.0.0.1", "short")


def test_a_fault_of_the_server_is_a_sentence_without_its_inside(client, monkeypatch, capsys):
    served = client.app.state.served
    monkeypatch.setattr(served, "collection", None)
    answer = client.get("/api/tracks")
    assert answer.status_code == 500
    assert "Traceback" not in answer.text
    assert "Traceback" in capsys.readouterr().err


def test_a_websocket_is_closed(client):
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/api/status"):
        pass
