"""The network side of `wamtune play`: one page and one websocket on loopback, for whoever has the address.

The address has a random token. A request is refused without it, with another host name than that of loopback (against
DNS rebinding), and a websocket also from a page of another origin. The first page drives, the others watch; when it
leaves, the oldest of them drives.
"""

from __future__ import annotations

import asyncio
import hmac
import importlib
import json
import logging
import queue
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

from rewards.errors import UserError
from rl.play.controls import MAX_BYTES, NOTHING, Message, Refused, parse
from rl.play.page import Page
from world_model.extras import import_extra

HOST = "127.0.0.1"

MAX_PAGES = 4
"""Pages that may be open at the same time, one of which drives."""

MAX_WAITING = 64
"""Messages that wait for the next chunk; a page that sends more is refused."""

OPEN_S, SEND_S, CLOSE_S = 5.0, 10.0, 1.0
"""Seconds that a page has to connect, to take a frame, and to close."""


class Hub:
    """Hands messages of the driving page to the play, and its newest frame to every page. Thread-safe."""

    def __init__(self, page: Page, tasks: tuple[str, ...], about: dict[str, Any]) -> None:
        self.messages: queue.Queue[Message] = queue.Queue(MAX_WAITING)
        self.address = ""  # with the token, once it listens
        self._page, self._tasks, self._about = page, tasks, about
        self._token = secrets.token_urlsafe(24)
        self._loop = asyncio.new_event_loop()
        self._pages: list[_Open] = []  # the first one drives
        self._frame = b""
        self._hosts: tuple[str, ...] = ()
        self._listening: Any = None

    def show(self, frame: bytes) -> None:
        """Send a frame to all pages; a slow page gets the newest one alone when it is ready for it."""
        self._loop.call_soon_threadsafe(self._publish, frame)

    def run(self) -> None:
        """Run the network until `stop`; call it in a thread."""
        self._loop.run_forever()

    def start(self, port: int) -> None:
        """Listen, from another thread than that of `run`.

        Raises:
            UserError: the port is in use.
        """
        asyncio.run_coroutine_threadsafe(self._listen(port), self._loop).result()

    def stop(self) -> None:
        """Close all connections and end `run`."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _listen(self, port: int) -> None:
        library = importlib.import_module("websockets.asyncio.server")
        try:
            self._listening = await library.serve(
                self._serve_page,
                HOST,
                port,
                process_request=self._answer,
                compression=None,
                max_size=MAX_BYTES,
                max_queue=MAX_WAITING,
                open_timeout=OPEN_S,
                close_timeout=CLOSE_S,
                logger=logging.Logger("silent", logging.CRITICAL + 1),
            )
        except OSError as error:
            raise UserError(
                f"port={port}: cannot listen there ({error.strerror}); take another, or 0 for any"
            ) from error
        port = next(iter(self._listening.sockets)).getsockname()[1]
        self._hosts = tuple(f"{host}:{port}" for host in (HOST, "localhost"))
        self.address = f"http://{self._hosts[0]}/?token={self._token}"

    async def _close(self) -> None:
        if self._listening is not None:
            self._listening.close()
            await self._listening.wait_closed()

    def _answer(self, connection: Any, request: Any) -> Any:
        """Return the answer to a request of HTTP; None lets a websocket connect."""
        where = urlsplit(request.path)
        if request.headers.get_all("Host") not in [[host] for host in self._hosts]:
            return connection.respond(HTTPStatus.MISDIRECTED_REQUEST, f"open {HOST}, not another name\n")
        given = parse_qs(where.query).get("token", [])
        if len(given) != 1 or not hmac.compare_digest(given[0].encode(errors="replace"), self._token.encode()):
            return connection.respond(
                HTTPStatus.FORBIDDEN, "the token is missing or wrong; open the address that wamtune play printed\n"
            )
        if where.path == "/live":
            if request.headers.get_all("Origin") not in [[f"http://{host}"] for host in self._hosts]:
                return connection.respond(HTTPStatus.FORBIDDEN, "this page is of another origin\n")
            return None
        if where.path == "/":
            return self._page.response()
        return connection.respond(HTTPStatus.NOT_FOUND, "there is nothing here\n")

    async def _serve_page(self, connection: Any) -> None:
        """Serve one page until it is closed."""
        if len(self._pages) >= MAX_PAGES:
            await connection.close(1013, f"{MAX_PAGES} pages are open already")
            return
        page = _Open(connection)
        self._pages.append(page)
        sender = asyncio.ensure_future(self._send_frames(page))
        try:
            with suppress(_closed()):
                await self._read(page)
        finally:
            sender.cancel()
            drove = self._pages[0] is page
            self._pages.remove(page)
            if drove:
                with suppress(queue.Full):
                    self.messages.put_nowait(Message(held=NOTHING))
            for other in self._pages:
                other.fresh.set()  # it may drive now

    async def _read(self, page: _Open) -> None:
        """Take the messages of a page until it closes; those of a page that watches are ignored."""
        async for text in page.connection:
            try:
                message = parse(text, self._tasks)
                if self._pages[0] is page:
                    self.messages.put_nowait(message)
            except Refused as error:
                await page.connection.close(1008, str(error))
            except queue.Full:
                await page.connection.close(1008, "too many messages")

    async def _send_frames(self, page: _Open) -> None:
        """Send a page what stays, then its role when it changes, and the newest frame whenever there is a new one."""
        connection, drives = page.connection, None
        with suppress(_closed()):
            await connection.send(json.dumps({"about": self._about}))
            while True:
                await page.fresh.wait()
                page.fresh.clear()
                if drives != (drives := self._pages[0] is page):
                    await connection.send(json.dumps({"drives": drives}))
                if not self._frame:  # the play has not begun
                    continue
                try:
                    await asyncio.wait_for(connection.send(self._frame), SEND_S)
                except TimeoutError:  # a page that does not read would keep its frame for ever
                    connection.transport.abort()

    def _publish(self, frame: bytes) -> None:
        self._frame = frame
        for page in self._pages:
            page.fresh.set()


class _Open:
    """An open page."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.fresh = asyncio.Event()  # there is something to send
        self.fresh.set()


@contextmanager
def serving(page: Page, tasks: tuple[str, ...], about: dict[str, Any], port: int) -> Iterator[Hub]:
    """Serve the page within this context, in a thread of its own.

    Raises:
        UserError: the port is in use.
    """
    hub = Hub(page, tasks, about)
    thread = threading.Thread(target=hub.run, daemon=True)
    thread.start()
    try:
        hub.start(port)
        yield hub
    finally:
        hub.stop()
        thread.join()


def check_installed() -> None:
    """Refuse to go on without websockets.

    Raises:
        UserError: it is missing; the message names the extra.
    """
    import_extra("websockets.asyncio.server", "serve", "wamtune play needs websockets")


def _closed() -> type[Exception]:
    """Return the exception of a closed connection."""
    found: type[Exception] = importlib.import_module("websockets.exceptions").ConnectionClosed
    return found
