// The schedule chart: a row for every box of the graph, a column for every step. Only the rows in sight are drawn.

const ROW = 17, HEAD = 20, NARROWEST = 2, BROADEST = 26;

function createChart(host, act) {
  const scroll = host.querySelector("#scroll"), room = host.querySelector("#room"), canvas = host.querySelector("canvas");
  const tip = host.querySelector("#tip");
  let rows = [], stage = null, model = null, step = 0, selected = null, hovered = null, heat = null, ghosts = new Map();
  let names = 150, column = 10, colours = {};

  function measure() {
    const width = scroll.clientWidth, length = Math.max(stage?.length ?? 1, 1);
    const longest = rows.reduce((most, row) => Math.max(most, row.text.length), 4);
    names = Math.min(Math.max(Math.ceil(longest * 6.4) + 18, 70), Math.round(width * 0.42));
    column = Math.min(Math.max((width - names - 14) / length, NARROWEST), BROADEST);
    room.style.width = `${Math.ceil(names + column * length + 8)}px`;
    room.style.height = `${HEAD + rows.length * ROW + 8}px`;
  }

  function readColours() {
    const style = getComputedStyle(document.documentElement);
    const names = ["predict", "compare", "move", "learn", "descend", "error", "line", "text", "quiet", "select", "surface", "ghost"];
    colours = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
    colours.font = style.getPropertyValue("--mono").trim();
  }

  function draw() {
    if (!stage) return;
    const width = scroll.clientWidth, height = scroll.clientHeight, ratio = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
    }
    const paper = canvas.getContext("2d");
    paper.setTransform(ratio, 0, 0, ratio, 0, 0);
    paper.clearRect(0, 0, width, height);
    const left = scroll.scrollLeft, top = scroll.scrollTop;
    const x = (time) => names + time * column - left, y = (row) => HEAD + row * ROW - top;
    const first = Math.max(0, Math.floor((top - ROW) / ROW)), last = Math.min(rows.length, Math.ceil((top + height) / ROW) + 1);
    paper.save();
    paper.beginPath();
    paper.rect(names, 0, width - names, height);
    paper.clip();
    paper.fillStyle = colours.select;
    paper.globalAlpha = 0.16;
    paper.fillRect(x(step), 0, Math.max(column, 2), height);
    paper.globalAlpha = 1;
    for (let row = first; row < last; row++) drawRow(paper, rows[row], x, y(row), left, width);
    paper.restore();
    drawNames(paper, first, last, y);
    drawHead(paper, x, width);
  }

  function drawRow(paper, row, x, y, left, width) {
    if (row.name === selected || row.name === hovered) {
      paper.fillStyle = colours.select;
      paper.globalAlpha = row.name === selected ? 0.14 : 0.07;
      paper.fillRect(names, y, width, ROW);
      paper.globalAlpha = 1;
    }
    const bar = (start, stop, colour, from, to, alpha = 1) => {
      paper.globalAlpha = alpha;
      paper.fillStyle = colour;
      const gap = column > 6 ? 1 : 0;
      paper.fillRect(x(start) + gap / 2, y + from, Math.max((stop - start) * column - gap, 1.5), to - from);
      paper.globalAlpha = 1;
    };
    for (const [start, stop] of row.errors) {
      if (heat) for (let time = start; time < stop; time++) bar(time, time + 1, colours.error, 1, ROW - 1, heat(row, time));
      else bar(start, stop, colours.error, 1, ROW - 1, 0.24);
    }
    for (const ghost of ghosts.get(row.name) ?? []) {
      paper.strokeStyle = colours.ghost;
      paper.setLineDash([3, 2]);
      paper.strokeRect(x(ghost.start) + 1.5, y + 2.5, Math.max((ghost.stop - ghost.start) * column - 3, 1), ROW - 5);
      paper.setLineDash([]);
    }
    for (const [start, stop] of row.spans.Predict) bar(start, stop, colours.predict, 2, 6);
    for (const [start, stop] of row.spans.Compare) bar(start, stop, colours.compare, 7, 10);
    for (const action of ["Infer", "Relax"]) for (const [start, stop] of row.spans[action]) bar(start, stop, colours.move, 7, 11);
    for (const [start, stop] of row.spans.Learn) bar(start, stop, colours.learn, 11, ROW - 2);
    for (const [start, stop] of row.spans.Descend) bar(start, stop, colours.descend, 4, ROW - 4);
  }

  function drawNames(paper, first, last, y) {
    paper.fillStyle = colours.surface;
    paper.fillRect(0, 0, names, canvas.height);
    paper.font = `10.5px ${colours.font}`;
    paper.textBaseline = "middle";
    const fits = Math.floor((names - 12) / 6.4);
    for (let row = first; row < last; row++) {
      const { name, text } = rows[row];
      if (name === selected) {
        paper.fillStyle = colours.select;
        paper.globalAlpha = 0.14;
        paper.fillRect(0, y(row), names, ROW);
        paper.globalAlpha = 1;
      }
      paper.fillStyle = name === selected ? colours.text : colours.quiet;
      paper.fillText(shortened(text, fits), 8, y(row) + ROW / 2 + 0.5);
    }
  }

  function drawHead(paper, x, width) {
    paper.fillStyle = colours.surface;
    paper.fillRect(0, 0, width, HEAD);
    paper.fillStyle = colours.quiet;
    paper.font = `10px ${colours.font}`;
    paper.fillText("step", 8, HEAD / 2);
    const every = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000].find((n) => n * column > 30) ?? 10000;
    paper.textAlign = "center";
    for (let time = 0; time < stage.length; time += every) {
      const centre = x(time + 0.5);
      if (centre > names + 4 && centre < width && Math.abs(time - step) * column > 22) paper.fillText(time, centre, HEAD / 2);
    }
    const centre = x(step + 0.5);
    if (centre > names - 4) {
      paper.fillStyle = colours.text;
      paper.font = `bold 10px ${colours.font}`;
      paper.fillText(step, Math.max(centre, names + 8), HEAD / 2);
    }
    paper.textAlign = "left";
    paper.strokeStyle = colours.line;
    paper.beginPath();
    paper.moveTo(0, HEAD - 0.5);
    paper.lineTo(width, HEAD - 0.5);
    paper.moveTo(names - 0.5, 0);
    paper.lineTo(names - 0.5, scroll.clientHeight);
    paper.stroke();
  }

  function under(event) {
    const box = scroll.getBoundingClientRect();
    const px = event.clientX - box.left, py = event.clientY - box.top;
    const row = py < HEAD ? null : rows[Math.floor((py + scroll.scrollTop - HEAD) / ROW)] ?? null;
    const time = px < names ? null : Math.floor((px + scroll.scrollLeft - names) / column);
    return { row, time: time !== null && time >= 0 && time < stage.length ? time : null, px, py };
  }

  let pressed = false;
  const pointTime = (event) => {
    const { time } = under(event);
    if (time !== null) act.goTo(time);
  };
  scroll.addEventListener("pointerdown", (event) => {
    const box = scroll.getBoundingClientRect();
    if (event.clientX - box.left > scroll.clientWidth || event.clientY - box.top > scroll.clientHeight) return;
    pressed = true;
    const { row } = under(event);
    if (row) act.select(row.name, false);
    pointTime(event);
  });
  addEventListener("pointerup", () => { pressed = false; });
  scroll.addEventListener("pointermove", (event) => {
    if (pressed) pointTime(event);
    const { row, time, px, py } = under(event);
    hover(row?.name ?? null);
    act.hover(row?.name ?? null);
    tip.hidden = !row;
    if (row) {
      tip.textContent = row.text + (time === null ? "" : `, step ${time}: ${doing(row, time)}`);
      tip.style.left = `${Math.min(px + 14, Math.max(scroll.clientWidth - tip.offsetWidth - 6, 0))}px`;
      tip.style.top = `${scroll.offsetTop + (py + 44 > scroll.clientHeight ? py - 30 : py + 18)}px`;
    }
  });
  scroll.addEventListener("pointerleave", () => { tip.hidden = true; hover(null); act.hover(null); });
  scroll.addEventListener("scroll", draw);

  function doing(row, time) {
    const actions = ACTIONS.filter((action) => row.spans[action].some(([start, stop]) => start <= time && time < stop));
    if (row.errors.some(([start, stop]) => start <= time && time < stop)) actions.unshift("error");
    return actions.join(", ") || "nothing";
  }

  function hover(name) {
    if (name === hovered) return;
    hovered = name;
    draw();
  }

  return {
    show(nextModel, nextStage, view) {
      [model, stage] = [nextModel, nextStage];
      rows = view.nodes.filter((box) => box.kind !== "input").map((box) => rowOf(stage, box));
      ghosts = new Map();
      const boxes = new Map(view.nodes.filter((box) => !box.folded).map((box) => [box.members[0], box.name]));
      for (const { id, gone } of stage.changes) if (boxes.has(id)) ghosts.set(boxes.get(id), gone);
      readColours();
      measure();
      draw();
    },
    paint(nextStep, name, heatOf) {
      [step, selected, heat] = [nextStep, name, heatOf];
      const x = names + step * column;
      if (x < scroll.scrollLeft + names) scroll.scrollLeft = x - names;
      if (x + column > scroll.scrollLeft + scroll.clientWidth) scroll.scrollLeft = x + column - scroll.clientWidth + 20;
      draw();
    },
    bring(name) {
      const row = rows.findIndex((candidate) => candidate.name === name);
      if (row < 0) return;
      const top = row * ROW;
      if (top < scroll.scrollTop || top + HEAD + ROW > scroll.scrollTop + scroll.clientHeight) scroll.scrollTop = top - scroll.clientHeight / 3;
    },
    hover,
    resized() { if (stage) { measure(); draw(); } },
    recoloured() { readColours(); draw(); },
  };
}

// The spans of a box: of its vertex, or of all in a folded group, merged.
function rowOf(stage, box) {
  const spans = Object.fromEntries(ACTIONS.map((action) => [action, []]));
  for (const id of box.members) for (const { action, start, stop } of stage.updates.get(id)) spans[action].push([start, stop]);
  const errors = box.members.filter((id) => stage.errors.has(id)).map((id) => stage.errors.get(id));
  for (const action of ACTIONS) spans[action] = merged(spans[action]);
  return { name: box.name, text: box.folded ? `${box.folded}  (${box.vertices})` : box.name, members: box.members, spans, errors: merged(errors) };
}

function merged(spans) {
  const found = [];
  for (const [start, stop] of [...spans].sort((a, b) => a[0] - b[0])) {
    const last = found.at(-1);
    if (last && start <= last[1]) last[1] = Math.max(last[1], stop);
    else found.push([start, stop]);
  }
  return found;
}
