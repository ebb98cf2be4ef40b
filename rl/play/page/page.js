"use strict";
// Shows the frames that come over the websocket, and sends what is held and pressed. No library.

const KEYS = {
  KeyW: ["away", 1], ArrowUp: ["away", 1], KeyS: ["away", -1], ArrowDown: ["away", -1],
  KeyD: ["right", 1], ArrowRight: ["right", 1], KeyA: ["right", -1], ArrowLeft: ["right", -1],
  KeyR: ["up", 1], PageUp: ["up", 1], KeyF: ["up", -1], PageDown: ["up", -1],
  KeyE: ["grip", 1], KeyQ: ["grip", -1],
};
const PRESSES = { KeyP: "policy", KeyN: "restart", KeyB: "rewind", KeyG: "redream" };
const AXES = ["right", "away", "up", "grip"];
const VIEWS = ["both", "dream", "sim"];
const VIEW_NAMES = { both: "both", dream: "the dream", sim: "the simulator" };
const RED_FROM = 3; // expected error, in units of the usual one, from which the frame is red
const STICK = 0.2; // a stick that is moved less rests
const SEND_MS = 50; // a stick sends at most so often

const $ = (id) => document.getElementById(id);
const sources = new Map(); // key, button or gamepad -> [axis, value]
let about = null, latest = null, drives = false, view = "both", sent = "[0,0,0,0]";
let shown = Promise.resolve(); // frames are decoded one after the other

const url = new URL(location.href);
const socket = new WebSocket(`ws://${url.host}/live?token=${encodeURIComponent(url.searchParams.get("token") ?? "")}`);
socket.binaryType = "arraybuffer";

// Messages of the server: text once or rarely, and binary frames.

socket.onmessage = (event) => {
  if (typeof event.data !== "string") return void (shown = shown.then(() => frame(event.data)).catch(console.error));
  const told = JSON.parse(event.data);
  if (told.about) begin(told.about);
  if ("drives" in told) setRole(told.drives);
};
socket.onclose = (event) => {
  document.body.classList.add("ended");
  notice(event.reason ? `Closed: ${event.reason}.` : "The program has ended. Start wamtune play again.");
};

function begin(given) {
  about = given;
  for (const task of about.tasks) $("task").add(new Option(task.replaceAll("-", " "), task));
  $("chunk").textContent = about.chunk_size;
  $("policy").disabled = !about.can_act;
  $("say").hidden = !about.reads_sentences;
  $("redream").hidden = $("measured-key").hidden = $("view").hidden = !about.has_sim;
  if (!about.moves_hand) nameEntries();
  if (about.has_sim) return;
  $("lead").textContent = "The dream alone: it began in a recorded state and goes on from what it dreamed itself.";
  document.querySelector("[data-press=rewind] span").textContent = "Back to where it was sure";
  show("dream");
}

function nameEntries() {
  // Without a hand in space, axis i moves entry i of the action.
  for (const button of document.querySelectorAll("[data-axis]")) {
    const i = AXES.indexOf(button.dataset.axis);
    button.hidden = i >= about.n_axes;
    button.firstElementChild.textContent = `${i + 1} ${button.dataset.sign > 0 ? "+" : "−"}`;
  }
}

function setRole(given) {
  drives = given;
  for (const control of document.querySelectorAll("#controls button:not(#view), #task, #instruction"))
    control.disabled = !drives || (control.id === "policy" && !about.can_act);
}

async function frame(data) {
  const length = new DataView(data).getUint32(0);
  const status = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  let from = 4 + length;
  for (const [place, size] of [["dream", status.sizes[0]], ["sim", status.sizes[1]]]) {
    if (size) await paint($(place).querySelector("canvas"), new Blob([data.slice(from, from + size)], { type: "image/png" }));
    from += size;
  }
  latest = status;
  describe(status);
}

async function paint(canvas, blob) {
  const image = await createImageBitmap(blob);
  if (canvas.width !== image.width) [canvas.width, canvas.height] = [image.width, image.height];
  canvas.getContext("2d").drawImage(image, 0, 0);
  image.close();
}

