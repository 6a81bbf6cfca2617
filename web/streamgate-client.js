/**
 * The browser's side of a streaming session: signalling through the gateway, media straight from the function.
 *
 * ```js
 * import { StreamgateClient } from "/streamgate-client.js";
 *
 * const client = new StreamgateClient({ token: "…" });
 * client.addEventListener("stream", (event) => { video.srcObject = event.detail; });
 * client.addEventListener("state", (event) => console.log(event.detail.state, event.detail.problem));
 * client.connect();
 * ```
 *
 * Events, all of them CustomEvents:
 *
 * - `state`: `detail.state` is one of `connecting`, `waiting`, `negotiating`, `streaming`, `resuming`, `ended`, `failed`;
 *   `detail.problem` says in plain words what is wrong when something is: `{ code, title, text, step }`.
 *   `resuming`: the connection to the gateway is lost, and the client comes back by itself; media may go on meanwhile.
 * - `stream`: `detail` is the MediaStream.
 * - `input`: `detail` is what the function said over the input channel.
 * - `input-open`: the input channel can be used.
 * - `note`: `detail` is a sentence about what happens.
 *
 * @module
 */

/** The subprotocol that the signalling speaks. */
const PROTOCOL = "streamgate.v1";

/** Offered so that the gateway tells a refusal by a Close frame: a script cannot read the status of a failed WebSocket. */
const CLOSE_ON_REFUSAL = "streamgate.close-on-refusal";

/** The characters that an entry of `Sec-WebSocket-Protocol` can have (RFC 9110, section 5.6.2). */
const TOKEN = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;

/** How long the media path may take once the function has made its offer, in milliseconds. */
const MEDIA_WITHIN = 15000;

/** How long a gateway may take to show that it is there, in milliseconds. */
const ANSWER_WITHIN = 3000;

/** The pauses between two tries to come back, in milliseconds: the first doubles up to the longest. */
const FIRST_PAUSE = 250;
const LONGEST_PAUSE = 5000;

/**
 * How long a try may take, in milliseconds. A gateway that still holds the session answers at once; one that has to ask
 * for the function again waits 35 s for it. The last try may begin at the end of the time and still has a second.
 */
const FIRST_TRY = 10000;
const LATER_TRY = 40000;
const LAST_TRY = 1000;

/** A refusal comes right after the handshake; a connection that is older is one. In milliseconds. */
const OPEN_FOR_GOOD = 500;

/** A connection on which something is heard after that time was worth it: the next loss begins to count from nothing. */
const STEADY_AFTER = 5000;

/** How many of its heartbeats a function may be silent for before the connection counts as lost. */
const MISSED_HEARTBEATS = 3;

/** What a function may say before its first greeting; anything else is said by one that speaks another protocol. */
const BEFORE_GREETING = ["hello", "ping", "bye"];

/** Codes that may be gone a moment later; while a client comes back they are no reason to give up. */
const PASSING = /^(upstream\.|gateway\.|sessions\.full$|session\.taken$)/;

/**
 * Where a page leaves the name of its session when it is left, for the page that is loaded in its place. It is taken away
 * at once, so that a copy of the tab finds none.
 */
const KEPT = "streamgate";

