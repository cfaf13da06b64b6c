"""The HTTP client of all that is remote: one connection pool, and errors that say what happened.

General clients cost an order of magnitude more processor time a request, see experiments/bench/client.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.request import getproxies, proxy_bypass

from aiohttp import (
    ClientConnectorCertificateError,
    ClientConnectorDNSError,
    ClientConnectorError,
    ClientError,
    ClientSession,
    ClientTimeout,
    ConnectionTimeoutError,
    DummyCookieJar,
    TCPConnector,
)
from yarl import URL

from toa_exp.engines.answers import Asked, shorten
from toa_exp.engines.endpoints import Away, Late
from toa_exp.errors import BadInput, Unavailable

_UNKNOWN = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))  # names that nobody knows
_KEEPALIVE = 4.0  # seconds; servers on uvicorn drop a connection that is idle for 5


@dataclass(frozen=True, slots=True)
class Target:
    """The URL that is asked, and the proxy that the environment names for it."""

    url: URL
    proxy: str | None = field(repr=False)

    @classmethod
    def of(cls, text: str) -> Target:
        """The target at a URL."""
        url = URL(text)
        proxy = None if proxy_bypass(str(url.host)) else getproxies().get(url.scheme)
        return cls(url, proxy)


@dataclass(frozen=True, slots=True)
class Manner:
    """How something is asked: headers, with the key, and seconds to wait for answer and connection."""

    headers: Mapping[str, str] = field(repr=False)
    seconds: float
    connect_seconds: float

    @classmethod
    def of(cls, key: str | None, seconds: float, connect_seconds: float) -> Manner:
        """JSON, with a key where there is one."""
        headers = {"Content-Type": "application/json"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        return cls(headers, seconds, connect_seconds)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response as it came."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class Client:
    """Connections to any number of servers, opened when they are needed."""

    def __init__(self) -> None:
        self._session: ClientSession | None = None
        self._known: set[str | None] = set()  # hosts that answered

    async def ask(self, target: Target, content: bytes | None, manner: Manner, asked: Asked) -> Answer:
        """The response to a POST of `content`, to a GET where that is None.

        Raises Away where nobody is there, Late where no answer comes in time, Unavailable where the
        connection breaks, BadInput where a host that never answered has a name that nobody knows or no
        valid certificate.
        """
        if self._session is None:  # sessions belong to the loop that is running
            connector = TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE)
            self._session = ClientSession(connector=connector, cookie_jar=DummyCookieJar())
        try:
            async with self._session.request(
                "GET" if content is None else "POST",
                target.url,
                data=content,
                headers=manner.headers,
                timeout=ClientTimeout(total=manner.seconds, connect=manner.connect_seconds),
                proxy=target.proxy,
                allow_redirects=False,
            ) as response:
                self._known.add(target.url.host)
                return Answer(response.status, response.headers, await response.read())
        except ConnectionTimeoutError:
            raise _away(f"no connection within {manner.connect_seconds:g} s", asked) from None
        except TimeoutError:
            raise Late(f"{asked} gave no answer within {manner.seconds:g} s") from None
        except ClientConnectorError as error:
            if target.url.host not in self._known and (mend := _mend(error, asked.mends.url)):
                raise BadInput(f"{asked} cannot be reached: {shorten(str(error), asked)}. {mend}") from None
            raise _away(shorten(str(error), asked), asked) from None
        except (ClientError, OSError) as error:
            # No `from error`: it may hold the request's headers.
            what = shorten(str(error) or type(error).__name__, asked)
            raise Unavailable(f"{asked} broke the connection: {what}") from None

    async def close(self) -> None:
        """Close the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def _away(why: str, asked: Asked) -> Away:
    return Away(
        f"{asked} cannot be reached: {why}. Start its server (toa-exp serve), or mend {asked.mends.url}"
    )


def _mend(error: ClientConnectorError, setting: str) -> str | None:
    """What to do about a host that will not be there later either; None where it may."""
    plain = "WRONG_VERSION_NUMBER" in str(error)  # it speaks no TLS; other faults of that may pass
    if isinstance(error, ClientConnectorCertificateError) or plain:
        return f"Mend {setting}, or name the file of the certificates to trust: export SSL_CERT_FILE=<file>"
    unknown = isinstance(error, ClientConnectorDNSError) and error.os_error.errno in _UNKNOWN
    return f"Mend {setting}, or the proxy where the environment names one" if unknown else None
