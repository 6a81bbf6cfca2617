/**
 * What the page's client does when connections break, in a world of the test's own: its time stands still until it is told
 * to go on, and each WebSocket does what the test says. `tests/it/client.rs` runs it.
 */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

const source = readFileSync(new URL("../../web/streamgate-client.js", import.meta.url));
const { StreamgateClient } = await import(`data:text/javascript;base64,${source.toString("base64")}`);

const real = { setTimeout, clearTimeout, performance, fetch };

/** The world of one client: clock, network, page. */
class World {
  now = 0;
  timers = new Map();
  sockets = [];
  listeners = new Map();
  stored = new Map();
  states = [];
  notes = [];
  peers = [];
  /** What happens to a connection that is dialled; by default it hangs. */
  onDial = () => {};
  #nextTimer = 1;

  constructor(t) {
    const world = this;
    t.after(() => Object.assign(globalThis, real));
    Math.random = () => 0.5;
    globalThis.location = { href: "http://gateway.example/" };
    globalThis.performance = { now: () => world.now };
    globalThis.setTimeout = (task, after = 0) => {
      world.timers.set(world.#nextTimer, { at: world.now + after, task });
      return world.#nextTimer++;
    };
    globalThis.clearTimeout = (id) => world.timers.delete(id);
    globalThis.addEventListener = (type, listener, { signal } = {}) => {
      const all = world.listeners.get(type) ?? new Set();
      world.listeners.set(type, all.add(listener));
      signal?.addEventListener("abort", () => all.delete(listener));
    };
    globalThis.sessionStorage = {
      getItem: (key) => world.stored.get(key) ?? null,
      setItem: (key, value) => world.stored.set(key, value),
      removeItem: (key) => world.stored.delete(key),
    };
    globalThis.CustomEvent ??= class extends Event {
      constructor(type, { detail }) {
        super(type);
        this.detail = detail;
      }
    };
    globalThis.WebSocket = class extends Socket {
      constructor(url, offers) {
        super(world, url, offers);
      }
    };
    globalThis.RTCPeerConnection = class extends Peer {
      constructor() {
        super(world);
      }
    };
  }

  client(options) {
    const client = new StreamgateClient(options);
    client.addEventListener("state", ({ detail }) => this.states.push([detail.state, detail.problem?.code]));
    client.addEventListener("note", ({ detail }) => this.notes.push(detail));
    client.connect();
    return client;
  }

  get socket() {
    return this.sockets.at(-1);
  }

  /** Tells the page something. */
  emit(type, event = {}) {
    for (const listener of [...(this.listeners.get(type) ?? [])]) listener(event);
  }

  /** Lets time pass, and what is due in it happen in its order. */
  async pass(ms) {
    const end = this.now + ms;
    for (;;) {
      await new Promise(setImmediate);
      const due = [...this.timers].filter(([, it]) => it.at <= end).sort(([a, x], [b, y]) => x.at - y.at || a - b)[0];
      if (!due) break;
      this.timers.delete(due[0]);
      this.now = Math.max(this.now, due[1].at);
      due[1].task();
    }
    this.now = end;
  }
}

class Socket {
  static CONNECTING = 0;
  static OPEN = 1;
  static CLOSING = 2;
  static CLOSED = 3;
  readyState = 0;
  said = [];

  constructor(world, url, offers) {
    Object.assign(this, { world, url: String(url), offers });
    world.sockets.push(this);
    setTimeout(() => this.readyState === 0 && world.onDial(this), 1);
  }

  /** The token that names the session. */
  get token() {
    return this.offers.find((it) => it.startsWith("streamgate-resume."));
  }

  open() {
    this.readyState = 1;
    this.onopen?.();
    return this;
  }

  hear(message) {
    return this.hearRaw(JSON.stringify(message));
  }

  hearRaw(data) {
    this.onmessage?.({ data });
    return this;
  }

  hello(session = "s", resumed = false) {
    return this.hear({ type: "hello", v: 1, session, heartbeatMs: 3000, resumed });
  }

  /** Pings as the function does, as long as it is there. */
  beat() {
    setTimeout(() => {
      if (this.readyState !== 1) return;
      this.hear({ type: "ping", t: this.world.now });
      this.beat();
    }, 3000);
    return this;
  }

  end(code = 1006, reason = "") {
    this.readyState = 3;
    this.onclose?.({ code, reason });
  }

  send(text) {
    assert.equal(this.readyState, 1, "it can only be said over an open connection");
    this.said.push(JSON.parse(text));
  }

  close(code) {
    this.closed = code ?? "given up";
    this.readyState = 3;
  }
}

/** A media path; like a browser's, it takes an offer only when it is done with the one before. */
class Peer {
  connectionState = "new";
  signalingState = "stable";
  taken = [];