/** What is wrong, in plain words, by the code that the gateway or the function gives. */
const PROBLEMS = {
  "auth.missing_token": ["No access token", "This gateway asks who you are. Enter the token that you were given.", "gateway"],
  "auth.unknown_token": ["Wrong access token", "The gateway does not know this token. It may be mistyped or no longer valid.", "gateway"],
  "auth.expired_token": ["Access token expired", "The gateway knows this token, but it is not good any more. Enter a new one.", "gateway"],
  "auth.forbidden": ["Not allowed", "The gateway knows you, but you may not open this stream.", "gateway"],
  "function.forbidden": ["Not your function", "You are signed in, but this function is not yours to use.", "function"],
  "function.unknown": ["No such function", "The gateway asks for a function that does not exist. It may have been deleted.", "function"],
  "function.ambiguous": ["Which function?", "This page asked for more than one function at once.", "gateway"],
  "upstream.no_worker": ["No free function", "All instances of the function are busy or not ready yet. Try again in a minute.", "function"],
  "upstream.timeout": ["The function does not answer", "The streaming service took the request but did not answer in time.", "function"],
  "upstream.connect_timeout": ["The streaming service is away", "The gateway works, but it cannot reach the streaming service behind it in time.", "function"],
  "upstream.unreachable": ["The streaming service is away", "The gateway works, but it cannot reach the streaming service behind it.", "function"],
  "upstream.closed": ["The function hung up", "The streaming service closed the connection before it answered.", "function"],
  "upstream.tls": ["The streaming service cannot be trusted", "The gateway could not make a secure connection to the streaming service.", "function"],
  "upstream.key_refused": ["The gateway has no access", "The streaming service refused the gateway's own key. Its operator must look at it.", "function"],
  "session.taken": ["Open somewhere else", "Another window is in this session.", "gateway"],
  "sessions.full": ["The gateway is full", "It serves as many sessions as it can. Try again in a moment.", "gateway"],
  "plugin.failed": ["The gateway has a fault", "One of its policies failed. Its log says which.", "gateway"],
  "origin.refused": ["This page may not connect", "The gateway does not take sessions from pages of this address.", "gateway"],
  "no_media_path": ["No media path", "Signalling works, but no picture can get through: UDP between you and the function is blocked by a firewall, a VPN or a proxy.", "media"],
  "bad_offer": ["The picture could not be agreed on", "Signalling works, but this browser cannot use what the function offers.", "media"],
  "foreign_function": ["Not a function for this page", "It does not speak this page's signalling (streamgate.v1). A function built on NVIDIA's StreamSDK needs NVIDIA's client.", "function"],
  "media_lost": ["The media path was lost", "The picture stopped coming and could not be brought back.", "media"],
  "stopping": ["The function is stopping", "The streaming server is shutting down.", "function"],
  "bad_token": ["The token cannot be sent", "A browser can send a token on a WebSocket only when it has no spaces, slashes, commas or similar characters.", "gateway"],
  "gateway.unreachable": ["The gateway cannot be reached", "Nothing answers there, or the connection broke on the way.", "gateway"],
  "websocket.refused": ["The gateway did not take the connection", "It can be reached, but it refused the WebSocket: the address of this page may not be among those that it takes (listen.origins), or something on the way does not pass WebSockets.", "gateway"],
  "lost": ["The connection was lost", "The network between you and the gateway broke.", "gateway"],
};

/** The same by the code of a Close frame, for refusals without a code, or with one of a plugin, whose own sentence is told then. */
const BY_CLOSE = { 1012: ["gateway.restarting", "The gateway is restarting", "Connect again in a moment.", "gateway"], 1013: ["gateway.busy", "Try again later", "The gateway has no room at the moment.", "gateway"], 3000: ["auth.missing_token", "Not signed in", "This gateway asks who you are.", "gateway"], 3001: ["upstream.refused", "The streaming service refused", "It did not open a session.", "function"], 3003: ["auth.forbidden"], 3004: ["function.unknown"], 3005: ["session.replaced", "Opened somewhere else", "Another window has taken over this session.", "gateway"], 3008: ["upstream.no_worker"], 3010: ["session.terminated", "The session was ended", "Somebody ended it from outside.", "function"] };

/** A text that nobody can guess: it names this page's session to the gateway. */
function secret() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (it) => it.toString(16).padStart(2, "0")).join("");
}

/** What a function says; nothing where it does not speak the protocol. */
function understand(data) {
  try {
    const message = JSON.parse(data);
    return typeof message?.type === "string" ? message : undefined;
  } catch {
    return undefined;
  }
}

/** One streaming session. Call {@link connect} once; make another client for another session. */
export class StreamgateClient extends EventTarget {
  #url;
  #token;
  #functionId;
  #socket;
  #pc;
  #input;
  #state = "idle";
  #candidates = [];
  #seq = 0;
  /** What is negotiated, one after the other: a browser takes an offer only when it is done with the one before. */
  #negotiation = Promise.resolve();
  #deadline;
  #wasOpen = false;
  #hadMedia = false;
  #offers = [];
  #resumeToken = secret();
  #resumeWithin;
  /** How often the page was loaded again since the session began. */
  #nLoads = 0;
  #kept;
  #session;
  /** Since when the connection is gone. */
  #awaySince;
  /** Since when no connection has lasted. */
  #lostAt;
  #nTries = 0;
  #retry;
  #dialling;
  #openedAt;
  #settling;
  /** Whether something has come over the present connection. */
  #isHeard = false;
  #heartbeat = 3000;
  #silence;
  #outbox = [];
  #listeners = new AbortController();
  /** Connections that were left without a Close frame; one that is forgotten would send it. */
  #left = [];

