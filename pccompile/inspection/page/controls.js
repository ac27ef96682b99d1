// The controls: playing, keys, buttons, light and dark; and the beginning of everything.

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
