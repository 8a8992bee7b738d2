#!/usr/bin/env python3
"""Skep beside other proxies on the same work. `./dev bench versus` starts it; benches/versus/README.md explains it."""

import argparse
import resource
import signal
import sys

sys.dont_write_bytecode = True  # no __pycache__ among the sources

import comparison
import instructions
import selftest


def parse_arguments():
    names = [peer.name for peer in comparison.peers.all_peers("release")]
    works = list(dict.fromkeys([work.name for work in comparison.loads.WORKS] + list(instructions.WORKS)))

    def some_of(names):
        def chosen(text):
            found = [name.strip() for name in text.split(",") if name.strip()]
            if not found or set(found) - set(names):
                raise argparse.ArgumentTypeError(f"one or more of {','.join(names)}")
            return found

        return chosen

    def positive(text):
        if int(text) < 1:
            raise ValueError
        return int(text)

    parser = argparse.ArgumentParser(prog="./dev bench versus", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 rounds of 1 s instead of 8 of 2 s")
    parser.add_argument("--only", type=some_of(names), metavar="A,B", help=f"these of {', '.join(names)}")
    parser.add_argument("--work", type=some_of(works), metavar="A,B",
                        help=f"these of {', '.join(works)}, and neither memory nor tables; with --instructions one (small)")
    parser.add_argument("--rounds", type=positive, metavar="N", help="so many slices of each")
    parser.add_argument("--write", action="store_true", help="put the tables into the project's README")
    parser.add_argument("--self-test", action="store_true", help="test the parts of this script that need no proxy")
    group = parser.add_argument_group("instructions a request (callgrind)")
    group.add_argument("--instructions", action="store_true", help="count instructions instead of time")
    group.add_argument("--requests", type=positive, default=2000, metavar="N", help="over so many requests (2000)")
    group.add_argument("--top", type=positive, default=30, metavar="N", help="functions to show (30)")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    if arguments.self_test:
        return selftest.run()
    # A polite end ends the children too.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(130))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        return (instructions if arguments.instructions else comparison).run(arguments)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
