// The page: its state, what changes it, and who is told.

const data = JSON.parse(document.getElementById("program").textContent);
const model = readModel(data);
const $ = (selector) => document.querySelector(selector);

const state = {
  model,
  stage: model.stages.at(-1),
  step: 0,
  opened: new Set(data.opened),
  parameters: false,
  selected: null,
  frame: data.recording ? data.recording.frames.length - 1 : null,
  playing: null,
  view: null,
  now: null,
  // The recorded |e| of a vertex, or null where nothing is recorded.
  normAt(id, step) {
    if (this.frame === null || this.stage !== model.stages.at(-1)) return null;
    return data.recording.frames[this.frame].errors[id]?.[step] ?? null;
  },
};

const act = {
  select(name, bring = true) {
    state.selected = name;
    if (name !== null && bring) reveal(name);
    repaint();
  },
  hover(name) { chart.hover(name); highlight(name); },
  toggle(group) {
    const open = state.opened.has(group);
    const point = graph.where(open ? group : group + "/");
    if (open) state.opened.delete(group);
    else state.opened.add(group);
    if (state.selected === group + "/" || (open && state.selected !== null)) state.selected = open ? group + "/" : null;
    relayout().then(() => { graph.anchor(open ? group + "/" : group, point); });
  },
  goTo(step) {
    state.step = Math.max(0, Math.min(step, Math.max(state.stage.length - 1, 0)));
    repaint();
  },
  goToStage(index) {
    const next = model.stages[Math.max(0, Math.min(index, model.stages.length - 1))];
    if (next === state.stage) return;
    const sameGraph = next.vertices === state.stage.vertices && next.edges === state.stage.edges;
    state.stage = next;
    state.step = Math.min(state.step, Math.max(next.length - 1, 0));
    drawStages();
    if (sameGraph) refresh();
    else {
      const kept = [state.selected, graph.last()].find((name) => name && graph.where(name));
      const point = graph.where(kept);
      relayout().then(() => graph.anchor(kept, point));
    }
  },
};

const graph = createGraph($("#graph"), act);
const chart = createChart($("#schedule"), act);
const panel = createPanel($("#panel"), act);
const layout = createLayout();
const layouts = new Map();
let layoutNumber = 0;

// Lay out what the state shows, draw it, and paint it. A later call overtakes an earlier one.
async function relayout() {
  layoutNumber += 1;
  const mine = layoutNumber;
  state.view = viewOf(model, state.stage, state.opened, state.parameters);
  const key = JSON.stringify([state.stage.vertices.length, state.stage.edges.length, state.parameters, [...state.opened].sort()]);
  if (!layouts.has(key)) {
    if (layouts.pending) layout.abandon();
    layouts.pending = true;
    const late = setTimeout(() => { $("#busy").hidden = false; }, 150);
    try {
      const placed = await layout.place(state.view);
      layouts.set(key, placed);
      if (layouts.size > 24) layouts.delete(layouts.keys().next().value);
    } finally {
      clearTimeout(late);
      layouts.pending = false;
      if (mine === layoutNumber) $("#busy").hidden = true;
    }
  }
  if (mine !== layoutNumber) return;
  $("#busy").hidden = true;
  graph.show(layouts.get(key), state.view);
  refresh();
}

function refresh() {
  state.view = viewOf(model, state.stage, state.opened, state.parameters);
  chart.show(model, state.stage, state.view);
  repaint();
}

function repaint() {
  const { stage, step } = state;
  state.now = happening(stage, step);
  const boxes = new Map(state.view.nodes.map((node) => [node.name, node]));
  const heat = recordedHeat();
  graph.paint(state.now, state.selected, heat && ((box) => heat(box, step)));
  chart.paint(step, state.selected, heat);
  panel.show(state);
  if (state.selected !== null && boxes.has(state.selected)) chart.bring(state.selected);
  const slider = $("#slider");
  slider.max = Math.max(stage.length - 1, 0);
  slider.value = step;
  $("#now").textContent = step;
  $("#of").textContent = `of 0 to ${Math.max(stage.length - 1, 0)}`;
  $("#sentence").textContent = sentence();
  document.body.dataset.step = step;
  document.body.dataset.stage = stage.name;
}

// Which share of full colour an error has: by the logarithm of its recorded norm between the smallest and the largest.
function recordedHeat() {
  if (state.frame === null || state.stage !== model.stages.at(-1)) return null;
  const { smallest, largest } = data.recording.frames[state.frame];
  if (!(largest > 0)) return null;
  const span = Math.log(largest / smallest) || 1;
  return (box, step) => {
    const norm = Math.max(...box.members.map((id) => state.normAt(id, step) ?? 0));
    return norm > 0 ? 0.12 + 0.75 * Math.max(0, Math.min(1, Math.log(norm / smallest) / span)) : 0;
  };
}

