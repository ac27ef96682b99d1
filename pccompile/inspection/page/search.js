// Search: by words in names, kinds, operators and source lines; what is chosen is opened and selected.

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
