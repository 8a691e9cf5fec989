// Draws, sends the drawing or image files to /classify, and shows the probabilities.
const byId = (id) => document.getElementById(id);
const canvas = byId("canvas");
const SIZE = 280; // pixels of the image that is sent
const WIDTH = 0.075; // of a line, as a share of the drawing area
const INTERVAL = 40; // milliseconds between two requests
const RETRY = 2000; // milliseconds, if the server does not answer
const SHOWN = 10; // classes

let model = null;
let strokes = []; // each is a list of points: x and y in [0, 1], and the width there
let files = [];
let results = [];
let selected = 0;
let input = 0; // number of the drawing or choice of files; answers to an earlier one are dropped
let sending = false;
let changed = false;

function paint(target, ink, paper) {
  const size = target.width;
  const context = target.getContext("2d");
  context.fillStyle = paper;
  context.fillRect(0, 0, size, size);
  context.strokeStyle = ink;
  context.lineCap = context.lineJoin = "round";
  for (const stroke of strokes) {
    stroke.forEach((point, i) => {
      const from = stroke[Math.max(0, i - 1)];
      context.lineWidth = point.width * size;
      context.beginPath();
      context.moveTo(from.x * size, from.y * size);
      context.lineTo(point.x * size, point.y * size);
      context.stroke();
    });
  }
}

function draw() {
  const style = getComputedStyle(document.documentElement);
  const size = Math.round(canvas.clientWidth * devicePixelRatio);
  if (canvas.width !== size) canvas.width = canvas.height = size;
  paint(canvas, style.getPropertyValue("--ink"), style.getPropertyValue("--card"));
  byId("hint").hidden = strokes.length > 0 || files.length > 0;
  byId("undo").disabled = strokes.length === 0;
  byId("clear").disabled = strokes.length === 0 && files.length === 0;
}

function drawing() { // with the gray levels of the training images
  const sent = new OffscreenCanvas(SIZE, SIZE);
  const dark = model.background < 128;
  paint(sent, dark ? "#fff" : "#000", `rgb(${Array(3).fill(model.background)})`);
  return sent.convertToBlob();
}

async function loadModel() {
  model = await (await fetch("/model")).json();
  const [height, width, color] = model.image;
  const format = new Intl.NumberFormat("en");
  document.title = `${model.title} classifier`;
  byId("title").textContent = model.title;
  byId("facts").textContent = [
    model.kind, `${format.format(model.parameters)} parameters`,
    `${model.classes.length} classes`, `${height} × ${width} pixels, ${color ? "color" : "gray"}`,
    model.digest.slice(0, 8),
  ].join(" · ");
  canvas.hidden = Boolean(color);
  byId("undo").hidden = Boolean(color);
  byId("draw").hidden = Boolean(color);
  byId("bars").className = model.classes.some((name) => name.length > 3) ? "wide" : "";
  byId("bars").replaceChildren(...model.classes.slice(0, SHOWN).map(() => {
    const row = document.createElement("li");
    row.append(...["name", "track", "percent"].map((kind) => {
      const cell = document.createElement("span");
      cell.className = kind;
      return cell;
    }));
    row.children[1].append(document.createElement("span"));
    row.children[1].firstChild.className = "fill";
    return row;
  }));
  show();
}

function percent(share) { // rounded down: 100 % would be certain
  return `${Math.min(Math.floor(share * 1000) / 10, 99.9).toFixed(1)} %`;
}

function show() {
  const result = results[selected];
  const valid = result !== undefined && result.error === undefined;
  byId("answer").classList.toggle("empty", !valid);
  byId("label").textContent = valid ? result.class : "?";
  byId("label").className = valid && result.class.length > 3 ? "long" : "";
  byId("confidence").textContent = valid ? percent(result.confidence) : "";
  byId("unusual").hidden = !valid || !result.unusual;
  byId("steps").textContent = valid ? result.steps.join(", ") : "";
  byId("seen").alt = valid ? `${model.image[1]} by ${model.image[0]} pixels` : "";
  if (valid) byId("seen").src = result.seen;
  else byId("seen").removeAttribute("src");
  if (result?.error) say(`${result.name}: ${result.error}`);
  showBars(valid ? result : null);
  clearTimeout(show.timer); // a screen reader hears the answer once the drawing rests
  show.timer = setTimeout(() => {
    byId("status").textContent = valid ? `${result.class}, ${percent(result.confidence)}` : "";
  }, 700);
}

