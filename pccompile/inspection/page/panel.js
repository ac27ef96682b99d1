// The panel: what happens in this step, or one vertex or module in full. All text is set as text, never as HTML.

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

function createPanel(host, act) {
  const link = (name) => element("button", { class: "link", onclick: () => act.select(name), title: `Show ${name}` }, name);

  function list(names, most = 40) {
    if (!names.length) return element("span", { class: "none" }, "none");
    const shown = names.slice(0, most).map(link);
    const more = names.length > most ? [element("span", { class: "none" }, `and ${names.length - most} more`)] : [];
    return element("div", { class: "links" }, ...shown, ...more);
  }

  function facts(pairs) {
    const rows = pairs.filter(([, value]) => value !== null && value !== "" && value !== undefined);
    return element("dl", { class: "facts" }, rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  }

  const section = (title, ...content) => element("section", {}, element("h3", {}, title), ...content);

  function updateTable(stage, id, step) {
    const rows = stage.updates.get(id).map((update) => element("tr", { class: runsAt(update, step) ? "now" : null },
      element("td", { class: `action ${update.action}` }, update.action),
      element("td", {}, update.text.slice(update.action.length)), element("td", {}, stepsOf([update]))));
    return rows.length ? element("table", {}, element("tbody", {}, rows)) : element("span", { class: "none" }, stage.before ? "none left" : "none");
  }

  // The sentence a newcomer looks for: when does it predict, when does the error come, when does it learn.
  function when(model, stage, id) {
    const updates = stage.updates.get(id), of = (action) => updates.filter((u) => u.action === action);
    const vertex = model.vertices[id], sentences = [];
    if (of("Predict").length) sentences.push(`predicts in ${stepsOf(of("Predict"))}`);
    const error = stage.errors.get(id);
    if (error) sentences.push(`has an error from step ${error[0]} on, read until step ${error[1] - 1}`);
    const moves = [...of("Infer"), ...of("Relax")];
    if (moves.length) sentences.push(`moves in ${stepsOf(moves)}`);
    const learned = vertex.learned.join(", ");
    if (of("Learn").length) sentences.push(`learns ${learned || "its parameters"} in ${stepsOf(of("Learn"))}`);
    else if (learned) sentences.push(`does not learn ${learned}`);
    return sentences.length ? capital(sentences.join("; ")) + "." : null;
  }

  function history(model, id) {
    const lines = model.stages.slice(1).flatMap((stage) => {
      const change = stage.changes.find((candidate) => candidate.id === id);
      if (!change) return [];
      const text = !change.was ? "added the vertex" : !change.is ? "removed the vertex"
        : `${change.gone.map((u) => u.text).join(", ") || "nothing"} → ${change.come.map((u) => u.text).join(", ") || "removed"}`;
      return [element("li", {}, element("button", { class: "link", onclick: () => act.goToStage(stage.index) }, stage.name), ": ", text,
        element("div", { class: "why" }, stage.why))];
    });
    return lines.length ? element("ul", { class: "history" }, lines) : element("span", { class: "none" }, "no pass changed it");
  }

  function showVertex(state, vertex) {
    const { model, stage, step } = state, id = vertex.id;
    const here = stage.has.has(id);
    const named = (ids) => ids.map((other) => model.vertices[other].name);
    const usual = vertex.operator.partition ? "" : vertex.operator;
    const readers = here ? stage.children.get(id) : [];
    const parents = here ? stage.parents.get(id) : [];
    host.replaceChildren(
      element("h2", {}, element("span", { class: `chip kind-${vertex.kind}` }, vertex.kind), element("span", { class: "name" }, vertex.name)),
      here ? element("p", { class: "when" }, when(model, stage, id)) : element("p", { class: "absent" }, `Not in the stage “${stage.name}”.`),
      facts([
        ["operator", usual], ["type", vertex.type], ["level", vertex.level === null ? "" : String(vertex.level)],
        ["source", vertex.source], ["module", vertex.module],
        ["error now", here ? errorNow(state, id) : ""],
      ]),
      here ? section("Updates in this stage", updateTable(stage, id, step)) : "",
      here ? section("Reads", list(named(parents))) : "",
      here ? section("Read by", list(named(readers))) : "",
      section("What the passes did", history(model, id)),
      vertex.code.length ? section("Code of the last stage", element("pre", {}, element("code", {}, vertex.code.join("\n")))) : "",
    );
  }

  function errorNow(state, id) {
    const norm = state.normAt(id, state.step);
    if (norm !== null) return `|e| = ${norm.toPrecision(4)} (recorded)`;
    const window = state.stage.errors.get(id);
    if (!window) return "";
    if (state.step < window[0]) return "zero";
    return state.step < window[1] ? "not zero" : "not read any more";
  }

  function showGroup(state, name) {
    const { model, stage } = state;
    const members = stage.vertices.filter((id) => lineage(model, model.vertices[id]).includes(name) && !model.vertices[id].backstage);
    const learners = members.filter((id) => stage.updates.get(id).some((u) => u.action === "Learn"));
    const open = state.opened.has(name);
    const learnSteps = merged(learners.flatMap((id) => stage.updates.get(id).filter((u) => u.action === "Learn").map((u) => [u.start, u.stop])));
    const first = learnSteps[0]?.[0], last = learnSteps.at(-1)?.[1] - 1;
    host.replaceChildren(
      element("h2", {}, element("span", { class: "chip kind-group" }, model.groups.get(name).delays ? "line of delays" : "module"), element("span", { class: "name" }, name)),
      element("p", { class: "when" }, `${members.length} vertices. ` + (learners.length
        ? `${learners.length} of them learn, ${first === last ? `in step ${first}` : `between steps ${first} and ${last}`}.` : "Nothing in it learns.")),
      element("p", {}, element("button", { onclick: () => act.toggle(name) }, open ? "Fold" : "Open")),
      section("Vertices", list(members.map((id) => model.vertices[id].name), 200)),
    );
  }

  function showStep(state) {
    const { model, stage, step, now } = state;
    const named = (set) => [...set].map((id) => model.vertices[id].name);
    const predicting = new Set([...now.Predict].filter((id) => !model.vertices[id].backstage));
    const learners = [...now.Learn], parameters = learners.flatMap((id) => model.vertices[id].learned);
    const moving = new Set([...now.Infer, ...now.Relax]);
    const count = (set) => ` (${set.size ?? set.length})`;
    const what = stage.before ? [
      section(`What “${stage.name}” did`, element("p", { class: "why" }, capital(stage.why) + "."), element("p", {}, changeSentence(stage)), passList(state)),
    ] : [section("The literal program", element("p", {}, changeSentence(stage)))];
    const delays = stage.vertices.filter((id) => model.vertices[id].kind === "delay");
    host.replaceChildren(
      element("h2", {}, `Step ${step}`),
      section("Learn" + count(now.Learn), learners.length
        ? element("p", { class: "sub", id: "learning", "data-parameters": JSON.stringify(parameters) }, parameters.join(", ") || "")
        : "", list(named(now.Learn))),
      section("Have an error that is not zero" + count(now.errors), list(named(now.errors))),
      section("Predict" + count(predicting), list(named(predicting), 12)),
      section("Move" + count(moving), list(named(moving))),
      ...what,
      section("Delay vertices in this stage" + count(delays), delays.length ? list(delays.map((id) => model.vertices[id].name), 12) : element("span", { class: "none" }, "none")),
    );
  }

  function passList(state) {
    const { model, stage } = state;
    const items = stage.changes.filter((change) => !model.vertices[change.id].backstage || change.gone.length).slice(0, 60).map((change) => {
      const name = model.vertices[change.id].name;
      const text = !change.was ? "added" : !change.is ? "removed" : "";
      return element("li", {}, link(name), text ? ` ${text}` : "",
        text ? "" : [" ", element("del", {}, change.gone.map((u) => u.text).join(" ")), change.come.length ? " → " : "", element("ins", {}, change.come.map((u) => u.text).join(" "))]);
    });
    const more = stage.changes.length - items.length;
    return items.length ? element("ul", { class: "changes" }, items, more > 0 ? element("li", { class: "none" }, `and ${more} more vertices`) : "") : "";
  }

  return {
    show(state) {
      const top = host.scrollTop, same = host.dataset.shown === String(state.selected);
      host.dataset.shown = String(state.selected);
      const vertex = state.selected === null ? undefined : state.model.byName.get(state.selected);
      if (vertex) showVertex(state, vertex);
      else if (state.selected) showGroup(state, state.selected.replace(/\/$/, ""));
      else showStep(state);
      host.scrollTop = same ? top : 0;
    },
  };
}
