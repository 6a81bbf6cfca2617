/** The page around a streaming session: what is seen, measured and pressed. */

import { StreamgateClient } from "/streamgate-client.js";

const $ = (id) => document.getElementById(id);
const STATES = { idle: "Not connected", connecting: "Connecting", waiting: "Waiting for the function", negotiating: "Finding a media path", streaming: "Streaming", resuming: "Coming back", ended: "Ended", failed: "Not connected" };
const COVERS = { connecting: "Connecting to the gateway …", waiting: "The gateway is asking for the function …", negotiating: "The function is here. Finding a way for the picture …" };
const HELD = "The connection was lost then: if the gateway cannot be told, your place stays taken for up to a minute.";
const STEPS = ["gateway", "function", "media", "picture"];
const HISTORY = 40;

let client;
let token = new URLSearchParams(location.hash.slice(1)).get("token") ?? "";
let step = 0;
let measuring;
let last;
let sequence = 0;
/** Whether the browser does not play without a click. */
let isRefused = false;
/** What is held down over the picture: a pointer's button by the pointer, a key by its code. */
const pointers = new Map();
const keys = new Map();
const lines = { rtt: [], fps: [], bitrate: [] };

function log(text, tone = "") {
  const item = document.createElement("li");
  const time = document.createElement("time");
  const what = document.createElement("span");
  time.textContent = new Date().toLocaleTimeString([], { hour12: false });
  what.textContent = text;
  what.className = tone;
  item.append(time, what);
  const list = $("log");
  list.append(item);
  while (list.children.length > 200) list.firstChild.remove();
  list.scrollTop = list.scrollHeight;
}

function showPath(wrong) {
  for (const item of $("path").children) {
    const idx = STEPS.indexOf(item.dataset.step);
    const failed = wrong && item.dataset.step === wrong;
    const isAway = client?.state === "resuming" && idx === 0;
    item.dataset.is = failed ? "wrong" : isAway ? "now" : idx < step ? "done" : idx === step && !wrong && client ? "now" : "";
  }
}

function cover({ title, text = "", busy = false, form = false, again = false, start = false } = {}) {
  $("cover").hidden = !title;
  $("cover-title").textContent = title ?? "";
  $("cover-text").textContent = text;
  $("spinner").hidden = !busy;
  $("access").hidden = !form;
  $("again").hidden = !again;
  $("play").hidden = !start;
}

function connect() {
  client = new StreamgateClient({ token });
  [step, isRefused] = [0, false];
  for (const held of [pointers, keys]) held.clear();
  client.addEventListener("state", ({ detail }) => change(detail));
  client.addEventListener("note", ({ detail }) => log(detail));
  client.addEventListener("stream", ({ detail }) => {
    $("video").srcObject = detail;
    play();
  });
  client.addEventListener("input-open", () => log("The input channel is open.", "good"));
  client.addEventListener("input", ({ detail }) => echoed(detail));
  client.connect();
}

/** Plays what has come. A play that another one replaces, or the end, is no news. */
function play() {
  isRefused = false;
  $("video").play().catch((error) => {
    if (error.name === "AbortError") return;
    isRefused = error.name === "NotAllowedError";
    log(isRefused ? "The browser waits for a click before it plays." : `The picture cannot be played: ${error.message}`);
    showPicture();
  });
}

function change({ state, problem }) {
  $("state").dataset.state = state;
  $("state").textContent = problem?.title ?? STATES[state];
  $("end").disabled = !["waiting", "negotiating", "streaming", "resuming"].includes(state);
  $("cut").disabled = $("end").disabled || state === "resuming";
  const wasAway = $("stage").dataset.away === "yes";
  $("stage").dataset.away = state === "resuming" ? "yes" : "";
  if (state === "resuming") return showPath();
  if (state === "streaming" && step >= 3) { // the picture was never gone
    showPath();
    return showPicture();
  }
  step = { connecting: 0, waiting: 1, negotiating: 2, streaming: 3, ended: 0 }[state] ?? STEPS.indexOf(problem.step);
  if (COVERS[state]) cover({ title: COVERS[state], busy: true });
  if (state === "streaming") {
    log("The session is up; waiting for the first picture.", "good");
    measure();
  }
  if (state === "ended" || state === "failed") {
    clearInterval(measuring);
    $("video").srcObject = null;
    for (const id of ["rtt", "fps", "bitrate", "echo-time"]) $(id).textContent = "–";
  }
  if (state === "ended") {
    log("The session has ended.");
    cover({ title: "The session has ended", text: wasAway ? HELD : "Nothing runs any more.", again: true });
  }
  if (state === "failed") {
    const asks = problem.code?.startsWith("auth.") || problem.code === "bad_token";
    log(`${problem.title}. ${problem.text}`, "bad");
    cover({ title: problem.title, text: problem.text, form: asks, again: !asks });
    if (asks) $("token").focus();
  }
  showPath(problem?.step);
  showPicture();
}

/** The first picture takes the cover away; what came before was only a promise. It may come before the news that the
 * media path is there, so both ask. */
function showPicture() {
  const video = $("video");
  const plays = video.srcObject && !video.paused && video.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA;
  if (client?.state !== "streaming" || step === 4) return;
  if (!plays && isRefused) {
    cover({ title: "Ready to play", text: "Your browser starts a picture only when you ask for it.", start: true });
    $("play").focus({ preventScroll: true });
  }
  if (!plays) return;
  step = 4;
  showPath();
  cover();
  log(`The picture is here: ${video.videoWidth} × ${video.videoHeight}.`, "good");
}
$("video").addEventListener("playing", showPicture);