// What a frame says.

function describe(s) {
  for (const place of ["dream", "sim"]) $(place).querySelector(".solved").hidden = !s.solved[place];
  $("dream").style.setProperty("--tone", tone(s.expected));
  $("dream").dataset.expected = s.expected ?? "";
  $("sure").textContent = words(s.expected);
  $("apart").textContent = apart(s.hands);
  if ($("task").value !== s.task) $("task").value = s.task;
  if (document.activeElement !== $("instruction")) $("instruction").value = s.instruction;
  $("policy").setAttribute("aria-pressed", s.driver === "policy");
  $("policy").firstElementChild.textContent = s.driver === "policy" ? "The policy drives: take over" : "Let the policy drive";
  const rate = s.frames_per_s ? `${s.frames_per_s.toFixed(1)} frames a second` : "time stands still";
  $("numbers").textContent = `Start ${s.seed} · chunk ${s.chunk} · ${(s.chunk * about.chunk_s).toFixed(1)} s · ${rate}`;
  notice(drives ? s.notice : `Another page drives; you watch. ${s.notice}`);
  curve(s);
}

function notice(text) {
  if ($("notice").textContent !== text) $("notice").textContent = text;
}

function tone(share) {
  if (share === null) return "var(--line)";
  const t = Math.min(Math.max(Math.log(Math.max(share, 1)) / Math.log(RED_FROM), 0), 1);
  return `hsl(${Math.round(140 * (1 - t))} 62% 45%)`;
}

function words(share) {
  if (share === null) return about.estimates_error ? "the dream has just begun" : "this model does not estimate its error";
  return `expects ${share.toFixed(1)} × its usual error`;
}

function apart(hands) {
  if (!hands.sim) return "";
  const d = Math.hypot(...hands.dream.map((x, i) => x - hands.sim[i]));
  return `the hands are ${(100 * d).toFixed(1)} cm apart`;
}

function curve(s) {
  const [left, right, top, bottom] = [34, 472, 8, 146], most = 5, n = Math.max(s.curve.length, 40);
  const x = (i) => left + ((right - left) * i) / n;
  const y = (share) => bottom - ((bottom - top) * Math.min(share, most)) / most;
  const parts = [];
  for (const share of [0, 1, 2, 3, 4, 5]) {
    parts.push(line(left, y(share), right, y(share), share === about.parted_at ? "limit" : "grid"));
    parts.push(element("text", { x: left - 8, y: y(share) + 4, "text-anchor": "end" }, share === most ? "5+" : share));
  }
  parts.push(element("text", { x: left, y: 164 }, s.curve_from ? `chunk ${s.curve_from + 1}` : "start"));
  parts.push(element("text", { x: right, y: 164, "text-anchor": "end" }, "errors in units of the usual one"));
  if (s.parted !== null && s.parted > s.curve_from) {
    const at = x(s.parted - s.curve_from);
    parts.push(line(at, top, at, bottom, "parted"));
    parts.push(element("text", { x: at + 4, y: bottom - 5 }, about.has_sim ? "parted" : "unsure"));
  }
  for (const [column, name] of ["expected", "measured"].entries()) {
    let d = "", on = false;
    s.curve.forEach((pair, i) => {
      if (pair[column] === null) return void (on = false);
      d += `${on ? "L" : "M"}${x(i + 1).toFixed(1)} ${y(pair[column]).toFixed(1)}`;
      on = true;
    });
    parts.push(element("path", { class: name, d }));
  }
  $("curve").replaceChildren(...parts);
}

function line(x1, y1, x2, y2, name) {
  return element("line", { x1, y1, x2, y2, class: name });
}

