"use strict";

const PAGE = 60; // tiles that are drawn at once
const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const marks = new Map(); // "run:position" to its note
const state = { run: 0, button: null, shown: [], current: 0, limit: PAGE, saved: true };

function create(name, words = "", attributes = {}) {
  const element = document.createElement(name);
  element.textContent = words;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

// The images of the selected run: everything a tile shows, by its position in the page's data.
const run = () => data.runs[state.run];
const set = () => data.sets[run().set];
const key = (i) => `${state.run}:${i}`;
const label = (i) => set().classes[set().labels[i]];
const predicted = (i) => set().classes[run().predicted[i]];
const wrong = (i, of = run()) => of.predicted[i] !== set().labels[i];
const describe = (i) =>
  `image ${set().index[i]}: label ${label(i)}, predicted ${predicted(i)}, ` +
  `confidence ${run().confidence[i].toFixed(4)}`;

function draw(canvas, i) {
  const { width, height, columns } = set();
  [canvas.width, canvas.height] = [width, height];
  const [x, y] = [(i % columns) * width, Math.floor(i / columns) * height];
  const paint = () =>
    canvas.getContext("2d").drawImage(image, x, y, width, height, 0, 0, width, height);
  const image = atlases[run().set];
  image.decode().then(paint);
}

const atlases = data.sets.map(({ atlas }) => {
  const image = new Image();
  image.src = atlas;
  return image;
});

// Selection: a button's data-* attributes say which images it stands for.
const ORDERS = {
  confident: (a, b) => run().confidence[b] - run().confidence[a] || a - b,
  unsure: (a, b) => run().confidence[a] - run().confidence[b] || a - b,
  quality: (a, b) => run().quality[a] - run().quality[b] || a - b,
  index: (a, b) => a - b,
};

function matches(i, which) {
  return (
    (which.label === undefined || set().labels[i] === Number(which.label)) &&
    (which.predicted === undefined || run().predicted[i] === Number(which.predicted)) &&
    (which.bin === undefined || run().bin[i] === Number(which.bin)) &&
    (which.wrong === undefined || wrong(i)) &&
    (which.right === undefined || !wrong(i)) &&
    (which.than === undefined || !wrong(i, data.runs[which.than]))
  );
}

function select(button) {
  state.button?.setAttribute("aria-pressed", "false");
  button.setAttribute("aria-pressed", "true");
  [state.button, state.current, state.limit] = [button, 0, PAGE];
  find("order").value = button.dataset.order ?? "confident";
  list();
}

function list() {
  const { title, total } = state.button.dataset;
  const images = set().index.map((_, i) => i).filter((i) => matches(i, state.button.dataset));
  state.shown = images.sort(ORDERS[find("order").value]);
  const [count, all] = [images.length, Number(total)].map((n) => n.toLocaleString("en"));
  const words = images.length < Number(total) ? `${count} of ${all} images, a sample` : `${all} images`;
  find("status").textContent = `${words}: ${title}`.replace(/^1 images/, "1 image");
  show();
}

function show() {
  const tiles = state.shown.slice(0, state.limit).map((i, place) => {
    const tile = create("button", "", { type: "button", class: "tile", "aria-label": describe(i) });
    const canvas = create("canvas");
    draw(canvas, i);
    tile.append(canvas, create("b", wrong(i) ? `${label(i)} → ${predicted(i)}` : label(i)));
    tile.append(create("span", run().confidence[i].toFixed(4)));
    tile.classList.toggle("wrong", wrong(i));
    tile.classList.toggle("marked", marks.has(key(i)));
    tile.tabIndex = place === state.current ? 0 : -1;
    tile.addEventListener("click", () => open(place));
    return tile;
  });
  find("tiles").replaceChildren(...tiles);
  find("more").hidden = state.shown.length <= state.limit;
}

function focus(place) {
  const tiles = find("tiles").children;
  if (!tiles[place]) return;
  tiles[state.current].tabIndex = -1;
  state.current = place;
  tiles[place].tabIndex = 0;
  tiles[place].focus();
}

find("tiles").addEventListener("keydown", (event) => {
  const tops = [...find("tiles").children].map((tile) => tile.offsetTop);
  const columns = tops.filter((top) => top === tops[0]).length;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  if (event.key in steps) focus(state.current + steps[event.key]);
  else if (event.key === "m") mark(!marks.has(key(state.shown[state.current])));
  else return;
  event.preventDefault();
});

// The viewer: one image, enlarged, with all that is known of it.
function open(place) {
  if (place < 0 || place >= state.shown.length) return;
  if (place >= state.limit) {
    state.limit = place + PAGE;
    show();
  }
  focus(place);
  const i = state.shown[place];
  draw(find("large"), i);
  find("large").setAttribute("aria-label", describe(i));
  const facts = {
    "test image": set().index[i],
    label: label(i),
    predicted: predicted(i),
    confidence: run().confidence[i].toFixed(6),
    "probability of the label": run().labelProbability[i].toFixed(6),
    "label quality": run().quality[i].toFixed(6),
  };
  for (const other of data.runs)
    if (other !== run() && other.set === run().set)
      facts[`in ${other.name}`] = `${set().classes[other.predicted[i]]}, ${other.confidence[i].toFixed(6)}`;
  const entries = Object.entries(facts).flatMap(([term, value]) => [create("dt", term), create("dd", value)]);
  find("facts").replaceChildren(...entries);
  find("mark").checked = marks.has(key(i));
  find("note").value = marks.get(key(i)) ?? "";
  find("place").textContent = `${place + 1} of ${state.shown.length}`;
  find("previous").disabled = place === 0;
  find("next").disabled = place === state.shown.length - 1;
  if (!find("viewer").open) find("viewer").showModal();
}

function mark(on, note = "") {
  const i = state.shown[state.current];
  on ? marks.set(key(i), note) : marks.delete(key(i));
  find("tiles").children[state.current].classList.toggle("marked", on);
  find("mark").checked = on;
  find("download").disabled = !marks.size;
  find("download").textContent = `Download ${marks.size} marked`;
  state.saved = !marks.size;
}

find("viewer").addEventListener("keydown", (event) => {
  if (event.target === find("note")) return;
  if (event.key === "ArrowLeft") open(state.current - 1);
  else if (event.key === "ArrowRight") open(state.current + 1);
  else if (event.key === "m") mark(!find("mark").checked);
  else return;
  event.preventDefault();
});
find("viewer").addEventListener("close", () => focus(state.current));
find("close").addEventListener("click", () => find("viewer").close());
find("previous").addEventListener("click", () => open(state.current - 1));
find("next").addEventListener("click", () => open(state.current + 1));
find("mark").addEventListener("change", () => mark(find("mark").checked, find("note").value));
find("note").addEventListener("input", () => mark(true, find("note").value));

find("download").addEventListener("click", () => {
  const rows = [["run", "index", "label", "predicted", "confidence", "note"]];
  for (const [marked, note] of marks) {
    const [of, i] = marked.split(":").map(Number);
    const [each, { index, labels, classes }] = [data.runs[of], data.sets[data.runs[of].set]];
    const names = [classes[labels[i]], classes[each.predicted[i]]];
    rows.push([each.name, index[i], ...names, each.confidence[i].toFixed(6), note]);
  }
  const quote = (cell) => (/[",\r\n]/.test(cell) ? `"${String(cell).replaceAll('"', '""')}"` : cell);
  const text = rows.map((row) => row.map(quote).join(",") + "\n").join("");
  const link = create("a", "", { download: "marked.csv" });
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.click();
  URL.revokeObjectURL(link.href);
  state.saved = true;
});
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => (part.open = true)));
addEventListener("beforeunload", (event) => state.saved || event.preventDefault());

// A matrix is one stop of the Tab key; arrow keys move between its cells.
function walk(event) {
  const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [];
  let cell = event.target.closest("td, th");
  if (down === undefined || !cell) return;
  event.preventDefault();
  const { rows } = cell.closest("table");
  do cell = rows[cell.parentNode.rowIndex + down]?.cells[cell.cellIndex + right];
  while (cell && !cell.querySelector("button"));
  if (!cell) return;
  event.target.tabIndex = -1;
  cell.querySelector("button").tabIndex = 0;
  cell.querySelector("button").focus();
}

function switchTo(number) {
  state.run = number;
  for (const part of document.querySelectorAll(".run")) part.hidden = Number(part.dataset.run) !== number;
  [...find("switch").children].forEach((button, i) => button.setAttribute("aria-pressed", i === number));
  select(document.querySelector(`.run[data-run="${number}"] .presets button`));
}

function tooltip(handler, event, item, value) {
  const entries = typeof value === "object" && value ? Object.entries(value) : [];
  find("tooltip").textContent = entries.map(([name, number]) => `${name}: ${number}`).join("\n");
  find("tooltip").hidden = !entries.length;
  find("tooltip").style.left = `${Math.min(event.clientX + 12, innerWidth - 180)}px`;
  find("tooltip").style.top = `${event.clientY + 12}px`;
}

document.documentElement.classList.add("js");
find("gallery").hidden = false;
for (const button of document.querySelectorAll(".run button"))
  button.addEventListener("click", () => {
    select(button);
    if (find("gallery").getBoundingClientRect().top > innerHeight) find("gallery").scrollIntoView();
  });
for (const matrix of document.querySelectorAll(".matrix")) {
  matrix.querySelectorAll("button").forEach((button, i) => (button.tabIndex = i ? -1 : 0));
  matrix.addEventListener("keydown", walk);
}
find("order").addEventListener("change", list);
find("more").addEventListener("click", () => {
  state.limit += PAGE;
  show();
});
find("switch").hidden = data.runs.length < 2;
find("switch").append(
  ...data.runs.map(({ name }, i) => {
    const button = create("button", name, { type: "button" });
    button.addEventListener("click", () => switchTo(i));
    return button;
  })
);
switchTo(0);
for (const chart of data.charts) {
  const plot = create("div", "", { class: "plot" });
  find("plots").append(plot);
  vegaEmbed(plot, chart, { actions: false, ast: true, defaultStyle: false, renderer: "svg", tooltip });
}
