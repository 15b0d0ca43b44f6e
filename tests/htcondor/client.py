"""What the tests have a user do to the helper on a node; a program, copied there.

client.py raw TEXT               send it as it is, print the answer
client.py ask MESSAGE            send a JSON document in a line, print the answer
client.py hold MESSAGE           ask, print the answer, and stay until stdin ends
client.py silent                 connect, say nothing, and print what comes
"""

import socket
import sys

SOCKET = "/run/hpcwrap/helper.sock"


def main(verb: str, text: str = "") -> None:
    with socket.socket(socket.AF_UNIX) as talk:
        talk.connect(SOCKET)
        if verb != "silent":
            talk.sendall(text.encode("utf-8", "surrogateescape") + b"\n" * (verb != "raw"))
            if verb == "raw":
                talk.shutdown(socket.SHUT_WR)
        with talk.makefile("r", errors="replace") as answer:
            print(answer.readline(), end="", flush=True)
    if verb == "hold":
        sys.stdin.read()


main(*sys.argv[1:])
