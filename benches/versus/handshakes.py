"""A client that secures a new connection for each request, and counts itself whether a session was resumed.

    python3 handshakes.py PORT NAME CONNECTIONS SECONDS full|resumed

wrk and h2load resume whatever they get a ticket for, so they cannot ask for full handshakes. One thread, so that the same core does the
same work for each proxy. It prints a line of JSON: requests, seconds, micros (of each request), errors, said. A handshake that was
not of the kind that was asked for is an error, and so is one with another version or cipher than the comparison's.
"""

import collections
import json
import selectors
import socket
import ssl
import sys
import time

CIPHER = ("TLS_AES_128_GCM_SHA256", "TLSv1.3")
PATIENCE = 5  # seconds for one request


class Wrong(Exception):
    """An exchange that is not what was asked for."""


def context():
    """Verifies nothing, but does all that the server sees of a client that does. Cipher and group: from OPENSSL_CONF."""
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    found.check_hostname, found.verify_mode = False, ssl.CERT_NONE
    found.minimum_version = ssl.TLSVersion.TLSv1_3
    return found


class Exchange:
    """One connection: connect, handshake, request, answer, end. `step` goes on as far as the socket lets it."""

    def __init__(self, settings, port, name, session):
        self.began = time.monotonic()
        plain = socket.socket()
        plain.setblocking(False)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            plain.connect(("127.0.0.1", port))
        except BlockingIOError:
            pass
        self.plain, self.settings, self.name, self.session = plain, settings, name, session
        self.tls, self.secured, self.answer = None, False, bytearray()

    def step(self):
        """What to wait for, or None at the end."""
        try:
            if self.tls is None:
                failed = self.plain.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if failed:
                    raise OSError(failed, "connect")
                self.tls = self.settings.wrap_socket(
                    self.plain, server_hostname=self.name, do_handshake_on_connect=False, session=self.session)
            if not self.secured:
                self.tls.do_handshake()
                self.secured = True
                self.tls.send(f"GET / HTTP/1.1\r\nHost: {self.name}\r\nConnection: close\r\n\r\n".encode())
            while part := self.tls.recv(65536):
                self.answer += part
        except ssl.SSLWantReadError:
            return selectors.EVENT_READ
        except ssl.SSLWantWriteError:
            return selectors.EVENT_WRITE
        except ssl.SSLEOFError:
            pass  # it ended without close_notify: the answer tells whether too early
        return None

    def check(self, resumed):
        """Raises Wrong."""
        if not self.answer.startswith(b"HTTP/1.1 200 ") or not self.answer.endswith(b"hello\n"):
            raise Wrong(f"no answer 200: {bytes(self.answer[:40])}")
        if self.tls.cipher()[:2] != CIPHER:
            raise Wrong(" ".join(self.tls.cipher()[:2]))
        if self.tls.session_reused != resumed:
            raise Wrong("a full handshake" if resumed else "a resumed handshake")

    def end(self):
        (self.tls or self.plain).close()


class Load:
    """So many exchanges at a time, each of them the successor of one that ended."""

    def __init__(self, port, name, resumed):
        self.port, self.name, self.resumed, self.settings = port, name, resumed, context()
        self.selector, self.wrong, self.micros = selectors.DefaultSelector(), collections.Counter(), []

    def begin(self, session=None):
        exchange = Exchange(self.settings, self.port, self.name, session)
        self.selector.register(exchange.plain, selectors.EVENT_WRITE, exchange)

    def go_on(self, key):
        """The session to go on with when the exchange is over, else None: (over, session)."""
        exchange, session = key.data, None
        try:
            wanted = exchange.step()
            if wanted:
                self.wait(key, exchange, wanted)
                return False, None
            session = exchange.tls.session if self.resumed else None
            # The first connection of each has no session to resume.
            exchange.check(self.resumed and exchange.session is not None)
            self.micros.append((time.monotonic() - exchange.began) * 1e6)
        except (OSError, Wrong) as error:
            self.wrong[str(error)[:120]] += 1
        self.selector.unregister(key.fileobj)
        exchange.end()
        return True, session

    def wait(self, key, exchange, wanted):
        # wrap_socket detaches the socket and goes on with its descriptor.
        if key.fileobj is not exchange.tls and exchange.tls is not None:
            self.selector.unregister(key.fileobj)
            self.selector.register(exchange.tls, wanted, exchange)
        elif key.events != wanted:
            self.selector.modify(key.fileobj, wanted, exchange)

    def run(self, connections, seconds):
        began = time.monotonic()
        for _ in range(connections):
            self.begin()
        while self.selector.get_map():
            now = time.monotonic()
            late = now > began + seconds
            ready = self.selector.select(0.5)
            for key, _ in ready:
                over, session = self.go_on(key)
                if over and not late:
                    self.begin(session)
            if late and now > began + seconds + PATIENCE:
                self.wrong["took too long"] += len(self.selector.get_map())
                break
        return {"requests": len(self.micros), "seconds": time.monotonic() - began, "micros": [int(each) for each in self.micros],
                "errors": self.wrong.total(), "said": [f"{count} x {why}" for why, count in self.wrong.most_common(3)]}


def main():
    port, name, connections, seconds, kind = sys.argv[1:]
    print(json.dumps(Load(int(port), name, kind == "resumed").run(int(connections), float(seconds))))


if __name__ == "__main__":
    main()
