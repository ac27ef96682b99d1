// The graph: ELK lays out what the view shows, D3 draws what of it is in sight.

const MARGIN = 200; // pixels beyond the border that are drawn as well
const AROUND = 14; // pixels left free around a graph that fits

function createLayout() {
  const source = document.getElementById("elk").textContent;
  let worker, number = 0;
  const waiting = new Map();
  const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  function start() {
    worker = new Worker(url);
    worker.onmessage = ({ data }) => {
      const call = waiting.get(data.id);
      waiting.delete(data.id);
      if (call) data.error ? call.reject(new Error(JSON.stringify(data.error))) : call.resolve(data.data);
    };
    worker.onerror = (error) => waiting.forEach((call) => call.reject(error));
    ask({ cmd: "register", algorithms: ["layered"] });
  }
  function ask(message) {
    number += 1;
    const id = number;
    return new Promise((resolve, reject) => {
      waiting.set(id, { resolve, reject });
      worker.postMessage({ id, ...message });
    });
  }
  start();
  return {
    async place(view) {
      const plain = { groups: view.groups, nodes: view.nodes.map(({ members, ...box }) => box), edges: view.edges };
      return geometry(await ask({ cmd: "layout", graph: elkGraph(plain), layoutOptions: {}, options: {} }), view);
    },
    // A layout that nobody waits for any more need not hold up the next one.
    abandon() {
      worker.terminate();
      waiting.clear();
      start();
    },
  };
}

