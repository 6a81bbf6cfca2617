#!/usr/bin/env python3
"""How the cost of a gateway grows with its sessions and their messages.

    benches/growth.py [--svg FILE] target/release/streamgate

Each point is a gateway of its own, with `cors`, `bearer-auth` and `inject-headers`, measured by `streamgate bench fan-in`.
Prints a table; with --svg it draws the same.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

SESSIONS = [500, 1000, 2000, 4000, 8000]
RATES = [500, 1000, 2000, 4000, 6000]
BUSY = 1000  # sessions that share the messages

CONFIG = """
workers = 1
[[route]]
path = "/**"
chain = [
    "cors",
    { plugin = "bearer-auth", tokens = "file:tokens.toml" },
    { plugin = "inject-headers", set = { x-user = "{principal.id}", x-tenant = "{principal.tenant}", x-edge = "1" } },
]
"""
TOKEN = "a-token-of-the-bench"


def fan_in(binary, folder, *options):
    command = [binary, "bench", "fan-in", "--config", folder / "streamgate.toml", "--token", TOKEN, "--no-storm", "--quiet", "--json", folder / "out.json", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "out.json").read_text())


def measure(binary):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "streamgate.toml").write_text(CONFIG)
        (folder / "tokens.toml").write_text(f'[ada]\ntoken = "{TOKEN}"\ntenant = "acme"\n')
        idle, busy = [], []
        for n in SESSIONS:
            report = fan_in(binary, folder, "--sessions", str(n), "--ramp", "800", "--idle", "20", "--echo", "0")
            total = report["idle"]["pss_bytes_per_session"] * n / 1e6
            idle.append((n, total, report["idle"]["cpu_percent_of_core"]))
            print(f"{n:6} sessions   {total:6.1f} MB   {report['idle']['cpu_percent_of_core']:5.2f} % of a core idle   {report['ramp']['cpu_us_per_session']:6.1f} us CPU to open one", flush=True)
        for rate in RATES:
            report = fan_in(binary, folder, "--sessions", str(BUSY), "--ramp", "800", "--idle", "0", "--echo", "10", "--messages", str(rate))
            echo = report["echo"]
            percent = echo["cpu_us_per_message"] * echo["achieved_per_second"] / 1e4
            busy.append((rate, percent))
            print(f"{rate:6} messages/s {percent:6.1f} % of a core   {echo['cpu_us_per_message']:6.1f} us CPU for one and its echo   p50 {echo['latency']['p50']:.0f} us  p99 {echo['latency']['p99']:.0f} us", flush=True)
        return idle, busy


def panel(left, title, unit, points, format_x):
    """One plot: a line through the points, from zero."""
    width, height, top = 210, 150, 40
    most_x, most_y = points[-1][0], max(y for _, y in points) * 1.15

    def at(x, y):
        return left + x / most_x * width, top + height - y / most_y * height

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*it) for it in points))
    parts = [f'<text x="{left}" y="22" class="title">{title}</text>', f'<path class="axis" d="M{left} {top}V{top + height}H{left + width}"/>', f'<polyline points="{line}"/>']
    for value, y in points:
        px, py = at(value, y)
        parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3"/><text x="{px:.1f}" y="{py - 8:.1f}" class="value">{y:.3g}</text>')
    for value in (points[-1][0] / 2, points[-1][0]):
        parts.append(f'<text x="{at(value, 0)[0]:.1f}" y="{top + height + 16}" class="value">{format_x(value)}</text>')
    return "".join([*parts, f'<text x="{left}" y="{top + height + 32}">{unit}</text>'])


def draw(idle, busy):
    style = "text{font:11px sans-serif;fill:#555}.title{font-weight:bold;font-size:12px}.value{text-anchor:middle;font-size:10px}.axis{fill:none;stroke:#999}polyline{fill:none;stroke:#3b7dd8;stroke-width:2}circle{fill:#3b7dd8}"
    panels = [
        panel(20, "Memory, MB", "idle sessions", [(n, total) for n, total, _ in idle], lambda it: f"{it:,.0f}"),
        panel(280, "CPU idle, % of a core", "idle sessions", [(n, used) for n, _, used in idle], lambda it: f"{it:,.0f}"),
        panel(540, "CPU, % of a core", "messages a second, each with its echo", busy, lambda it: f"{it:,.0f}"),
    ]
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 780 235" width="780" height="235"><style>{style}</style><rect width="780" height="235" fill="#fff"/>{"".join(panels)}</svg>\n'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    figures = measure(Path(options.binary).resolve())
    if options.svg:
        options.svg.write_text(draw(*figures))


if __name__ == "__main__":
    main()
