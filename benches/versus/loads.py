"""The works, the commands of the load generators (wrk, h2load, handshakes.py) that do them, and what their output says."""

import json
import os
import re
import sys
from dataclasses import dataclass, field

from client import HOST

HERE = os.path.dirname(os.path.abspath(__file__))
# What all clients offer over TLS: one version, one cipher, one group, so that every proxy does the same cryptography. Skep, Traefik and
# Caddy would rather have X25519MLKEM768, which OpenSSL 3.0 does not know. wrk and Python have no options for these.
CIPHER, GROUP = "TLS_AES_128_GCM_SHA256", "X25519"
OPENSSL = f"""openssl_conf = all
[all]
ssl_conf = ssl
[ssl]
system_default = clients
[clients]
MinProtocol = TLSv1.3
Ciphersuites = {CIPHER}
Groups = {GROUP}
"""
UNITS = {"us": 1, "ms": 1e3, "s": 1e6, "m": 60e6, "h": 3600e6}


@dataclass(frozen=True)
class Work:
    name: str
    title: str
    connections: int
    path: str = "/"
    hosts: int = 1
    cycle: bool = False  # through the hosts, even if there is one
    close: bool = False
    upload: int = 0
    h2c: bool = False
    streams: int = 1
    tls: bool = False
    h2: bool = False  # over TLS
    handshakes: str = ""  # a new connection for each request over TLS: full or resumed

    @property
    def client(self):
        return "handshakes" if self.handshakes else "h2load" if self.h2c or self.h2 else "wrk"

    def command(self, place, seconds, log):
        """The client's command against the proxy at `place`; h2load writes each request's time to the file `log`."""
        if self.handshakes:
            return [sys.executable, os.path.join(HERE, "handshakes.py"), str(place.tls), HOST, str(self.connections), str(seconds),
                    self.handshakes]
        if self.h2:
            return ["h2load", "-t1", f"-c{self.connections}", f"-m{self.streams}", f"-D{seconds}", f"--log-file={log}",
                    f"--tls13-ciphers={CIPHER}", f"--groups={GROUP}", f"--connect-to=127.0.0.1:{place.tls}",
                    f"https://{HOST}:{place.tls}{self.path}", "-H", f":authority: {HOST}"]
        if self.tls:
            # tls.lua connects to 127.0.0.1, so that the URL can say the name that the ClientHello shall have.
            return ["wrk", "-t1", f"-c{self.connections}", f"-d{seconds}s", "--latency", "--timeout", "10s", "-H", f"Host: {HOST}",
                    "-s", os.path.join(HERE, "tls.lua"), f"https://{HOST}:{place.tls}{self.path}"]
        if self.h2c:
            return ["h2load", "-t1", f"-c{self.connections}", f"-m{self.streams}", f"-D{seconds}", f"--log-file={log}",
                    "-H", f":authority: {HOST}", f"http://127.0.0.1:{place.h2c}{self.path}"]
        script = ["hosts.lua", self.hosts] if self.cycle else ["upload.lua", self.upload] if self.upload else []
        return ["wrk", "-t1", f"-c{self.connections}", f"-d{seconds}s", "--latency", "--timeout", "10s", "-H", f"Host: {HOST}",
                *(["-H", "Connection: close"] if self.close else []),
                *(["-s", os.path.join(HERE, script[0])] if script else []),
                f"http://127.0.0.1:{place.http}{self.path}",
                *(["--", str(script[1])] if script else [])]


WORKS = [
    Work("small", "6-byte answers, 64 connections", 64),
    Work("large", "100 KB answers, 32 connections", 32, path="/large"),
    Work("upload", "1 MB uploads, 16 connections", 16, path="/upload", upload=1_000_000),
    Work("connections", "a new connection for each request, 32 at a time", 32, close=True),
    Work("h2c", "HTTP/2 without TLS, 16 connections of 8 streams", 16, h2c=True, streams=8),
    Work("tls-new", "TLS: a full handshake for each request, 16 at a time", 16, tls=True, handshakes="full"),
    Work("tls-resumed", "TLS: a resumed handshake for each request, 16 at a time", 16, tls=True, handshakes="resumed"),
    Work("tls-small", "TLS: 6-byte answers, 64 connections", 64, tls=True),
    Work("tls-large", "TLS: 100 KB answers, 32 connections", 32, path="/large", tls=True),
    Work("tls-h2", "TLS: HTTP/2, 16 connections of 8 streams", 16, tls=True, h2=True, streams=8),
    Work("hosts", "1,000 hosts, 64 connections", 64, hosts=1000, cycle=True),
]


@dataclass
class Outcome:
    """Of one slice. Times in microseconds; `errors` counts answers that are not 2xx and connections that failed."""

    requests: int
    seconds: float
    p50: float | None = None
    p99: float | None = None
    errors: int = 0
    said: list = field(default_factory=list)

    @property
    def rate(self):
        return self.requests / self.seconds if self.seconds else 0.0


def micros(text):
    """1.23ms as microseconds."""
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m|h)", text).groups()
    return float(number) * UNITS[unit]


def parse_wrk(text):
    """Raises ValueError on what is no output of wrk."""
    done = re.search(r"(\d+) requests in ([\d.]+(?:us|ms|s|m|h))", text)
    if not done:
        raise ValueError(f"wrk says: {text.strip()[-300:]}")
    outcome = Outcome(int(done[1]), micros(done[2]) / 1e6)
    shares = dict(re.findall(r"^\s+(50|99)%\s+([\d.]+(?:us|ms|s|m|h))\s*$", text, re.MULTILINE))
    outcome.p50, outcome.p99 = (micros(shares[share]) if share in shares else None for share in ("50", "99"))
    outcome.said = re.findall(r"Socket errors: .*|Non-2xx or 3xx responses: \d+", text)
    outcome.errors = sum(int(number) for line in outcome.said for number in re.findall(r" (\d+)\b", line))
    return outcome


def parse_h2load(text, log=""):
    """`log` holds a line a request: its start, its status, its microseconds. Raises ValueError as `parse_wrk`."""
    done = re.search(r"finished in ([\d.]+(?:us|ms|s|m)), ", text)
    counts = re.search(r"requests: .* (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", text)
    if not done or not counts:
        raise ValueError(f"h2load says: {text.strip()[-300:]}")
    succeeded, failed, _, timeout = map(int, counts.groups())
    outcome = Outcome(succeeded, micros(done[1]) / 1e6)
    times = sorted(int(line.rsplit("\t", 1)[1]) for line in log.splitlines() if line.count("\t") == 2)
    if times:
        outcome.p50, outcome.p99 = (float(times[int(share * (len(times) - 1))]) for share in (0.5, 0.99))
    outcome.errors = failed + timeout
    outcome.said = [counts[0]] if outcome.errors else []
    return outcome


def parse_handshakes(text):
    """Raises ValueError as `parse_wrk`."""
    try:
        said = json.loads(text.strip().splitlines()[-1])
        outcome = Outcome(said["requests"], said["seconds"], errors=said["errors"], said=said["said"])
        times = sorted(map(float, said["micros"]))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(f"handshakes.py says: {text.strip()[-300:]}") from None
    if times:
        outcome.p50, outcome.p99 = (times[int(share * (len(times) - 1))] for share in (0.5, 0.99))
    return outcome
