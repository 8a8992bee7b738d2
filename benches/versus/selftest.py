"""Tests of what decides here: the parsers, the ratios, the tables, the configurations. No proxy is started."""

import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import unittest

import client
import instructions
import loads
import measure
import peers
import report

WRK = """Running 2s test @ http://127.0.0.1:8080/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     6.68ms    3.94ms  30.76ms   74.92%
    Req/Sec     9.68k     1.17k   12.05k    65.00%
  Latency Distribution
     50%  941.00us
     75%    8.59ms
     90%   11.89ms
     99%    1.20s
  19298 requests in 2.01s, 3.07MB read
Requests/sec:   9600.99
Transfer/sec:      1.53MB
"""
WRK_ERRORS = WRK.replace("Requests/sec", "  Socket errors: connect 1, read 20, write 3, timeout 0\n  Non-2xx or 3xx responses: 7\nRequests/sec")
H2LOAD = """starting benchmark...
finished in 1.00s, 12470.00 req/s, 1.08MB/s
requests: 12470 total, 12598 started, 12470 done, 12469 succeeded, 1 failed, 1 errored, 2 timeout
status codes: 12469 2xx, 0 3xx, 0 4xx, 1 5xx
"""
ANNOTATED = """--------------------------------------------------------------------------------
43,505,801 (100.0%)  PROGRAM TOTALS

Ir                  file:function
 5,662,000 (13.01%)  ???:ngx_http_parse_header_line [/usr/sbin/nginx]
 2,000,000 ( 4.43%)  /src/a.rs:<http::map::HeaderMap<T> as core::ops::Drop>::drop::h0123456789abcdef [/bin/skep]
 1,000,000 ( 2.43%)  /src/b.rs:<http::map::HeaderMap<T> as core::ops::Drop>::drop::h0123456789abcdef [/bin/skep]
"""

TREE = """30,606,000 (10.23%)  < /lib/boxed.rs:<T as Apps>::new::{{closure}} (2,000x) [/bin/skep]
     1,000 ( 0.01%)  < src/b.rs:b (1x)
47,434,596 (15.86%)  *  ./string/memmove.S:__memcpy [/lib/libc.so.6]

     2,000 ( 0.01%)  < src/c.rs:c (1x)
        50 ( 0.00%)  *  src/d.rs:other [/bin/skep]
"""


def slices(cpus, rate=10.0):
    return [{"round": n, "requests": 1, "rate": rate, "cpu": cpu, "busy": 0.5, "p50": 1.0, "p99": 2000.0, "errors": 0, "said": []}
            for n, cpu in enumerate(cpus)]


class Parsers(unittest.TestCase):
    def test_wrk(self):
        outcome = loads.parse_wrk(WRK)
        self.assertEqual((outcome.requests, outcome.seconds, outcome.p50, outcome.p99, outcome.errors), (19298, 2.01, 941.0, 1.2e6, 0))

    def test_errors_of_wrk_are_all_counted(self):
        outcome = loads.parse_wrk(WRK_ERRORS)
        self.assertEqual(outcome.errors, 31)
        self.assertEqual(len(outcome.said), 2)

    def test_h2load_and_its_log(self):
        log = "".join(f"1700000000\t200\t{micros}\n" for micros in range(100, 0, -1))
        outcome = loads.parse_h2load(H2LOAD, log)
        self.assertEqual((outcome.requests, outcome.seconds, outcome.p50, outcome.p99, outcome.errors), (12469, 1.0, 50.0, 99.0, 3))
        self.assertIsNone(loads.parse_h2load(H2LOAD).p99)

    def test_handshakes(self):
        text = json.dumps({"requests": 3, "seconds": 1.5, "micros": [3, 1, 2], "errors": 1, "said": ["1 x a full handshake"]})
        outcome = loads.parse_handshakes(text)
        self.assertEqual((outcome.requests, outcome.rate, outcome.p50, outcome.p99, outcome.errors), (3, 2.0, 2.0, 2.0, 1))
        self.assertEqual(outcome.said, ["1 x a full handshake"])

    def test_what_is_no_output_is_refused(self):
        for parse in (loads.parse_wrk, loads.parse_h2load, loads.parse_handshakes):
            for text in ("", "unable to connect to 127.0.0.1:1 Connection refused", "finished in x"):
                self.assertRaises(ValueError, parse, text)

    def test_the_head_of_an_answer(self):
        self.assertEqual(client.head_of(b"HTTP/1.1 200 OK\r\nContent-length: 6\r\n\r\nhel"), (200, 44))
        self.assertIsNone(client.head_of(b"HTTP/1.1 200 OK\r\nContent-"))
        self.assertRaises(OSError, client.head_of, b"HTTP/1.1 200 OK\r\n\r\n")

    def test_callgrind(self):
        self.assertEqual(instructions.total("events: Ir\nsummary: 0\n\ntotals: 123\n"), 123)
        self.assertEqual(instructions.costs(ANNOTATED.splitlines(), 1000), [
            (5662.0, "ngx_http_parse_header_line"), (3000.0, "<http::map::HeaderMap<T> as core::ops::Drop>::drop")])
        tree = TREE.splitlines()
        self.assertEqual(instructions.costs(tree, 1, "*", max), [(47434596.0, "__memcpy"), (50.0, "other")])
        self.assertEqual(instructions.callers(tree, "__memcpy", 1000), [(30606.0, "<T as Apps>::new::{{closure}}"), (1.0, "b")])


