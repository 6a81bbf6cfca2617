#!/usr/bin/env python3
"""What a session costs: memory when it is idle, CPU when it is opened and for an echo of 120 bytes.

    python3 benches/sessions.py [-n SESSIONS] [-r ROUNDS] target/release/streamgate
    python3 benches/sessions.py --idle SECONDS [-n SESSIONS] target/release/streamgate

With --idle it measures streamgate alone: what pings cost while nothing else happens, every browser answering them.

Runs streamgate and, where it is installed, HAProxy, in turn, each time in a fresh process, in front of the same echo
server. The figures are the kernel's account of the proxy's own process: PSS over what it had before, and CPU time.
"""

import argparse
import asyncio
import base64
import contextlib
import hashlib
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time

ECHOES = 20_000
BUSY = 100
HAPROXY = """
global
  maxconn 9000
defaults
  mode http
  timeout connect 4s
  timeout client 1h
  timeout server 1h
  timeout tunnel 1h
listen proxy
  bind 127.0.0.1:{port}
  http-request set-header Authorization "Bearer k"
  http-request set-header Function-ID f
  server upstream 127.0.0.1:{upstream}
"""


def unmask(frame):
    """The payload of a client's short frame."""
    length, mask = frame[1] & 127, frame[2:6]
    return bytes(byte ^ mask[idx % 4] for idx, byte in enumerate(frame[6 : 6 + length]))


async def upstream(reader, writer):
    """Accepts a WebSocket and sends texts and pings back."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
        head = await reader.readuntil(b"\r\n\r\n")
        key = next(it.split(b": ")[1] for it in head.split(b"\r\n") if it.lower().startswith(b"sec-websocket-key"))
        digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n")
        while data := await reader.read(65536):
            if data[0] in (0x81, 0x89):
                payload = unmask(data)
                writer.write(bytes([0x81 if data[0] == 0x81 else 0x8A, len(payload)]) + payload)
    writer.close()


async def browser(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /sign_in HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert b" 101 " in head.split(b"\r\n")[0], head
    return reader, writer


async def echo(reader, writer, n):
    message = bytes([0x81, 0x80 | 120, 1, 2, 3, 4]) + bytes(120)
    for _ in range(n):
        writer.write(message)
        while True:
            head = await reader.readexactly(2)
            await reader.readexactly(head[1] & 127)
            if head[0] == 0x81:
                break


def pss(pid):
    with open(f"/proc/{pid}/smaps_rollup") as lines:
        return next(int(it.split()[1]) for it in lines if it.startswith("Pss:")) * 1024


def cpu(pid):
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(pid, port, n):
    base, began = pss(pid), cpu(pid)
    sessions = []
    for first in range(0, n, 50):
        sessions += await asyncio.gather(*(browser(port) for _ in range(min(50, n - first))))
    opened = cpu(pid)
    await asyncio.sleep(2)
    memory = (pss(pid) - base) / n
    began_echoes = cpu(pid)
    await asyncio.gather(*(echo(*it, ECHOES // BUSY) for it in sessions[:BUSY]))
    echoed = cpu(pid)
    for _, writer in sessions:
        writer.close()
    return memory, (opened - began) / n * 1e6, (echoed - began_echoes) / ECHOES * 1e6


class Idle(asyncio.Protocol):
    """A browser that does nothing but answer pings."""

    def __init__(self):
        self.is_open = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        transport.write(b"GET /sign_in HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")

    def data_received(self, data):
        if not self.is_open.done():
            self.is_open.set_result(b" 101 " in data)
        elif data[0] == 0x89:
            self.transport.write(bytes([0x8A, 0x80 | data[1], 0, 0, 0, 0]) + data[2 : 2 + data[1]])


async def measure_idle(pid, port, n, seconds):
    """Percent of a core, with sessions whose pings are spread as those of browsers that came at different times are."""
    loop, sessions = asyncio.get_running_loop(), []
    for first in range(0, n, n // 100):
        some = [await loop.create_connection(Idle, "127.0.0.1", port) for _ in range(n // 100)]
        assert all(await asyncio.gather(*(it.is_open for _, it in some))), "a session was refused"
        sessions += some
        await asyncio.sleep(0.1)
    await asyncio.sleep(10)
    began, at = cpu(pid), time.monotonic()
    await asyncio.sleep(seconds)
    used = (cpu(pid) - began) / (time.monotonic() - at) * 100
    for transport, _ in sessions:
        transport.close()
    return used


def free_port():
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        return it.getsockname()[1]


async def run(kind, binary, n, idle=None):
    server = await asyncio.start_server(upstream, "127.0.0.1", 0, backlog=4096)
    up, port = server.sockets[0].getsockname()[1], free_port()
    with tempfile.TemporaryDirectory() as folder:
        if kind == "haproxy":
            path = os.path.join(folder, "haproxy.cfg")
            with open(path, "w") as file:
                file.write(HAPROXY.format(port=port, upstream=up))
            command, env = [binary, "-db", "-f", path], os.environ
        else:
            command = [binary, "run"]
            env = {
                "NVCF_API_KEY": "k", "STREAMING_FUNCTION_ID": "f", "NVCF_SERVER": f"http://127.0.0.1:{up}",
                "STREAMGATE_LISTEN_ADDRESS": f"127.0.0.1:{port}", "STREAMGATE_ADMIN_ADDRESS": "127.0.0.1:0",
                "STREAMGATE_LOG_ACCESS": "false", "STREAMGATE_LOG_LEVEL": "error",
            }
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 20
            while True:
                with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port)):
                    break
                assert time.monotonic() < deadline and process.poll() is None, f"{kind} does not listen"
                await asyncio.sleep(0.05)
            await asyncio.sleep(1)
            if idle:
                return await measure_idle(process.pid, port, n, idle)
            return await measure(process.pid, port, n)
        finally:
            process.kill()
            process.wait()
            server.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("-n", "--sessions", type=int, default=4000)
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("--idle", type=float)
    options = parser.parse_args()
    if options.idle:
        used = asyncio.run(run("streamgate", options.binary, options.sessions, options.idle))
        return print(f"{options.sessions} idle sessions, pinged every 10 s: {used:.2f} % of a core")
    kinds = {"streamgate": options.binary}
    if haproxy := shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin"):
        kinds["haproxy"] = haproxy
    results = {it: [] for it in kinds}
    for _ in range(options.rounds):
        for kind, binary in kinds.items():
            results[kind].append(asyncio.run(run(kind, binary, options.sessions)))
    print(f"{'':12}{'bytes per idle session':>28}{'us CPU per open':>22}{'us CPU per echo':>22}")
    for kind, rows in results.items():
        cells = [f"{statistics.median(it):.1f} ({min(it):.1f}-{max(it):.1f})" for it in zip(*rows)]
        print(f"{kind:12}{cells[0]:>28}{cells[1]:>22}{cells[2]:>22}")


if __name__ == "__main__":
    main()
