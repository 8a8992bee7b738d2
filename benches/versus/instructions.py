"""Instructions per request under callgrind: the same count on every run, however busy the machine, and by function."""

import os
import re
import subprocess
import sys
import tempfile

import client
import loads
import peers
from processes import Children, StartFailed, cores, free_ports

WARM_UP = 200
# What callgrind slows down by fifty still counts every instruction.
WORKS = {
    "small": lambda number: client.request(),
    "large": lambda number: client.request("/large"),
    "upload": lambda number: client.request("/upload", body=b"x" * 100_000),
    "hosts": lambda number: client.request(name=client.host(number % 1000)),
    "connections": lambda number: client.request(close=True),
    "tls-new": lambda number: client.request(close=True),
    "tls-resumed": lambda number: client.request(close=True),
    "tls-small": lambda number: client.request(),
    "tls-large": lambda number: client.request("/large"),
}
CLOSING = {"connections", "tls-new", "tls-resumed"}
DEFAULT_PEERS = ["skep", "haproxy", "nginx"]


def exchange(place, work, count, offset=0):
    """`count` requests, one after another, on one connection (on one each where the work is about that)."""
    connection, session, tls = None, None, work.startswith("tls-")
    port = place.tls if tls else place.http
    for number in range(offset, offset + count):
        connection = connection or client.Connection(port, timeout=60, tls=tls, session=session)
        status = connection.exchange(WORKS[work](number))
        if status != 200:
            raise OSError(f"an answer {status}")
        if work in CLOSING:
            session = connection.socket.session if work == "tls-resumed" else None
            connection.close()
            connection = None
    if connection:
        connection.close()


def control(child, *arguments):
    done = subprocess.run(["callgrind_control", *arguments, str(child.process.pid)], capture_output=True, text=True, timeout=60)
    if done.returncode or "not" in done.stdout.lower().split():
        raise StartFailed(f"callgrind_control {' '.join(arguments)}: {done.stdout}{done.stderr}")


def total(profile):
    """All instructions of a callgrind file."""
    return sum(int(number) for number in re.findall(r"^(?:summary|totals): (\d+)", profile, re.MULTILINE)[-1:])


LINE = re.compile(r"\s*([\d,]+)(?: \([\s\d.]+%\))?\s+([<*>]\s+)?[^:\s]*:(\S.*)$")


def costs(lines, count, mark=None, together=sum, width=110):
    """What callgrind_annotate says, the most expensive first: [(instructions a request, function)].

    It counts what was inlined under the file it came from; here it is put `together` with the function it went into.
    """
    found = {}
    for line in lines:
        match = LINE.match(line)
        if match and (match[2] or "").strip() == (mark or ""):
            name = re.sub(r"( \(\d[\d,]*x\))?( \[[^]]*\])?$", "", match[3])
            name = re.sub(r"::h[0-9a-f]{16}\b|'\d+$", "", name)
            found.setdefault(name[:width], []).append(int(match[1].replace(",", "")))
    return sorted(((together(each) / count, name) for name, each in found.items()), reverse=True)


def callers(lines, function, count):
    """Who calls this function: `costs` of the callers, of what they spend in it."""
    found, block = [], []
    for line in lines:
        match = LINE.match(line)
        if not match:
            block = []
        elif (match[2] or "").strip() == "<":
            block.append(line)
        elif costs([line], 1, "*")[:1] and costs([line], 1, "*")[0][1] == function:
            found += block
    return costs(found, count, "<")


def annotate(out, *arguments):
    command = ["callgrind_annotate", "--auto=no", *arguments, out]
    return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()


