// Draws the charts and shows the thoughts. Everything that a model wrote goes into the page as a text node, never
// as markup. The tables are already in the page; the charts are drawn again when their width changes.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);

  const { el, percent, power, superscript, logTicks } = mullPage;
  const whole = d3.format(".0%");

  // -------------------------------------------------------------------------------------------- the two panels

  const UNITS = {
    flops: { axis: "FLOPs", tick: (m, e) => (m === 1 ? `10${superscript(e)}` : `${m}×10${superscript(e)}`), wide: 58 },
    tokens: { axis: "tokens", tick: (m, e) => d3.format("~s")(m * 10 ** e).replace("G", "B"), wide: 42 },
  };
  let unit = "flops";

  const known = (points) => points.filter((p) => p.accuracy !== null);

  // one scale for both panels and every task, so that heights can be compared across the page
  const highest = d3.max([...data.train, ...data.test], (c) => d3.max(known(c.points), (p) => p.high)) ?? 1;
  const top = Math.min(1, Math.ceil(highest * 10 + 0.3) / 10);

  // A line on a chart: {key, name, color, dash, width, symbol, band, points: [{flops, tokens, accuracy, ...}]}
  const drawable = (points) => known(points).filter((p) => p[unit] > 0);

  function trainLines() {
    let next = 0;
    const tasks = data.train.filter((c) => c.role === "task").length;
    const lines = data.train.map((c, i) => {
      const common = { key: `train-${i}`, name: c.name, points: c.points };
      if (c.role === "mean") return { ...common, color: "var(--trained)", width: 2.6, band: 0.2, symbol: "circle" };
      if (c.role === "control") return { ...common, color: "var(--control)", width: 2, dash: "6 4", band: 0.16 };
      return { ...common, color: `var(--task-${next++ % 7})`, width: 1.4, band: tasks > 3 ? 0.07 : 0.12, symbol: "circle", small: true };
    });
    const base = data.pass_at_1.base;
    const order = (l) => (l.key === "train-base" || l.dash ? 1 : l.small ? 2 : 0);
    if (base.mean !== null) lines.push({ key: "train-base", name: "before training", color: "var(--base)", width: 1.6, level: base, points: [] });
    return lines.sort((a, b) => order(a) - order(b));
  }

  function testLines(task) {
    const label = { vote: "votes", budget: "thinking budget" };
    const rank = (c) => 2 * (c.model === "base") + (c.method === "budget");
    return data.test.filter((c) => c.task === task).sort((a, b) => rank(a) - rank(b)).map((c) => ({
      key: `${c.model}-${c.method}`,
      name: `${c.model}, ${label[c.method]}`,
      color: `var(--${c.model})`,
      width: 2.2,
      band: 0.15,
      dash: c.method === "budget" ? "2 4" : null,
      symbol: c.method === "budget" ? "square" : "circle",
      points: c.points,
    }));
  }

  function swatch(line) {
    const ns = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(ns, "svg");
    for (const [k, v] of Object.entries({ width: 24, height: 10, "aria-hidden": "true" })) svg.setAttribute(k, v);
    const stroke = document.createElementNS(ns, "line");
    const style = { x1: 0, x2: 24, y1: 5, y2: 5, stroke: line.color, "stroke-width": line.width, "stroke-dasharray": line.dash ?? "none" };
    for (const [k, v] of Object.entries(style)) stroke.setAttribute(k, v);
    svg.append(stroke);
    if (line.symbol) {
      const dot = document.createElementNS(ns, line.symbol === "square" ? "rect" : "circle");
      const shape = line.symbol === "square" ? { x: 8.5, y: 1.5, width: 7, height: 7 } : { cx: 12, cy: 5, r: line.small ? 2.6 : 3.6 };
      for (const [k, v] of Object.entries({ ...shape, fill: line.color })) dot.setAttribute(k, v);
      svg.append(dot);
    }
    return svg;
  }

  function drawPanel(chart, lines, axisLabel, summary) {
    const width = Math.max(260, Math.floor(chart.clientWidth));
    const rows = lines.flatMap((line) =>
      drawable(line.points).map((p) => ({ ...p, x: p[unit], line })),
    );
    if (!rows.length) {
      chart.replaceChildren(el("p", { class: "empty" }, "No point to draw: nothing was measured at positive compute."));
      return;
    }
    const levels = lines.filter((l) => l.level);
    const [first, last] = d3.extent(rows, (r) => r.x);
    const pad = first === last ? 2 : (last / first) ** 0.04;
    const domain = [first / pad, last * pad];
    const marginLeft = 44;
    const ticks = logTicks(domain, Math.floor((width - marginLeft) / UNITS[unit].wide));
    const tickText = (value) => {
      const t = ticks.find((t) => t.value === value);
      return t ? UNITS[unit].tick(t.m, t.e) : "";
    };
    const lineRows = lines.map((line) => ({ line, rows: rows.filter((r) => r.line === line) })).filter((g) => g.rows.length);
    const tip = (r) =>
      `${r.line.name}\n${r.label}\n${percent(r.accuracy)}  (${percent(r.low)} to ${percent(r.high)}, n=${d3.format(",")(r.n)})\n` +
      `${power(r.flops)} FLOPs, ${power(r.tokens)} tokens`;
    const plot = Plot.plot({
      width,
      height: Math.round(Math.min(420, Math.max(270, width * 0.72))),
      marginLeft,
      marginRight: 14,
      marginBottom: 44,
      marginTop: 14,
      style: { background: "transparent", fontSize: "13px" },
      x: { type: "log", domain },
      y: { domain: [0, top] },
      marks: [
        Plot.gridY({ ticks: 5, stroke: "var(--line)", strokeOpacity: 1 }),
        Plot.axisY({ ticks: 5, tickFormat: whole, tickSize: 0, label: null, fill: "var(--muted)" }),
        Plot.axisX(ticks.map((t) => t.value), {
          text: tickText, tickSize: 5,
          label: axisLabel[unit], labelAnchor: "right", labelArrow: "none", labelOffset: 40, fill: "var(--muted)", stroke: "var(--muted)",
        }),
        Plot.ruleY([0], { stroke: "var(--line)" }),
        ...levels.flatMap((l) => [
          Plot.rect([l.level], { x1: domain[0], x2: domain[1], y1: "low", y2: "high", fill: l.color, fillOpacity: 0.1 }),
          Plot.ruleY([l.level.mean], { stroke: l.color, strokeWidth: l.width, x1: domain[0], x2: domain[1] }),
        ]),
        ...lineRows.map((g) => Plot.areaY(g.rows, { x: "x", y1: "low", y2: "high", fill: g.line.color, fillOpacity: g.line.band })),
        ...lineRows.toReversed().flatMap((g) => [
          Plot.lineY(g.rows, { x: "x", y: "accuracy", stroke: g.line.color, strokeWidth: g.line.width, strokeDasharray: g.line.dash, strokeLinejoin: "round" }),
          g.line.symbol
            ? Plot.dot(g.rows, { x: "x", y: "accuracy", fill: g.line.color, symbol: g.line.symbol, r: g.line.small ? 2.4 : 4, stroke: "var(--panel)", strokeWidth: 1 })
            : null,
        ]),
        Plot.dot(rows, Plot.pointer({ x: "x", y: "accuracy", stroke: (r) => r.line.color, r: 7, strokeWidth: 2 })),
        Plot.tip(rows, Plot.pointer({ x: "x", y: "accuracy", title: tip, fill: "var(--panel)", stroke: "var(--line)", fontSize: 13, lineHeight: 1.35 })),
      ],
    });
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", `${summary} The same numbers are in the table below.`);
    chart.replaceChildren(plot);
  }

  /** One sentence per line for screen readers: from where to where. */
  function describe(lines) {
    const parts = lines.map((l) => {
      const points = drawable(l.points);
      if (l.level) return `${l.name}: ${percent(l.level.mean)}.`;
      return points.length ? `${l.name}: from ${percent(points[0].accuracy)} to ${percent(points.at(-1).accuracy)}.` : "";
    });
    return `Line chart of accuracy against ${UNITS[unit].axis}. ${parts.join(" ")}`;
  }

  /** A panel with a chip per line that shows or hides it. `build` makes the chips anew, `draw` only the chart. */
  function panel(root, axisLabel, getLines, after) {
    const chart = root.querySelector(".chart");
    const hidden = new Set();
    const draw = () => {
      const shown = getLines().filter((l) => !hidden.has(l.key));
      drawPanel(chart, shown, axisLabel, describe(shown));
      after?.();
    };
    const build = () => {
      const buttons = getLines().map((line) => {
        const button = el("button", { type: "button", "aria-pressed": String(!hidden.has(line.key)) }, swatch(line), line.name);
        button.addEventListener("click", () => {
          if (!hidden.delete(line.key)) hidden.add(line.key);
          button.setAttribute("aria-pressed", String(!hidden.has(line.key)));
          draw();
        });
        return button;
      });
      root.querySelector(".chips").replaceChildren(...buttons);
      draw();
    };
    build();
    return { draw, build };
  }

  const redraws = [];
  const lines = trainLines();
  const spent = { flops: "FLOPs of training (log scale)", tokens: "tokens of training (log scale)" };
  redraws.push(panel($("train-panel"), spent, () => lines).draw);

  const testTasks = [...new Set(data.test.map((c) => c.task))].sort((a, b) => (b === "mean") - (a === "mean"));
  const picker = $("test-task");
  picker.replaceChildren(...testTasks.map((t) => el("option", { value: t }, t === "mean" ? "mean of tasks" : t)));
  picker.hidden = testTasks.length < 2;
  const each = { flops: "FLOPs per problem (log scale)", tokens: "tokens per problem (log scale)" };
  const testPanel = panel($("test-panel"), each, () => testLines(picker.value), () => {
    const fits = data.test.filter((c) => c.task === picker.value && c.fit && c.fit.b !== null);
    const points = d3.format("+.1f");
    const sentence = (c) =>
      `${c.model}, ${c.method === "vote" ? "votes" : "thinking budget"}: ${points(100 * c.fit.b)} points ` +
      `(${points(100 * c.fit.low)} to ${points(100 * c.fit.high)}) over ${d3.format(".2~f")(c.fit.doublings)} doublings`;
    $("test-fit").textContent = fits.length ? `What each doubling of compute buys, by a straight-line fit: ${fits.map(sentence).join("; ")}.` : "";
  });
  picker.addEventListener("change", testPanel.build);
  redraws.push(testPanel.draw);
  for (const radio of document.querySelectorAll('input[name="x-axis"]'))
    radio.addEventListener("change", () => {
      unit = radio.value;
      redraws[0]();
      redraws[1]();
    });

  // --------------------------------------------------------------------------------------------------- thoughts

  const OUTCOMES = [
    ["fixed", "wrong before, right after", (b, a) => b === false && a === true],
    ["kept", "right both times", (b, a) => b === true && a === true],
    ["unsolved", "wrong both times", (b, a) => b === false && a === false],
    ["broken", "right before, wrong after", (b, a) => b === true && a === false],
  ];
  const MARKS = { ok: ["✓", "true: "], bad: ["✗", "false: "], none: ["·", ""] };
  let chosen = [];
  let at = 0;

  const ofTask = () => data.thoughts.filter((p) => !$("pick-task").value || p.task === $("pick-task").value);

  function fillPickers() {
    const tasks = [...new Set(data.thoughts.map((p) => p.task))];
    $("pick-task").replaceChildren(el("option", { value: "" }, "all"), ...tasks.map((t) => el("option", { value: t }, t)));
    fillOutcomes();
  }

  /** The outcomes with their counts for the chosen task; an outcome that the task does not have falls back to all. */
  function fillOutcomes() {
    const before = $("pick-outcome").value;
    const pairs = ofTask();
    const options = OUTCOMES.map(([value, name, test]) => {
      const count = pairs.filter((p) => test(p.before.right, p.after.right)).length;
      return el("option", { value, disabled: count ? null : "" }, `${name} (${count})`);
    });
    $("pick-outcome").replaceChildren(el("option", { value: "" }, `all (${pairs.length})`), ...options);
    const still = options.find((o) => o.value === before && !o.disabled);
    $("pick-outcome").value = still ? before : "";
  }

  function choose() {
    const test = OUTCOMES.find(([value]) => value === $("pick-outcome").value)?.[2] ?? (() => true);
    chosen = ofTask().filter((p) => test(p.before.right, p.after.right));
    at = 0;
    showPair();
  }

  function thoughtLine(line) {
    const state = line.ok === null ? "none" : line.ok ? "ok" : "bad";
    const [mark, spoken] = MARKS[state];
    const badge = ["check", "backtrack"].includes(line.kind) ? el("span", { class: `badge ${line.kind}` }, line.kind) : null;
    return el(
      "li", { class: state },
      el("span", { class: "mark", "aria-hidden": "true" }, mark),
      el("span", { class: "text" }, el("span", { class: "sr-only" }, spoken), line.text),
      badge,
      line.why ? el("span", { class: "why" }, line.why) : null,
    );
  }

  function thoughtCard(name, kind, thought) {
    const [verdict, style] = thought.right === null ? ["could not be judged", "unjudged"] : thought.right ? ["right", "right"] : ["wrong", "wrong"];
    const list = thought.lines.length
      ? el("ol", { tabindex: "0", "aria-label": `Lines of the thought ${kind} training` }, ...thought.lines.map(thoughtLine))
      : el("p", { class: "silent" }, "It answered without a thought.");
    return el(
      "article", { class: `thought ${kind}` },
      el("header", {}, el("h3", {}, name), el("span", { class: "size" }, `${d3.format(",")(thought.tokens)} tokens`)),
      list,
      el("footer", {}, el("span", {}, "Answer ", el("code", {}, thought.answer || "(none)")), el("span", { class: style }, verdict)),
    );
  }

  function showPair() {
    const pair = chosen[at];
    $("pick-count").textContent = chosen.length ? `${at + 1} of ${chosen.length}` : "none";
    $("pick-previous").disabled = at === 0;
    $("pick-next").disabled = at >= chosen.length - 1;
    if (!pair) {
      $("thought-view").replaceChildren(el("p", { class: "note" }, "No thoughts were kept."));
      return;
    }
    $("thought-view").replaceChildren(
      el("div", { class: "question" },
        el("p", {}, `${pair.task}, level ${pair.level}`),
        el("pre", {}, pair.question),
        el("p", {}, `A right answer: ${pair.expected}`)),
      el("div", { class: "pair" }, thoughtCard("Before training", "before", pair.before), thoughtCard("After training", "after", pair.after)),
    );
  }

  function step(by) {
    if (!chosen[at + by]) return;
    at += by;
    showPair();
  }
  $("pick-task").addEventListener("change", () => { fillOutcomes(); choose(); });
  $("pick-outcome").addEventListener("change", choose);
  $("pick-previous").addEventListener("click", () => step(-1));
  $("pick-next").addEventListener("click", () => step(1));
  $("thoughts").addEventListener("keydown", (event) => {
    if (event.target.closest("select") || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  fillPickers();
  // open where the training shows: a question that it learned to answer
  if (data.thoughts.some((p) => p.before.right === false && p.after.right === true)) $("pick-outcome").value = "fixed";
  choose();

  // ------------------------------------------------------------------------------------------ lengths and metrics

  function drawLengths() {
    const chart = $("length-chart");
    const rows = ["before", "after"].flatMap((when) => data.lengths[when].map((tokens) => ({ when, tokens })));
    if (!rows.length) return chart.replaceChildren(el("p", { class: "empty" }, "No thought was measured."));
    const width = Math.max(260, Math.floor(chart.clientWidth));
    const plot = Plot.plot({
      width, height: 380, marginLeft: 44, marginRight: 8, marginBottom: 42, marginTop: 24,
      style: { background: "transparent", fontSize: "13px" },
      x: { nice: true },
      fy: { domain: ["before", "after"], padding: 0.16, axis: null },
      marks: [
        Plot.gridY({ ticks: 3, stroke: "var(--line)", strokeOpacity: 1 }),
        Plot.axisY({ ticks: 3, tickFormat: "~%", tickSize: 0, label: null, fill: "var(--muted)" }),
        Plot.axisX({ ticks: Math.floor(width / 80), tickSize: 5, tickFormat: "~s", label: "tokens of thought", labelAnchor: "right", labelArrow: "none", labelOffset: 38, fill: "var(--muted)", stroke: "var(--muted)" }),
        Plot.rectY(rows, Plot.binX({ y: "proportion-facet" }, {
          x: "tokens", fy: "when", thresholds: 32, fill: (r) => (r.when === "before" ? "var(--base)" : "var(--trained)"), fillOpacity: 0.75,
          tip: { format: { fy: false, fill: false, y: ".1%" }, fill: "var(--panel)" },
        })),
        Plot.ruleY([0], { stroke: "var(--line)" }),
        Plot.text(["before", "after"], { fy: (d) => d, text: (d) => d, frameAnchor: "top-right", fill: (d) => (d === "before" ? "var(--base)" : "var(--trained)"), fontSize: 14, fontWeight: 600, dy: -2 }),
      ],
    });
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", "Histograms of thought lengths before and after training. The table below sums them up.");
    chart.replaceChildren(plot);
  }

  function showValue(value, unitName) {
    if (value === null || value === undefined) return "–";
    if (unitName === "share") return percent(value);
    const size = Math.abs(value);
    // a ratio of policies lives in the fourth decimal
    const format = size >= 1000 ? ",.0f" : size > 0 && size < 1e-3 ? ".1e" : Math.abs(value - 1) < 0.01 ? ".4f" : ".3~g";
    const text = d3.format(format)(value);
    return unitName ? `${text} ${unitName}` : text;
  }

  function drawMetrics() {
    const cards = data.metrics.map((metric) => {
      const rows = metric.steps.map((s, i) => ({ step: s, value: metric.values[i] })).filter((r) => r.value !== null);
      const end = rows.at(-1)?.value;
      const head = el("h3", {}, metric.name, el("span", {}, rows.length ? `${showValue(rows[0].value, metric.unit === "share" ? "share" : "")} → ${showValue(end, metric.unit)}` : "not measured"));
      return { metric, rows, node: el("div", { class: "multiple" }, head) };
    });
    $("metrics").replaceChildren(...cards.map((c) => c.node));
    for (const { metric, rows, node } of cards) {
      if (!rows.length) continue;
      const smooth = rows.length > 40; // long runs: the values faint, their running mean on top
      const plot = Plot.plot({
        width: Math.max(220, Math.floor(node.clientWidth)), height: 128, marginLeft: 44, marginRight: 6, marginTop: 10, marginBottom: 24,
        style: { background: "transparent", fontSize: "12px" },
        y: { nice: true, zero: metric.unit === "share" },
        marks: [
          Plot.gridY({ ticks: 3, stroke: "var(--line)", strokeOpacity: 1 }),
          Plot.axisY({ ticks: 3, tickFormat: metric.unit === "share" ? "~%" : (v) => d3.format(Math.abs(v) < 1 ? ".3~g" : "~s")(v), tickSize: 0, label: null, fill: "var(--muted)" }),
          Plot.axisX({ ticks: 4, tickSize: 0, label: null, fill: "var(--muted)", stroke: null, tickFormat: (v) => (Number.isInteger(v) ? String(v) : "") }),
          Plot.lineY(rows, { x: "step", y: "value", stroke: "var(--trained)", strokeWidth: smooth ? 1 : 1.6, strokeOpacity: smooth ? 0.35 : 1 }),
          smooth ? Plot.lineY(rows, Plot.windowY({ k: Math.ceil(rows.length / 16), anchor: "middle" }, { x: "step", y: "value", stroke: "var(--trained)", strokeWidth: 1.8 })) : null,
          Plot.tip(rows, Plot.pointerX({ x: "step", y: "value", fill: "var(--panel)", stroke: "var(--line)", title: (r) => `step ${r.step}\n${showValue(r.value, metric.unit)}` })),
        ],
      });
      plot.setAttribute("role", "img");
      plot.setAttribute("aria-label", `${metric.name} over training steps, from ${showValue(rows[0].value, metric.unit)} to ${showValue(rows.at(-1).value, metric.unit)}.`);
      node.append(plot);
    }
  }
  /** A scorer's opinion and the truth on one chart; runs without a scorer have no place for it. */
  function drawOpinion() {
    const figure = $("opinion");
    if (!figure) return;
    const { steps, scorer, truth } = data.opinion;
    const lines = [
      { name: "the scorer's opinion", color: "var(--check)", width: 2, dash: "6 4", values: scorer },
      { name: "right answers", color: "var(--trained)", width: 2.2, dash: null, values: truth },
    ].map((l) => ({ ...l, rows: steps.map((step, i) => ({ step, value: l.values[i] })).filter((r) => r.value !== null) }));
    figure.querySelector(".chips").replaceChildren(...lines.map((l) => el("span", { class: "key" }, swatch(l), l.name)));
    const highest = d3.max(lines, (l) => d3.max(l.rows, (r) => r.value)) ?? 1;
    const smooth = steps.length > 40;
    const chart = figure.querySelector(".chart");
    const show = (value) => (value === null ? "–" : percent(value));
    const both = steps.map((step, i) => ({ step, scorer: scorer[i], truth: truth[i] }));
    const plot = Plot.plot({
      width: Math.max(260, Math.floor(chart.clientWidth)), height: 300, marginLeft: 44, marginRight: 14, marginTop: 14, marginBottom: 42,
      style: { background: "transparent", fontSize: "13px" },
      y: { domain: [0, Math.max(0.1, Math.ceil(highest * 10) / 10)] },
      marks: [
        Plot.gridY({ ticks: 5, stroke: "var(--line)", strokeOpacity: 1 }),
        Plot.axisY({ ticks: 5, tickFormat: whole, tickSize: 0, label: null, fill: "var(--muted)" }),
        Plot.axisX({ ticks: 5, tickSize: 5, tickFormat: (v) => (Number.isInteger(v) ? String(v) : ""), label: "step", labelAnchor: "right", labelArrow: "none", labelOffset: 38, fill: "var(--muted)", stroke: "var(--muted)" }),
        Plot.ruleY([0], { stroke: "var(--line)" }),
        ...lines.flatMap((l) => [
          smooth ? Plot.lineY(l.rows, { x: "step", y: "value", stroke: l.color, strokeWidth: 1, strokeOpacity: 0.3 }) : null,
          Plot.lineY(l.rows, smooth
            ? Plot.windowY({ k: Math.ceil(steps.length / 16), anchor: "middle" }, { x: "step", y: "value", stroke: l.color, strokeWidth: l.width, strokeDasharray: l.dash })
            : { x: "step", y: "value", stroke: l.color, strokeWidth: l.width, strokeDasharray: l.dash }),
        ]),
        Plot.tip(both, Plot.pointerX({ x: "step", y: (r) => r.truth ?? r.scorer, fill: "var(--panel)", stroke: "var(--line)", title: (r) => `step ${r.step}\nthe scorer: ${show(r.scorer)}\nthe truth: ${show(r.truth)}` })),
      ],
    });
    plot.setAttribute("role", "img");
    const ends = (l) => (l.rows.length ? `${l.name}: from ${percent(l.rows[0].value)} to ${percent(l.rows.at(-1).value)}.` : "");
    plot.setAttribute("aria-label", `Line chart over training steps. ${lines.map(ends).join(" ")}`);
    chart.replaceChildren(plot);
  }

  redraws.push(drawLengths, drawOpinion, drawMetrics);
  drawLengths();
  drawOpinion();
  drawMetrics();

  // --------------------------------------------------------------------------------------------------- window

  mullPage.onNewWidth(() => { for (const redraw of redraws) redraw(); });
  document.documentElement.dataset.ready = "yes"; // for tests: the script reached its end
})();
