"""What stands between commands and their storage, so that storage can be cut off and come back with all it holds."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from s3_server import free_port

PIECE = 1 << 16


class Proxy:
    """Hands on what comes to a port of loopback, but for the times when it is cut.

    Args:
        port: of loopback, where the storage listens.
    """

    def __init__(self, port: int) -> None:
        self.target, self.port = port, free_port()
        self._cut = threading.Event()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        """What commands are told."""
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Break every connection, and every new one at once, until `mend`."""
        self._cut.set()
        for one in list(self._open):
            _close(one)

    def mend(self) -> None:
        """Hand on again."""
        self._cut.clear()

    def close(self) -> None:
        """End for good."""
        self.cut()
        _close(self._listener)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._hand_on, args=(client,), daemon=True).start()

    def _hand_on(self, client: socket.socket) -> None:
        if self._cut.is_set():
            _close(client)
            return
        try:
            server = socket.create_connection(("127.0.0.1", self.target), timeout=10)
        except OSError:
            _close(client)
            return
        server.settimeout(None)
        pair = {client, server}
        self._open |= pair
        back = threading.Thread(target=self._copy, args=(server, client), daemon=True)
        back.start()
        self._copy(client, server)
        back.join()
        self._open -= pair
        for one in pair:
            _close(one)

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(PIECE):
                target.sendall(piece)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def _close(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


@contextlib.contextmanager
def running_proxy(port: int) -> Iterator[Proxy]:
    """A proxy until the context ends."""
    proxy = Proxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