  constructor(world) {
    world.peers.push(this);
  }

  async setRemoteDescription(it) {
    await null;
    if (it.sdp === "nonsense") throw new Error("it cannot be read");
    this.remoteDescription = it;
    this.signalingState = "have-remote-offer";
    this.taken.push(it.sdp);
  }

  async setLocalDescription(it) {
    await null;
    assert.equal(this.signalingState, "have-remote-offer", "there is an offer to answer");
    this.localDescription = it;
    this.signalingState = "stable";
  }

  async createAnswer() {
    await null;
    return { type: "answer", sdp: `to ${this.remoteDescription.sdp}` };
  }

  async addIceCandidate(it) {
    assert.equal(this.signalingState, "stable", "a candidate waits for its offer");
    this.taken.push(it.candidate);
  }

  become(state) {
    this.connectionState = state;
    this.onconnectionstatechange();
  }

  find(name) {
    this.onicecandidate({ candidate: { toJSON: () => ({ candidate: name }) } });
  }

  close() {}
}

const kinds = (socket) => socket.said.map((it) => it.candidate?.candidate ?? it.type);

/** A client whose media flows. */
async function streaming(world, options) {
  world.onDial = (it) => it.open().hello().hear({ type: "offer", seq: 1, sdp: "v=0" }).beat();
  const client = world.client(options);
  await world.pass(10);
  world.peers[0].become("connected");
  assert.equal(client.state, "streaming");
  world.onDial = () => {};
  return client;
}

test("a gateway whose connections never last is left in peace and given up in time", async (t) => {
  const world = new World(t);
  world.onDial = (it) => {
    it.open().hello(`s${world.sockets.length}`);
    setTimeout(() => it.end(), 2);
  };
  const client = world.client({ resumeWithin: 60000 });
  await world.pass(59000);
  assert.equal(client.state, "resuming");
  const n = world.sockets.length;
  assert.ok(n > 10 && n < 20, `${n} connections in a minute`);
  await world.pass(2000);
  assert.deepEqual(world.states.at(-1), ["failed", "lost"]);
  await world.pass(60000);
  assert.ok(world.sockets.length <= n + 1);
  assert.equal(world.timers.size, 0);
});

test("a connection that has lasted makes good for those that broke before it", async (t) => {
  const world = new World(t);
  const client = await streaming(world, { resumeWithin: 20000 });
  for (let round = 0; round < 5; round += 1) {
    world.socket.end();
    await world.pass(5000); // nobody is there
    world.onDial = (it) => it.open().beat();
    client.retry();
    await world.pass(10000);
    assert.equal(client.state, "streaming", `round ${round}`);
    world.onDial = (it) => it.end();
  }
  const n = world.sockets.length;
  world.socket.end();
  await world.pass(2);
  assert.equal(world.sockets.length, n + 1, "it comes back at once");
});

test("a try that hangs is left, and the last one ends with the time", async (t) => {
  const world = new World(t);
  const client = await streaming(world, { resumeWithin: 30000 });
  const n = world.sockets.length;
  world.socket.end();
  await world.pass(11000);
  assert.equal(world.sockets.length, n + 2);
  assert.equal(world.sockets[n].closed, "given up", "it must not open later and push the next one aside");
  assert.equal(world.socket.closed, undefined);
  await world.pass(18000);
  assert.equal(client.state, "resuming");
  await world.pass(2000);
  assert.deepEqual(world.states.at(-1), ["failed", "lost"]);
});

test("a network that is there again is not kept waiting by a try that hangs", async (t) => {
  const world = new World(t);
  const client = await streaming(world);
  for (const again of [() => client.retry(), () => world.emit("online")]) {
    world.onDial = () => {};
    world.socket.end();
    await world.pass(4000);
    const hangs = world.socket;
    assert.equal(hangs.readyState, WebSocket.CONNECTING);
    world.onDial = (it) => it.open().beat();
    again();
    assert.equal(hangs.closed, "given up");
    await world.pass(1);
    again(); // it is back: nothing to do
    await world.pass(9000);
    assert.equal(client.state, "streaming");
  }
  assert.equal(world.sockets.length, 5);
  client.end();
  world.emit("online");
  assert.equal(world.sockets.length, 5);
});

test("a place that the lost connection still holds is waited for", async (t) => {
  const world = new World(t);
  const refuse = (it) => it.open().end(3005, "session.taken: Another browser is attached to this session.");
  const client = await streaming(world, { resumeWithin: 60000 });
  world.onDial = refuse;
  world.socket.end();
  await world.pass(30000);
  assert.equal(client.state, "resuming");
  assert.ok(!world.notes.some((it) => it.startsWith("Back after")), "a refusal is not taken for being back");
  world.onDial = (it) => it.open().beat();
  await world.pass(6000);
  assert.equal(client.state, "streaming");

  await world.pass(10000);
  world.onDial = refuse;
  world.socket.end();
  await world.pass(61000);
  assert.deepEqual(world.states.at(-1), ["failed", "session.taken"], "in the end it is said why");

  const other = new World(t);
  other.onDial = refuse;
  other.client();
  await other.pass(10);
  assert.deepEqual(other.states.at(-1), ["failed", "session.taken"], "one that never was in the session is told at once");
});

test("what is said while the connection is away keeps its order", async (t) => {
  const world = new World(t);
  const client = await streaming(world);
  const [peer] = world.peers;
  peer.find("zero");
  assert.deepEqual(kinds(world.socket), ["answer", "zero"]);
  world.socket.end();
  peer.find("one");
  await world.pass(10);
  world.socket.open();
  peer.find("two");
  await world.pass(1000);
  assert.equal(client.state, "streaming", "an open connection counts as one");
  peer.find("three");
  assert.deepEqual(kinds(world.socket), []);
  world.socket.hear({ type: "ping", t: 1 });
  peer.find("four");
  assert.deepEqual(kinds(world.socket), ["one", "two", "three", "pong", "four"]);

  world.socket.end();
  peer.find("five");
  await world.pass(1000);
  world.socket.open();
  peer.find("six");
  world.socket.hello("another");
  peer.find("seven");
  assert.deepEqual(kinds(world.socket), ["seven"], "a function that begins anew hears nothing of before");
});

test("media has its time while there is somebody to negotiate with", async (t) => {
  const world = new World(t);
  world.onDial = (it) => it.open().hello().hear({ type: "offer", seq: 1, sdp: "v=0" }).beat();
  const client = world.client();
  await world.pass(10000);
  assert.equal(client.state, "negotiating");
  world.onDial = () => {};
  world.socket.end();
  await world.pass(20000);
  assert.equal(client.state, "resuming", "no media path is no reason to give up meanwhile");
  world.socket.open().hello("s", true).beat();
  assert.deepEqual(kinds(world.socket), ["restart"]);
  await world.pass(14000);
  assert.equal(client.state, "negotiating");
  await world.pass(1000);
  assert.deepEqual(world.states.at(-1), ["failed", "no_media_path"]);
});

test("a media path that broke meanwhile has its time to be mended", async (t) => {
  const world = new World(t);
  const client = await streaming(world);
  world.socket.end();
  world.peers[0].become("disconnected");
  await world.pass(1000);
  world.socket.open().hear({ type: "ping", t: 1 }).beat();
  assert.equal(client.state, "negotiating");
  assert.deepEqual(kinds(world.socket), ["restart", "pong"], "an offer may have been lost with the connection");
  world.peers[0].become("failed");
  assert.equal(client.state, "negotiating", "the function is about to offer another way");
  await world.pass(14000);
  world.peers[0].become("connected");
  await world.pass(14000);
  assert.equal(client.state, "streaming");
});

test("a computer that wakes has its picture back before anybody knows what broke", async (t) => {
  const world = new World(t);
  const client = await streaming(world);
  const [peer] = world.peers;
  peer.become("disconnected");
  peer.become("failed");
  assert.equal(client.state, "negotiating");
  assert.deepEqual(kinds(world.socket).at(-1), "restart");
  await world.pass(1000);
  peer.become("connected");
  assert.equal(client.state, "streaming");

  peer.become("failed");
  await world.pass(100);
  world.socket.end(); // only now it is told that the connection broke as well
  assert.equal(client.state, "resuming");
  await world.pass(20000);
  world.socket.open().hello("s", true).beat();
  assert.deepEqual(kinds(world.socket), ["restart"]);
  peer.become("connected");
  await world.pass(20000);
  assert.equal(client.state, "streaming");

  peer.become("failed");
  await world.pass(14000);
  assert.equal(client.state, "negotiating");
  await world.pass(1000);
  assert.deepEqual(world.states.at(-1), ["failed", "media_lost"], "nobody has offered another way in time");
});

test("a page that is loaded again comes back, and a copy of it does not", async (t) => {
  const world = new World(t);
  await streaming(world);
  const first = world.socket;
  const load = async () => {
    world.emit("pagehide");
    world.listeners.clear();
    world.client();
    await world.pass(1);
    return world.socket;
  };
  assert.equal(first.url, "ws://gateway.example/sign_in");
  const second = await load();
  assert.equal(second.token, first.token);
  assert.equal(second.url, "ws://gateway.example/sign_in?reconnect=1");
  second.open().hello("s", true);
  assert.deepEqual(kinds(second), ["anew"]);
  const third = await load();
  assert.deepEqual([third.token, new URL(third.url).search], [first.token, "?reconnect=2"]);
  assert.equal(world.stored.size, 0, "the copy of a tab finds nothing");
  world.client();
  await world.pass(1);
  assert.notEqual(world.socket.token, first.token);
});

test("a session that was ended on purpose is not come back into", async (t) => {
  const world = new World(t);
  const client = await streaming(world);
  const first = world.socket;
  client.end();
  assert.deepEqual(kinds(first).at(-1), "bye");
  assert.equal(first.closed, 1000);
  world.emit("pagehide");
  world.client();
  await world.pass(1);
  assert.notEqual(world.socket.token, first.token);
  assert.equal(world.socket.url, "ws://gateway.example/sign_in");
});

test("a page that was loaded again waits for the place that it had", async (t) => {
  const world = new World(t);
  await streaming(world);
  world.emit("pagehide");
  world.listeners.clear();
  const { token } = world.socket;
  world.onDial = (it) => it.open().end(3005, "session.taken: Another browser is attached to this session.");
  const client = world.client();
  await world.pass(20000);
  assert.equal(client.state, "resuming");
  world.onDial = (it) => it.open().hello("s", true);
  await world.pass(6000);
  assert.equal(client.state, "negotiating");
  assert.equal(world.socket.token, token);
  assert.deepEqual(kinds(world.socket), ["anew"]);
});

test("offers that come close together are answered one after the other", async (t) => {
  const world = new World(t);
  const client = world.client();
  const candidate = (name) => ({ type: "candidate", candidate: { candidate: name } });
  world.socket.open().hello();
  world.socket.hear({ type: "offer", seq: 1, sdp: "first" }).hear(candidate("a"));
  world.socket.hear({ type: "offer", seq: 2, sdp: "second" }).hear(candidate("b"));
  await world.pass(100);
  assert.equal(client.state, "negotiating");
  assert.deepEqual(world.peers[0].taken, ["first", "a", "second", "b"]);
  const answers = world.socket.said.filter((it) => it.type === "answer").map((it) => [it.seq, it.sdp]);
  assert.deepEqual(answers, [[2, "to second"]]);
});

test("an offer that cannot be used is not taken for a firewall", async (t) => {
  const world = new World(t);
  world.client();
  world.socket.open().hello().hear({ type: "offer", seq: 1, sdp: "nonsense" });
  await world.pass(10);
  assert.deepEqual(world.states.at(-1), ["failed", "bad_offer"]);
});

test("a function that speaks something else is told at once", async (t) => {
  for (const data of ["hello there", new Blob(["\u0001"]), "null", JSON.stringify({ ackid: 1 }), JSON.stringify({ type: "offer", sdp: "v=0" })]) {
    const world = new World(t);
    world.client();
    world.socket.open().hearRaw(data);
    await world.pass(1);
    assert.deepEqual(world.states.at(-1), ["failed", "foreign_function"], String(data));
    assert.equal(world.socket.closed, 1000);
  }
});

test("a function that says nothing is not taken for a broken network", async (t) => {
  const world = new World(t);
  world.onDial = (it) => it.open();
  const client = world.client();
  await world.pass(15000);
  assert.equal(client.state, "waiting", "it is asked once more, for it may have been the network");
  await world.pass(10000);
  assert.deepEqual(world.states.at(-1), ["failed", "foreign_function"]);
  assert.equal(world.sockets.length, 2);
  assert.equal(world.timers.size, 0);
});

test("a session that is ended while its connection is away holds no place", async (t) => {
  const world = new World(t);
  const asked = [];
  globalThis.fetch = async (url, { method, headers, credentials }) => {
    asked.push([method, String(url), headers, credentials]);
    if (asked.length < 3) throw new TypeError("there is no network");
  };
  const client = await streaming(world, { token: "hello" });
  const left = world.socket;
  client.cut();
  await world.pass(100);
  assert.equal(left.readyState, WebSocket.OPEN);
  const dialled = world.socket;
  client.end();
  assert.deepEqual([kinds(left).at(-1), left.closed], ["bye", 1000]);
  assert.equal(dialled.closed, 1000);
  await world.pass(20000);
  const token = left.token.split(".")[1];
  const wanted = ["DELETE", `http://gateway.example/sign_in?streamgate-resume=${token}`, { authorization: "Bearer hello" }, "omit"];
  assert.deepEqual(asked, [wanted, wanted, wanted], "until the gateway answers");
  assert.equal(world.timers.size, 0);
  assert.deepEqual(world.states.at(-1), ["ended", undefined]);
});