class Ratios(unittest.TestCase):
    def test_quartiles(self):
        self.assertEqual(report.quartiles([4, 1, 3, 2, 5]), (2, 3, 4))
        self.assertEqual(report.quartiles([1, 2]), (1.25, 1.5, 1.75))
        self.assertEqual(report.quartiles([7]), (7, 7, 7))
        self.assertIsNone(report.quartiles([]))

    def test_a_round_is_compared_with_itself(self):
        # The second round is slow for both: the ratio does not see it.
        self.assertEqual(report.ratios(slices([20, 200]), slices([10, 100]), "cpu"), (2, 2, 2))

    def test_a_round_without_an_answer_is_left_out(self):
        self.assertEqual(report.ratios(slices([20, None, 40]), slices([10, 10, None]), "cpu"), (2, 2, 2))
        self.assertIsNone(report.ratios(slices([20]), [], "cpu"))

    def test_cpu_time_falls_back_to_ticks_when_a_task_ended(self):
        before, after = measure.Cpu([]), measure.Cpu([])
        before.tasks, after.tasks = {"1": 1_000}, {"1": 51_000, "2": 5_000}
        self.assertEqual(after.since(before), 55)
        before.tasks["3"], after.ticks = 1, measure.TICK
        self.assertEqual(after.since(before), 1e6)


class Tables(unittest.TestCase):
    def result(self):
        works = {"small": {"skep": slices([15, 15]), "haproxy": slices([10, 10])}}
        works["small"]["skep"][0].update(errors=3, said=["Non-2xx or 3xx responses: 3"])
        points = [{"connections": 0, "held": 0, "kb": 1024}, {"connections": 1000, "held": 1000, "kb": 3024},
                  {"connections": 10000, "held": 9000, "kb": 4000}]
        return {
            "titles": {"skep": "Skep", "haproxy": "HAProxy"}, "work_titles": {"small": "small answers"}, "works": works,
            "memory": {"skep": points}, "routes": {"1": slices([10]), "1000": slices([11])}, "failed": {"haproxy": "gone"},
            "versions": {"skep": "0.1.0"}, "machine": {"cpu": "C", "cores": 2, "kernel": "6", "date": "today", "others": "another"},
        }

    def test_the_full_tables_hide_nothing(self):
        text = report.full(self.result())
        self.assertIn("| Skep | 10 | 15.0 | 1.50 (1.50–1.50) | 1.00 (1.00–1.00) | 50% | 0.00 | 2.00 | 3 |", text)
        self.assertIn("Skep: Non-2xx or 3xx responses: 3", text)
        self.assertIn("| Skep | 1.0 MB | 3.0 MB | 3.9 MB | 2.0 |", text)
        self.assertIn("9,000 of 10,000 connections were still open", text)
        self.assertIn("| 1,000 | 11.0 | 1.10 (1.10–1.10) | 10 |", text)
        self.assertIn("Left out: HAProxy: gone", text)

    def test_the_brief_table(self):
        self.assertIn("| small answers | 15.0 (1.50), 3 errors | 10.0 |", report.brief(self.result()))

    def test_every_row_has_as_many_cells_as_its_head(self):
        for text in (report.full(self.result()), report.brief(self.result())):
            for block in text.split("\n\n"):
                self.assertEqual(len({line.count("|") for line in block.splitlines() if line.startswith("|")} | {0}) <= 2, True, block)

    def test_the_readme_keeps_the_rest(self):
        text = f"a {report.BEGIN}old{report.END} b"
        self.assertEqual(report.replace(text, "new"), f"a {report.BEGIN}\nnew\n{report.END} b")
        for broken in ("", report.BEGIN, report.END + report.BEGIN, text + text):
            self.assertRaises(ValueError, report.replace, broken, "new")

    def test_the_readme_has_the_markers(self):
        with open(os.path.join(peers.ROOT, "README.md")) as file:
            report.replace(file.read(), "new")


