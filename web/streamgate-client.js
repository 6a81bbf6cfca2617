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
 * - `state`: `detail.state` is one of `connecting`, `waiting`, `negotiating`, `streaming`, `ended`, `failed`;
 *   `detail.problem` says in plain words what is wrong when something is: `{ code, title, text, step }`.
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

/** What is wrong, in plain words, by the code that the gateway or the function gives. */
const PROBLEMS = {
  "auth.missing_token": ["No access token", "This gateway asks who you are. Enter the token that you were given.", "gateway"],
  "auth.unknown_token": ["Wrong access token", "The gateway does not know this token. It may be mistyped or no longer valid.", "gateway"],
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
  "sessions.full": ["The gateway is full", "It serves as many sessions as it can. Try again in a moment.", "gateway"],
  "plugin.failed": ["The gateway has a fault", "One of its policies failed. Its log says which.", "gateway"],
  "origin.refused": ["This page may not connect", "The gateway does not take sessions from pages of this address.", "gateway"],
  "no_media_path": ["No media path", "Signalling works, but no picture can get through: UDP between you and the function is blocked by a firewall, a VPN or a proxy.", "media"],
  "media_lost": ["The media path was lost", "The picture stopped coming and could not be brought back.", "media"],
  "stopping": ["The function is stopping", "The streaming server is shutting down.", "function"],
  "bad_token": ["The token cannot be sent", "A browser can send a token on a WebSocket only when it has no spaces, slashes, commas or similar characters.", "gateway"],
  "gateway.unreachable": ["The gateway cannot be reached", "Nothing answers there, or the connection broke on the way.", "gateway"],
  "lost": ["The connection was lost", "The network between you and the gateway broke.", "gateway"],
};

/** The same by the code of a Close frame, for refusals that come without a code of ours. */
const BY_CLOSE = { 1012: ["gateway.restarting", "The gateway is restarting", "Connect again in a moment.", "gateway"], 1013: ["gateway.busy", "Try again later", "The gateway has no room at the moment.", "gateway"], 3000: ["auth.missing_token"], 3001: ["upstream.refused", "The streaming service refused", "It did not open a session.", "function"], 3003: ["auth.forbidden"], 3004: ["function.unknown"], 3005: ["session.replaced", "Opened somewhere else", "Another window has taken over this session.", "gateway"], 3008: ["upstream.no_worker"], 3010: ["session.terminated", "The session was ended", "Somebody ended it from outside.", "function"] };

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
  #deadline;
  #wasOpen = false;

  /**
   * @param {object} options
   * @param {string} [options.url] signalling address; by default `/sign_in` of the page's own gateway
   * @param {string} [options.token] bearer token
   * @param {string} [options.functionId] the function to reach, when it is not the gateway's default
   */
  constructor({ url = new URL("/sign_in", location.href), token = "", functionId = "" } = {}) {
    super();
    this.#url = new URL(url, location.href);
    this.#url.protocol = this.#url.protocol.replace("http", "ws");
    this.#url.hash = "";
    this.#token = token;
    this.#functionId = functionId;
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
    const offers = [PROTOCOL, CLOSE_ON_REFUSAL];
    for (const [key, value] of [["authorization-bearer", this.#token], ["function-id", this.#functionId]]) {
      if (!value) continue;
      if (!TOKEN.test(value)) return this.#fail("bad_token");
      offers.push(`${key}.${value}`);
    }
    this.#become("connecting");
    const socket = new WebSocket(this.#url, offers);
    this.#socket = socket;
    socket.onopen = () => {
      this.#wasOpen = true;
      this.#become("waiting");
      this.#note("The gateway has answered.");
    };
    socket.onmessage = (event) => {
      this.#hear(JSON.parse(event.data)).catch((error) => {
        this.#note(`The session could not be negotiated: ${error.message}`);
        this.#fail("no_media_path");
      });
    };
    socket.onclose = (event) => this.#closed(event);
  }

  /** Sends a message over the input channel; false while it is not open. */
  send(message) {
    if (this.#input?.readyState !== "open") return false;
    this.#input.send(typeof message === "string" ? message : JSON.stringify(message));
    return true;
  }

  /** Ends the session: the function is told. */
  end() {
    this.#say({ type: "bye" });
    this.#become("ended");
    this.#socket?.close(1000, "ended by the user");
    this.#release();
  }

  /** Closes the connection from this side, to see what a lost one does. A script cannot break it off. */
  cut() {
    this.#note("The connection was cut by hand.");
    this.#socket?.close(4900, "cut by hand");
    this.#fail("lost");
  }

  async #hear(message) {
    switch (message.type) {
      case "hello":
        this.#note("The function has a session for you.");
        this.#become("negotiating");
        break;
      case "offer":
        await this.#answer(message);
        break;
      case "candidate":
        await this.#candidate(message.candidate);
        break;
      case "ping":
        this.#say({ type: "pong", t: message.t });
        break;
      case "bye":
        this.#fail(message.code, message.reason);
        break;
    }
  }

  async #answer({ sdp, seq }) {
    const pc = this.#pc ?? this.#open();
    this.#seq = seq;
    await pc.setRemoteDescription({ type: "offer", sdp });
    for (const candidate of this.#candidates.splice(0)) await pc.addIceCandidate(candidate);
    await pc.setLocalDescription(await pc.createAnswer());
    if (seq === this.#seq) this.#say({ type: "answer", seq, sdp: pc.localDescription.sdp });
  }

  async #candidate(candidate) {
    if (!candidate) return;
    if (this.#pc?.remoteDescription) await this.#pc.addIceCandidate(candidate);
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
        clearTimeout(this.#deadline);
        this.#note("Media flows.");
        this.#become("streaming");
      } else if (pc.connectionState === "disconnected") {
        this.#note("The media path is silent; looking for another way.");
      } else if (pc.connectionState === "failed") {
        this.#fail(this.#state === "streaming" ? "media_lost" : "no_media_path");
      }
    };
    this.#deadline = setTimeout(() => this.#fail("no_media_path"), MEDIA_WITHIN);
    return pc;
  }

  #closed(event) {
    if (this.#state === "ended" || this.#state === "failed") return;
    const [, code, text] = /^([a-z_]+(?:\.[a-z_]+)?)(?:: (.*))?$/.exec(event.reason) ?? [];
    if (code && PROBLEMS[code]) return this.#fail(code, text);
    if (BY_CLOSE[event.code]) return this.#fail(BY_CLOSE[event.code][0], text ?? event.reason, BY_CLOSE[event.code]);
    if (event.code === 1000) {
      this.#release();
      return this.#become("ended");
    }
    if (event.code !== 1006 && event.code !== 1005) return this.#fail(code ?? `close.${event.code}`, text || event.reason);
    this.#fail(this.#wasOpen ? "lost" : "gateway.unreachable");
  }

  #fail(code, reason, fallback) {
    if (this.#state === "failed" || this.#state === "ended") return;
    const [title, text, step] = PROBLEMS[code] ?? fallback?.slice(1) ?? ["The session ended", reason || "No reason was given.", "function"];
    this.#release();
    this.#become("failed", { code, title, text, step, reason });
  }

  #release() {
    clearTimeout(this.#deadline);
    const [pc, socket] = [this.#pc, this.#socket];
    this.#pc = undefined;
    this.#input = undefined;
    if (socket) socket.onmessage = null;
    if (socket && socket.readyState <= WebSocket.OPEN) socket.close(1000);
    pc?.close();
  }

  #say(message) {
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
