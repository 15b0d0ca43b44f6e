"""A program: a registry's front that is slow and says 429 now and then.

    limiter.py HOST:PORT UPSTREAM_HOST:PORT --rate BYTES_A_SECOND --refuse N

Only what a pull needs: GET and HEAD.  Every answer is a line `CLIENT METHOD PATH CODE` on stdout.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Iterator, List, Tuple

CHUNK = 16 << 10
RETRY_AFTER_S = 1
HEADERS = ("Authorization", "Accept", "Range", "User-Agent")
TOO_MANY = b'{"errors": [{"code": "TOOMANYREQUESTS", "message": "slow down"}]}'

Address = Tuple[str, int]


class Limiter(ThreadingHTTPServer):
    """Passes requests on; `rate` in bytes a second and connection, every `refuse`-th is a 429."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, here: Address, upstream: Address, rate: float = 0, refuse: int = 0) -> None:
        super().__init__(here, Handler)
        self.upstream = upstream
        self.rate = rate
        self.refuse = refuse
        self.numbers = itertools.count(1)

    @property
    def host(self) -> str:
        """HOST:PORT, as a reference begins with it."""
        return f"{self.server_address[0]!s}:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that were killed: they are what it is about."""


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    server: Limiter

    def do_GET(self) -> None:
        """Refuse, or pass the upstream's answer on at the rate."""
        if self.server.refuse and next(self.server.numbers) % self.server.refuse == 0:
            self.answer(429, [("Retry-After", str(RETRY_AFTER_S))], TOO_MANY)
            return
        connection = http.client.HTTPConnection(*self.server.upstream, timeout=60)
        headers = {name: self.headers[name] for name in HEADERS if name in self.headers}
        connection.request(self.command, self.path, headers={**headers, "Host": self.server.host})
        reply = connection.getresponse()
        self.begin(reply.status, reply.getheaders())
        for chunk in self.slowly(reply):
            self.wfile.write(chunk)
        connection.close()

    do_HEAD = do_GET  # noqa: N815  http.server names them so

    def begin(self, status: int, headers: List[Tuple[str, str]]) -> None:
        """Send the head of an answer."""
        print(self.client_address[0], self.command, self.path, status, flush=True)
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        self.end_headers()

    def answer(self, status: int, headers: List[Tuple[str, str]], body: bytes) -> None:
        """Send a whole answer."""
        size = ("Content-Length", str(len(body)))
        self.begin(status, [*headers, size, ("Content-Type", "application/json")])
        if self.command != "HEAD":
            self.wfile.write(body)

    def slowly(self, reply: http.client.HTTPResponse) -> Iterator[bytes]:
        """The body in pieces, each when it is due."""
        start, sent = time.monotonic(), 0
        while chunk := reply.read(CHUNK):
            sent += len(chunk)
            if self.server.rate:
                time.sleep(max(0.0, start + sent / self.server.rate - time.monotonic()))
            yield chunk

    def log_message(self, *_: object) -> None:
        """Say nothing on stderr."""


def address(text: str) -> Address:
    """HOST:PORT as the socket module has it."""
    host, _, port = text.rpartition(":")
    return host, int(port)


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("here", type=address)
    parser.add_argument("upstream", type=address)
    parser.add_argument("--rate", type=float, default=0)
    parser.add_argument("--refuse", type=int, default=0)
    options = parser.parse_args()
    Limiter(options.here, options.upstream, options.rate, options.refuse).serve_forever()


if __name__ == "__main__":
    main()