class Configurations(unittest.TestCase):
    def test_each_names_each_host_and_upstream(self):
        with tempfile.TemporaryDirectory() as directory:
            for peer in peers.all_peers("release"):
                upstreams = [(client.host(n), peers.backend_address(n, 9000)) for n in (0, 300)]
                place = peers.Place(tempfile.mkdtemp(dir=directory), (8001, 8002, 8003, 8004), upstreams)
                command = peer.command(peer.name, place)
                text = " ".join(command)
                for name in os.listdir(place.directory):
                    with open(os.path.join(place.directory, name)) as file:
                        text += file.read()
                for wanted in ("host-0.test", "host-300.test", "127.1.0.0", "127.1.1.44", "8001", str(place.h2c)):
                    self.assertIn(wanted, text, peer.name)

    @unittest.skipUnless(shutil.which("openssl"), "openssl is not installed")
    def test_each_shows_the_same_certificate(self):
        with tempfile.TemporaryDirectory() as directory:
            made = peers.make_certificates(directory)
            for path in (made.chain, made.both):
                with open(path) as file:
                    self.assertEqual(file.read().count("BEGIN CERTIFICATE"), 2)
            for peer in peers.all_peers("release"):
                upstreams = [(client.HOST, peers.backend_address(0, 9000))]
                texts = {}
                for certificates in (None, made):
                    place = peers.Place(tempfile.mkdtemp(dir=directory), (8001, 8002, 8003, 8004), upstreams, certificates=certificates)
                    text = " ".join(peer.command(peer.name, place))
                    for name in os.listdir(place.directory):
                        with open(os.path.join(place.directory, name)) as file:
                            text += file.read()
                    texts[certificates] = text
                self.assertNotIn("8004", texts[None], peer.name)
                self.assertIn("8004", texts[made], peer.name)
                self.assertTrue(any(path in texts[made] for path in (made.directory, made.both)), peer.name)

    def test_works_have_a_command(self):
        place = peers.Place("/", (8001, 8002, 8003, 8004), [])
        for work in loads.WORKS:
            text = json.dumps(work.command(place, 1, "log"))
            self.assertIn("8004" if work.tls else "8002" if work.h2c else "8001", text)
            self.assertEqual("1000" in text, work.hosts == 1000 or work.upload > 0)


@unittest.skipUnless(shutil.which("openssl"), "openssl is not installed")
class Handshakes(unittest.TestCase):
    """The client for new connections against Python's own TLS."""

    def setUp(self):
        self.directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.directory)
        made = peers.make_certificates(self.directory)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(made.chain, made.key)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.listener.close)
        self.reused = []
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                with self.context.wrap_socket(self.listener.accept()[0], server_side=True) as tls:
                    self.reused.append(tls.session_reused)
                    tls.recv(1000)
                    tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n")
            except ssl.SSLError:
                continue
            except OSError:
                return

    def load(self, kind):
        place = peers.Place(self.directory, (0, 0, 0, self.listener.getsockname()[1]), [])
        work = loads.Work("", "", 2, tls=True, handshakes=kind)
        environment = {**os.environ, "OPENSSL_CONF": place.write("openssl.cnf", loads.OPENSSL)}
        done = subprocess.run(work.command(place, 0.3, ""), env=environment, capture_output=True, text=True, timeout=60)
        return loads.parse_handshakes(done.stdout or done.stderr)

    def test_full_ones_are_full_and_resumed_ones_resumed(self):
        for kind, wanted in (("full", lambda count: 0), ("resumed", lambda count: count - 2)):
            self.reused.clear()
            outcome = self.load(kind)
            self.assertEqual((outcome.errors, outcome.said), (0, []))
            self.assertGreater(outcome.requests, 4)
            self.assertEqual(sum(self.reused), wanted(outcome.requests))

    def test_a_server_that_resumes_nothing_is_told(self):
        self.context.num_tickets = 0
        outcome = self.load("resumed")
        self.assertEqual(len(outcome.said), 1)
        self.assertIn("a full handshake", outcome.said[0])


def run():
    suite = unittest.defaultTestLoader.loadTestsFromModule(__import__(__name__))
    return 0 if unittest.TextTestRunner(verbosity=1).run(suite).wasSuccessful() else 1