function showBars(result) { // few classes keep their order, of many the most likely are shown
  const share = (name) => result?.probabilities[name] ?? 0;
  const names = [...model.classes];
  if (names.length > SHOWN) names.sort((a, b) => share(b) - share(a));
  [...byId("bars").children].forEach((row, i) => {
    const [name, track, number] = row.children;
    name.textContent = names[i];
    track.firstChild.style.transform = `scaleX(${share(names[i])})`;
    number.textContent = result ? percent(share(names[i])) : "";
    row.className = result?.class === names[i] ? "first" : "";
  });
}

function showFiles() { // one button for each of several images
  const several = files.length > 1 ? results : [];
  byId("results").replaceChildren(...several.map((result, i) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const label = document.createElement("span");
    button.type = "button";
    button.title = result.name;
    button.setAttribute("aria-label", `${result.name}: ${result.class ?? "not an image"}`);
    button.setAttribute("aria-pressed", i === selected);
    button.addEventListener("click", () => {
      select(i);
      byId("results").children[i].firstChild.focus();
    });
    label.textContent = result.class ?? "not an image";
    if (result.seen) {
      const image = document.createElement("img");
      image.src = result.seen;
      image.alt = "";
      button.append(image);
    }
    button.append(label);
    item.append(button);
    return item;
  }));
}

function select(i) {
  selected = i;
  const photo = byId("photo");
  URL.revokeObjectURL(photo.src);
  photo.hidden = files.length === 0;
  if (files.length) photo.src = URL.createObjectURL(files[i]);
  else photo.removeAttribute("src");
  say("");
  show();
  showFiles();
}

function say(text) {
  if (byId("alert").textContent !== text) byId("alert").textContent = text;
}

async function classify() { // one request at a time; what changed meanwhile is sent afterwards
  changed = true;
  byId("answer").setAttribute("aria-busy", "true");
  while (changed && !sending) {
    changed = false;
    sending = true;
    try {
      await send(input);
    } catch (error) {
      if (!(error instanceof TypeError || error instanceof SyntaxError)) throw error; // of fetch
      say("The server does not answer. Trying again.");
      setTimeout(classify, RETRY);
    } finally {
      sending = false;
    }
    byId("answer").setAttribute("aria-busy", changed);
    await new Promise((resume) => setTimeout(resume, INTERVAL));
  }
}

async function send(number) {
  if (model === null) await loadModel();
  if (strokes.length === 0 && files.length === 0) return;
  const form = new FormData();
  if (files.length) for (const file of files) form.append("files", file);
  else form.append("files", await drawing(), "drawing.png");
  const response = await fetch("/classify?seen=true", { method: "POST", body: form });
  const body = await response.json();
  if (number !== input) return;
  if (response.status === 503) {
    say("The server is busy. Trying again.");
    setTimeout(classify, 1000 * response.headers.get("Retry-After"));
  } else if (!Array.isArray(body)) {
    say(`Refused: ${body.detail}`);
  } else {
    if (response.headers.get("X-Model-Digest") !== model.digest) await loadModel();
    say("");
    results = body;
    show();
    showFiles();
  }
}

function start(chosen) { // a new drawing, or files
  input += 1;
  files = chosen;
  results = [];
  if (chosen.length) strokes = [];
  select(0);
  draw();
  if (chosen.length) classify();
}

function undo() {
  strokes.pop();
  if (strokes.length === 0) start([]);
  draw();
  classify();
}

function clear() {
  strokes = [];
  start([]);
}

function point(event) {
  const box = canvas.getBoundingClientRect();
  const pressure = event.pointerType === "pen" ? 0.5 + event.pressure : 1;
  return {
    x: (event.clientX - box.left) / box.width,
    y: (event.clientY - box.top) / box.height,
    width: WIDTH * pressure,
  };
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || !event.isPrimary) return;
  canvas.setPointerCapture(event.pointerId);
  if (files.length) start([]);
  strokes.push([point(event)]);
  draw();
  classify();
});
canvas.addEventListener("pointermove", (event) => {
  if (!canvas.hasPointerCapture(event.pointerId) || strokes.length === 0) return;
  const events = event.getCoalescedEvents();
  strokes.at(-1).push(...(events.length ? events : [event]).map(point));
  draw();
  classify();
});
byId("photo").addEventListener("load", ({ target }) => {
  target.classList.toggle("small", target.naturalWidth < 100);
});
byId("undo").addEventListener("click", undo);
byId("clear").addEventListener("click", clear);
byId("files").addEventListener("change", (event) => {
  if (event.target.files.length) start([...event.target.files]);
  event.target.value = ""; // so that the same file can be chosen again
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") clear();
  if (event.key === "z" && (event.ctrlKey || event.metaKey) && strokes.length) undo();
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) start([...event.clipboardData.files]);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  if (event.dataTransfer.files.length) start([...event.dataTransfer.files]);
});
addEventListener("resize", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

draw();
classify(); // loads the model