function element(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// What a person does.

function send(message) {
  if (drives && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

function sendHeld() {
  const sum = Object.fromEntries(AXES.map((axis) => [axis, 0]));
  for (const [axis, value] of sources.values()) sum[axis] += value;
  const held = AXES.map((axis) => Math.round(100 * Math.min(Math.max(sum[axis], -1), 1)) / 100);
  const text = JSON.stringify(held);
  if (text === sent) return;
  sent = text;
  send({ held });
}

function hold(source, axis, value) {
  if (value) sources.set(source, [axis, value]);
  else sources.delete(source);
  sendHeld();
  for (const button of document.querySelectorAll("[data-axis]"))
    button.classList.toggle("down", [...sources.values()].some(([a, v]) => a === button.dataset.axis && v * button.dataset.sign > 0));
}

function letGo() {
  sources.clear();
  hold("", "up", 0);
}

function show(which) {
  view = which;
  $("panes").className = view;
  $("view").firstElementChild.textContent = `Show: ${VIEW_NAMES[view]}`;
}

function nextView() {
  if (about?.has_sim) show(VIEWS[(VIEWS.indexOf(view) + 1) % VIEWS.length]);
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || ["SELECT", "INPUT"].includes(event.target.tagName)) return;
  if (event.code in KEYS) hold(event.code, ...KEYS[event.code]);
  else if (event.code in PRESSES) event.repeat || send({ press: PRESSES[event.code] });
  else if (event.code === "KeyV") event.repeat || nextView();
  else return;
  event.preventDefault();
});
addEventListener("keyup", (event) => event.code in KEYS && hold(event.code, "up", 0));
addEventListener("blur", letGo);
document.addEventListener("visibilitychange", () => document.hidden && letGo());

for (const button of document.querySelectorAll("[data-axis]")) {
  const { axis, sign } = button.dataset;
  button.addEventListener("pointerdown", (event) => {
    button.setPointerCapture(event.pointerId);
    hold(button, axis, Number(sign));
  });
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) button.addEventListener(end, () => hold(button, axis, 0));
  // A button that has the focus moves while space or enter is down.
  button.addEventListener("keydown", (event) => [" ", "Enter"].includes(event.key) && hold(button, axis, Number(sign)));
  button.addEventListener("keyup", (event) => [" ", "Enter"].includes(event.key) && hold(button, axis, 0));
  button.addEventListener("blur", () => hold(button, axis, 0));
  button.addEventListener("contextmenu", (event) => event.preventDefault());
}
for (const button of document.querySelectorAll("[data-press]"))
  button.addEventListener("click", () => send({ press: button.dataset.press }));
$("view").addEventListener("click", nextView);
$("task").addEventListener("change", () => {
  notice(`Building ${$("task").value} …`);
  send({ task: $("task").value });
  $("task").blur(); // the next key drives
});

$("instruction").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  send({ instruction: $("instruction").value });
  $("instruction").blur(); // the next key drives
});

// A gamepad is asked, it does not tell; but it tells when it is there.

const PAD_PRESSES = { 0: "policy", 1: "rewind", 3: "restart" };
let padDown = {}, padSent = 0, polling = false;

function pollGamepads(now) {
  const pad = navigator.getGamepads().find((p) => p && p.mapping === "standard");
  if (!pad) {
    polling = false;
    letGo();
    return;
  }
  if (now - padSent >= SEND_MS) {
    padSent = now;
    const stick = (value) => (Math.abs(value) < STICK ? 0 : value);
    hold("stick x", "right", stick(pad.axes[0]));
    hold("stick y", "away", -stick(pad.axes[1]));
    hold("stick 2", "up", -stick(pad.axes[3]));
    hold("triggers", "grip", (pad.buttons[7].pressed ? 1 : 0) - (pad.buttons[6].pressed ? 1 : 0));
  }
  for (const [i, button] of pad.buttons.entries()) {
    if (button.pressed && !padDown[i]) {
      if (i in PAD_PRESSES) send({ press: PAD_PRESSES[i] });
      if (i === 2) nextView();
    }
    padDown[i] = button.pressed;
  }
  requestAnimationFrame(pollGamepads);
}
addEventListener("gamepadconnected", () => {
  if (!polling) requestAnimationFrame(pollGamepads);
  polling = true;
});
