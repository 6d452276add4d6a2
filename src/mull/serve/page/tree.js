// The tree of a search on a canvas, left to right. At zoom 1 all of it is in view, however large it is; zooming spreads
// the steps out, while dots and words keep their size. Only what is visible is drawn, so that thousands stay smooth.
import { plural } from "./words.js";

const ROW = 27; // pixels between siblings, at most, before any zoom
const COLUMN = [176, 230]; // and between generations, before and after
const PAD = { left: 16, y: 18 };
const WORDS = [40, 150]; // room behind the last generation, at least and at most
const LABEL = 300; // pixels of a word beside a dot, at most
const CHARACTER = 6.75; // width of the monospaced font below
const FONT = '11px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace';
const NAMES = ["ink", "muted", "line", "panel", "accent", "score-low", "score-mid", "score-high"];
const oneLine = (text) => text.replace(/\s+/g, " ").trim();

/** A viewer on `canvas`; `onChoose(id)` is told what the reader chooses. -1 is the question. */
export function makeTree(canvas, onChoose) {
  const context = canvas.getContext("2d");
  let given = null; // the tree as the session keeps it
  let seen = -1; // its `changed` when it was laid out
  let nodes = []; // {id, x: generation, y: place, parent, children, ...}
  let byId = new Map();
  let chosen = null;
  let transform = d3.zoomIdentity;
  let size = { width: 1, height: 1 };
  let span = { deep: 0, top: 0, bottom: 0, words: WORDS[0] };
  let colors = {};
  let ramp = [];
  let domain = [0, 1];
  let frame = 0;
  let later = 0;
  let laidOut = { at: -1e9, cost: 0 };

  // ------------------------------------------------------------------------------------------------- layout

  function show(tree) {
    given = tree;
    if (tree.changed === seen) return;
    // A large tree that grows quickly must not take all of the browser's time.
    const wait = laidOut.at + 12 * laidOut.cost - performance.now();
    clearTimeout(later);
    if (wait > 0 && tree.running.length) later = setTimeout(layout, wait);
    else layout();
  }

  function layout() {
    const begun = performance.now();
    seen = given.changed;
    const root = { id: -1, data: { tokens: 0, score: null }, children: [], parent: null };
    byId = new Map([[-1, root]]);
    nodes = [root];
    for (const d of given.nodes.values()) add({ id: d.id, data: d, children: [], running: false });
    given.running.forEach(([parent, tokens], i) => add({ id: `running ${i}`, data: { parent, tokens, score: null }, children: [], running: true }));
    const h = d3.hierarchy(root);
    d3.tree().nodeSize([1, 1]).separation((a, b) => (a.parent === b.parent ? 1 : 1.3))(h);
    h.each((p) => Object.assign(p.data, { x: p.y, y: p.x, won: given.won.has(p.data.id), pruned: given.pruned.has(p.data.id) }));
    root.won = given.won.size > 0;
    const [top, bottom] = d3.extent(nodes, (n) => n.y);
    const deep = d3.max(nodes, (n) => n.x);
    const most = d3.max(nodes, (n) => n.data.tokens) || 1;
    for (const n of nodes) {
      n.r = n.id === -1 ? 5 : 3.2 + 4.6 * Math.sqrt(n.data.tokens / most);
      n.text = n.id === -1 ? "" : n.running ? `${plural(n.data.tokens, "token")}…` : n.data.text === undefined ? plural(n.data.tokens, "token") : oneLine(n.data.text) || "(end)";
    }
    const longest = d3.max(nodes, (n) => (n.x === deep ? n.text.length : 0)) * CHARACTER;
    span = { deep, top, bottom, words: Math.max(WORDS[0], Math.min(WORDS[1], longest + 26)) };
    const [low, high] = d3.extent(nodes, (n) => n.data.score);
    domain = low === undefined || (low >= 0 && high <= 1) ? [0, 1] : [low, high];
    if (chosen !== null && !byId.has(chosen)) chosen = null;
    laidOut = { at: performance.now(), cost: performance.now() - begun };
    limits();
    redraw();
  }

  function add(n) {
    n.parent = byId.get(n.data.parent) ?? nodes[0];
    n.parent.children.push(n);
    byId.set(n.id, n);
    nodes.push(n);
  }

  const row = () => Math.min(ROW, (size.height - 2 * PAD.y) / Math.max(1, span.bottom - span.top));
  const wide = () => Math.min(COLUMN[0], (size.width - PAD.left - span.words) / Math.max(1, span.deep));
  /** Generations drift apart up to a limit: from there on only siblings do. */
  const column = () => Math.min(wide() * transform.k, Math.max(COLUMN[1], wide()));
  const beyond = () => Math.max(0, PAD.left + span.deep * column() + span.words - size.width);
  const down = (n) => (size.height - (span.bottom - span.top) * row()) / 2 + (n.y - span.top) * row();

  function place() {
    const { k, x, y } = transform;
    const across = k > 1 ? (x / (size.width - size.width * k)) * beyond() : 0;
    const step = column();
    const first = (size.height - (span.bottom - span.top) * row()) / 2;
    const each = row();
    for (const n of nodes) {
      n.sx = PAD.left + n.x * step - across;
      n.sy = (first + (n.y - span.top) * each) * k + y;
    }
    return { step, each: each * k };
  }

  // ------------------------------------------------------------------------------------------------ drawing

  function readColors() {
    // Custom properties come back as written; the colour of an element comes back as a colour.
    const probe = document.createElement("span");
    canvas.after(probe);
    colors = Object.fromEntries(NAMES.map((name) => {
      probe.style.color = `var(--${name})`;
      return [name, getComputedStyle(probe).color];
    }));
    probe.remove();
    const mix = d3.piecewise(d3.interpolateRgb, [colors["score-low"], colors["score-mid"], colors["score-high"]]);
    ramp = d3.quantize(mix, 64);
  }

  function fill(score) {
    if (score === null) return colors.panel;
    const share = (score - domain[0]) / (domain[1] - domain[0] || 1);
    return ramp[Math.round(63 * Math.min(1, Math.max(0, share)))];
  }

  function measure() {
    const box = canvas.getBoundingClientRect();
    const ratio = devicePixelRatio || 1;
    size = { width: Math.max(1, box.width), height: Math.max(1, box.height) };
    canvas.width = Math.round(size.width * ratio);
    canvas.height = Math.round(size.height * ratio);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    zoom.extent([[0, 0], [size.width, size.height]]).translateExtent([[0, 0], [size.width, size.height]]);
    limits();
    redraw();
  }

  function redraw() {
    if (!frame) frame = requestAnimationFrame(draw);
  }

  function draw() {
    frame = 0;
    const { step, each } = place();
    const { width, height } = size;
    context.clearRect(0, 0, width, height);
    for (const n of nodes) {
      n.radius = Math.max(1.2, Math.min(n.r, 0.42 * each));
      n.label = "";
      n.reach = n.radius;
      n.seen = n.sy > -20 && n.sy < height + 20 && n.sx < width + 20 && n.sx > -LABEL;
    }
    if (each >= 12) label(width, step);
    const dashes = each >= 6; // they cost, and cannot be told from lines in a crowd
    drawEdges(width, height, step, dashes);
    for (const n of nodes) if (n.seen) drawNode(n, dashes);
    context.globalAlpha = 1;
    context.setLineDash([]);
  }

  /** Words to the right of dots, as far as there is room before the next generation, or the next dot beyond it. */
  function label(width, step) {
    const rows = nodes.filter((n) => n.seen).sort((a, b) => a.sy - b.sy);
    let from = 0;
    rows.forEach((n) => {
      let room = n.children.length ? step - n.radius - 26 : Math.min(LABEL, width - n.sx - n.radius - 12);
      while (rows[from].sy < n.sy - 11) from++;
      for (let i = from; i < rows.length && rows[i].sy < n.sy + 11; i++) {
        if (rows[i].x > n.x) room = Math.min(room, rows[i].sx - rows[i].radius - n.sx - n.radius - 14);
      }
      n.label = room > 20 ? cut(n.text, Math.floor(room / CHARACTER)) : "";
      if (n.label) n.reach = n.radius + n.label.length * CHARACTER + 9;
    });
  }

  /** The beginning of a text, where enough of it can be shown to be worth reading. */
  const cut = (text, most) => (text.length <= most ? text : most > 6 ? `${[...text].slice(0, most - 1).join("")}…` : "");

  function drawEdges(width, height, step, dashes) {
    const paths = { kept: new Path2D(), pruned: new Path2D(), won: new Path2D() };
    for (const n of nodes) {
      const p = n.parent;
      if (!p || Math.max(n.sy, p.sy) < 0 || Math.min(n.sy, p.sy) > height || n.sx < 0 || p.sx > width) continue;
      const path = paths[n.won ? "won" : n.pruned ? "pruned" : "kept"];
      const to = n.sx - n.radius;
      const from = Math.min(p.sx + p.reach, to);
      const middle = Math.max(from, to - Math.min(34, 0.6 * step));
      path.moveTo(from, p.sy);
      path.bezierCurveTo(middle + (to - middle) * 0.5, p.sy, middle, n.sy, to, n.sy);
    }
    const crowd = Math.min(1, 160 / nodes.length); // thousands of lines side by side would be one dark patch
    context.lineWidth = 1.2;
    context.strokeStyle = colors.muted;
    context.globalAlpha = 0.18 + 0.4 * crowd;
    context.stroke(paths.kept);
    context.globalAlpha *= 0.7;
    if (dashes) context.setLineDash([3, 3]);
    context.stroke(paths.pruned);
    context.setLineDash([]);
    context.globalAlpha = 1;
    context.strokeStyle = colors.accent;
    context.lineWidth = 3;
    context.stroke(paths.won);
  }

  function outline(n, r) {
    context.beginPath();
    if (n.data.answer) context.roundRect(n.sx - r, n.sy - r, 2 * r, 2 * r, 2);
    else context.arc(n.sx, n.sy, r, 0, 2 * Math.PI);
  }

  function drawNode(n, dashes) {
    const r = n.radius;
    context.globalAlpha = n.pruned ? 0.5 : 1;
    context.fillStyle = n.id === -1 ? colors.muted : fill(n.data.score);
    context.strokeStyle = n.won || n.running ? colors.accent : colors.muted;
    context.lineWidth = n.won ? 2.2 : 1.2;
    outline(n, r);
    context.fill();
    if (r > 1.8 && n.id !== -1) {
      context.setLineDash(dashes && (n.pruned || n.running) ? [2, 2] : []);
      context.stroke();
    }
    if (n.id === chosen) {
      context.globalAlpha = 1;
      context.setLineDash([]);
      context.strokeStyle = colors.ink;
      context.lineWidth = 2;
      outline(n, r + 3.5);
      context.stroke();
    }
    if (!n.label) return;
    context.font = n.won ? `600 ${FONT}` : FONT;
    context.textBaseline = "middle";
    context.fillStyle = n.data.text === undefined ? colors.muted : colors.ink;
    context.fillText(n.label, n.sx + r + 7, n.sy + 0.5, n.label.length * CHARACTER + 6);
  }

  // ------------------------------------------------------------------------------------------- moving about

  const zoom = d3.zoom()
    .scaleExtent([1, 1])
    // the wheel scrolls the page until the tree has the focus
    .filter((event) => (event.type === "wheel" ? event.ctrlKey || document.activeElement === canvas : !event.button && event.type !== "dblclick"))
    .on("zoom", (event) => {
      transform = event.transform;
      redraw();
    });
  const area = d3.select(canvas).call(zoom).on("dblclick.zoom", null);

  /** So far that siblings stand well apart, and a wall of them can be walked along. */
  function limits() {
    zoom.scaleExtent([1, Math.max(3, (1.4 * ROW) / row())]);
  }

  const zoomBy = (factor) => area.call(zoom.scaleBy, factor);

  function bringIntoView(n) {
    place();
    if (n.sx > 8 && n.sx < size.width - 60 && n.sy > 8 && n.sy < size.height - 8 && row() * transform.k >= 12) return redraw();
    const k = Math.max(transform.k, 20 / row());
    const bound = (value, low) => Math.max(low, Math.min(0, value));
    transform = d3.zoomIdentity.scale(k);
    const across = Math.max(0, Math.min(beyond(), PAD.left + n.x * column() - 0.4 * size.width));
    const x = beyond() ? (across / beyond()) * (size.width - size.width * k) : 0;
    area.call(zoom.transform, d3.zoomIdentity.translate(x, bound(size.height / 2 - down(n) * k, size.height - size.height * k)).scale(k));
  }

  function choose(id, move = true) {
    const n = byId.get(id);
    if (!n || n.running) return;
    chosen = id;
    if (move) bringIntoView(n);
    else redraw();
    onChoose(id);
  }

  function nodeAt(px, py) {
    const near = d3.least(nodes, (n) => Math.hypot(px < n.sx ? n.sx - px : Math.max(0, px - n.sx - n.reach), py - n.sy));
    if (!near) return null;
    const away = Math.hypot(px < near.sx ? near.sx - px : Math.max(0, px - near.sx - near.reach), py - near.sy);
    return away < Math.max(9, near.radius + 4) ? near : null;
  }

  function onKey(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || nodes.length < 2) return;
    const n = byId.get(chosen) ?? nodes[0];
    const beside = (by) => d3.least(nodes.filter((m) => m.x === n.x && !m.running && (m.y - n.y) * by > 0), (m) => Math.abs(m.y - n.y)) ?? n;
    const next = {
      ArrowLeft: () => n.parent ?? n,
      ArrowRight: () => n.children.find((c) => c.won) ?? n.children.find((c) => !c.running) ?? n,
      ArrowUp: () => beside(-1),
      ArrowDown: () => beside(1),
      w: () => byId.get(given.winner) ?? n,
    }[event.key];
    const other = { "+": () => zoomBy(1.4), "=": () => zoomBy(1.4), "-": () => zoomBy(1 / 1.4), 0: () => zoomBy(1e-9) }[event.key];
    if (!next && !other) return;
    event.preventDefault();
    if (other) other();
    else choose(next().id);
  }

  const onClick = (event) => {
    const n = nodeAt(...d3.pointer(event, canvas));
    canvas.focus({ preventScroll: true });
    if (n) choose(n.id, false);
  };
  const onMove = (event) => event.buttons || canvas.classList.toggle("over", nodeAt(...d3.pointer(event, canvas)) !== null);
  canvas.addEventListener("click", onClick);
  canvas.addEventListener("pointermove", onMove);
  canvas.addEventListener("keydown", onKey);
  const recolor = () => {
    readColors();
    redraw();
  };
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.addEventListener("change", recolor);
  addEventListener("themechange", recolor);
  const resized = new ResizeObserver(measure);
  resized.observe(canvas);
  readColors();
  measure();

  function close() {
    cancelAnimationFrame(frame);
    clearTimeout(later);
    resized.disconnect();
    system.removeEventListener("change", recolor);
    removeEventListener("themechange", recolor);
  }

  /** For tests: what is drawn, and where. */
  const state = () => ({ nodes: nodes.length, chosen, zoom: transform.k, cost: laidOut.cost, seen: nodes.filter((n) => n.seen).length });
  const where = (id) => {
    place();
    const box = canvas.getBoundingClientRect();
    const n = byId.get(id);
    return [box.left + n.sx, box.top + n.sy];
  };
  return { show, choose, zoomBy, close, state, where, goWinner: () => choose(given.winner) };
}
