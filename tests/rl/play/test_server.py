"""Who may open the page: the address with its token, on loopback, and one page drives."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from rewards.errors import UserError
from rl.play.page import Page
from rl.play.server import MAX_PAGES, Hub, serving
from rl.play.session import Session
from tests.rl.play.toy import playing


@pytest.fixture
def toy() -> Iterator[tuple[Hub, Session]]:
    with playing() as found:
        yield found


def parts(hub: Hub) -> tuple[str, str]:
    """Return host with port, and token."""
    found = re.fullmatch(r"http://(127\.0\.0\.1:\d+)/\?token=([\w-]{32})", hub.address)
    assert found is not None
    return found[1], found[2]


def get(hub: Hub, path: str, host: str | None = None) -> tuple[int, str, dict[str, str]]:
    at, _ = parts(hub)
    line = http.client.HTTPConnection(at, timeout=30)
    line.request("GET", path, headers={} if host is None else {"Host": host})
    answer = line.getresponse()
    return answer.status, answer.read().decode(), dict(answer.getheaders())


def live(hub: Hub, token: str | None = None, origin: str | None = "", host: str | None = None) -> ClientConnection:
    at, right = parts(hub)
    return connect(
        f"ws://{at}/live?token={right if token is None else token}",
        origin=f"http://{at}" if origin == "" else origin,  # type: ignore[arg-type]
        additional_headers={} if host is None else {"Host": host},
        open_timeout=30,
    )


def told(page: ClientConnection) -> dict[str, Any]:
    """Return the next message of the server, of a frame its status."""
    data = page.recv(timeout=30)
    if isinstance(data, str):
        return json.loads(data)
    (length,) = struct.unpack(">I", data[:4])
    return json.loads(data[4 : 4 + length])


def until(page: ClientConnection, key: str, value: Any) -> dict[str, Any]:
    """Return the first message in which a field has a value."""
    while (message := told(page)).get(key) != value:
        pass
    return message


def test_the_page_needs_the_token(toy: tuple[Hub, Session]) -> None:
    hub, _ = toy
    _, token = parts(hub)
    for path in ("/", "/?token=", "/?token=wrong", f"/?token={token}&token={token}", f"/?token={token[:-1]}", "/live"):
        status, text, _ = get(hub, path)
        assert (status, text.count("\n")) == (403, 1) and "open the address" in text, path
    assert get(hub, f"/?token={token}")[0] == 200
    assert get(hub, f"/other?token={token}")[0] == 404


def test_another_name_of_this_computer_is_refused(toy: tuple[Hub, Session]) -> None:
    """A foreign name may be made to point to loopback (DNS rebinding)."""
    hub, _ = toy
    at, token = parts(hub)
    port = at.partition(":")[2]
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port}.evil.example"):
        assert get(hub, f"/?token={token}", host=host)[0] == 421
    assert get(hub, f"/?token={token}", host=f"localhost:{port}")[0] == 200


def test_a_websocket_needs_token_and_origin(toy: tuple[Hub, Session]) -> None:
    hub, _ = toy
    at, _ = parts(hub)
    wrong: list[dict[str, str | None]] = [{"token": ""}, {"token": "wrong"}, {"origin": None}, {"origin": "null"}]
    wrong += [{"origin": f"https://{at}"}, {"origin": "http://evil.example"}, {"origin": f"http://{at}.evil.example"}]
    for given in wrong:
        with pytest.raises(InvalidStatus) as refused:
            live(hub, **given)
        assert refused.value.response.status_code == 403, given
    with live(hub) as page:
        assert told(page)["about"]["tasks"] == ["reach", "rest"]


def test_the_page_loads_nothing_else(toy: tuple[Hub, Session]) -> None:
    hub, _ = toy
    status, html, headers = get(hub, hub.address.partition("/?")[2].join(("/?", "")))
    assert status == 200
    for kind in ("script", "style"):
        (source,) = re.findall(rf"<{kind}>(.*?)</{kind}>", html, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in headers["Content-Security-Policy"]
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")
    assert "unsafe" not in headers["Content-Security-Policy"]
    outside = set(re.findall(r"https?://[^\s\"'`]+", html)) - {"http://www.w3.org/2000/svg"}
    assert not outside and "src=" not in html and "@import" not in html and "url(" not in html
    assert "style=" not in html and " on" not in re.sub(
        r">[^<]*<", "><", html.partition("<script>")[0].partition("</style>")[2]
    )


def test_the_name_of_a_checkpoint_is_escaped() -> None:
    html = Page("<img src=x>{{SCRIPT}}").html()
    assert "&lt;img src=x&gt;" in html and "<img" not in html


def test_keys_drive_and_a_frame_comes_back(toy: tuple[Hub, Session]) -> None:
    hub, _ = toy
    with live(hub) as page:
        assert "about" in told(page) and told(page) == {"drives": True}
        first = told(page)
        page.send('{"held": [0, 0, 1, 0]}')
        moved = until(page, "chunk", 3)
        page.send('{"held": [0, 0, 0, 0]}')
        for place in ("dream", "sim"):
            assert moved["hands"][place][2] > first["hands"][place][2] + 0.05


def test_the_first_page_drives_and_the_next_when_it_leaves(toy: tuple[Hub, Session]) -> None:
    hub, session = toy
    with live(hub) as first, live(hub) as second:
        until(first, "drives", True)
        until(second, "drives", False)
        second.send('{"press": "restart"}')  # ignored
        first.send('{"held": [0, 0, 1, 0]}')
        assert until(second, "chunk", 2)["seed"] == 3
        first.close()
        until(second, "drives", True)
        second.send('{"press": "restart"}')
        until(second, "seed", 4)
        assert not session.controls.is_held  # what the first page held was let go


def test_too_many_pages_are_refused(toy: tuple[Hub, Session]) -> None:
    hub, _ = toy
    with ExitStack() as stack:
        for _ in range(MAX_PAGES):
            assert "about" in told(stack.enter_context(live(hub)))
        with live(hub) as one_more, pytest.raises(ConnectionClosed) as refused:
            one_more.recv(timeout=30)
    assert refused.value.rcvd is not None and refused.value.rcvd.code == 1013


@pytest.mark.parametrize(
    ("sent", "code"), [("{", 1008), ('{"press": "quit"}', 1008), (b"\x00", 1008), ("x" * 1100, 1009)]
)
def test_other_messages_close_the_line_and_the_play_goes_on(
    toy: tuple[Hub, Session], sent: str | bytes, code: int
) -> None:
    hub, _ = toy
    with live(hub) as page:
        page.send(sent)
        with pytest.raises(ConnectionClosed) as refused:
            while True:
                page.recv(timeout=30)
    assert refused.value.rcvd is not None and refused.value.rcvd.code == code
    with live(hub) as page:
        until(page, "drives", True)


def test_a_page_that_opens_before_the_play_begins_waits_for_its_first_frame() -> None:
    with serving(Page("toy"), ("reach",), {}, port=0) as hub, live(hub) as page:
        assert told(page) == {"about": {}} and told(page) == {"drives": True}
        with pytest.raises(TimeoutError):
            page.recv(timeout=0.3)
        hub.show(struct.pack(">I", 2) + b"{}")
        assert told(page) == {}


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port={port}: cannot listen there"), serving(Page("toy"), (), {}, port):
            raise AssertionError