function createGraph(host, act) {
  const svg = d3.select(host).select("svg");
  const defs = svg.append("defs");
  for (const name of ["arrow", "arrow-travels"]) {
    defs.append("marker").attr("id", name).attr("viewBox", "0 0 8 8").attr("refX", 7).attr("refY", 4)
      .attr("markerUnits", "userSpaceOnUse").attr("markerWidth", name === "arrow" ? 8 : 12).attr("markerHeight", name === "arrow" ? 8 : 12).attr("orient", name === "arrow" ? "auto" : "auto-start-reverse")
      .append("path").attr("d", "M0,0 L8,4 L0,8 z").attr("class", name);
  }
  const scene = svg.append("g");
  const layers = Object.fromEntries(["groups", "edges", "labels", "nodes"].map((name) => [name, scene.append("g").attr("class", name)]));
  let placed = null, transform = d3.zoomIdentity, drawn = "", now = null, selected = null, heat = null;
  const zoom = d3.zoom().scaleExtent([0.01, 3]).on("zoom", (event) => {
    transform = event.transform;
    scene.attr("transform", transform);
    svg.classed("far", transform.k < 0.32);
    draw();
  });
  svg.call(zoom).on("dblclick.zoom", null).on("click", (event) => {
    if (event.target === svg.node()) act.select(null);
  });

  const size = () => [svg.node().clientWidth || 1, svg.node().clientHeight || 1];

  function inSight(part) {
    const [width, height] = size(), { x, y, k } = transform;
    return part.x * k + x < width + MARGIN && (part.x + part.width) * k + x > -MARGIN &&
      part.y * k + y < height + MARGIN && (part.y + part.height) * k + y > -MARGIN;
  }

  function draw(force = false) {
    if (!placed) return;
    const nodes = placed.nodes.filter(inSight), edges = placed.edges.filter((edge) => inSight(edge.bounds));
    const groups = placed.groups.filter(inSight);
    const signature = `${placed.number} ${nodes.length} ${nodes[0]?.name} ${nodes.at(-1)?.name} ${edges.length} ${groups.length}`;
    if (!force && signature === drawn) return;
    drawn = signature;
    layers.groups.selectAll("rect").data(groups, (d) => d.name).join("rect").attr("class", "group").attr("rx", 8)
      .attr("x", (d) => d.x).attr("y", (d) => d.y).attr("width", (d) => d.width).attr("height", (d) => d.height);
    layers.labels.selectAll("g").data(groups, (d) => d.name).join(newGroupLabel)
      .attr("transform", (d) => `translate(${d.x + 8},${d.y + 7})`);
    layers.edges.selectAll("path").data(edges, (d) => d.source + "\u0000" + d.target).join("path")
      .attr("d", (d) => d.path);
    layers.nodes.selectChildren("g").data(nodes, (d) => d.name).join(newNode)
      .attr("transform", (d) => `translate(${d.x},${d.y})`);
    paint();
  }

  function newGroupLabel(enter) {
    const label = enter.append("g").attr("class", "group-label").attr("data-group", (d) => d.name)
      .on("click", (event, d) => act.toggle(d.name));
    label.append("title").text((d) => `Fold ${d.name}`);
    label.append("rect").attr("rx", 4).attr("height", 20)
      .attr("width", (d) => textWidth(shortened(d.label, WIDEST) + `  ${d.vertices}`, 11.5) + 30);
    label.append("text").attr("class", "sign").attr("x", 7).attr("y", 14).text("−");
    label.append("text").attr("x", 21).attr("y", 14).text((d) => shortened(d.label, WIDEST));
    return label;
  }

  function newNode(enter) {
    const node = enter.append("g").attr("class", "node").attr("data-name", (d) => d.name)
      .on("click", (event, d) => act.select(d.name, false))
      .on("dblclick", (event, d) => d.folded && act.toggle(d.folded))
      .on("mouseenter", (event, d) => act.hover(d.name)).on("mouseleave", () => act.hover(null));
    node.append("title").text((d) => d.name);
    node.filter((d) => d.folded).append("rect").attr("class", "behind").attr("x", 4).attr("y", 4).attr("rx", 6);
    node.append("rect").attr("class", "box").attr("rx", 6);
    node.append("rect").attr("class", "stripe").attr("width", 4).attr("rx", 2).attr("x", 3).attr("y", 5).attr("height", BOX_HEIGHT - 10);
    node.append("text").attr("class", "label").attr("x", 14).attr("y", 17).text((d) => d.label);
    node.append("text").attr("class", "detail").attr("x", 14).attr("y", 31).text((d) => d.detail);
    const sign = node.filter((d) => d.folded).append("g").attr("class", "unfold").on("click", (event, d) => {
      event.stopPropagation();
      act.toggle(d.folded);
    });
    sign.append("title").text((d) => `Open ${d.folded}`);
    sign.append("circle").attr("r", 8).attr("cx", (d) => d.width - 2).attr("cy", 2);
    sign.append("text").attr("x", (d) => d.width - 2).attr("y", 6).text("+");
    const pill = node.append("g").attr("class", "pill");
    pill.append("rect").attr("rx", 6).attr("width", 40).attr("height", 13).attr("y", BOX_HEIGHT - 6);
    pill.append("text").attr("y", BOX_HEIGHT + 4).text("learns");
    node.selectAll("rect.box, rect.behind").attr("width", (d) => d.width).attr("height", (d) => d.height);
    pill.select("rect").attr("x", (d) => d.width - 46);
    pill.select("text").attr("x", (d) => d.width - 26);
    return node;
  }

  // Colours by what happens now; positions stay.
  function paint() {
    if (!placed || !now) return;
    const any = (set, box) => box.members.some((id) => set.has(id));
    layers.nodes.selectChildren("g").attr("class", (d) => [
      "node", `kind-${d.kind}`, d.folded ? "folded" : "",
      any(now.Predict, d) ? "predicts" : "", any(now.errors, d) ? "errs" : "",
      any(now.Relax, d) || any(now.Infer, d) ? "moves" : "", any(now.Learn, d) ? "learns" : "",
      any(now.Descend, d) ? "descends" : "", d.name === selected ? "selected" : "",
    ].filter(Boolean).join(" "));
    layers.nodes.selectChildren("g").select("rect.box").style("--heat", (d) => (heat ? heat(d) : null));
    layers.edges.selectAll("path").attr("class", (d) => {
      const carrying = d.carries.some(([parent, child]) => travels(now, parent, child));
      const near = selected !== null && (d.source === selected || d.target === selected);
      return `edge${carrying ? " travels" : ""}${near ? " near" : ""}`;
    }).attr("marker-end", function () { return this.classList.contains("travels") ? null : "url(#arrow)"; })
      .attr("marker-start", function () { return this.classList.contains("travels") ? "url(#arrow-travels)" : null; });
  }

  function move(next, smooth = true) {
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches || !smooth;
    (still ? svg : svg.transition().duration(220)).call(zoom.transform, next);
  }

  function fitting() {
    const [width, height] = size();
    return Math.min((width - 2 * AROUND) / placed.width, (height - 2 * AROUND) / placed.height, 1.15);
  }

  let number = 0;
  return {
    show(geometry, view) {
      number += 1;
      placed = { ...geometry, number };
      const links = new Map(view.links.map((link) => [link.ends.join("\u0000"), link.carries]));
      for (const edge of placed.edges) {
        const xs = edge.points.map((p) => p[0]), ys = edge.points.map((p) => p[1]);
        edge.bounds = { x: Math.min(...xs), y: Math.min(...ys), width: Math.max(...xs) - Math.min(...xs), height: Math.max(...ys) - Math.min(...ys) };
        edge.path = pathThrough(edge.points);
        edge.carries = links.get(edge.source + "\u0000" + edge.target) ?? [];
      }
      for (const layer of Object.values(layers)) layer.selectAll("*").remove();
      draw(true);
    },
    paint(next, name, heatOf) {
      [now, selected, heat] = [next, name, heatOf];
      paint();
    },
    fit(smooth = true) {
      if (!placed) return;
      const [width, height] = size();
      const k = fitting();
      move(d3.zoomIdentity.translate((width - placed.width * k) / 2, (height - placed.height * k) / 2).scale(k), smooth);
    },
    // Everything, if it is drawn larger than `least`; else the end of the graph, where the schedule begins.
    begin(least = 0.62) {
      const [width, height] = size();
      if (fitting() >= least) return this.fit(false);
      const scale = Math.min(0.8, Math.max(0.62, (width - 2 * AROUND) / placed.width));
      const loss = placed.nodes.at(-1);
      const x = width / 2 - (loss.x + loss.width / 2) * scale;
      move(d3.zoomIdentity.translate(x, height - AROUND - placed.height * scale).scale(scale), false);
    },
    zoomBy(factor) { svg.transition().duration(150).call(zoom.scaleBy, factor); },
    bring(name) {
      const part = placed?.nodes.find((node) => node.name === name);
      if (!part) return;
      const [width, height] = size(), k = Math.max(transform.k, 0.75);
      const { x, y } = transform;
      const left = part.x * transform.k + x, top = part.y * transform.k + y;
      const seen = transform.k >= 0.5 && left > 10 && top > 10 && left + part.width * transform.k < width - 10 && top + part.height * transform.k < height - 10;
      if (!seen) move(d3.zoomIdentity.translate(width / 2 - (part.x + part.width / 2) * k, height / 2 - (part.y + part.height / 2) * k).scale(k));
    },
    last: () => placed?.nodes.at(-1)?.name,
    // Where a box or group is on the screen, and putting a box or group there.
    where(name) {
      const part = placed?.nodes.find((node) => node.name === name) ?? placed?.groups.find((group) => group.name === name);
      return part && [part.x * transform.k + transform.x, part.y * transform.k + transform.y];
    },
    anchor(name, point) {
      const part = placed.nodes.find((node) => node.name === name) ?? placed.groups.find((group) => group.name === name);
      if (part && point) move(d3.zoomIdentity.translate(point[0] - part.x * transform.k, point[1] - part.y * transform.k).scale(transform.k), false);
    },
    resized() { draw(true); },
    names: () => (placed ? placed.nodes.map((node) => node.name) : []),
  };
}
