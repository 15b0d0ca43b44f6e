"""What the tests have a user do to the helper on a node; a program, copied there.

client.py raw TEXTS              send each text of a JSON list as it is, print the answers
client.py ask MESSAGE            send a JSON document in a line, print the answer
client.py hold MESSAGE           ask, print the answer, and stay until stdin ends
client.py silent                 connect, say nothing, and print what comes
client.py heir MESSAGE           have a child connect and end, then ask over its socket
"""

import json
import os
import socket
import sys

SOCKET = "/run/hpcwrap/helper.sock"


def main(verb: str, text: str = "") -> None:
    if verb == "heir":
        print(ask_as_heir(text.encode() + b"\n"), end="")
        return
    if verb == "raw":
        for each in json.loads(text):
            print(talk_to_helper(each.encode("utf-8", "surrogateescape")), end="")
        return
    print(talk_to_helper(text.encode() + b"\n" if text else b"", half=False), end="", flush=True)
    if verb == "hold":
        sys.stdin.read()


def talk_to_helper(said: bytes, *, half: bool = True) -> str:
    """Say something; with `half` the helper sees that nothing more comes."""
    with socket.socket(socket.AF_UNIX) as talk:
        talk.connect(SOCKET)
        talk.sendall(said)
        if half:
            talk.shutdown(socket.SHUT_WR)
        with talk.makefile("r", errors="replace") as answer:
            return answer.readline()


def ask_as_heir(said: bytes) -> str:
    """Ask over a socket whose other end knows a process that has ended."""
    with socket.socket(socket.AF_UNIX) as talk:
        child = os.fork()
        if child == 0:
            talk.connect(SOCKET)
            os._exit(0)
        os.waitpid(child, 0)
        talk.sendall(said)
        with talk.makefile("r", errors="replace") as answer:
            return answer.readline()


main(*sys.argv[1:])
