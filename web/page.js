/** The page around a streaming session: what is seen, measured and pressed. */

import { StreamgateClient } from "/streamgate-client.js";

const $ = (id) => document.getElementById(id);
const STATES = { idle: "Not connected", connecting: "Connecting", waiting: "Waiting for the function", negotiating: "Finding a media path", streaming: "Streaming", resuming: "Coming back", ended: "Ended", failed: "Not connected" };
const COVERS = { connecting: "Connecting to the gateway …", waiting: "The gateway is asking for the function …", negotiating: "The function is here. Finding a way for the picture …" };
const STEPS = ["gateway", "function", "media", "picture"];
const HISTORY = 40;

let client;
let token = new URLSearchParams(location.hash.slice(1)).get("token") ?? "";
let step = 0;
let measuring;
let last;
let sequence = 0;
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

function cover({ title, text = "", busy = false, form = false, again = false } = {}) {
  $("cover").hidden = !title;
  $("cover-title").textContent = title ?? "";
  $("cover-text").textContent = text;
  $("spinner").hidden = !busy;
  $("access").hidden = !form;
  $("again").hidden = !again;
}

function connect() {
  client = new StreamgateClient({ token });
  step = 0;
  client.addEventListener("state", ({ detail }) => change(detail));
  client.addEventListener("note", ({ detail }) => log(detail));
  client.addEventListener("stream", ({ detail }) => {
    $("video").srcObject = detail;
    $("video").play().catch(() => log("The browser waits for a click before it plays."));
  });
  client.addEventListener("input-open", () => log("The input channel is open.", "good"));
  client.addEventListener("input", ({ detail }) => echoed(detail));
  client.connect();
}

function change({ state, problem }) {
  $("state").dataset.state = state;
  $("state").textContent = problem?.title ?? STATES[state];
  $("end").disabled = !["waiting", "negotiating", "streaming", "resuming"].includes(state);
  $("cut").disabled = $("end").disabled || state === "resuming";
  $("stage").dataset.away = state === "resuming" ? "yes" : "";
  if (state === "resuming") return showPath();
  if (state === "streaming" && step >= 3) return showPath(); // the picture was never gone
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
    cover({ title: "The session has ended", text: "Nothing runs any more.", again: true });
  }
  if (state === "failed") {
    const asks = problem.code.startsWith("auth.") || problem.code === "bad_token";
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
  if (client?.state !== "streaming" || !plays || step === 4) return;
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

function pointer(type) {
  return (event) => {
    if (!$("cover").hidden) return;
    const box = $("stage").getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    send({ type, x: Math.min(Math.max(x, 0), 1), y: Math.min(Math.max(y, 0), 1), button: event.button });
  };
}

for (const [event, type] of [["pointermove", "move"], ["pointerdown", "down"], ["pointerup", "up"]]) {
  $("stage").addEventListener(event, pointer(type));
}
for (const [event, type] of [["keydown", "key-down"], ["keyup", "key-up"]]) {
  $("stage").addEventListener(event, (it) => {
    if (!$("cover").hidden || it.key === "Tab" || it.key === "Escape") return;
    if (send({ type, key: it.key, code: it.code })) it.preventDefault();
  });
}

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
