"""Ratios with their spread, and the tables: all of it on standard output, the short of it in the project's README."""

import statistics

BASE = "haproxy"
BEGIN, END = "<!-- versus -->", "<!-- /versus -->"


def quartiles(values):
    """(first, median, third), between the values where they fall between."""
    ordered = sorted(values)
    if not ordered:
        return None

    def at(share):
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

    return at(0.25), at(0.5), at(0.75)


def ratios(slices, base, key):
    """Quartiles of slice / base slice of the same round: what a neighbour took from a round, it took from both."""
    of_base = {each["round"]: each[key] for each in base if each[key]}
    return quartiles([each[key] / of_base[each["round"]] for each in slices if each[key] and each["round"] in of_base])


def summary(slices, base):
    """The numbers of one peer at one work. `base`: the slices of HAProxy, or none."""
    def middle(key):
        return statistics.median([each[key] for each in slices if each[key] is not None] or [0]) or None

    return {
        "rate": middle("rate"), "cpu": middle("cpu"), "busy": middle("busy"), "p50": middle("p50"), "p99": middle("p99"),
        "cpu_ratio": ratios(slices, base, "cpu"), "rate_ratio": ratios(slices, base, "rate"),
        "errors": sum(each["errors"] for each in slices),
        "said": sorted({line for each in slices for line in each["said"]})[:3],
    }


def number(value, form=",.0f", unit=""):
    return "–" if value is None else f"{value:{form}}{unit}"


def short(value):
    """Microseconds: one decimal where it says something."""
    return number(value, ".1f" if value is not None and value < 100 else ",.0f")


def spread(ratio):
    return "–" if ratio is None else f"{ratio[1]:.2f} ({ratio[0]:.2f}–{ratio[2]:.2f})"


def milliseconds(value):
    return "–" if value is None else f"{value / 1e3:.2f}"


def table(head, rows):
    """Markdown; the first column to the left, numbers to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def work_table(title, summaries, titles):
    head = [title, "requests/s", "CPU µs/request", "CPU, HAProxy = 1", "rate, HAProxy = 1", "core busy", "p50 ms", "p99 ms", "errors"]
    rows = []
    for name, each in summaries.items():
        rows.append([
            titles[name], number(each["rate"]), short(each["cpu"]), spread(each["cpu_ratio"]), spread(each["rate_ratio"]),
            number(each["busy"], ".0%"), milliseconds(each["p50"]), milliseconds(each["p99"]),
            number(each["errors"]) if each["errors"] else "0",
        ])
    notes = [f"{titles[name]}: {'; '.join(each['said'])}" for name, each in summaries.items() if each["said"]]
    return "\n\n".join([table(head, rows), *notes])


def per_connection(points):
    """KB an idle connection, between the two largest counts that were reached."""
    known = [point for point in points if point["kb"] is not None and point["held"] == point["connections"]]
    if len(known) < 2:
        return None
    low, high = known[-2:]
    return (high["kb"] - low["kb"]) / (high["connections"] - low["connections"])


def memory_table(memory, titles):
    counts = sorted({point["connections"] for points in memory.values() for point in points})
    head = ["memory (PSS)", *["at rest" if not count else f"{count:,} idle connections" for count in counts], "KB a connection"]
    rows, notes = [], []
    for name, points in memory.items():
        known = {point["connections"]: point for point in points}
        cells = []
        for count in counts:
            point = known.get(count)
            cells.append("–" if point is None else number(point["kb"] and point["kb"] / 1024, ".1f", " MB"))
            if point and point.get("error"):
                notes.append(f"{titles[name]}: {point['held']:,} of {count:,} connections: {point['error']}")
            elif point and point["held"] != count:
                notes.append(f"{titles[name]}: {point['held']:,} of {count:,} connections were still open when measured")
        rows.append([titles[name], *cells, number(per_connection(points), ".1f")])
    return "\n\n".join([table(head, rows), *notes])


def routes_table(routes):
    """Skep alone: CPU a request by the size of the table."""
    smallest = min(routes, key=int)
    rows = []
    for count, slices in routes.items():
        each = summary(slices, routes[smallest])
        rows.append([f"{int(count):,}", short(each["cpu"]), spread(each["cpu_ratio"]), number(each["rate"])])
    return table(["routes of Skep", "CPU µs/request", f"CPU, {int(smallest):,} = 1", "requests/s"], rows)


def machine_line(machine):
    return (f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, {machine['date']}; the proxy on one core, "
            f"its client and the backend on {machine['others']}.")


def versions_line(versions, titles):
    return ", ".join(f"{titles.get(name, name)} {version}" for name, version in versions.items()) + "."


def summaries(result):
    """{work: {peer: summary}}"""
    return {
        work: {name: summary(slices, peers.get(BASE, [])) for name, slices in peers.items()}
        for work, peers in result["works"].items()
    }


def full(result):
    titles = result["titles"]
    parts = [machine_line(result["machine"]), versions_line(result["versions"], titles)]
    parts += [work_table(result["work_titles"][work], each, titles) for work, each in summaries(result).items()]
    parts += [memory_table(result["memory"], titles)] if result["memory"] else []
    parts += [routes_table(result["routes"])] if result["routes"] else []
    parts += ["\n".join(f"Left out: {titles[name]}: {why}" for name, why in result["failed"].items())] if result["failed"] else []
    return "\n\n".join(parts)


def brief(result):
    """For the README: CPU a request and its ratio to HAProxy's of each work, and memory."""
    titles, found = result["titles"], summaries(result)
    names = [name for name in titles if any(name in each for each in found.values())]
    rows = []
    for work, each in found.items():
        cells = []
        for name in names:
            one = each.get(name)
            ratio = f" ({one['cpu_ratio'][1]:.2f})" if one and one["cpu_ratio"] and name != BASE else ""
            cells.append("–" if not one else f"{short(one['cpu'])}{ratio}" + (f", {one['errors']:,} errors" if one["errors"] else ""))
        rows.append([result["work_titles"][work], *cells])
    parts = ["CPU time of one core for a request in µs, and in brackets the median ratio to HAProxy's:",
             table(["", *[titles[name] for name in names]], rows)]
    parts += [memory_table(result["memory"], titles)] if result["memory"] else []
    parts += [f"{versions_line(result['versions'], titles)} {machine_line(result['machine'])}"]
    return "\n\n".join(parts)


def replace(readme, text):
    """The README with `text` between the markers. Raises ValueError when they are not there once each, in order."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after:
        raise ValueError(f"the README must hold {BEGIN} and then {END}, once each")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"
