"""The one table: medians with their spread, and ratios to the best peer."""

import statistics

from proxies import FLOOR, PEERS

# What is measured, key of the figure, what it is, unit, digits after the point.
MEASURES = [
    ("http", "http_cpu_us", "HTTP keep-alive: CPU per request", "µs", 1),
    ("http", "http_p50_us", "HTTP keep-alive: latency p50, closed loop", "µs", 0),
    ("http", "http_p99_us", "HTTP keep-alive: latency p99, closed loop", "µs", 0),
    ("sessions", "session_cpu_us", "session set-up: CPU", "µs", 1),
    ("sessions", "session_p50_us", "session set-up: latency p50", "µs", 0),
    ("sessions", "session_p99_us", "session set-up: latency p99", "µs", 0),
    ("sessions", "session_pss_kib", "idle session: PSS", "KiB", 2),
    ("idle", "idle_cpu_us", "idle session: CPU for the pings of 10 s", "µs", 1),
    ("sessions", "echo_cpu_us", "echo round trip: CPU", "µs", 1),
    ("sessions", "echo_p50_us", "echo round trip: latency p50", "µs", 0),
    ("sessions", "echo_p99_us", "echo round trip: latency p99", "µs", 0),
]


def summarize(samples):
    """A row for each measure, TLS and proxy, from samples of {round, tls, proxy, figures}."""
    rows = []
    for _, key, title, unit, digits in MEASURES:
        for tls in sorted({it["tls"] for it in samples}):
            values = {}
            for it in samples:
                if it["tls"] == tls and key in it["figures"]:
                    values.setdefault(it["proxy"], {})[it["round"]] = it["figures"][key]
            peers = {name: statistics.median(values[name].values()) for name in PEERS if name in values}
            # No peer pings idle sessions.
            best = min(peers, key=peers.get, default=FLOOR if FLOOR in values else None)
            for name, by_round in values.items():
                row = {"measure": key, "title": title, "unit": unit, "digits": digits, "tls": tls, "proxy": name, "best": best}
                row |= spread(list(by_round.values()), "")
                if best and values[best].keys() & by_round.keys() and all(values[best].values()):
                    # Within a round, since what else the machine does changes from round to round.
                    row |= spread([by_round[it] / values[best][it] for it in by_round if it in values[best]], "ratio_")
                rows.append(row)
    return rows


def spread(values, prefix):
    return {f"{prefix}median": statistics.median(values), f"{prefix}min": min(values), f"{prefix}max": max(values)}


def figure(row, prefix, digits):
    if f"{prefix}median" not in row:
        return "–"
    median, low, high = (f"{row[prefix + it]:,.{digits}f}" for it in ("median", "min", "max"))
    return f"{median} ({low}–{high})"


def cells(rows):
    """For each measure: its title, the best peers, and a line for each proxy."""
    for _, key, title, unit, digits in MEASURES:
        here = [it for it in rows if it["measure"] == key]
        if not here:
            continue
        kinds = sorted({it["tls"] for it in here})
        best = {tls: next(it["best"] for it in here if it["tls"] == tls) for tls in kinds}
        lines = {}
        for tls in kinds:
            for row in here:
                if row["tls"] == tls:
                    lines.setdefault(row["proxy"], {})[tls] = (figure(row, "", digits), figure(row, "ratio_", 2))
        yield f"{title}, {unit}", best, kinds, lines


def terminal(rows):
    out = []
    for title, best, kinds, lines in cells(rows):
        heads = "".join(f"{'TLS 1.3' if tls else 'plain':>27}{'/ ' + (best[tls] or '-'):>21}" for tls in kinds)
        out.append(f"\n{title}\n{'':24}{heads}")
        for name, found in lines.items():
            out.append(f"  {name:22}" + "".join("{:>27}{:>21}".format(*found.get(tls, ("–", "–"))) for tls in kinds))
    return "\n".join(out)


def markdown(rows):
    kinds = sorted({it["tls"] for it in rows})
    head = "".join(f" {'TLS 1.3' if tls else 'plain'} | to the best peer |" for tls in kinds)
    out = [f"| measure | proxy |{head}", "|---|---|" + "--:|--:|" * len(kinds)]
    for title, best, _, lines in cells(rows):
        for idx, (name, found) in enumerate(lines.items()):
            line = "".join(f" {it[0]} | {it[1]}{' of ' + best[tls] if idx == 0 and best.get(tls) else ''} |" for tls, it in ((tls, found.get(tls, ("–", "–"))) for tls in kinds))
            out.append(f"| {title if idx == 0 else ''} | {name} |{line}")
    return "\n".join(out) + "\n"