function sentence() {
  const { now } = state, parts = [];
  const several = (set, one, many) => set.size && parts.push(`${set.size} ${set.size === 1 ? one : many}`);
  const predicting = new Set([...now.Predict].filter((id) => !model.vertices[id].backstage));
  several(predicting, "vertex predicts", "vertices predict");
  several(now.errors, "error is not zero", "errors are not zero");
  const learned = [...now.Learn].flatMap((id) => model.vertices[id].learned.length ? model.vertices[id].learned : [model.vertices[id].name]);
  if (learned.length) parts.push(`learns ${learned.slice(0, 3).join(", ")}${learned.length > 3 ? ` and ${learned.length - 3} more` : ""}`);
  if (state.frame !== null && state.stage === model.stages.at(-1)) {
    const energy = data.recording.frames[state.frame].energy[state.step];
    if (energy !== undefined && energy !== null) parts.push(`recorded energy ${energy.toPrecision(5)}`);
  }
  return parts.length ? parts.join(" · ") : "nothing happens";
}

// Open what hides a vertex, and bring it into sight.
function reveal(name) {
  const vertex = model.byName.get(name);
  if (!vertex) {
    graph.bring(name);
    return;
  }
  let changed = false;
  if (vertex.backstage && !state.parameters && state.stage.has.has(vertex.id)) return;
  for (const group of lineage(model, vertex)) {
    if (!state.opened.has(group) && (state.stage.counts.get(group) ?? 0) > 1) {
      state.opened.add(group);
      changed = true;
    }
  }
  if (changed) relayout().then(() => { graph.bring(name); chart.bring(name); });
  else graph.bring(name);
}

function highlight(name) {
  for (const node of document.querySelectorAll("#graph g.node.hovered")) node.classList.remove("hovered");
  if (name !== null) document.querySelector(`#graph g.node[data-name="${CSS.escape(name)}"]`)?.classList.add("hovered");
}

// The header --------------------------------------------------------------------------------------------------------

function drawHeader() {
  $("#title").textContent = data.title;
  const inSight = model.stages.at(-1).vertices.filter((id) => !model.vertices[id].backstage).length;
  const learned = new Set(model.vertices.flatMap((vertex) => vertex.learned)).size;
  const T = data.uses_steps ? ` · T = ${data.steps} inference steps (chosen at run time)` : "";
  $("#counts").textContent = `${inSight} vertices · ${learned} learned tensors${T}`;
}

function drawStages() {
  const buttons = model.stages.map((stage) => {
    const updates = [...stage.updates.values()].flat();
    const runs = updates.reduce((sum, { start, stop }) => sum + stop - start, 0);
    return element("button", {
      "aria-pressed": stage === state.stage ? "true" : "false", "data-stage": stage.name, title: `${updates.length.toLocaleString("en")} updates; counted in every step they run: ${runs.toLocaleString("en")}`,
      onclick: () => act.goToStage(stage.index),
    }, element("span", { class: "stage-name" }, stage.name), element("span", { class: "stage-count" }, `${runs.toLocaleString("en")} ${runs === 1 ? "run" : "runs"}`));
  });
  const why = element("p", { class: "stage-why" }, element("span", {}, capital(state.stage.why) + ". "),
    element("b", { id: "change" }, changeSentence(state.stage)));
  $("#stages").replaceChildren(element("div", { class: "stage-row" }, buttons), why);
}

function drawLegend() {
  const present = KINDS.filter((kind) => model.vertices.some((vertex) => vertex.kind === kind && (!vertex.backstage)));
  const entries = present.map((kind) => element("button", { class: "entry", title: `Find ${kind} vertices`, onclick: () => find(kind) },
    element("i", { class: `swatch kind-${kind}` }), kind));
  $("#legend").replaceChildren(...entries);
  const used = new Set(model.stages.flatMap((stage) => [...stage.updates.values()].flat().map((update) => update.action)));
  const names = { Predict: "predicts", Compare: "compares", move: "moves", Learn: "learns", Descend: "descends" };
  const shown = ["Predict", "Compare", "move", "Learn", "Descend"].filter((a) => (a === "move" ? used.has("Infer") || used.has("Relax") : used.has(a)));
  $("#actions").replaceChildren(...shown.map((a) => element("span", { class: "entry" }, element("i", { class: `mark ${a}` }), names[a])),
    element("span", { class: "entry" }, element("i", { class: "mark error" }), "error ≠ 0"),
    element("span", { class: "entry" }, element("i", { class: "mark ghost" }), "before this pass"));
  $("#reading").replaceChildren(element("p", {},
    "Every box is a vertex with a value, a prediction and an error. The slider runs the schedule: in step 0 all vertices predict; " +
    "then errors travel from the loss towards the input. A box that is red has an error that is not zero and still needed; " +
    "one outlined in green learns in this step. Boxes with a + are folded modules. The switch at the top shows the program " +
    "before and after every pass; what a pass removed is dashed in the schedule and listed at the right."));
}

