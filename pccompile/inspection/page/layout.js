// From a view of the program (boxes, open groups, edges) to positions: the graph that ELK lays out, and its answer.
// The page and Program.to_svg() both run this file, so that they draw alike.

const LABEL_SIZE = 12, DETAIL_SIZE = 10.5, ADVANCE = 0.602; // a monospaced character is 0.602 em wide
const BOX_HEIGHT = 40, WIDEST = 34; // characters

const LAYOUT = {
  "elk.algorithm": "layered",
  "elk.direction": "DOWN",
  "elk.hierarchyHandling": "INCLUDE_CHILDREN",
  "elk.edgeRouting": "ORTHOGONAL",
  "elk.layered.considerModelOrder.strategy": "PREFER_EDGES",
  "elk.layered.nodePlacement.strategy": "BRANDES_KOEPF",
  "elk.layered.nodePlacement.bk.fixedAlignment": "BALANCED",
  "elk.layered.spacing.nodeNodeBetweenLayers": 26,
  "elk.layered.spacing.edgeNodeBetweenLayers": 13,
  "elk.layered.spacing.edgeEdgeBetweenLayers": 9,
  "elk.spacing.nodeNode": 22,
  "elk.spacing.edgeNode": 14,
  "elk.spacing.edgeEdge": 9,
  "elk.layered.mergeEdges": "true",
  "elk.json.shapeCoords": "ROOT",
  "elk.json.edgeCoords": "ROOT",
  "elk.padding": "[top=16,left=16,bottom=16,right=16]",
};
const GROUP_LAYOUT = { "elk.padding": "[top=34,left=14,bottom=14,right=14]" };

function shortened(text, length) {
  if (text.length <= length) return text;
  const end = Math.floor((length - 1) / 2);
  return text.slice(0, length - 1 - end) + "…" + text.slice(text.length - end);
}

function textWidth(text, size) {
  return text.length * size * ADVANCE;
}

function boxOf(node) {
  const label = shortened(node.label, WIDEST), detail = shortened(node.detail, WIDEST + 4);
  const width = Math.max(textWidth(label, LABEL_SIZE), textWidth(detail, DETAIL_SIZE), 44) + 26;
  return { ...node, label, detail, width: Math.round(width), height: BOX_HEIGHT };
}

// The graph for ELK, with the boxes inside their groups.
function elkGraph(view) {
  const groups = new Map();
  const root = { id: "root", layoutOptions: LAYOUT, children: [], edges: [] };
  for (const group of view.groups) {
    const inside = { id: "group " + group.name, layoutOptions: GROUP_LAYOUT, children: [] };
    const label = shortened(group.label, WIDEST) + "  " + group.vertices;
    inside.layoutOptions = {
      ...GROUP_LAYOUT,
      "elk.nodeSize.constraints": "MINIMUM_SIZE",
      "elk.nodeSize.minimum": `(${Math.round(textWidth(label, LABEL_SIZE) + 44)}, 60)`,
    };
    groups.set(group.name, inside);
    (groups.get(group.parent) ?? root).children.push(inside);
  }
  for (const node of view.nodes) {
    const { width, height } = boxOf(node);
    (groups.get(node.group) ?? root).children.push({ id: "box " + node.name, width, height });
  }
  view.edges.forEach(([source, target], index) => {
    root.edges.push({ id: "edge " + index, sources: ["box " + source], targets: ["box " + target] });
  });
  return root;
}

// ELK's answer as flat lists with positions in the picture.
function geometry(answer, view) {
  const found = new Map();
  (function visit(part) {
    found.set(part.id, part);
    (part.children ?? []).forEach(visit);
  })(answer);
  const edges = new Map();
  (function visit(part) {
    (part.edges ?? []).forEach((edge) => edges.set(edge.id, edge));
    (part.children ?? []).forEach(visit);
  })(answer);
  const at = ({ x, y, width, height }) => ({ x, y, width, height });
  return {
    width: answer.width,
    height: answer.height,
    groups: view.groups.map((group) => ({ ...group, ...at(found.get("group " + group.name)) })),
    nodes: view.nodes.map((node) => ({ ...boxOf(node), ...at(found.get("box " + node.name)) })),
    edges: view.edges.map(([source, target], index) => ({
      source,
      target,
      points: (edges.get("edge " + index).sections ?? []).flatMap((s) => [s.startPoint, ...(s.bendPoints ?? []), s.endPoint])
        .map(({ x, y }) => [x, y]),
    })),
  };
}

// An SVG path through the points of an edge, its corners rounded.
function pathThrough(points, radius = 6) {
  if (points.length < 2) return "";
  let path = `M${points[0][0]},${points[0][1]}`;
  for (let i = 1; i < points.length - 1; i++) {
    const [before, corner, after] = [points[i - 1], points[i], points[i + 1]];
    const into = towards(corner, before, radius), outOf = towards(corner, after, radius);
    path += `L${into[0]},${into[1]}Q${corner[0]},${corner[1]} ${outOf[0]},${outOf[1]}`;
  }
  const end = points[points.length - 1];
  return path + `L${end[0]},${end[1]}`;
}

function towards(from, to, distance) {
  const dx = to[0] - from[0], dy = to[1] - from[1], length = Math.hypot(dx, dy) || 1;
  const share = Math.min(distance / length, 0.5);
  return [Math.round((from[0] + dx * share) * 10) / 10, Math.round((from[1] + dy * share) * 10) / 10];
}
