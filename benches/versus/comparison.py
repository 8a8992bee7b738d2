"""The comparison: all peers beside each other, short slices in random order, then each one's memory alone."""

import datetime
import json
import os
import platform
import random
import subprocess
import tempfile
import time

import client
import loads
import measure
import peers
import report
from processes import Children, StartFailed, cores, free_ports

ROUTES = [1, 1000, 10_000]
BACKENDS = 1000


def say(text):
    print(text, flush=True)


class Comparison:
    def __init__(self, arguments, scratch, children):
        self.arguments, self.scratch, self.children = arguments, scratch, children
        self.proxy_core, self.client_core, self.backend_core = cores()
        self.seconds, self.rounds = (1, arguments.rounds or 3) if arguments.quick else (2, arguments.rounds or 8)
        self.peers = [peer for peer in peers.all_peers("release") if not arguments.only or peer.name in arguments.only]
        self.chosen = [work for work in loads.WORKS if not arguments.work or work.name in arguments.work]
        self.certificates = None
        self.result = {
            "machine": self.machine(), "versions": {}, "titles": {peer.name: peer.title for peer in self.peers},
            "work_titles": {work.name: work.title for work in loads.WORKS}, "seconds": self.seconds, "rounds": self.rounds,
            "works": {}, "memory": {}, "routes": {}, "failed": {},
        }

    def machine(self):
        with open("/proc/cpuinfo") as file:
            models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        others = "another" if self.client_core == self.backend_core else "one each"
        return {"cpu": models[0] if models else platform.machine(), "cores": os.cpu_count(), "kernel": platform.release(),
                "date": datetime.date.today().isoformat(), "others": others}

    def directory(self):
        return tempfile.mkdtemp(dir=self.scratch)

    def check(self):
        """Leaves out what cannot be had."""
        for peer in list(self.peers):
            try:
                peer.find()
                self.result["versions"][peer.name] = peer.version()
            except peers.Missing as error:
                self.fail(peer, error)
        if not self.peers:
            raise SystemExit("no peer can be started")

    def fail(self, peer, why):
        say(f"\n{peer.title} is left out: {why}\n")
        lines = [line.strip() for line in str(why).splitlines() if line.strip()]
        self.result["failed"][peer.name] = " … ".join(dict.fromkeys([lines[0], lines[-1]]))
        self.peers.remove(peer)

    def start_backend(self):
        place = peers.Place(self.directory(), (0,) * peers.PORTS, [])
        (self.backend_port,) = free_ports(1)
        child = self.children.start("backend", peers.backend(place, self.backend_port, BACKENDS), self.backend_core, place.directory)
        child.wait_for(lambda: client.answers(self.backend_port))

    def start(self, peer, hosts, one_backend=False, certificates=None):
        """(child, place) of a proxy that answers for the first and the last of so many hosts, and with `certificates` over TLS too."""
        upstreams = [(client.host(n), peers.backend_address(0 if one_backend else n, self.backend_port)) for n in range(hosts)]
        place = peers.Place(self.directory(), free_ports(peers.PORTS), upstreams, certificates=certificates)
        child = self.children.start(peer.name, peer.command(peer.find(), place), self.proxy_core, place.directory)
        try:
            child.wait_for(lambda: client.answers(place.http, client.host(hosts - 1)))
            if certificates:
                child.wait_for(lambda: client.answers(place.tls, tls=True))
        except StartFailed:
            self.children.stop(child)
            raise
        return child, place

    def start_all(self, hosts, tls):
        if tls and not self.certificates:
            self.certificates = peers.make_certificates(self.directory())
        started = {}
        for peer in list(self.peers):
            try:
                started[peer] = self.start(peer, hosts, certificates=self.certificates if tls else None)
            except StartFailed as error:
                self.fail(peer, error)
        say("  threads: " + ", ".join(f"{peer.title} {measure.threads(child.pids())}" for peer, (child, _) in started.items()))
        return started

    def slice(self, work, child, place, number):
        outcome, used = measure.slice_of(work, child, place, self.client_core, self.seconds)
        return {
            "round": number, "requests": outcome.requests, "rate": outcome.rate, "p50": outcome.p50, "p99": outcome.p99,
            "cpu": used / outcome.requests if outcome.requests else None, "busy": used / 1e6 / outcome.seconds,
            "errors": outcome.errors, "said": outcome.said,
        }

    def alternate(self, started, work_of, into, title):
        """Rounds of one slice of each, in random order. `started`: {key: (child, place)}; `into`: {key: slices}."""
        for number in range(self.rounds):
            order = list(started)
            random.shuffle(order)
            for key in order:
                child, place = started[key]
                try:
                    measured = self.slice(work_of(key), child, place, number)
                except ValueError as error:
                    measured = {"round": number, "requests": 0, "rate": None, "p50": None, "p99": None, "cpu": None,
                                "busy": None, "errors": 1, "said": [str(error)]}
                into.setdefault(key, []).append(measured)
            last = ", ".join(f"{title(key)} {report.short(into[key][-1]['cpu'])}" for key in started)
            say(f"  {number + 1}/{self.rounds}  CPU µs/request: {last}")

    def works(self):
        # Anew for TLS: what one work leaves in a proxy (memory, timers) is not the next one's.
        for tls, hosts in sorted({(work.tls, work.hosts) for work in self.chosen}):
            say(f"\n== starting all, {hosts:,} host(s){', TLS' if tls else ''}")
            started = self.start_all(hosts, tls)
            for work in (work for work in self.chosen if (work.tls, work.hosts) == (tls, hosts)):
                say(f"\n== {work.title}")
                for child, place in started.values():
                    client.burst(place.http, 300)
                found = {}
                self.alternate(started, lambda _: work, found, lambda peer: peer.title)
                # In the order of the peers, whoever came first in the first round.
                self.result["works"][work.name] = {peer.name: found[peer] for peer in started}
            for child, _ in started.values():
                self.children.stop(child)

    def memory(self):
        say("\n== memory, each alone")
        room = measure.room_for_connections()
        counts = sorted({min(count, room) for count in (1000, 10_000)})
        for peer in list(self.peers):
            try:
                child, place = self.start(peer, 1)
            except StartFailed as error:
                self.fail(peer, error)
                continue
            points = measure.idle(child, place, counts, 1 if self.arguments.quick else 3)
            self.children.stop(child)
            self.result["memory"][peer.name] = points
            say(f"  {peer.title}: " + ", ".join(f"{report.number(point['kb'])} KB at {point['connections']:,}" for point in points))

    def routes(self):
        """How much a larger table costs Skep. All its routes lead to one upstream, so that only the table grows."""
        skep = next((peer for peer in self.peers if peer.name == "skep"), None)
        if not skep:
            return
        say("\n== Skep alone: 1, 1,000 and 10,000 routes")
        started = {}
        try:
            for count in ROUTES:
                started[count] = self.start(skep, count, one_backend=True)
        except StartFailed as error:
            return self.fail(skep, error)
        # The same client for each, so one host is cycled through as well.
        works = {count: loads.Work(f"routes-{count}", "", 64, hosts=count, cycle=True) for count in ROUTES}
        found = {}
        self.alternate(started, works.get, found, lambda count: f"{count:,}")
        self.result["routes"] = {str(count): found[count] for count in ROUTES}
        for child, _ in started.values():
            self.children.stop(child)

    def run(self):
        self.check()
        say(report.machine_line(self.result["machine"]))
        say(report.versions_line(self.result["versions"], self.result["titles"]))
        self.start_backend()
        self.works()
        if not self.arguments.work:
            self.memory()
            self.routes()
        return self.result


def tool_versions():
    """Of the load generators and the backend."""
    found = {}
    for name, arguments in {"wrk": ["wrk", "-v"], "h2load": ["h2load", "--version"]}.items():
        done = subprocess.run(arguments, capture_output=True, text=True)
        words = (done.stdout + done.stderr).replace("/", " ").split()
        found[name] = next((word for word in words if word[:1].isdigit()), "?")
    return found


def run(arguments):
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="versus.") as scratch, Children() as children:
        comparison = Comparison(arguments, scratch, children)
        result = comparison.run()
    result["versions"].update(tool_versions())
    result["took"] = time.monotonic() - began
    result["summaries"] = report.summaries(result)
    os.makedirs(peers.TARGET, exist_ok=True)
    path = os.path.join(peers.TARGET, "versus.json")
    with open(path, "w") as file:
        json.dump(result, file, indent=1)
    say(f"\n{report.full(result)}\n\n{result['took'] / 60:.1f} minutes; all slices are in {path}")
    if arguments.write:
        readme = os.path.join(peers.ROOT, "README.md")
        with open(readme) as file:
            text = report.replace(file.read(), report.brief(result))
        with open(readme, "w") as file:
            file.write(text)
        say(f"the tables are in {readme}")
    return 0