function measure() {
  clearInterval(measuring);
  last = undefined;
  measuring = setInterval(async () => {
    const pc = client?.peerConnection;
    if (!pc) return;
    const report = await pc.getStats();
    let video;
    let pair;
    for (const it of report.values()) {
      if (it.type === "inbound-rtp" && it.kind === "video") video = it;
      if (it.type === "candidate-pair" && it.nominated && it.state === "succeeded") pair = it;
    }
    if (pair?.currentRoundTripTime !== undefined) show("rtt", pair.currentRoundTripTime * 1000, 0);
    if (video && last && video.timestamp > last.timestamp) {
      const seconds = (video.timestamp - last.timestamp) / 1000;
      show("fps", (video.framesDecoded - last.framesDecoded) / seconds, 0);
      show("bitrate", ((video.bytesReceived - last.bytesReceived) * 8) / seconds / 1000, 0);
    }
    if (video) {
      last = video;
      $("video").dataset.framesDecoded = video.framesDecoded;
    }
  }, 1000);
}

function show(name, value, digits) {
  const text = value.toFixed(digits);
  $(name).textContent = Number(text) === 0 && name === "rtt" ? "<1" : text; // browsers measure it in whole milliseconds
  const values = lines[name];
  values.push(value);
  if (values.length > HISTORY) values.shift();
  const most = Math.max(...values) * 1.15 || 1;
  const points = values.map((it, idx) => `${((idx + HISTORY - values.length) / (HISTORY - 1)) * 100},${23 - (it / most) * 22}`);
  $(`${name}-line`).firstElementChild.setAttribute("points", points.join(" "));
}

function send(message) {
  sequence += 1;
  return client?.send({ ...message, n: sequence, t: performance.now() });
}

function echoed(text) {
  let message;
  try {
    message = JSON.parse(text);
  } catch {
    return log(`The function says: ${text}`);
  }
  $("echo-time").textContent = (performance.now() - message.t).toFixed(1);
  $("echo-last").textContent = `${message.type}${message.key ? ` ${message.key}` : ""} came back as number ${message.n}`;
  $("stage").dataset.echoed = message.n;
  if (message.x !== undefined) {
    const dot = $("echo");
    dot.style.left = `${message.x * 100}%`;
    dot.style.top = `${message.y * 100}%`;
    dot.classList.toggle("pressed", message.type === "down");
    dot.classList.add("seen");
    clearTimeout(dot.fading);
    dot.fading = setTimeout(() => dot.classList.remove("seen"), 600);
  }
}

/** Where a pointer is, as parts of the picture; one that was let go outside is at its edge. */
function at({ clientX, clientY }) {
  const box = $("stage").getBoundingClientRect();
  const [x, y] = [(clientX - box.left) / box.width, (clientY - box.top) / box.height];
  return { x: Math.min(Math.max(x, 0), 1), y: Math.min(Math.max(y, 0), 1) };
}

/** What goes down comes up, wherever that happens: under a cover, outside, or never as far as this page can see. */
function release(event) {
  const held = pointers.get(event.pointerId);
  if (!pointers.delete(event.pointerId)) return;
  send({ type: "up", ...held, ...(event.type === "pointerup" && { ...at(event), button: event.button }) });
}

function releaseKeys() {
  for (const key of keys.values()) send({ type: "key-up", ...key });
  keys.clear();
}

/** Keys that are the browser's, also over the picture: to leave it, to reload, to search. AltGr is Ctrl and Alt on Windows. */
function isBrowsers(event) {
  if (["Tab", "Escape"].includes(event.key) || /^F\d+$/.test(event.key)) return true;
  return (event.ctrlKey || event.metaKey) && !["Control", "Meta"].includes(event.key) && !event.getModifierState("AltGraph");
}

$("stage").addEventListener("pointermove", (event) => {
  if (!$("cover").hidden) return;
  if (pointers.has(event.pointerId)) Object.assign(pointers.get(event.pointerId), at(event));
  send({ type: "move", ...at(event), button: event.button });
});
$("stage").addEventListener("pointerdown", (event) => {
  if (!$("cover").hidden || !send({ type: "down", ...at(event), button: event.button })) return;
  $("stage").setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, { ...at(event), button: event.button });
});
for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) $("stage").addEventListener(end, release);

$("stage").addEventListener("keydown", (event) => {
  if (!$("cover").hidden || isBrowsers(event)) return;
  const key = { key: event.key, code: event.code };
  if (!send({ type: "key-down", ...key })) return;
  keys.set(event.code, key);
  event.preventDefault();
});
$("stage").addEventListener("keyup", (event) => {
  if (event.key === "Meta") return releaseKeys(); // macOS tells of no key that is let go before it
  const key = keys.get(event.code);
  if (!keys.delete(event.code)) return;
  send({ type: "key-up", ...key });
  event.preventDefault();
});
$("stage").addEventListener("blur", releaseKeys);

$("play").addEventListener("click", () => {
  $("stage").focus({ preventScroll: true });
  play();
});
$("cut").addEventListener("click", () => client.cut());
$("end").addEventListener("click", () => client.end());
$("again").addEventListener("click", connect);
$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  connect();
});
addEventListener("hashchange", () => location.reload());

cover({ title: STATES.idle, busy: true });
showPath();
connect();
