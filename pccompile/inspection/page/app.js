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
