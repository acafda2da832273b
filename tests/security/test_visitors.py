"""One visitor's state, files and jobs are not another's; the password stands before everything."""

import concurrent.futures
import re
import time

import pytest

from deploy import limits
from deploy.gate import WITHOUT_PASSWORD
from deploy.limits import Buckets, client_of
from tests.calls import Caller
from tests.security.conftest import ATTEMPTS


class TestSessions:
    def test_state_belongs_to_its_session(self, app_server):
        ask = ("yolov9_image_export", "JSON")
        mine, theirs, nobody = (Caller(app_server.url, session) for session in ("mine", "theirs", None))
        from tests.security.test_files import DETECTION, PICTURE, file

        event, _ = mine.call("yolov9_image", file(mine.upload("bus.png", PICTURE.read_bytes())), *DETECTION)
        assert event == "complete" and mine.call(*ask)[0] == "complete"
        assert "nothing to export" in theirs.said(*ask)
        assert "nothing to export" in nobody.said(*ask)

    def test_state_cannot_be_sent_from_outside(self, app_server):
        """A value given for a hidden input is not taken: there is no place for it among the inputs."""
        caller = Caller(app_server.url, "forger")
        forged = {"zoo": "digits-q", "latents": [[0.0]], "accuracy": [100], "wrong": [[0]]}
        assert "no generated network" in caller.said("pdiff_example", forged, 0)

    def test_folders_of_uploads_cannot_be_listed_or_guessed(self, app_server):
        caller = Caller(app_server.url, "x")
        path = caller.upload("mine.txt", b"what only I know")
        folder = path.rsplit("/", 2)[0]
        assert re.fullmatch(r"[0-9a-f]{64}", path.rsplit("/", 2)[1])  # of the content: who has it, knows it
        for place in (folder, folder + "/", path.rsplit("/", 1)[0]):
            assert caller.http.get(f"/gradio_api/file={place}").status_code == 403

    def test_a_stranger_cannot_stop_or_read_a_job_without_its_numbers(self, app_server):
        caller = Caller(app_server.url, "stranger")
        assert "404" in str(caller.follow("longrope_length", "0" * 32))
        body = {"session_hash": "mine", "fn_index": 0, "event_id": "0" * 32}
        assert caller.http.post("/gradio_api/cancel", json=body).json() == {"success": True}  # and nothing happened


class TestPassword:
    def test_every_route_of_the_app_asks_for_it(self, strange, strict_server):
        routes = strange_routes()
        assert len(routes) > 40
        for method, path in routes:
            answer = strange.request(method, path, json={})
            if WITHOUT_PASSWORD.fullmatch(path):
                assert answer.status_code != 401 or "login_check" in path, path
            else:
                assert answer.status_code in (401, 404), (method, path, answer.status_code)

    def test_without_it_the_page_is_only_the_form(self, strange):
        page = strange.get("/").text
        assert "auth_required" in page and '"dependencies":[]' in page and "longrope-passkey" not in page

    def test_with_it_everything_works(self, sign_in):
        caller = sign_in("192.0.2.10")
        assert caller.call("longrope_length", 10)[0] == "complete"
        path = caller.upload("x.txt", b"x")
        assert caller.http.get(f"/gradio_api/file={path}").text == "x"
        assert caller.http.get("/config").status_code == 200

    def test_forged_cookies_do_not_help(self, strange, strict_server):
        app_id = strange.get("/gradio_api/app_id").json()["app_id"]
        for cookie in (
            f"access-token-{app_id}=x",
            "access-token-=",
            "access-token-unsecure-x=y",
            '=;;="\\',
            "a" * 5000,
        ):
            assert strange.get("/config", headers={"cookie": cookie}).status_code == 401

    def test_guessing_is_slow(self, strict_server):
        caller = Caller(strict_server.url, headers={"x-forwarded-for": "192.0.2.66"})
        answers = [
            caller.http.post("/login", data={"username": "guest", "password": str(attempt)}) for attempt in range(12)
        ]
        assert [answer.status_code for answer in answers[:10]] == [400] * 10
        assert answers[-1].status_code == 429 and int(answers[-1].headers["retry-after"]) > 0
        # Also with the right one; but not for others.
        assert caller.http.post("/login", data={"username": "guest", "password": "secret"}).status_code == 429
        other = Caller(strict_server.url, headers={"x-forwarded-for": "192.0.2.67"})
        assert other.http.post("/login", data={"username": "guest", "password": "secret"}).status_code == 200


def strange_routes() -> list[tuple[str, str]]:
    """Every route that Gradio has, with its gaps filled in."""
    import gradio as gr
    from gradio.routes import App

    with gr.Blocks(analytics_enabled=False) as blocks:
        gr.Textbox()
    blocks.queue()
    blocks.auth = [("a", "b")]
    blocks.config = blocks.get_config_file()
    found = []
    for route in _routes(App.create_app(blocks).routes):
        path = re.sub(r"\{[^}]*\}", "1", route.path)
        found += [(method, path) for method in route.methods or () if method in ("GET", "POST")]
    return sorted(set(found))


