"""Children of a comparison: started on a core, awaited, and stopped whatever happens."""

import os
import signal
import socket
import subprocess
import time

START_LIMIT = 60  # seconds; valgrind is slow
STOP_LIMIT = 4


class StartFailed(Exception):
    """Says why, with the end of the child's log."""


def cores():
    """(the proxy's, the client's, the backend's): the last two are one on a machine with two cores."""
    free = sorted(os.sched_getaffinity(0))
    if len(free) < 2:
        raise SystemExit("versus needs two cores: one for the proxy, one for its client and its backend")
    return free[-1], free[0], free[1] if len(free) > 2 else free[0]


def free_ports(count):
    """Ports of 127.0.0.1 that nobody has at this moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [taken.getsockname()[1] for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports


class Child:
    """A process and all that it starts. They share a session, by which they are found again and ended."""

    def __init__(self, name, command, core, directory):
        self.name, self.log = name, os.path.join(directory, f"{name}.log")
        # setpriv: should this script be killed, its children go too.
        command = ["setpriv", "--pdeathsig", "KILL", "taskset", "-c", str(core), *command]
        # Skep reads its settings from SKEP_*: what the caller has there is not what is compared.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SKEP_")}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory, start_new_session=True,
                env=inherited,
            )

    def pids(self):
        """Every process of the session."""
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{entry}/stat") as stat:
                    if int(stat.read().rpartition(")")[2].split()[3]) == self.process.pid:
                        found.append(int(entry))
            except OSError:
                continue  # gone meanwhile
        return found

    def wait_for(self, probe):
        """Until `probe()` is true.

        Raises StartFailed when the child ends, or when it takes too long.
        """
        end = time.monotonic() + START_LIMIT
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise StartFailed(f"{self.name} ended with {self.process.returncode}:\n{self.tail()}")
            try:
                if probe():
                    return
                why = "no answer that was asked for"
            except OSError as error:
                why = str(error)
            time.sleep(0.05)
        raise StartFailed(f"{self.name} is not ready after {START_LIMIT} s ({why}):\n{self.tail()}")

    def tail(self, lines=12):
        with open(self.log, errors="replace") as log:
            return "".join(f"    {line.rstrip()[:300]}\n" for line in log.readlines()[-lines:])

    def stop(self):
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(STOP_LIMIT)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue


class Children:
    """Stops every child at the end of a `with` block, in whatever way that ends."""

    def __init__(self):
        self.all = []

    def start(self, *arguments, **named):
        child = Child(*arguments, **named)
        self.all.append(child)
        return child

    def stop(self, child):
        self.all.remove(child)
        child.stop()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        while self.all:
            self.all.pop().stop()
