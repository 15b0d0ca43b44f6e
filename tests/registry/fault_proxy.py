"""A proxy in front of a registry that fails as networks and registries do, when it is told to."""

from __future__ import annotations

import http.client
import re
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple


class Answer(NamedTuple):
    """What the registry said."""

    status: int
    headers: Dict[str, str]
    body: bytes


Behave = Callable[["Handler", Answer], Optional[Answer]]
"""Changes an answer, or sends something itself and returns None."""


class Fault:
    """Something that happens to the requests (``GET /v2/…``) that a pattern finds, some times."""

    def __init__(self, pattern: str, behave: Behave, times: int) -> None:
        self.pattern = re.compile(pattern)
        self.behave = behave
        self.left = times


class FaultProxy:
    """Listens on loopback; every request is in `requests`."""

    def __init__(self, port: int) -> None:
        self.upstream = port
        self.faults: List[Fault] = []
        self.requests: List[str] = []
        self.stopped = threading.Event()
        self.lock = threading.Lock()
        handler = type("Bound", (Handler,), {"proxy": self})
        self.http = Server(("127.0.0.1", 0), handler)
        self.host = f"127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def fault(self, pattern: str, behave: Behave, times: int = 1 << 30) -> None:
        self.faults.append(Fault(pattern, behave, times))

    def stop(self) -> None:
        self.stopped.set()
        self.http.shutdown()
        self.http.server_close()

    def count(self, text: str) -> int:
        """How many requests there were with a text."""
        return sum(text in request for request in self.requests)

    def behaviour(self, request: str) -> Optional[Behave]:
        with self.lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.left and fault.pattern.search(request):
                    fault.left -= 1
                    return fault.behave
        return None


class Server(ThreadingHTTPServer):
    """Threads that stall must not hold the tests up."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed are what these tests are about."""


class Handler(BaseHTTPRequestHandler):
    proxy: FaultProxy
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        behave = self.proxy.behaviour(f"{self.command} {self.path}")
        answer: Optional[Answer] = self._ask()
        if behave and answer:
            answer = behave(self, answer)
        if answer:
            self.send(answer)

    do_HEAD = do_GET  # noqa: N815  the name is http.server's

    def send(self, answer: Answer, length: Optional[int] = None) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if self.command != "HEAD":
            length = len(answer.body) if length is None else length
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(answer.body)
        self.wfile.flush()

    def close(self, *, reset: bool = False) -> None:
        self.close_connection = True
        if reset:
            # Linger for no time (socket(7)): what is not sent is dropped and the peer gets RST.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, *args: Any) -> None:
        """Keep the tests' output clean."""

    def _ask(self) -> Answer:
        upstream = http.client.HTTPConnection("127.0.0.1", self.proxy.upstream)
        kept = ("Accept", "Authorization", "Range")
        values: List[Tuple[str, str]] = [
            (name, ", ".join(self.headers.get_all(name, []))) for name in kept
        ]
        headers = {name: value for name, value in values if value}
        upstream.request(self.command, self.path, headers=headers)
        response = upstream.getresponse()
        dropped = ("content-length", "connection", "date", "transfer-encoding")
        told = {n: v for n, v in response.getheaders() if n.lower() not in dropped}
        return Answer(response.status, told, response.read())


def refuse(status: int, **headers: str) -> Behave:
    """Answer with another status; `retry_after="1"` becomes a header."""
    named = {name.replace("_", "-").title(): value for name, value in headers.items()}
    return lambda _, answer: Answer(status, {**named, "Content-Type": "text/html"}, b"<p>no</p>")


def cut(after: int, *, reset: bool = False) -> Behave:
    """Close the connection in the middle of the body."""

    def behave(handler: Handler, answer: Answer) -> None:
        handler.send(answer._replace(body=answer.body[:after]), len(answer.body))
        handler.close(reset=reset)

    return behave


def stall(after: int) -> Behave:
    """Send no more from the middle of the body on."""

    def behave(handler: Handler, answer: Answer) -> None:
        handler.send(answer._replace(body=answer.body[:after]), len(answer.body))
        handler.proxy.stopped.wait(60)
        handler.close()

    return behave


def trickle(pieces: int, seconds: float) -> Behave:
    """Send the body in pieces, slowly."""

    def behave(handler: Handler, answer: Answer) -> None:
        size = len(answer.body) // pieces + 1
        handler.send(answer._replace(body=b""), len(answer.body))
        for start in range(0, len(answer.body), size):
            time.sleep(seconds)
            handler.wfile.write(answer.body[start : start + size])
            handler.wfile.flush()

    return behave


def late(seconds: float) -> Behave:
    """Take time to begin."""

    def behave(handler: Handler, answer: Answer) -> Answer:
        handler.proxy.stopped.wait(seconds)
        return answer

    return behave


def flip(handler: Handler, answer: Answer) -> Answer:
    """Change a byte in the middle."""
    middle = len(answer.body) // 2
    changed = bytes([answer.body[middle] ^ 1])
    return answer._replace(body=answer.body[:middle] + changed + answer.body[middle + 1 :])


def shorten(handler: Handler, answer: Answer) -> Answer:
    """Send less, and say so: a complete answer with the wrong content."""
    return answer._replace(body=answer.body[:-7])


def lengthen(handler: Handler, answer: Answer) -> Answer:
    """Send more, and say so."""
    return answer._replace(body=answer.body + b"more")


def exchange(body: bytes) -> Behave:
    """Send something else."""
    return lambda _, answer: answer._replace(body=body)


def overstate(handler: Handler, answer: Answer) -> None:
    """A Content-Length that is more than what comes."""
    handler.send(answer, len(answer.body) + 100)
    handler.close()
