// The program as the page asks about it: stages, what each pass changed, what happens at a step, what a picture shows.

const ACTIONS = ["Predict", "Compare", "Infer", "Relax", "Learn", "Descend"];
const KINDS = ["input", "hidden", "delay", "output", "loss", "parameter", "buffer", "constant"];

function readModel(data) {
  const model = { ...data, groups: new Map(data.groups.map((group) => [group.name, group])) };
  model.vertices.forEach((vertex, id) => { vertex.id = id; });
  model.byName = new Map(model.vertices.map((vertex) => [vertex.name, vertex]));
  let before = null;
  model.stages = data.stages.map((raw, index) => {
    const stage = { ...raw, index, vertices: raw.vertices ?? before.vertices, edges: raw.edges ?? before.edges };
    stage.has = new Set(stage.vertices);
    stage.errors = new Map(raw.errors.map(([id, first, until]) => [id, [first, until]]));
    stage.updates = new Map(stage.vertices.map((id) => [id, []]));
    for (const [id, action, start, stop, text] of raw.updates) {
      stage.updates.get(id).push({ action: ACTIONS[action], start, stop, text: ACTIONS[action] + text });
    }
    stage.parents = new Map(stage.vertices.map((id) => [id, []]));
    stage.children = new Map(stage.vertices.map((id) => [id, []]));
    for (const [parent, child] of stage.edges) {
      stage.children.get(parent).push(child);
      stage.parents.get(child).push(parent);
    }
    stage.counts = groupCounts(model, stage);
    stage.changes = before ? changesBetween(model, before, stage) : [];
    stage.before = before;
    before = stage;
    return stage;
  });
  return model;
}

function lineage(model, vertexOrGroup) {
  const found = [];
  for (let name = vertexOrGroup.home ?? vertexOrGroup.parent; name; name = model.groups.get(name).parent) found.push(name);
  return found;
}

// How many vertices of a stage each group holds; what is backstage does not count.
function groupCounts(model, stage) {
  const counts = new Map();
  for (const id of stage.vertices) {
    const vertex = model.vertices[id];
    if (vertex.backstage) continue;
    for (const group of lineage(model, vertex)) counts.set(group, (counts.get(group) ?? 0) + 1);
  }
  return counts;
}

// What a pass did, vertex by vertex: updates that are gone, new, or run in other steps; vertices added and removed.
function changesBetween(model, before, after) {
  const changes = [];
  for (const vertex of model.vertices) {
    const id = vertex.id, was = before.has.has(id), is = after.has.has(id);
    const old = was ? before.updates.get(id) : [], now = is ? after.updates.get(id) : [];
    const gone = old.filter((u) => !now.some((v) => v.text === u.text));
    const come = now.filter((u) => !old.some((v) => v.text === u.text));
    if (was !== is || gone.length || come.length) changes.push({ id, was, is, gone, come });
  }
  return changes;
}

function changeCounts(stage) {
  const counts = { removed: 0, shortened: 0, added: 0, vertices: 0, delays: 0 };
  for (const { was, is, gone, come } of stage.changes) {
    if (was && !is) counts.vertices += 1;
    if (!was && is) counts.delays += 1;
    if (was !== is) continue;
    const left = new Set(come.map((u) => u.action));
    const had = new Set(gone.map((u) => u.action));
    for (const action of had) counts[left.has(action) ? "shortened" : "removed"] += 1;
    for (const action of left) if (!had.has(action)) counts.added += 1;
  }
  return counts;
}

function changeSentence(stage) {
  if (!stage.before) return "Every update of every vertex, as the rule is written.";
  const c = changeCounts(stage);
  const parts = [];
  const say = (count, what, verb) => count && parts.push(`${verb} ${count} ${what}${count === 1 ? "" : "s"}`);
  say(c.removed, "update", "removed");
  say(c.shortened, "update", "shortened");
  say(c.added, "update", "added");
  say(c.delays, "delay vertex", "added");
  say(c.vertices, "delay vertex", "removed");
  return parts.length ? capital(parts.join(", ").replaceAll("vertexs", "vertices")) + "." : "Nothing to do in this program.";
}

const capital = (text) => text[0].toUpperCase() + text.slice(1);

const runsAt = (update, step) => update.start <= step && step < update.stop;
const hasError = (stage, id, step) => {
  const window = stage.errors.get(id);
  return window !== undefined && window[0] <= step && step < window[1];
};

// What happens in a step: the vertices by action, those with an error, and along which edges errors travel.
function happening(stage, step) {
  const now = Object.fromEntries(ACTIONS.map((action) => [action, new Set()]));
  const errors = new Set();
  for (const id of stage.vertices) {
    for (const update of stage.updates.get(id)) if (runsAt(update, step)) now[update.action].add(id);
    if (hasError(stage, id, step)) errors.add(id);
  }
  return { ...now, errors };
}

const travels = (now, parent, child) => now.errors.has(child) && (now.Relax.has(parent) || now.Infer.has(parent));

// What a picture shows of a stage: boxes, open groups, edges. A group with one vertex is no group.
function viewOf(model, stage, opened, parameters) {
  const boxOf = new Map(), nodes = new Map(), shownGroups = new Set();
  for (const id of stage.vertices) {
    const vertex = model.vertices[id];
    if (vertex.backstage && !parameters) continue;
    const around = lineage(model, vertex).filter((name) => (stage.counts.get(name) ?? 0) > 1).reverse();
    const folded = around.find((name) => !opened.has(name));
    const open = folded === undefined ? around : around.slice(0, around.indexOf(folded));
    open.forEach((name) => shownGroups.add(name));
    const home = open.at(-1) ?? "";
    const name = folded === undefined ? vertex.name : folded + "/";
    boxOf.set(id, name);
    if (!nodes.has(name)) nodes.set(name, folded === undefined ? vertexBox(vertex, home) : groupBox(model, stage, folded, home));
    nodes.get(name).members.push(id);
  }
  const edges = new Map();
  for (const [parent, child] of stage.edges) {
    const source = boxOf.get(parent), target = boxOf.get(child);
    if (source === undefined || target === undefined || source === target) continue;
    const key = source + "\u0000" + target;
    if (!edges.has(key)) edges.set(key, { ends: [source, target], carries: [] });
    edges.get(key).carries.push([parent, child]);
  }
  const groups = [...model.groups.values()].filter((group) => shownGroups.has(group.name)).map((group) => ({
    ...group,
    parent: lineage(model, group).find((name) => shownGroups.has(name)) ?? "",
    vertices: stage.counts.get(group.name),
  }));
  return { groups, nodes: [...nodes.values()], edges: [...edges.values()].map((edge) => edge.ends), links: [...edges.values()], boxOf };
}

function vertexBox(vertex, group) {
  return { name: vertex.name, label: vertex.label, detail: vertex.detail, kind: vertex.kind, group, vertices: 1, members: [] };
}

function groupBox(model, stage, name, group) {
  const count = stage.counts.get(name), delays = model.groups.get(name).delays;
  const detail = `${count} ${delays ? "delays" : "vertices"}`;
  return {
    name: name + "/", folded: name, label: model.groups.get(name).label, detail,
    kind: delays ? "delay" : "group", group, vertices: count, members: [],
  };
}

// Ranges in words: "step 3", "steps 3 to 7".
function stepsOf(updates) {
  const ranges = updates.map(({ start, stop }) => (stop - start === 1 ? `${start}` : `${start} to ${stop - 1}`));
  const plural = updates.length > 1 || updates.some(({ start, stop }) => stop - start > 1);
  return `${plural ? "steps" : "step"} ${ranges.join(", ")}`;
}