// Search --------------------------------------------------------------------------------------------------------------

let matches = [], chosen = -1;

function find(text) {
  const input = $("#search");
  input.value = text;
  input.focus();
  search();
}

function search() {
  const words = $("#search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const rank = (vertex) => {
    const name = vertex.name.toLowerCase(), rest = `${vertex.kind} ${vertex.operator} ${vertex.source}`.toLowerCase();
    let score = 0;
    for (const word of words) {
      if (name === word) score += 100;
      else if (name.startsWith(word)) score += 20;
      else if (name.includes(word)) score += 10;
      else if (vertex.kind === word) score += 8;
      else if (rest.includes(word)) score += 1;
      else return 0;
    }
    return score + (vertex.backstage ? 0 : 0.5) + (state.stage.has.has(vertex.id) ? 0.25 : 0);
  };
  const groups = words.length ? [...model.groups.values()].filter((group) => words.every((word) => group.name.toLowerCase().includes(word))) : [];
  const scored = words.length ? model.vertices.map((vertex) => [rank(vertex), vertex]).filter(([score]) => score > 0) : [];
  scored.sort((a, b) => b[0] - a[0] || a[1].id - b[1].id);
  matches = [
    ...scored.slice(0, 60).map(([, vertex]) => ({ name: vertex.name, note: vertex.detail, kind: vertex.kind })),
    ...groups.slice(0, 10).map((group) => ({ name: group.name + "/", note: "module", kind: "group" })),
  ];
  chosen = matches.length ? 0 : -1;
  drawResults(words.length > 0, scored.length + groups.length);
}

function drawResults(open, total = matches.length) {
  const host = $("#results");
  host.hidden = !open;
  $("#search").setAttribute("aria-expanded", String(open));
  if (!open) return;
  const items = matches.map((match, index) => element("li", {
    role: "option", id: `result-${index}`, "aria-selected": index === chosen ? "true" : "false",
    onmousedown: (event) => { event.preventDefault(); take(index); },
  }, element("i", { class: `swatch kind-${match.kind}` }), element("span", { class: "name" }, match.name), element("span", { class: "note" }, match.note)));
  const more = total > matches.length ? [element("li", { class: "none" }, `${total - matches.length} more; say more`)] : [];
  host.replaceChildren(...(items.length ? [...items, ...more] : [element("li", { class: "none" }, "no vertex matches")]));
  $("#search").setAttribute("aria-activedescendant", chosen >= 0 ? `result-${chosen}` : "");
  host.children[chosen]?.scrollIntoView({ block: "nearest" });
}

function take(index) {
  const match = matches[index];
  drawResults(false);
  $("#search").blur();
  if (!match) return;
  const vertex = model.byName.get(match.name);
  if (vertex && !state.stage.has.has(vertex.id)) {
    const home = model.stages.findLast((stage) => stage.has.has(vertex.id));
    state.selected = match.name;
    act.goToStage(home.index);
    return;
  }
  if (vertex?.backstage && !state.parameters) {
    state.parameters = $("#parameters").checked = true;
    state.selected = match.name;
    for (const group of lineage(model, vertex)) state.opened.add(group);
    relayout().then(() => graph.bring(match.name));
    return;
  }
  if (!vertex) for (const group of lineage(model, model.groups.get(match.name.slice(0, -1)))) state.opened.add(group);
  if (!vertex) relayout().then(() => act.select(match.name));
  else act.select(match.name);
}

$("#search").addEventListener("input", search);
$("#search").addEventListener("focus", () => { if ($("#search").value) search(); });
$("#search").addEventListener("blur", () => drawResults(false));
$("#search").addEventListener("keydown", (event) => {
  event.stopPropagation();
  if (event.key === "Escape") { $("#search").value = ""; drawResults(false); $("#search").blur(); }
  if (event.key === "Enter") take(chosen);
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    const move = event.key === "ArrowDown" ? 1 : -1;
    chosen = matches.length ? (chosen + move + matches.length) % matches.length : -1;
    drawResults(true);
  }
});

// Playing, keys, theme ------------------------------------------------------------------------------------------------

