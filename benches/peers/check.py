"""Makes sure that a proxy does what it is measured at: one that does nothing would be fast."""

import base64
import contextlib
import hashlib
import http.client
import json
import os
import socket
import ssl
import struct
import threading

from proxies import NEVER, Failure, Proxy

CORS = ["access-control-allow-origin", "access-control-allow-headers", "access-control-expose-headers"]
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
# What the load offers first, and each proxy takes unless it prefers something else.
SUITE = ("TLSv1.3", "TLS_AES_256_GCM_SHA384")
SECONDS = 10


class Upstream:
    """Answers each request with what it saw of it, and echoes the messages of WebSockets."""

    def __init__(self):
        self.n_connections, self.seen = 0, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.n_connections += 1
                threading.Thread(target=self.serve, args=(connection, self.n_connections), daemon=True).start()

    def serve(self, connection, number):
        with contextlib.suppress(OSError, ValueError), connection, connection.makefile("rb") as reader:
            while head := read_head(reader):
                first, headers = head
                self.seen.append({"line": first, "headers": headers, "connection": number})
                if headers.get("upgrade", "").lower() == "websocket":
                    accept = base64.b64encode(hashlib.sha1((headers["sec-websocket-key"] + GUID).encode()).digest()).decode()
                    connection.sendall(f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\nnvcf-reqid: {number}\r\n\r\n".encode())
                    return echo(connection, reader)
                body = json.dumps(self.seen[-1]).encode()
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self.listener.close()


def read_head(reader):
    """The first line and the headers, in lower case; None at the end."""
    first = reader.readline().decode().strip()
    headers = {}
    while line := reader.readline().decode().strip():
        name, _, value = line.partition(":")
        if name.lower() in headers:
            value = f"{headers[name.lower()]}, {value.strip()}"
        headers[name.lower()] = value.strip()
    return (first, headers) if first else None


def read_frame(reader):
    first, second = reader.read(2)
    length = second & 127
    if length == 126:
        (length,) = struct.unpack(">H", reader.read(2))
    mask = reader.read(4) if second & 128 else bytes(4)
    return first, bytes(byte ^ mask[idx % 4] for idx, byte in enumerate(reader.read(length)))


def echo(connection, reader):
    while True:
        first, payload = read_frame(reader)
        answer = {0x89: 0x8A}.get(first, first)
        if first != 0x8A:
            connection.sendall(bytes([answer, len(payload)]) + payload)
        if first == 0x88:
            return


def check(rig, name, tls):
    """Raises what is wrong with a proxy."""
    with Upstream() as upstream, Proxy(rig, name, upstream.port, tls) as proxy:
        try:
            check_http(rig, proxy, upstream)
            check_websocket(rig, proxy, upstream)
        except Failure as it:
            raise Failure(f"{name} ({'TLS' if tls else 'plain'}) does not do what it is measured at: {it}\n{proxy.said()}") from None
        except (OSError, http.client.HTTPException, ValueError) as it:
            raise Failure(f"{name} ({'TLS' if tls else 'plain'}): {type(it).__name__}: {it}\n{proxy.said()}") from it


def expect(what, is_so):
    if not is_so:
        raise Failure(what)


def context(rig):
    trust = ssl.create_default_context(cafile=rig.path("cert.pem"))
    trust.minimum_version = ssl.TLSVersion.TLSv1_3
    return trust


def connect(rig, proxy):
    if proxy.tls:
        return http.client.HTTPSConnection("127.0.0.1", proxy.port, timeout=SECONDS, context=context(rig))
    return http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=SECONDS)


def check_policy(rig, headers):
    """What the upstream must have seen."""
    for header, value in {"authorization": "Bearer upstream-key", "function-id": "bench-function", "x-principal": rig.principal}.items():
        expect(f"the upstream saw {header}: {headers.get(header)} and not {value}", headers.get(header) == value)


def check_cors(headers):
    for header in CORS:
        expect(f"the response has {header}: {headers.get(header)}", headers.get(header) == "*")


def check_http(rig, proxy, upstream):
    known = {"Authorization": f"Bearer {rig.token}", "X-Principal": "forged"}
    connection = connect(rig, proxy)
    used = []
    for _ in range(3):
        connection.request("GET", "/bench", headers=known)
        response = connection.getresponse()
        body = response.read()
        expect(f"a known token was answered {response.status}", response.status == 200)
        expect("it closes the connection", not response.will_close)
        seen = json.loads(body)
        check_policy(rig, seen["headers"])
        check_cors(response.headers)
        used.append(seen["connection"])
    n_used = 3 if proxy.name == NEVER else 1
    expect(f"three requests went over the upstream connections {used}", len(set(used)) == n_used)
    connection.close()
    n_seen = len(upstream.seen)
    for headers in {"Authorization": f"Bearer {rig.token[:-1]}"}, {"Authorization": rig.token}, {}:
        connection = connect(rig, proxy)
        connection.request("GET", "/bench", headers=headers)
        status = connection.getresponse().status
        connection.close()
        expect(f"{headers or 'no token'} was answered {status} and not 401", status == 401)
    expect("a refused request went upstream", len(upstream.seen) == n_seen)


def check_websocket(rig, proxy, upstream):
    status, _, connection, _ = open_websocket(rig, proxy, "wrong")
    connection.close()
    expect(f"a WebSocket with a wrong token was answered {status} and not 401", status == 401)
    status, headers, connection, reader = open_websocket(rig, proxy, rig.token)
    with connection, reader:
        expect(f"a WebSocket was answered {status}", status == 101)
        check_cors(headers)
        check_policy(rig, upstream.seen[-1]["headers"])
        if proxy.tls:
            suite = (connection.version(), connection.cipher()[0])
            expect(f"it speaks {suite} and not {SUITE}", suite == SUITE)
        for n in range(3):
            sent = f"{n}".encode() * 120
            mask = os.urandom(4)
            masked = bytes(byte ^ mask[idx % 4] for idx, byte in enumerate(sent))
            connection.sendall(bytes([0x81, 0x80 | len(sent)]) + mask + masked)
            while True:
                first, payload = read_frame(reader)
                if first == 0x81:
                    break
            expect("a message did not come back as it was", payload == sent)
        connection.sendall(bytes([0x88, 0x82, 0, 0, 0, 0]) + struct.pack(">H", 1000))


def open_websocket(rig, proxy, token):
    connection = socket.create_connection(("127.0.0.1", proxy.port), timeout=SECONDS)
    if proxy.tls:
        connection = context(rig).wrap_socket(connection, server_hostname="127.0.0.1")
    key = base64.b64encode(os.urandom(16)).decode()
    connection.sendall(f"GET /sign_in HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
    reader = connection.makefile("rb")
    head = read_head(reader)
    expect("a WebSocket was not answered", head)
    status = int(head[0].split()[1])
    accept = base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()
    expect("the 101 has another Sec-WebSocket-Accept", status != 101 or head[1].get("sec-websocket-accept") == accept)
    return status, head[1], connection, reader