def _routes(routes):
    for route in routes:
        if hasattr(route, "methods"):
            yield route
        else:  # a router that is kept whole
            yield from _routes(getattr(route, "routes", None) or route.original_router.routes)


class TestLimits:
    def test_a_flood_is_told_to_wait_and_others_are_served(self, sign_in):
        flood, other = sign_in("198.51.100.1"), sign_in("198.51.100.2")

        def ask(_: int) -> int:
            return flood.http.get("/gradio_api/queue/status").status_code

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            codes, asked, deadline = set(), 0, time.monotonic() + 120
            while 429 not in codes and time.monotonic() < deadline:
                codes |= set(pool.map(ask, range(200)))
                asked += 200
        if 429 not in codes:
            pytest.skip(f"{asked} requests in 120 s: this machine is too busy to make a flood")
        assert codes <= {200, 429} and asked >= 10 * ATTEMPTS
        assert other.http.get("/gradio_api/queue/status").status_code == 200

    def test_one_address_cannot_fill_the_queue(self, sign_in):
        """Jobs wait behind a long one; the 33rd is refused, another visitor's is taken."""
        mine, other = sign_in("198.51.100.3"), sign_in("198.51.100.4")
        long_job = {"data": [4, "paper", 1, "needle", "", False], "session_hash": mine.session}
        answers = []
        for number in range(40):
            job = long_job if number == 0 else {**long_job, "data": [4, "demo", number, "needle", "", False]}
            answers.append(mine.http.post("/gradio_api/call/longrope_search", json=job))
        codes = [answer.status_code for answer in answers]
        assert codes[:32] == [200] * 32 and set(codes[32:]) == {429}
        assert "wait already" in answers[-1].json()["error"] and answers[-1].headers["retry-after"] == "10"
        assert other.http.post("/gradio_api/call/longrope_length", json={"data": [10]}).status_code == 200
        for answer in answers[:32]:
            body = {"session_hash": mine.session, "fn_index": 0, "event_id": answer.json()["event_id"]}
            mine.http.post("/gradio_api/cancel", json=body)

    def test_headers_that_a_browser_needs_to_be_safe(self, visitor):
        for path in ("/", "/gradio_api/info", "/theme.css", "/gradio_api/file=app.py", "/monitoring"):
            headers = visitor.http.get(path).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "same-origin"
            policy = headers["content-security-policy"]
            assert "default-src 'self'" in policy and "frame-ancestors 'self'" in policy and "http" not in policy

    def test_another_sites_page_may_not_ask(self, visitor):
        headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        answer = visitor.http.options("/gradio_api/call/longrope_length", headers=headers)
        assert answer.headers.get("access-control-allow-origin") != "*"


class TestBuckets:
    def test_a_burst_then_the_rate(self):
        now = [0.0]
        buckets = Buckets(rate=2, burst=4, clock=lambda: now[0])
        assert [buckets.take("a") for _ in range(5)] == [0, 0, 0, 0, 0.5]
        assert buckets.take("b") == 0
        now[0] = 0.5
        assert buckets.take("a") == 0 and buckets.take("a") == 0.5
        now[0] = 1000.0
        assert [buckets.take("a") for _ in range(5)] == [0, 0, 0, 0, 0.5]

    def test_more_than_a_burst_is_given_when_all_of_it_is_there(self):
        now = [0.0]
        buckets = Buckets(rate=1, burst=4, clock=lambda: now[0])
        assert buckets.take("a", 6) == 0
        assert buckets.take("a") == 3
        now[0] = 3.0
        assert buckets.take("a") == 0

    def test_memory_is_bounded(self, monkeypatch):
        monkeypatch.setattr(limits, "MOST_CLIENTS", 3)
        buckets = Buckets(1, 1)
        for client in "abcdefg":
            buckets.take(client)
        assert len(buckets._levels) == 3


class TestClient:
    @pytest.mark.parametrize(
        ("proxies", "forwarded", "client"),
        [
            (0, [], "10.0.0.9"),
            (0, ["1.1.1.1"], "10.0.0.9"),  # anybody can write this header
            (1, [], "10.0.0.9"),
            (1, ["1.1.1.1"], "1.1.1.1"),
            (1, ["6.6.6.6, 1.1.1.1"], "1.1.1.1"),
            (1, ["6.6.6.6", "1.1.1.1"], "1.1.1.1"),
            (2, ["6.6.6.6, 1.1.1.1, 10.0.0.1"], "1.1.1.1"),
            (2, ["1.1.1.1"], "10.0.0.9"),
            (1, ["<script>"], "10.0.0.9"),
            (1, ["2001:db8:1:2:3:4:5:6"], "2001:db8:1:2::/64"),
            (1, ["::ffff:1.1.1.1"], "1.1.1.1"),
        ],
    )
    def test_is_what_the_trusted_proxy_saw(self, proxies, forwarded, client):
        headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
        assert client_of({"client": ("10.0.0.9", 1), "headers": headers}, proxies) == client

    def test_a_socket_without_an_address_has_one_place(self):
        assert client_of({"client": None, "headers": []}, 0) == "unknown"
