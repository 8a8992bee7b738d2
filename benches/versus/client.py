"""A plain HTTP/1.1 client on one connection: an exact number of requests, and connections that are held open."""

import socket
import ssl

HOST = "host-0.test"


def host(number):
    return f"host-{number}.test"


def request(path="/", name=HOST, body=b"", close=False):
    """The bytes of a request."""
    lines = [f"{'POST' if body else 'GET'} {path} HTTP/1.1", f"Host: {name}", "User-Agent: versus", "Accept: */*"]
    lines += [f"Content-Length: {len(body)}"] if body else []
    lines += ["Connection: close"] if close else []
    return "\r\n".join([*lines, "", ""]).encode() + body


def head_of(answer):
    """(status, length of head and body) of an answer that has begun to arrive; None as long as its head is not whole.

    Raises OSError on what is no answer with a Content-Length.
    """
    head, end, _ = answer.partition(b"\r\n\r\n")
    if not end:
        return None
    status, *lines = head.split(b"\r\n")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    if b"content-length" not in fields:
        raise OSError(f"an answer without Content-Length: {status!r}")
    return int(status.split()[1]), len(head) + 4 + int(fields[b"content-length"])


def unverified():
    """TLS with whom it may concern: the certificate is the proxy's own affair."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


TLS = unverified()


class Connection:
    def __init__(self, port, timeout=20, tls=False, session=None):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            self.socket = TLS.wrap_socket(self.socket, server_hostname=HOST, session=session)

    def exchange(self, message):
        """The status of the answer to `message`. Raises OSError when there is none."""
        self.socket.sendall(message)
        answer, known = bytearray(), None
        while known is None or len(answer) < known[1]:
            part = self.socket.recv(65536)
            if not part:
                raise OSError("the connection was closed before the answer was whole")
            answer += part
            known = known or head_of(bytes(answer[:65536]))
        return known[0]

    def is_open(self):
        self.socket.setblocking(False)
        try:
            return bool(self.socket.recv(1))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self):
        self.socket.close()


def answers(port, name=HOST, tls=False):
    """Whether a proxy (or the backend) on this port serves this host."""
    connection = Connection(port, tls=tls)
    try:
        return connection.exchange(request(name=name)) == 200
    finally:
        connection.close()


def burst(port, count):
    """A warm-up: `count` requests on one connection."""
    connection = Connection(port)
    try:
        for _ in range(count):
            connection.exchange(request())
    except OSError:
        pass  # the measurement shows what is wrong
    finally:
        connection.close()