function play(on = state.playing === null) {
  clearInterval(state.playing);
  state.playing = null;
  const button = $("#play");
  button.textContent = on ? "❚❚" : "▶";
  button.setAttribute("aria-label", on ? "Pause" : "Play");
  if (!on) return;
  if (state.step >= state.stage.length - 1) act.goTo(0);
  const pause = Math.max(60, Math.min(700, 12000 / Math.max(state.stage.length, 1)));
  state.playing = setInterval(() => {
    if (state.step >= state.stage.length - 1) return play(false);
    return act.goTo(state.step + 1);
  }, pause);
}

function selectNext(by) {
  const names = graph.names();
  if (!names.length) return;
  const index = names.indexOf(state.selected);
  act.select(names[index < 0 ? (by > 0 ? 0 : names.length - 1) : Math.max(0, Math.min(names.length - 1, index + by))]);
}

function theme(next) {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = next ?? (dark ? "light" : "dark");
  try { localStorage.setItem("pccompile-theme", root.dataset.theme); } catch { /* a page without storage */ }
  chart.recoloured();
}

const keys = {
  " ": () => play(),
  ArrowLeft: (event) => act.goTo(state.step - (event.shiftKey ? 10 : 1)),
  ArrowRight: (event) => act.goTo(state.step + (event.shiftKey ? 10 : 1)),
  ArrowUp: () => selectNext(-1),
  ArrowDown: () => selectNext(1),
  Home: () => act.goTo(0),
  End: () => act.goTo(state.stage.length - 1),
  "[": () => act.goToStage(state.stage.index - 1),
  "]": () => act.goToStage(state.stage.index + 1),
  "/": () => $("#search").focus(),
  f: () => graph.fit(),
  "+": () => graph.zoomBy(1.3),
  "=": () => graph.zoomBy(1.3),
  "-": () => graph.zoomBy(1 / 1.3),
  p: () => $("#parameters").click(),
  t: () => theme(),
  "?": () => $("#keys").showModal(),
  Escape: () => act.select(null),
  Enter: () => {
    const box = state.view.nodes.find((node) => node.name === state.selected);
    if (box?.folded) act.toggle(box.folded);
    else if (box?.group) act.toggle(box.group);
    else if (state.selected?.endsWith("/")) act.toggle(state.selected.slice(0, -1));
  },
};

addEventListener("keydown", (event) => {
  const typing = event.target.matches("input[type=search], select");
  const pressing = event.target.matches("button, input[type=checkbox]") && (event.key === "Enter" || event.key === " ");
  if (typing || pressing || event.ctrlKey || event.metaKey || event.altKey || $("#keys").open) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (!keys[key]) return;
  event.preventDefault();
  keys[key](event);
});

$("#slider").addEventListener("input", () => act.goTo(Number($("#slider").value)));
$("#play").addEventListener("click", () => play());
$("#back").addEventListener("click", () => act.goTo(state.step - 1));
$("#ahead").addEventListener("click", () => act.goTo(state.step + 1));
$("#fit").addEventListener("click", () => graph.fit());
$("#closer").addEventListener("click", () => graph.zoomBy(1.3));
$("#farther").addEventListener("click", () => graph.zoomBy(1 / 1.3));
$("#fold").addEventListener("click", () => { state.opened.clear(); state.selected = null; relayout().then(() => graph.fit(false)); });
$("#open").addEventListener("click", () => { state.opened = new Set(model.groups.keys()); relayout().then(() => graph.begin(0.05)); });
$("#parameters").addEventListener("change", (event) => { state.parameters = event.target.checked; relayout().then(() => graph.begin(0.05)); });
$("#theme").addEventListener("click", () => theme());
$("#help").addEventListener("click", () => $("#keys").showModal());

if (data.recording) {
  $("#frames").hidden = false;
  $("#frame").replaceChildren(...data.recording.frames.map((frame, index) => element("option", { value: index }, String(index))));
  $("#frame").value = state.frame;
  $("#frame").addEventListener("change", () => { state.frame = Number($("#frame").value); repaint(); });
}

let frameRequest = 0;
new ResizeObserver(() => {
  cancelAnimationFrame(frameRequest);
  frameRequest = requestAnimationFrame(() => { chart.resized(); graph.resized(); });
}).observe(document.body);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => chart.recoloured());

try {
  const kept = localStorage.getItem("pccompile-theme");
  if (kept) document.documentElement.dataset.theme = kept;
} catch { /* a page without storage */ }
drawHeader();
drawStages();
drawLegend();
relayout().then(() => {
  graph.begin();
  document.body.dataset.ready = "true";
});
