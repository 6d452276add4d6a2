// The tree viewer. A tidy tree, left to right, on one canvas: only what is visible is drawn, so that thousands of
// nodes stay smooth. What the canvas shows is also said in the panel beside it, step by step, for readers that see none.
"use strict";
(() => {
  const { data, $, el, redraws, taskName } = comparePage;
  const { percent, power } = mullPage;
  const ROW = 24; // layout units between siblings
  const COLUMNS = [96, 172]; // and between generations, as the texts need
  const FONT = 11; // of a step's text at zoom 1
  const CHARACTER = 0.612 * FONT; // the widest of the usual monospaced fonts
  const LABELS_FROM = 0.55; // zoom below which texts are left out
  const MANY = 400; // a larger tree opens folded around its winner's path
  const canvas = $("tree-canvas");
  const context = canvas.getContext("2d");
  const comma = d3.format(",");

  // the tree that is shown: `nodes` are {i, data, children, depth, x, y, label, ...}, `order` those not folded away
  let tree = null;
  let nodes = [];
  let root = null;
  let order = [];
  let folded = new Set();
  let winning = new Set(); // indices on the winner's path
  let answers = new Map(); // node index → leaf
  let hits = [];
  let hitSet = new Set();
  let chosen = -1;
  let transform = d3.zoomIdentity;
  let colors = {};
  let frame = 0;
  let size = { width: 1, height: 1 };
  let toColor = () => "";
  let column = COLUMNS[1];
  let across = { k: 1, left: 0 }; // the zoom at which the tree is as wide as the canvas

  // ---------------------------------------------------------------------------------------------- one tree

  const oneLine = (text) => text.replace(/\s+/g, " ").trim();

  function load(next) {
    tree = next;
    folded = new Set();
    hits = [];
    chosen = -1;
    $("step-query").value = "";
    nodes = tree ? tree.nodes.map((d, i) => ({ i, data: d, children: [], parent: null, depth: 0, x: 0, y: 0, text: d.kind === "prompt" ? "question" : oneLine(d.text) || "(empty)" })) : [];
    const roots = [];
    for (const n of nodes) {
      n.parent = nodes[n.data.parent] ?? null;
      if (n.parent) n.parent.children.push(n);
      else roots.push(n);
      n.depth = n.parent ? n.parent.depth + 1 : 0; // parents come before their children
    }
    // several roots hang on one that is not drawn
    root = roots.length === 1 ? roots[0] : roots.length ? { i: -1, data: null, children: roots, depth: -1 } : null;
    for (const n of nodes.toReversed()) n.under = d3.sum(n.children, (c) => c.under + 1);
    answers = new Map((tree?.leaves ?? []).map((leaf) => [leaf.node, leaf]));
    winning = new Set();
    for (let n = nodes[tree?.winner]; n; n = n.parent) winning.add(n.i);
    const most = d3.max(nodes, (n) => n.data.visits) || 0;
    for (const n of nodes) n.r = most ? 3.2 + 6 * Math.sqrt(n.data.visits / most) : 4.4;
    const lengths = nodes.filter((n) => n.children.length).map((n) => n.text.length).sort(d3.ascending);
    column = Math.max(COLUMNS[0], Math.min(COLUMNS[1], 48 + (d3.quantileSorted(lengths, 0.9) ?? 0) * CHARACTER));
    const seen = nodes.map((n) => n.data.score).filter((s) => s !== null);
    const [low, high] = d3.extent(seen);
    const domain = seen.length && low >= 0 && high <= 1 ? [0, 1] : [low ?? 0, high ?? 1];
    readColors(domain);
    fillKey(domain, seen.length > 0, most);
    if (nodes.length > MANY) foldOthers();
    layout();
    measure();
    home();
    showFacts();
    search();
    choose(tree && tree.winner >= 0 ? tree.winner : nodes.length ? 0 : -1, false);
  }

  function layout() {
    order = [];
    if (!root) return;
    const h = d3.hierarchy(root, (n) => (folded.has(n.i) ? null : n.children));
    d3.tree().nodeSize([ROW, column]).separation((a, b) => (a.parent === b.parent ? 1 : 1.35))(h);
    h.each((p) => {
      Object.assign(p.data, { x: p.y, y: p.x }); // left to right
      if (p.data.i >= 0) order.push(p.data);
    });
    for (const n of order) setLabel(n);
    measureAcross();
  }

  /** What stands to the right of a node: its text, or its answer, or how much is folded away. */
  function setLabel(n) {
    const room = Math.floor((column - 34) / CHARACTER) - (folded.has(n.i) ? 6 : 0);
    const end = answers.get(n.i);
    const tail = end ? ` → ${oneLine(end.answer) || "(none)"}` : "";
    const most = end || !n.children.length ? room + 22 : room;
    const text = [...n.text];
    const cut = Math.max(6, most - tail.length);
    n.label = (text.length > cut ? `${text.slice(0, cut - 1).join("")}…` : n.text) + tail.slice(0, 18);
    n.more = folded.has(n.i) ? ` +${comma(n.under)}` : "";
    n.length = [...n.label, ...n.more].length * CHARACTER;
  }

  function foldOthers() {
    folded = new Set(nodes.filter((n) => n.children.length && !winning.has(n.i)).map((n) => n.i));
  }

  function toggle(n) {
    if (!n?.children.length) return;
    const [sx, sy] = at(n);
    if (!folded.delete(n.i)) folded.add(n.i);
    layout();
    setTransform(d3.zoomIdentity.translate(sx - n.x * transform.k, sy - n.y * transform.k).scale(transform.k)); // it stays in place
    showNode();
  }

  const shown = (n) => { for (let p = n.parent; p; p = p.parent) if (folded.has(p.i)) return false; return true; };

  function unfoldTo(n) {
    if (shown(n)) return;
    for (let p = n.parent; p; p = p.parent) folded.delete(p.i);
    layout();
  }

  function measureAcross() {
    if (!order.length) return;
    const { left, right } = bounds();
    across = { k: Math.min(1, (size.width - 30) / (right - left)), left };
  }

  /**
   * Where a step is on the canvas. A tree is far taller than wide: zoomed out beyond the width of the canvas it goes
   * on shrinking downwards only, and is eased into place on the way there.
   */
  function at(n) {
    const { x, y, k } = transform;
    const own = Math.min(1, Math.max(0, (2 * k) / across.k - 1)); // 1: as the zoom says; 0: across the canvas
    return [own * (n.x * k + x) + (1 - own) * (15 + (n.x - across.left) * across.k), n.y * k + y];
  }

  // ------------------------------------------------------------------------------------------------ drawing

  function readColors(domain) {
    const style = getComputedStyle(document.documentElement);
    const names = ["ink", "muted", "line", "panel", "trained", "good", "bad", "hit", "score-low", "score-mid", "score-high"];
    colors = Object.fromEntries(names.map((n) => [n, style.getPropertyValue(`--${n}`).trim()]));
    if (domain) toColor.domain = domain;
    const scale = d3.scaleLinear(toColor.domain ?? [0, 1], [0, 1]).clamp(true);
    const ramp = d3.piecewise(d3.interpolateRgb, [colors["score-low"], colors["score-mid"], colors["score-high"]]);
    const steps = d3.quantize(ramp, 64); // a lookup, not an interpolation per node and frame
    const held = toColor.domain;
    toColor = (s) => (s === null ? colors.panel : steps[Math.round(63 * (scale(s) || 0))]);
    toColor.domain = held;
  }

  function measure() {
    const box = canvas.parentElement.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    size = { width: box.width, height: box.height };
    canvas.width = Math.round(box.width * ratio);
    canvas.height = Math.round(box.height * ratio);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    measureAcross();
  }

  function redraw() {
    if (!frame) frame = requestAnimationFrame(draw);
  }

  /** How far beyond its centre a node's drawing goes to the right, on the screen. */
  const reach = (n, k, labels) => n.r * k + (labels ? (n.length + 9) * k : 0);

  function draw() {
    frame = 0;
    const { k } = transform;
    const { width, height } = size;
    const labels = k >= LABELS_FROM;
    const margin = 14 * k + 4;
    context.clearRect(0, 0, width, height);
    for (const n of order) {
      [n.sx, n.sy] = at(n);
      n.in = n.sy > -margin && n.sy < height + margin && n.sx < width + margin && n.sx + reach(n, k, labels) > -margin;
    }
    drawEdges(k, labels, width, height);
    drawNodes(k);
    if (labels) drawLabels(k);
  }

  function drawEdges(k, labels, width, height) {
    const paths = [new Path2D(), new Path2D(), new Path2D()]; // kept, pruned, winning
    const bent = k > 0.12;
    for (const n of order) {
      const p = n.parent;
      if (!p || Math.max(n.sy, p.sy) < 0 || Math.min(n.sy, p.sy) > height || n.sx < 0 || p.sx > width) continue;
      const from = Math.min(p.sx + reach(p, k, labels), n.sx - (n.r + 3) * k);
      const to = n.sx - n.r * k;
      const path = paths[winning.has(n.i) ? 2 : n.data.pruned ? 1 : 0];
      path.moveTo(from, p.sy);
      const middle = Math.max(from, to - 30 * k);
      if (bent) path.bezierCurveTo(middle + (to - middle) * 0.5, p.sy, middle, n.sy, to, n.sy);
      else path.lineTo(to, n.sy);
    }
    context.lineWidth = Math.max(0.5, Math.min(1.2, 1.2 * k));
    context.strokeStyle = colors.muted;
    const faint = Math.min(1, 0.35 + 2.5 * k); // from afar thousands of lines lie side by side
    context.globalAlpha = 0.55 * faint;
    context.stroke(paths[0]);
    context.globalAlpha = 0.3 * faint;
    if (labels) context.setLineDash([3, 3]); // dashes cost, and cannot be seen from afar
    context.stroke(paths[1]);
    context.setLineDash([]);
    context.globalAlpha = 1;
    context.strokeStyle = colors.trained;
    context.lineWidth = Math.max(1.6, Math.min(3.2, 3 * k));
    context.stroke(paths[2]);
  }

  function outline(n, r) {
    context.beginPath();
    if (n.data.kind === "sampled") context.arc(n.sx, n.sy, r, 0, 2 * Math.PI);
    else context.rect(n.sx - r, n.sy - r, 2 * r, 2 * r);
  }

  function drawNodes(k) {
    for (const n of order) {
      if (!n.in) continue;
      const r = Math.max(1.1, n.r * k);
      context.globalAlpha = n.data.pruned ? 0.45 : 1;
      context.fillStyle = toColor(n.data.score);
      if (r < 1.6) context.fillRect(n.sx - r, n.sy - r, 2 * r, 2 * r); // nobody sees its corners
      else {
        outline(n, r);
        context.fill();
      }
      if (r > 1.8) {
        const wins = winning.has(n.i);
        context.strokeStyle = wins ? colors.trained : n.data.ok === false ? colors.bad : colors.muted;
        context.lineWidth = wins ? 2 : 1.1;
        if (n.data.pruned) context.setLineDash([2, 2]);
        context.stroke();
        if (n.data.pruned) context.setLineDash([]);
      }
      if (hitSet.has(n.i) || n.i === chosen) {
        context.globalAlpha = 1;
        context.strokeStyle = n.i === chosen ? colors.ink : colors.hit;
        context.lineWidth = 2.4;
        outline(n, r + 3.5);
        context.stroke();
      }
    }
    context.globalAlpha = 1;
  }

  function drawLabels(k) {
    const font = FONT * k;
    context.textBaseline = "middle";
    const family = 'ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace';
    for (const n of order) {
      if (!n.in) continue;
      const end = answers.get(n.i);
      context.globalAlpha = n.data.pruned ? 0.5 : 1;
      context.font = `${winning.has(n.i) ? "600 " : ""}${font}px ${family}`;
      context.fillStyle = n.data.ok === false ? colors.bad : end && end.correct !== null ? (end.correct ? colors.good : colors.bad) : hitSet.has(n.i) ? colors.hit : colors.ink;
      // the width holds back wide scripts, which the count of characters underrates
      context.fillText(n.label, n.sx + (n.r + 5) * k, n.sy, Math.max(1, n.length * k));
      if (n.more) {
        context.globalAlpha = 1;
        context.fillStyle = colors.trained;
        context.fillText(n.more, n.sx + (n.r + 5) * k + (n.length - n.more.length * CHARACTER) * k, n.sy);
      }
    }
    context.globalAlpha = 1;
  }

  // ------------------------------------------------------------------------------------------- moving about

  const zoom = d3.zoom()
    .scaleExtent([0.01, 3])
    // the wheel scrolls the page until the tree has the focus
    .filter((event) => (event.type === "wheel" ? event.ctrlKey || document.activeElement === canvas : !event.button && event.type !== "dblclick"))
    .on("zoom", (event) => { transform = event.transform; redraw(); });
  d3.select(canvas).call(zoom);

  const setTransform = (t) => d3.select(canvas).call(zoom.transform, t);

  function bounds() {
    const [left, right] = [d3.min(order, (n) => n.x - n.r), d3.max(order, (n) => n.x + n.r + n.length + 8)];
    const [top, bottom] = d3.extent(order, (n) => n.y);
    return { left, right, top: top - ROW, bottom: bottom + ROW };
  }

  function fitting() {
    const b = bounds();
    return { b, k: Math.min(1.2, (size.width - 30) / (b.right - b.left), (size.height - 16) / (b.bottom - b.top)) };
  }

  function fit() {
    if (!order.length) return redraw();
    const { b, k } = fitting();
    setTransform(d3.zoomIdentity.translate(size.width / 2 - (k * (b.left + b.right)) / 2, size.height / 2 - (k * (b.top + b.bottom)) / 2).scale(k));
  }

  /** All of it where it can be read; else its beginning. */
  function home() {
    if (!order.length) return redraw();
    const { b, k } = fitting();
    if (k >= 0.72) return fit();
    const first = order[0];
    const tall = (b.bottom - b.top) * 0.85 > size.height;
    const y = tall ? first.y : (b.top + b.bottom) / 2;
    setTransform(d3.zoomIdentity.translate(22 - 0.85 * b.left, size.height / 2 - 0.85 * y).scale(0.85));
  }

  function bringIntoView(n, centre) {
    const [sx, sy] = at(n);
    const k = transform.k < LABELS_FROM && centre ? 0.85 : transform.k;
    const inside = sx > 20 && sx < size.width - 120 && sy > 36 && sy < size.height - 36;
    if (inside && k === transform.k) return redraw();
    setTransform(d3.zoomIdentity.translate(size.width * 0.42 - k * n.x, size.height / 2 - k * n.y).scale(k));
  }

  function choose(i, move = true, centre = false) {
    chosen = nodes[i] ? i : -1;
    if (chosen >= 0) unfoldTo(nodes[i]);
    showNode();
    if (chosen >= 0 && move) bringIntoView(nodes[i], centre);
    else redraw();
  }

  function nodeAt(px, py) {
    const k = transform.k;
    const labels = k >= LABELS_FROM;
    const near = d3.least(order, (n) => {
      const [sx, sy] = at(n);
      n.away = Math.hypot(px < sx ? sx - px : Math.max(0, px - sx - reach(n, k, labels)), py - sy);
      return n.away;
    });
    return near && near.away < Math.max(7, near.r * k + 3) ? near : null;
  }

  canvas.addEventListener("click", (event) => {
    const n = nodeAt(...d3.pointer(event, canvas));
    canvas.focus({ preventScroll: true });
    if (n) choose(n.i, false);
  });
  canvas.addEventListener("dblclick", (event) => toggle(nodeAt(...d3.pointer(event, canvas))));
  canvas.addEventListener("pointermove", (event) => {
    if (!event.buttons) canvas.classList.toggle("over", nodeAt(...d3.pointer(event, canvas)) !== null);
  });

  /** The nearest shown node above (-1) or below (1) in the same generation. */
  function neighbour(n, by) {
    return d3.least(order.filter((m) => m.depth === n.depth && (m.y - n.y) * by > 0), (m) => Math.abs(m.y - n.y)) ?? n;
  }

  function byKey(key, n) {
    if (key === "ArrowLeft") return n.parent ?? n;
    if (key === "ArrowRight") return (!folded.has(n.i) && (n.children.find((c) => winning.has(c.i)) ?? d3.least(n.children, (c) => Math.abs(c.y - n.y)))) || n;
    if (key === "ArrowUp") return neighbour(n, -1);
    if (key === "ArrowDown") return neighbour(n, 1);
    return null;
  }

  canvas.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || !nodes.length) return;
    const n = nodes[chosen] ?? nodes[0];
    const next = byKey(event.key, n);
    const other = { Enter: () => toggle(n), " ": () => toggle(n), "+": () => zoomBy(1.3), "=": () => zoomBy(1.3), "-": () => zoomBy(1 / 1.3), 0: fit, w: goWinner };
    if (!next && !other[event.key]) return;
    event.preventDefault();
    if (next) choose(next.i);
    else other[event.key]();
  });

  const zoomBy = (factor) => d3.select(canvas).call(zoom.scaleBy, factor);
  const goWinner = () => { if (tree?.winner >= 0) choose(tree.winner, true, true); };
  $("zoom-in").addEventListener("click", () => zoomBy(1.4));
  $("zoom-out").addEventListener("click", () => zoomBy(1 / 1.4));
  $("zoom-fit").addEventListener("click", fit);
  $("go-winner").addEventListener("click", goWinner);
  $("expand-all").addEventListener("click", () => { folded.clear(); layout(); showNode(); choose(chosen); });
  $("collapse-others").addEventListener("click", () => { foldOthers(); layout(); if (chosen >= 0 && !shown(nodes[chosen])) chosen = tree.winner; home(); showNode(); });

  // ------------------------------------------------------------------------------------------------- panel

  const VERDICT = new Map([[true, ["true", "right"]], [false, ["a false line", "wrong"]]]);
  const KIND = { prompt: "Prompt", sampled: "Step", forced: "Forced by the strategy", tool: "From a tool" };
  const number = (v, format) => (v === null ? "–" : d3.format(format)(v).replace("−", "−"));

  function pathTo(n) {
    const path = [];
    for (; n; n = n.parent) path.unshift(n);
    return path;
  }

  function showNode() {
    const n = nodes[chosen];
    if (!n) {
      $("node-panel").replaceChildren(el("p", { class: "hint" }, tree ? "Choose a step to read it." : "No tree was kept."));
      return;
    }
    const d = n.data;
    const end = answers.get(n.i);
    const facts = [
      ["Score", number(d.score, ".3f")],
      ["Visits", comma(d.visits)],
      ["Tokens", comma(d.tokens)],
      ["Log-probability", d.logprob === null ? "–" : `${number(d.logprob, ".2f")}${d.tokens ? ` (${number(d.logprob / d.tokens, ".3f")} a token)` : ""}`],
      ["Ended by", d.stop ?? "–"],
      ["Children", n.children.length ? `${comma(n.children.length)} (${comma(n.under)} below)` : "none"],
      ["State", d.pruned ? "pruned" : winning.has(n.i) ? "on the winner's path" : "kept"],
    ];
    if (d.ok !== null) facts.push(["Checked", el("span", { class: VERDICT.get(d.ok)[1] }, VERDICT.get(d.ok)[0])]);
    if (end) facts.push(["Answer", el("span", { class: end.correct === null ? "unjudged" : end.correct ? "right" : "wrong" }, end.answer || "(none)")]);
    const fold = n.children.length ? el("button", { type: "button", class: "fold" }, folded.has(n.i) ? "Unfold" : "Fold") : null;
    fold?.addEventListener("click", () => toggle(n));
    const path = pathTo(n).map((p) => {
      const button = el("button", { type: "button", class: [p === n ? "here" : "", p.data.ok === false ? "bad" : "", p.data.kind].join(" ") }, p.data.text.trim() || "(empty)");
      button.addEventListener("click", () => choose(p.i));
      return el("li", {}, button);
    });
    $("node-panel").replaceChildren(
      el("h3", {}, `${KIND[d.kind] ?? d.kind}, depth ${n.depth}`, fold),
      el("pre", { tabindex: "0", "aria-label": "Text of the step", class: d.ok === false ? "bad" : null }, d.text || "(empty)"),
      el("dl", {}, ...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
      el("h4", {}, "The path up to here"),
      el("ol", { "aria-label": "Path from the root to this step" }, ...path),
    );
  }

  // ------------------------------------------------------------------------------------------------ search

  function search() {
    const query = $("step-query").value.toLowerCase();
    hits = query ? nodes.filter((n) => n.data.text.toLowerCase().includes(query)).map((n) => n.i) : [];
    hitSet = new Set(hits);
    sayHits();
    redraw();
  }

  function sayHits() {
    const at = hits.indexOf(chosen);
    $("step-count").textContent = !$("step-query").value ? "" : !hits.length ? "no hit" : at >= 0 ? `${comma(at + 1)} of ${comma(hits.length)}` : `${comma(hits.length)} hit${hits.length > 1 ? "s" : ""}`;
    for (const b of ["step-previous", "step-next"]) $(b).disabled = !hits.length;
  }

  function jump(by) {
    if (!hits.length) return;
    const at = hits.indexOf(chosen);
    const next = at >= 0 ? at + by : by > 0 ? 0 : -1; // from a step that is no hit to the first or the last
    choose(hits[(next + hits.length) % hits.length], true, true);
    sayHits();
  }
  $("step-query").addEventListener("input", search);
  $("step-query").addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); jump(event.shiftKey ? -1 : 1); } });
  $("step-next").addEventListener("click", () => jump(1));
  $("step-previous").addEventListener("click", () => jump(-1));

  // ----------------------------------------------------------------------------------------- choosing a tree

  const OUTCOMES = [["right", true], ["wrong", false], ["not judged", null]];
  const told = (correct) => OUTCOMES.find(([, c]) => c === correct)?.[0] ?? "not judged";
  let listed = [];

  function showFacts() {
    if (!tree) return $("tree-facts").replaceChildren();
    const spent = `${tree.strategy}${tree.budget ? `, ${tree.budget}` : ""}: ${comma(tree.nodes.length)} steps, ${comma(tree.leaves.length)} leaves, ${power(tree.tokens)} tokens, ${power(tree.flops)} FLOPs`;
    const style = tree.correct === null ? "unjudged" : tree.correct ? "right" : "wrong";
    $("tree-facts").replaceChildren(
      el("div", { class: "question" },
        el("p", {}, `${tree.task}, level ${tree.level}`), el("pre", {}, tree.question),
        el("p", {}, "Answer ", el("code", { class: style }, tree.answer || "(none)"), ` ${told(tree.correct)}`, tree.expected ? `; a right answer: ${tree.expected}` : ""),
        el("p", {}, spent, tree.exhausted ? "; its budget ran out" : ""),
        ...tree.lost.map((sentence) => el("p", { class: "lost" }, sentence))),
    );
    canvas.setAttribute("aria-label", `Tree of thought of ${tree.strategy} for ${tree.question}: ${comma(tree.nodes.length)} steps, ${comma(tree.leaves.length)} answers`);
  }

  function fillKey([low, high], scored, visited) {
    const ramp = el("span", {}, scored ? d3.format(".2~f")(low) : "no scores", scored ? el("span", { class: "ramp" }) : "", scored ? `${d3.format(".2~f")(high)} score` : "");
    const dot = (attributes, line = null) => {
      const svg = d3.create("svg").attr("width", 26).attr("height", 12).attr("aria-hidden", "true");
      if (line) { const l = svg.append("line").attr("x2", 26).attr("y1", 6).attr("y2", 6); for (const [k, v] of Object.entries(line)) l.attr(k, v); }
      const c = svg.append(attributes.width ? "rect" : "circle");
      for (const [k, v] of Object.entries(attributes)) c.attr(k, v);
      return svg.node();
    };
    const round = { cx: 13, cy: 6, r: 4, fill: "var(--panel)" };
    const items = [
      [dot({ ...round, stroke: "var(--trained)", "stroke-width": 2 }, { stroke: "var(--trained)", "stroke-width": 2.6 }), "winner's path"],
      [dot({ ...round, stroke: "var(--muted)", "stroke-dasharray": "2 2", opacity: 0.6 }, { stroke: "var(--muted)", "stroke-dasharray": "3 3", opacity: 0.5 }), "pruned"],
      [dot({ ...round, stroke: "var(--bad)" }), "false line"],
      [dot({ x: 9, y: 2, width: 8, height: 8, fill: "var(--panel)", stroke: "var(--muted)" }), "prompt or forced"],
    ];
    if (visited) items.push([null, "size: visits"]);
    $("tree-key").replaceChildren(ramp, ...items.map(([icon, words]) => el("span", {}, icon, words)));
  }

  function listTrees() {
    const [strategy, task, outcome] = ["tree-strategy", "tree-task", "tree-outcome"].map((id) => $(id).value);
    const query = $("tree-query").value.toLowerCase();
    listed = data.trees.filter((t) => (!strategy || t.strategy === strategy) && (!task || t.task === task) && (!outcome || told(t.correct) === outcome) && (!query || t.question.toLowerCase().includes(query)));
    $("tree-select").replaceChildren(...listed.map((t, i) => {
      const q = oneLine(t.question);
      return el("option", { value: String(i) }, `${t.strategy} · ${told(t.correct)} · ${comma(t.nodes.length)} steps · ${t.task} · ${q.length > 70 ? `${q.slice(0, 69)}…` : q}`);
    }));
    open(0);
  }

  function open(i) {
    $("tree-select").disabled = !listed.length;
    $("tree-select").value = String(i);
    $("tree-count").textContent = listed.length ? `${i + 1} of ${listed.length}` : "none";
    $("tree-previous").disabled = i <= 0;
    $("tree-next").disabled = i >= listed.length - 1;
    $("viewer").hidden = !listed.length;
    load(listed[i] ?? null);
  }

  const values = (key) => [...new Set(data.trees.map((t) => t[key]))];
  const options = (id, all, rows) => $(id).replaceChildren(el("option", { value: "" }, all), ...rows.map(([v, name]) => el("option", { value: v }, name)));
  options("tree-strategy", "all", values("strategy").map((s) => [s, s]));
  options("tree-task", "all", values("task").map((t) => [t, taskName(t)]));
  options("tree-outcome", "all", OUTCOMES.filter(([, c]) => data.trees.some((t) => t.correct === c)).map(([name]) => [name, name]));
  for (const id of ["tree-strategy", "tree-task", "tree-outcome"]) $(id).addEventListener("change", listTrees);
  $("tree-query").addEventListener("input", listTrees);
  $("tree-select").addEventListener("change", (event) => open(Number(event.target.value)));
  const current = () => Number($("tree-select").value) || 0;
  $("tree-previous").addEventListener("click", () => open(current() - 1));
  $("tree-next").addEventListener("click", () => open(current() + 1));

  listTrees();
  redraws.push(() => { measure(); home(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readColors(); redraw(); });

  /** For tests and the console: where a step is on the screen, what is shown, and how long one drawing takes. */
  canvas.viewer = {
    place: (i) => { const box = canvas.getBoundingClientRect(); const [x, y] = at(nodes[i]); return [box.x + x, box.y + y]; },
    state: () => ({ steps: nodes.length, shown: order.length, inView: order.filter((n) => n.in).length, chosen, k: transform.k, x: transform.x, y: transform.y, hits: hits.length }),
    time: () => { const start = performance.now(); draw(); return performance.now() - start; },
  };
})();
