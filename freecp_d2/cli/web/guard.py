"""What stands before Gradio: whom the page is served to, and how large a request may be."""

import ipaddress
import logging
import re
import socket
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse

from .inputs import MAX_BYTES

MAX_BODY = 2**20
"""Bytes of a request that is no upload."""
STRANGE = "This page does not send such a request; reload it and try again."

log = logging.getLogger(__name__)


class Guard:
    """What stands before Gradio: requests that no page of ours sends do not reach it.

    A web page elsewhere may have its own name lead to this machine (DNS rebinding), or send forms
    to it; either way the browser says which name or page it is. And nothing needs large requests
    but uploads.

    Args:
        names: the names and addresses that the page is served under; IPv6 in brackets.
        addresses: whether it is served under whatever address this machine has, too.
    """

    def __init__(self, app: Any, names: Collection[str], addresses: bool):
        self.app, self.names, self.addresses = app, names, addresses

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        hosts, origin = headers.getlist("host"), headers.get("origin")
        upload = scope["path"].rstrip("/").endswith("/upload")
        limit = MAX_BYTES + MAX_BODY if upload else MAX_BODY
        started, length = False, 0

        async def refuse(status: int, sentence: str) -> None:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await JSONResponse({"detail": sentence}, status)(scope, receive, send)

        async def receive_some() -> Any:
            nonlocal length
            message = await receive()
            length += len(message.get("body", b""))
            if length > limit:
                raise OverflowError
            return message

        async def send_some(message: Any) -> None:
            nonlocal started
            started = True
            await send(message)

        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            return await refuse(403, "This page is not served under that name; see --allow-host.")
        if origin is not None and not self._is_same(origin, hosts[0]):
            return await refuse(403, "Another site's page may not use this one.")
        if int(headers.get("content-length", "0")) > limit:
            return await refuse(413, f"This request is too large; at most {limit} bytes.")
        try:
            await self.app(scope, receive_some, send_some)
        except Exception as error:
            if started:
                raise
            log.warning("%s %s: %r", scope.get("method"), scope["path"][:80], error)
            await refuse(413 if length > limit else 400, STRANGE)

    def _is_ours(self, host: str) -> bool:
        match = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^\[\]:@/\s]+)(:\d*)?", host.lower())
        if match is None:
            return False
        return match[1] in self.names or (self.addresses and is_address(match[1]))

    def _is_same(self, origin: str, host: str) -> bool:
        """Whether a page of `origin` is ours: at the same place, or behind a proxy of our name."""
        try:
            place = urlsplit(origin).netloc.lower()
        except ValueError:
            return False
        return place == host.lower() or (self._is_ours(place) and not is_local(place))


def is_address(name: str) -> bool:
    """Whether a host is an IP address; those of version 6 are in brackets."""
    with suppress(ValueError):
        ipaddress.ip_address(name.strip("[]"))
        return True
    return False


def is_local(host: str) -> bool:
    """Whether a host, with or without a port, is this machine for itself alone."""
    name = host if is_address(host) else host.rpartition(":")[0] or host
    if not is_address(name):
        return name == "localhost"
    return ipaddress.ip_address(name.strip("[]")).is_loopback


def guard(host: str, names: Sequence[str] = ()) -> Middleware:
    """The :class:`Guard` of a page that is served at the address `host`.

    At a loopback address it is served under that address and as localhost, 127.0.0.1 and [::1];
    elsewhere under any address and the machine's name, too: addresses cannot be rebound.

    Args:
        names: under which it is served besides, as that of a proxy.
    """
    served = {host, *names, "localhost", "127.0.0.1", "[::1]"}
    addresses = not is_local(host)
    if addresses:
        served |= {socket.gethostname(), f"{socket.gethostname()}.local"}
    return Middleware(Guard, names={name.lower() for name in served}, addresses=addresses)
