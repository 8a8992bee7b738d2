"""One slice of load, CPU time and memory of a proxy out of /proc, and the connections that idle."""

import os
import resource
import subprocess
import time

import client
from loads import OPENSSL, parse_h2load, parse_handshakes, parse_wrk

TICK = os.sysconf("SC_CLK_TCK")


class Cpu:
    """CPU time that the processes had until now: of each task in nanoseconds, and of all of them in ticks."""

    def __init__(self, pids):
        self.tasks, self.ticks = {}, 0
        for pid in pids:
            try:
                with open(f"/proc/{pid}/stat") as stat:
                    fields = stat.read().rpartition(")")[2].split()
                self.ticks += int(fields[11]) + int(fields[12])
                for task in os.listdir(f"/proc/{pid}/task"):
                    with open(f"/proc/{pid}/task/{task}/schedstat") as schedstat:
                        self.tasks[task] = int(schedstat.read().split()[0])
            except OSError:
                continue  # a kernel without schedstat, or a task that ended

    def since(self, before):
        """Microseconds. In ticks where a task ended meanwhile: its nanoseconds went with it."""
        if before.tasks and before.tasks.keys() <= self.tasks.keys():
            return (sum(self.tasks.values()) - sum(before.tasks.values())) / 1e3
        return (self.ticks - before.ticks) * 1e6 / TICK


def pss(pids):
    """Memory in KB; what processes share is divided among them."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup") as rollup:
                total += sum(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
        except OSError:
            continue
    return total


def threads(pids):
    return sum(len(os.listdir(f"/proc/{pid}/task")) for pid in pids)


def slice_of(work, child, place, core, seconds):
    """A short stretch of load: the outcome, and the proxy's CPU time in microseconds.

    Raises ValueError when the load generator says nothing that can be read.
    """
    log = os.path.join(place.directory, "h2load.log")
    if os.path.exists(log):
        os.unlink(log)  # h2load appends
    command = ["taskset", "-c", str(core), *work.command(place, seconds, log)]
    environment = {**os.environ, "OPENSSL_CONF": place.write("openssl.cnf", OPENSSL)} if work.tls else None
    before = Cpu(child.pids())
    # Its end is waited for at most so long: a proxy that hangs must not hang the comparison.
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, env=environment)
    except subprocess.TimeoutExpired:
        raise ValueError(f"{command[3]} did not end") from None
    used = Cpu(child.pids()).since(before)
    if work.client == "handshakes":
        return parse_handshakes(done.stdout or done.stderr), used
    if work.client == "wrk":
        return parse_wrk(done.stdout + done.stderr), used
    times = ""
    if os.path.exists(log):
        with open(log) as file:
            times = file.read()
    return parse_h2load(done.stdout + done.stderr, times), used


def room_for_connections():
    """How many connections this process and a proxy, which runs under the same limit, can hold."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 300


def idle(child, place, counts, settle):
    """Memory at rest and with so many connections that made one request each: [{connections, held, kb}]."""
    held, found = [], []
    try:
        for count in [0, *counts]:
            while len(held) < count:
                connection = client.Connection(place.http)
                held.append(connection)
                status = connection.exchange(client.request())
                if status != 200:
                    raise OSError(f"connection {len(held)} was answered {status}")
            time.sleep(settle)
            found.append({"connections": count, "held": sum(map(client.Connection.is_open, held)), "kb": pss(child.pids())})
    except OSError as error:
        found.append({"connections": count, "held": len(held), "kb": None, "error": str(error)})
    finally:
        for connection in held:
            connection.close()
    return found