  /**
   * @param {object} options
   * @param {string} [options.url] signalling address; by default `/sign_in` of the page's own gateway
   * @param {string} [options.token] bearer token
   * @param {string} [options.functionId] the function to reach, when it is not the gateway's default
   * @param {number} [options.resumeWithin] how long to try to come back after the connection is lost, in milliseconds
   *
   * A page that is loaded again comes back into its session.
   */
  constructor({ url = new URL("/sign_in", location.href), token = "", functionId = "", resumeWithin = 60000 } = {}) {
    super();
    this.#url = new URL(url, location.href);
    this.#url.protocol = this.#url.protocol.replace("http", "ws");
    this.#url.hash = "";
    this.#token = token;
    this.#functionId = functionId;
    this.#resumeWithin = resumeWithin;
    this.#kept = `${KEPT} ${this.#url} ${functionId}`;
    this.#recall();
    const { signal } = this.#listeners;
    addEventListener("online", () => this.retry(), { signal });
    addEventListener("pagehide", () => this.#remember(), { signal });
    addEventListener("pageshow", ({ persisted }) => persisted && this.#recall(), { signal });
  }

  /** Where the session stands; see the `state` event. */
  get state() {
    return this.#state;
  }

  /** The peer connection, for `getStats()`. */
  get peerConnection() {
    return this.#pc;
  }

  /** Opens the session. */
  connect() {
    const offers = [PROTOCOL, CLOSE_ON_REFUSAL, `streamgate-resume.${this.#resumeToken}`];
    for (const [key, value] of [["authorization-bearer", this.#token], ["function-id", this.#functionId]]) {
      if (!value) continue;
      if (!TOKEN.test(value)) return this.#fail("bad_token");
      offers.push(`${key}.${value}`);
    }
    this.#offers = offers;
    this.#become("connecting");
    this.#dial();
  }

  /** Tries to come back at once, instead of after the next pause or the present try. Nothing happens when the connection
   * is not lost. */
  retry() {
    if (this.#state !== "resuming" || this.#socket?.readyState === WebSocket.OPEN) return;
    clearTimeout(this.#retry);
    this.#leave();
    this.#dial();
  }

  /** Leaves the name of the session to the page that is loaded next. */
  #remember() {
    if (["idle", "ended", "failed"].includes(this.#state)) return;
    try {
      sessionStorage.setItem(this.#kept, JSON.stringify({ resumeToken: this.#resumeToken, nLoads: this.#nLoads }));
    } catch {
      // A page without a storage has its cookie.
    }
  }

  /**
   * Takes the name of the session that the page had before it was loaded again. The number in the query makes it another
   * request than before: one that is the same would be put back into the session without the function's greeting, and this
   * page knows nothing yet.
   */
  #recall() {
    try {
      const kept = JSON.parse(sessionStorage.getItem(this.#kept));
      sessionStorage.removeItem(this.#kept);
      if (!kept || this.#state !== "idle") return;
      this.#resumeToken = kept.resumeToken;
      this.#nLoads = kept.nLoads + 1;
      this.#url.searchParams.set("reconnect", this.#nLoads);
    } catch {
      // There is no storage.
    }
  }

  #dial() {
    const socket = new WebSocket(this.#url, this.#offers);
    this.#socket = socket;
    this.#isHeard = false;
    if (this.#state === "resuming") {
      const within = Math.min(this.#nTries > 1 ? LATER_TRY : FIRST_TRY, this.#timeLeft());
      this.#dialling = setTimeout(() => this.#lose("The gateway does not answer."), Math.max(within, LAST_TRY));
    }
    socket.onopen = () => {
      clearTimeout(this.#dialling);
      this.#wasOpen = true;
      this.#openedAt = performance.now();
      this.#listen();
      if (this.#state === "resuming") {
        this.#settling = setTimeout(() => this.#back(), OPEN_FOR_GOOD);
        return;
      }
      this.#become("waiting");
      this.#note("The gateway has answered.");
    };
    socket.onmessage = (event) => {
      this.#listen();
      this.#hear(understand(event.data));
    };
    socket.onclose = (event) => this.#closed(event);
  }

  /** The connection is there again. */
  #back() {
    clearTimeout(this.#settling);
    if (this.#state !== "resuming") return;
    this.#note(`Back after ${((this.#openedAt - this.#awaySince) / 1000).toFixed(1)} s.`);
    this.#become(this.#pc ? this.#mediaState() : "waiting");
    if (this.#pc && this.#state !== "streaming") this.#awaitMedia();
  }

  #mediaState() {
    return this.#pc?.connectionState === "connected" ? "streaming" : "negotiating";
  }

  /** A function that is not heard for some heartbeats is behind a connection that is dead and does not know it. One that has
   * never greeted, over another connection either, does not speak the protocol. */
  #listen() {
    clearTimeout(this.#silence);
    const isForeign = this.#session === undefined && this.#nTries > 0;
    const give = () => (isForeign ? this.#fail("foreign_function") : this.#lose("Nothing is heard from the gateway."));
    this.#silence = setTimeout(give, MISSED_HEARTBEATS * this.#heartbeat + 1000);
  }

  #lose(why) {
    this.#note(why);
    this.#leave();
    this.#comeBack();
  }

  /** Lets go of a connection without a Close frame, which would end the session; the gateway closes it. One that is not open
   * yet is given up, since it would push the next one aside. */
  #leave() {
    this.#calm();
    const socket = this.#socket;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    this.#left = this.#left.filter((it) => it.readyState < WebSocket.CLOSED);
    if (socket.readyState === WebSocket.CONNECTING) socket.close();
    else this.#left.push(socket);
    this.#socket = undefined;
  }

  /** Stops the timers of a connection. */
  #calm() {
    for (const timer of [this.#silence, this.#dialling, this.#settling]) clearTimeout(timer);
  }

  /** How much is left of the time to come back in. */
  #timeLeft() {
    return (this.#lostAt ?? performance.now()) + this.#resumeWithin - performance.now();
  }

  /** Comes back after a pause; where the time is over, `code` says why it came to nothing. */
  #comeBack(code = "lost", text) {
    if (this.#state === "ended" || this.#state === "failed") return;
    this.#lostAt ??= performance.now();
    const left = this.#timeLeft();
    if (left <= 0) return this.#fail(code, text);
    if (this.#state !== "resuming") {
      this.#awaySince = performance.now();
      this.#note("The connection to the gateway is lost; coming back.");
    }
    this.#stopAwaiting(); // nothing can be negotiated meanwhile
    this.#become("resuming");
    const pause = this.#nTries === 0 ? 0 : Math.min(FIRST_PAUSE * 2 ** this.#nTries, LONGEST_PAUSE) * (0.75 + Math.random() / 2);
    this.#nTries += 1;
    this.#retry = setTimeout(() => this.#dial(), Math.min(pause, left));
  }

  /** Sends a message over the input channel; false while it is not open. */
  send(message) {
    if (this.#input?.readyState !== "open") return false;
    this.#input.send(typeof message === "string" ? message : JSON.stringify(message));
    return true;
  }

  /** Ends the session: the function is told over each connection that is open, one that was left too. While there is none
   * but such, the gateway is asked as well, since it may not know them any more. */
  end() {
    const isAway = this.#state === "resuming" && this.#socket?.readyState !== WebSocket.OPEN;
    for (const socket of [this.#socket, ...this.#left]) {
      if (socket?.readyState !== WebSocket.OPEN) continue;
      socket.send(JSON.stringify({ type: "bye" }));
      socket.close(1000, "ended by the user");
    }
    this.#become("ended");
    if (isAway && !this.#functionId) this.#dismiss();
    this.#release();
  }

  /** Asks the gateway to end the session, until it answers or holds the session no longer. No cookie goes with it: that may
   * be another page's. A plain request cannot name a function, so only a session with the gateway's own is found. */
  async #dismiss() {
    const url = this.#overHttp();
    url.searchParams.set("streamgate-resume", this.#resumeToken);
    const headers = this.#token ? { authorization: `Bearer ${this.#token}` } : {};
    while (this.#timeLeft() > 0) {
      try {
        return await fetch(url, { method: "DELETE", headers, credentials: "omit", keepalive: true });
      } catch {
        await new Promise((resolve) => setTimeout(resolve, LONGEST_PAUSE));
      }
    }
  }

  /** Leaves the connection as if it were lost, to see what happens then. */
  cut() {
    if (this.#socket) this.#lose("The connection was cut by hand.");
  }

  #hear(message) {
    if (!message || (this.#session === undefined && !BEFORE_GREETING.includes(message.type))) return this.#fail("foreign_function");
    if (performance.now() - this.#openedAt >= STEADY_AFTER) [this.#lostAt, this.#nTries] = [undefined, 0];
    if (!this.#isHeard) {
      this.#isHeard = true;
      this.#back();
      const waiting = this.#outbox.splice(0);
      // A greeting begins anew: what was said before belongs to another connection of the function.
      if (message.type !== "hello") {
        waiting.forEach((it) => this.#transmit(it));
        // The offer of another way may have been lost with the connection.
        if (this.#hadMedia && this.#pc.connectionState !== "connected") this.#say({ type: "restart" });
      }
    }
    switch (message.type) {
      case "hello":
        this.#greet(message);
        break;
      case "offer":
        this.#seq = message.seq;
        this.#negotiate(this.#pc ?? this.#open(), (pc) => this.#answer(pc, message));
        break;
      case "candidate":
        if (message.candidate) this.#find(message.candidate);
        break;
      case "ping":
        this.#say({ type: "pong", t: message.t });
        break;
      case "bye":
        this.#fail(message.code, message.reason);
        break;
    }
  }

  /** A function greets each connection that it sees: a new session's, or another one of this session. */
  #greet({ session, resumed, heartbeatMs }) {
    this.#heartbeat = heartbeatMs ?? this.#heartbeat;
    if (this.#session !== session) this.#forget();
    this.#session = session;
    if (resumed && !this.#pc) this.#say({ type: "anew" });
    else if (resumed && this.#pc.connectionState !== "connected") this.#say({ type: "restart" });
    this.#note(resumed ? "The function has kept the session." : "The function has a session for you.");
    this.#become(this.#mediaState());
  }

  /** Does something with a media path once all before it is done, if it is still the present one. */
  #negotiate(pc, step) {
    this.#negotiation = this.#negotiation.then(async () => {
      try {
        if (pc === this.#pc) await step(pc);
      } catch (error) {
        if (pc !== this.#pc) return;
        this.#note(`The session could not be negotiated: ${error.message}`);
        this.#fail("bad_offer");
      }
    });
  }

  async #answer(pc, { sdp, seq }) {
    await pc.setRemoteDescription({ type: "offer", sdp });
    for (const candidate of this.#candidates.splice(0)) await pc.addIceCandidate(candidate);
    await pc.setLocalDescription(await pc.createAnswer());
    if (seq === this.#seq && pc === this.#pc) this.#say({ type: "answer", seq, sdp: pc.localDescription.sdp });
  }

  /** The function can be reached there too; what comes before the first offer waits for it. */
  #find(candidate) {
    if (this.#pc) this.#negotiate(this.#pc, (pc) => pc.addIceCandidate(candidate));
    else this.#candidates.push(candidate);
  }

  #open() {
    const pc = new RTCPeerConnection();
    this.#pc = pc;
    pc.onicecandidate = ({ candidate }) => this.#say({ type: "candidate", candidate: candidate ? candidate.toJSON() : null });
    pc.ontrack = ({ streams, track }) => this.#emit("stream", streams[0] ?? new MediaStream([track]));
    pc.ondatachannel = ({ channel }) => {
      this.#input = channel;
      channel.onopen = () => this.#emit("input-open");
      channel.onmessage = ({ data }) => this.#emit("input", data);
    };
    pc.onconnectionstatechange = () => {
      if (pc !== this.#pc) return;
      if (pc.connectionState === "connected") {
        this.#hadMedia = true;
        this.#stopAwaiting();
        this.#note("Media flows.");
        if (this.#state !== "resuming") this.#become("streaming");
      } else if (pc.connectionState === "disconnected") {
        this.#note("The media path is silent; looking for another way.");
      } else if (pc.connectionState === "failed" && this.#state !== "resuming") {
        this.#mend();
      }
    };
    this.#awaitMedia();
    return pc;
  }

  /** The media path broke, as it does while a computer sleeps: the function is asked for another one, unless one is being
   * looked for already. */
  #mend() {
    if (!this.#hadMedia) return this.#failMedia();
    if (this.#deadline !== undefined) return;
    this.#note("The media path broke; asking for another one.");
    this.#say({ type: "restart" });
    this.#become("negotiating");
    this.#awaitMedia();
  }

  /** Media must flow within its time from now on. */
  #awaitMedia() {
    clearTimeout(this.#deadline);
    this.#deadline = setTimeout(() => this.#failMedia(), MEDIA_WITHIN);
  }

  #stopAwaiting() {
    clearTimeout(this.#deadline);
    this.#deadline = undefined;
  }

  #failMedia() {
    this.#fail(this.#hadMedia ? "media_lost" : "no_media_path");
  }

  #closed(event) {
    this.#calm();
    this.#socket = undefined;
    if (this.#state === "ended" || this.#state === "failed") return;
    const [, code, text] = /^([a-z_]+(?:\.[a-z_]+)?)(?:: (.*))?$/.exec(event.reason) ?? [];
    const isLost = [1005, 1006, 1012, 1013].includes(event.code) && !(code && PROBLEMS[code]);
    if (this.#wasOpen && isLost) return this.#comeBack();
    const comesBack = this.#lostAt !== undefined || (this.#nLoads > 0 && code === "session.taken");
    if (comesBack && PASSING.test(code)) return this.#comeBack(code, text);
    if (code && PROBLEMS[code]) return this.#fail(code, text);
    if (BY_CLOSE[event.code]) {
      const [known, ...own] = BY_CLOSE[event.code];
      const [title, words, step] = own.length ? own : PROBLEMS[known];
      return this.#fail(text ? code : known, text ?? event.reason, [title, text || words, step]);
    }
    if (event.code === 1000) {
      this.#release();
      return this.#become("ended");
    }
    if (event.code !== 1006 && event.code !== 1005) return this.#fail(code ?? `close.${event.code}`, text || event.reason);
    if (this.#wasOpen) return this.#fail("lost");
    this.#isThere().then((isThere) => this.#fail(isThere ? "websocket.refused" : "gateway.unreachable"));
  }

  #overHttp() {
    const url = new URL(this.#url);
    url.protocol = url.protocol.replace("ws", "http");
    return url;
  }

  /** Whether anything answers where a WebSocket failed: a script cannot see why it did, such as a 403 for its origin. */
  #isThere() {
    const asked = fetch(this.#overHttp(), { method: "HEAD", mode: "no-cors", credentials: "omit", cache: "no-store", signal: AbortSignal.timeout(ANSWER_WITHIN) });
    return asked.then(() => true, () => false);
  }

  #fail(code, reason, fallback) {
    if (this.#state === "failed" || this.#state === "ended") return;
    const [title, text, step] = PROBLEMS[code] ?? fallback ?? ["The session ended", reason || "No reason was given.", "function"];
    this.#release();
    this.#become("failed", { code, title, text, step, reason });
  }

  /** Lets go of the media path of a session that is over. */
  #forget() {
    this.#stopAwaiting();
    const pc = this.#pc;
    [this.#pc, this.#input, this.#candidates, this.#hadMedia] = [undefined, undefined, [], false];
    pc?.close();
  }

  #release() {
    clearTimeout(this.#retry);
    this.#calm();
    this.#listeners.abort();
    this.#forget();
    if (this.#socket) this.#socket.onmessage = null;
    for (const socket of [this.#socket, ...this.#left]) {
      if (socket?.readyState <= WebSocket.OPEN) socket.close(1000);
    }
  }

  /** What is said before something has come over the present connection waits for that, so that all keeps its order and
   * nothing reaches a function that begins anew. Answers to heartbeats are not worth it. */
  #say(message) {
    if (this.#isHeard && this.#socket?.readyState === WebSocket.OPEN) this.#transmit(message);
    else if (message.type !== "pong") this.#outbox.push(message);
  }

  #transmit(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  #become(state, problem) {
    if (state === this.#state) return;
    this.#state = state;
    this.#emit("state", { state, problem });
  }

  #note(text) {
    this.#emit("note", text);
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
