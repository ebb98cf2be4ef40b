"""The network side of `wamtune serve`: a websocket with a token, TLS, and limits on everything that waits.

A client has at most one request in the queue: the next one is not read before the answer is sent. So the number of
clients bounds the queue, and a client that sends faster, or reads slower, only slows itself down.
"""

from __future__ import annotations

import asyncio
import hmac
import importlib
import ipaddress
import logging
import ssl
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from rewards.errors import UserError
from rl.deploy.remote_client import Malformed
from rl.deploy.served import Handler, Served
from world_model.extras import import_extra

OPEN_S, SEND_S, CLOSE_S = 5.0, 10.0, 1.0
"""Seconds that a client has to open a connection, to read an answer, and to close the connection."""

MAX_WAITING = 1
"""Messages of a client that wait in memory while one is answered; further ones stay on the line."""

HEALTH = "/healthz"
"""Path that answers OK without a token, as that of openpi's server does."""


@dataclass(frozen=True)
class Endpoint:
    """Where a server listens, and which clients may connect."""

    host: str = "127.0.0.1"
    port: int = 0  # 0: a free one
    token: str = ""  # that clients must send; empty: none
    certificate: str = ""  # PEM file; empty: the line is not encrypted
    key: str = ""  # PEM file of the private key; empty: it is in `certificate`
    max_clients: int = 8

    @property
    def is_loopback(self) -> bool:
        """Whether only programs of this computer can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


@contextmanager
def serving(served: Served, endpoint: Endpoint) -> Iterator[str]:
    """Answer clients within this context, in threads of its own; it yields the url.

    Raises:
        UserError: websockets or msgpack is missing, the address is in use, or certificate or key cannot be read.
    """
    _check_installed()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = _Server(served, endpoint)
    try:
        yield asyncio.run_coroutine_threadsafe(server.open(), loop).result()
    finally:
        asyncio.run_coroutine_threadsafe(server.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class _Server:
    """Gives the messages of all clients to their handlers, which answer them one after another."""

    def __init__(self, served: Served, endpoint: Endpoint) -> None:
        self.served, self.endpoint = served, endpoint
        self.n_clients = 0
        self._worker = ThreadPoolExecutor(1)
        self._listening: Any = None

    async def open(self) -> str:
        """Listen; return the url."""
        library, endpoint = importlib.import_module("websockets.asyncio.server"), self.endpoint
        try:
            self._listening = await library.serve(
                self._serve_client,
                endpoint.host,
                endpoint.port,
                ssl=_tls(endpoint),
                process_request=self._authorize,
                origins=[None],  # no web page, which a browser would let connect to this computer
                compression=None,  # a small message must not become a large one
                max_size=self.served.max_bytes,
                max_queue=MAX_WAITING,
                open_timeout=OPEN_S,
                close_timeout=CLOSE_S,
                logger=logging.Logger("silent", logging.CRITICAL + 1),  # a stranger must not fill a log
                create_connection=_patient(library.ServerConnection),
            )
        except OSError as error:
            raise UserError(
                f"host={endpoint.host} port={endpoint.port}: cannot listen there ({error.strerror})"
            ) from error
        port = next(iter(self._listening.sockets)).getsockname()[1]
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        return f"{'wss' if endpoint.certificate else 'ws'}://{host}:{port}"

    async def close(self) -> None:
        """Close the connections of all clients."""
        if self._listening is not None:
            self._listening.close()
            await self._listening.wait_closed()
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _authorize(self, connection: Any, request: Any) -> Any:
        """Return None if a client may connect, else the answer that refuses it."""
        if request.path == HEALTH:
            return connection.respond(HTTPStatus.OK, "OK\n")
        given = request.headers.get_all("Authorization")
        if not self.endpoint.token or (len(given) == 1 and _has_token(given[0], self.endpoint.token)):
            return None
        return connection.respond(HTTPStatus.UNAUTHORIZED, "the token is missing or wrong\n")

    async def _serve_client(self, connection: Any) -> None:
        """Answer one client until it disconnects, or sends something that is not a message."""
        closed = importlib.import_module("websockets.exceptions").ConnectionClosed
        if self.n_clients >= self.endpoint.max_clients:
            await connection.close(1013, f"there are {self.n_clients} clients already; try again later")
            return
        self.n_clients += 1
        try:
            with suppress(closed):
                await self._answer_all(connection, self.served.handler())
        finally:
            self.n_clients -= 1

    async def _answer_all(self, connection: Any, handler: Handler) -> None:
        await connection.send(self.served.greeting)
        loop = asyncio.get_running_loop()
        async for data in connection:
            if isinstance(data, str):
                await connection.close(1003, "expected a msgpack map in a binary message")
                return
            try:
                answer = await loop.run_in_executor(self._worker, handler.answer, data)
            except Malformed as error:
                await connection.send(f"the message cannot be read: {error}")
                await connection.close(1007, "the message cannot be read")
                return
            except Exception as error:  # a bug, or no memory: other clients must still be answered
                print(f"wamtune serve: unexpected {error!r:.300}", file=sys.stderr)
                await connection.send(f"the server failed: {type(error).__name__}; see what it printed")
                await connection.close(1011, "the server failed")
                return
            await connection.send(answer)


def _has_token(header: str, token: str) -> bool:
    """Whether a header `Authorization` has the token; clients of openpi write Api-Key in place of Bearer."""
    scheme, _, given = header.partition(" ")
    # Compare in constant time, so that the time tells nothing about the token.
    return scheme in ("Bearer", "Api-Key") and hmac.compare_digest(
        given.strip().encode(errors="surrogateescape"), token.encode()
    )


def _patient(base: type) -> type:
    """Return a connection that does not wait for ever for a client that does not read.

    While answers wait, nothing more is read: the library answers each ping at once, and pings alone could fill the
    memory with answers. If they wait for too long, the line is cut; the library has no limit for that.
    """

    class Connection(base):
        def pause_writing(self) -> None:
            super().pause_writing()
            self.cut = self.loop.call_later(SEND_S, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self.cut.cancel()
            if not self.recv_messages.paused:  # else requests wait, and the library goes on when one is taken
                self.transport.resume_reading()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.paused:
                self.transport.pause_reading()

    return Connection


def _tls(endpoint: Endpoint) -> ssl.SSLContext | None:
    """Return the context of an encrypted line; None without a certificate."""
    if not endpoint.certificate:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(endpoint.certificate, endpoint.key or None, password=_no_password)
    except (OSError, ValueError) as error:
        raise UserError(
            f"certificate={endpoint.certificate} key={endpoint.key}: cannot use them ({error}); expected PEM files of "
            "a certificate and of its private key without a password"
        ) from error
    return context


def _no_password() -> str:
    raise ValueError("the key needs a password")


def _check_installed() -> None:
    for name in ("websockets", "msgpack"):
        import_extra(name, "serve", f"wamtune serve needs {name}")