def show(peer, out, arguments):
    """Prints the lists of one peer, and returns its instructions a request."""
    with open(out, errors="replace") as file:
        each = total(file.read()) / arguments.requests

    def print_list(title, rows, top):
        print(f"\n  {title}:\n")
        for instructions, name in rows[:top]:
            print(f"  {instructions:9,.0f}  {instructions / max(each, 1):6.1%}  {name}")

    print(f"\n== {peer.title}: {each:,.0f} instructions a request")
    own = costs(annotate(out, "--threshold=98"), arguments.requests)
    print_list("in functions themselves", own, arguments.top)
    # A function's parts from several files count the same calls: the largest is the nearest to the truth.
    tree = annotate(out, "--inclusive=yes", "--tree=caller", "--threshold=100")
    print_list("with all that they call", costs(tree, arguments.requests, "*", max), arguments.top)
    if own:
        print_list(f"calls of {own[0][1]}, by caller", callers(tree, own[0][1], arguments.requests), 10)
    print(f"\n  all of it: callgrind_annotate --inclusive=yes --tree=both {out}", flush=True)
    return each


def profile(children, peer, arguments, directory, core, ports, upstreams, certificates):
    place = peers.Place(directory, ports, upstreams, single=True, certificates=certificates)
    out = os.path.join(arguments.keep, f"callgrind.{peer.name}.{arguments.work}")
    valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--fair-sched=yes", f"--callgrind-out-file={out}"]
    child = children.start(peer.name, [*valgrind, *peer.command(peer.find(), place)], core, directory)
    child.wait_for(lambda: client.answers(place.http))
    if certificates:
        child.wait_for(lambda: client.answers(place.tls, tls=True))
    exchange(place, arguments.work, WARM_UP)
    control(child, "-i", "on")
    exchange(place, arguments.work, arguments.requests, WARM_UP)
    control(child, "-i", "off")
    control(child, "-d")
    children.stop(child)
    return out


def newest(out):
    """The dump: callgrind numbers them, and writes one more at the end."""
    dumps = [path for path in (out + ".1", out) if os.path.exists(path)]
    if not dumps:
        raise StartFailed(f"no profile at {out}")
    return dumps[0]


def offer_the_same(path):
    """Begins anew with the cipher and group of the comparison: Python can set them for a process only."""
    if os.environ.get("OPENSSL_CONF") == path:
        return
    with open(path, "w") as file:
        file.write(loads.OPENSSL)
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "OPENSSL_CONF": path})


def run(arguments):
    proxy_core, _, backend_core = cores()
    arguments.work = (arguments.work or ["small"])[0]
    if arguments.work not in WORKS:
        raise SystemExit(f"--instructions takes one of {', '.join(WORKS)}")
    arguments.keep = os.path.join(peers.TARGET, "versus")
    os.makedirs(arguments.keep, exist_ok=True)
    if arguments.work.startswith("tls-"):
        offer_the_same(os.path.join(arguments.keep, "openssl.cnf"))
    hosts = 1000 if arguments.work == "hosts" else 1
    chosen = [peer for peer in peers.all_peers("profiling") if peer.name in (arguments.only or DEFAULT_PEERS)]
    with tempfile.TemporaryDirectory(prefix="versus.") as scratch, Children() as children:
        backend_port, *ports = free_ports(1 + peers.PORTS * len(chosen))
        place = peers.Place(os.path.join(scratch, "backend"), (0,) * peers.PORTS, [])
        os.makedirs(place.directory)
        certificates = peers.make_certificates(scratch) if arguments.work.startswith("tls-") else None
        child = children.start("backend", peers.backend(place, backend_port, 1000), backend_core, place.directory)
        child.wait_for(lambda: client.answers(backend_port))
        upstreams = [(client.host(n), peers.backend_address(n, backend_port)) for n in range(hosts)]
        rows = []
        for number, peer in enumerate(chosen):
            directory = os.path.join(scratch, peer.name)
            os.makedirs(directory)
            try:
                out = newest(profile(children, peer, arguments, directory, proxy_core, ports[peers.PORTS * number:][:peers.PORTS],
                                     upstreams, certificates))
            except (StartFailed, peers.Missing, OSError) as error:
                print(f"\n{peer.title}: {error}", flush=True)
                continue
            rows.append((peer.title, show(peer, out, arguments)))
        print(f"\n| {arguments.work}, {arguments.requests} requests | instructions a request |\n|---|---:|")
        for title, each in rows:
            print(f"| {title} | {each:,.0f} |")
    return 0 if rows else 1
