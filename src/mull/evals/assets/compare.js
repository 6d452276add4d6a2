// Draws the compare page's charts, and fills and sorts what is below them. The trees are in tree.js.
"use strict";
const comparePage = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const { el, percent, power, superscript, logTicks } = mullPage;
  const ns = "http://www.w3.org/2000/svg";
  const redraws = [];

  // every strategy has one colour and shape on the whole page
  const names = [...new Set([...data.strategies.map((s) => s.name), ...data.curves.map((c) => c.strategy)])];
  const SHAPES = [d3.symbolCircle, d3.symbolSquare, d3.symbolTriangle, d3.symbolDiamond];
  const looks = new Map(names.map((name, i) => [name, { color: `var(--s-${i % 12})`, shape: SHAPES[Math.floor(i / 12) % 4] }]));
  const look = (name) => looks.get(name) ?? { color: "var(--muted)", shape: d3.symbolCircle };
  const about = new Map(data.strategies.map((s) => [s.name, s.about]));

  const taskName = (task) => (task === "mean" ? "mean of tasks" : task);
  const range = (i) => `${percent(i.low).replace("%", "")} to ${percent(i.high)}`;
  const clock = (s) => (s < 10 ? d3.format(".2~g")(s) : d3.format(",.0f")(s)) + " s";

  /** Fills a select with the tasks that `rows` speak of, the mean first; hides it when there is nothing to choose. */
  function taskPicker(select, rows, onChange) {
    const tasks = [...new Set(rows.map((r) => r.task))].sort((a, b) => (b === "mean") - (a === "mean"));
    select.replaceChildren(...tasks.map((t) => el("option", { value: t }, taskName(t))));
    select.closest("label").hidden = tasks.length < 2;
    select.addEventListener("change", onChange);
  }

  // ------------------------------------------------------------------------------------------ accuracy

  const UNITS = {
    flops: { axis: "FLOPs per question (log scale)", tick: (m, e) => (m === 1 ? `10${superscript(e)}` : `${m}×10${superscript(e)}`), wide: 62 },
    tokens: { axis: "tokens per question (log scale)", tick: (m, e) => d3.format("~s")(m * 10 ** e).replace("G", "B"), wide: 46 },
  };
  const hidden = new Set();
  let unit = "flops";
  let active = null; // the strategy under the pointer or the focus
  let spots = []; // what can be pointed at: {strategy, x, y, row, kind}
  let here = -1; // the spot that the keyboard is on

  const shape = (kind, size) => d3.symbol(kind, size)();
  const diamond = (size) => shape(d3.symbolDiamond, size);

  function swatch(color, kind, dash = null, hollow = false) {
    const svg = d3.create("svg").attr("width", 24).attr("height", 12).attr("aria-hidden", "true");
    if (dash !== "none") svg.append("line").attr("x2", 24).attr("y1", 6).attr("y2", 6).attr("stroke", color).attr("stroke-width", 2).attr("stroke-dasharray", dash);
    if (kind)
      svg.append("path").attr("transform", "translate(12,6)").attr("d", shape(kind, 46)).attr("fill", hollow ? "var(--panel)" : color).attr("stroke", color).attr("stroke-width", hollow ? 1.6 : 0);
    return svg.node();
  }

  /** What a doubling of compute buys a strategy, by the straight-line fit, if there is one. */
  function gain(name) {
    const fit = data.fits.find((f) => f.strategy === name && f.task === $("accuracy-task").value && f.unit === unit && f.law === "log");
    const b = fit?.params.find((p) => p.name === "b");
    if (!b || b.value === null) return null;
    const points = (v) => d3.format("+.1f")(100 * v);
    return el("b", { title: `${points(b.value)} points of accuracy a doubling (95% interval ${points(b.low)} to ${points(b.high)})` }, points(b.value));
  }

  function fillLegend() {
    $("strategies").replaceChildren(
      ...names.map((name) => {
        const button = el("button", { type: "button", "aria-pressed": String(!hidden.has(name)), "data-strategy": name, title: about.get(name) || null }, swatch(look(name).color, look(name).shape), el("span", {}, name), gain(name));
        button.addEventListener("click", () => {
          if (!hidden.delete(name)) hidden.add(name);
          button.setAttribute("aria-pressed", String(!hidden.has(name)));
          drawAccuracy();
        });
        for (const [event, value] of [["pointerenter", name], ["focus", name], ["pointerleave", null], ["blur", null]])
          button.addEventListener(event, () => highlight(hidden.has(name) ? null : value));
        return el("li", {}, button);
      }),
    );
    $("legend-unit").textContent = $("strategies").querySelector("b") ? "points per doubling" : "";
    const rows = [
      [swatch("var(--control)", null, "2 3"), "greedy: one thought at temperature 0"],
      [swatch("var(--control)", null, "6 4"), "oracle pass@k: picks by the reference answer, not a strategy"],
    ];
    if (data.predictions.length)
      rows.push(
        [swatch("var(--muted)", d3.symbolDiamond, "none", true), "predicted before the run, with its 95% interval"],
        [swatch("var(--muted)", d3.symbolDiamond, "none"), "what the run then found"],
      );
    $("reference-key").replaceChildren(...rows.map(([icon, words]) => el("li", {}, icon, el("span", {}, words))));
  }

  function highlight(name) {
    active = name;
    const chart = $("accuracy-chart");
    chart.classList.toggle("some-active", name !== null);
    for (const g of chart.querySelectorAll(".series")) g.classList.toggle("active", g.dataset.strategy === name);
    for (const b of $("strategies").querySelectorAll("button")) b.classList.toggle("active", b.dataset.strategy === name);
  }

  function shownData() {
    const task = $("accuracy-task").value;
    const known = (p) => p.accuracy !== null && p[unit] > 0;
    const curves = data.curves
      .filter((c) => c.task === task && !hidden.has(c.strategy))
      .map((c) => ({ strategy: c.strategy, points: c.points.filter(known).sort((a, b) => a[unit] - b[unit]) }))
      .filter((c) => c.points.length);
    const reference = data.references.find((r) => r.task === task);
    const oracle = (reference?.oracle ?? []).filter((p) => p.accuracy.mean !== null && p[unit] > 0);
    const greedy = reference?.greedy?.mean == null ? null : reference.greedy;
    const predictions = data.predictions.filter((p) => p.task === task && p.unit === unit && !hidden.has(p.strategy));
    return { task, curves, oracle, greedy, predictions };
  }

  function drawAccuracy() {
    const chart = $("accuracy-chart");
    const { task, curves, oracle, greedy, predictions } = shownData();
    const xs = [...curves.flatMap((c) => c.points.map((p) => p[unit])), ...oracle.map((p) => p[unit]), ...predictions.map((p) => p.compute)];
    spots = [];
    here = -1;
    chart.classList.toggle("few", curves.length <= 3);
    if (!xs.length) {
      chart.replaceChildren(el("p", { class: "empty" }, "No point to draw: choose a strategy, or nothing was measured."));
      return;
    }
    const width = Math.max(260, Math.floor(chart.clientWidth));
    const beside = $("legend").offsetTop < chart.offsetTop + 50 ? $("legend").offsetHeight : 0; // as tall as its legend
    const height = Math.round(Math.min(600, Math.max(320, width * 0.62, beside)));
    const m = { top: 26, right: 16, bottom: 48, left: 46 };
    const pad = xs.length > 1 && d3.max(xs) > d3.min(xs) ? (d3.max(xs) / d3.min(xs)) ** 0.03 : 2;
    const x = d3.scaleLog([d3.min(xs) / pad, d3.max(xs) * pad], [m.left, width - m.right]);
    const ys = [...curves.flatMap((c) => c.points.flatMap((p) => [p.low, p.high])), ...oracle.map((p) => p.accuracy.mean), ...predictions.flatMap((p) => [p.low, p.high])];
    if (greedy) ys.push(greedy.mean);
    const y = d3.scaleLinear([Math.max(0, Math.floor(d3.min(ys) * 10) / 10), Math.min(1, Math.ceil(d3.max(ys) * 10 + 0.2) / 10)], [height - m.bottom, m.top]);

    const svg = d3.create("svg").attr("width", width).attr("height", height).attr("tabindex", 0).attr("role", "img")
      .attr("aria-label", `${describe(task, curves, oracle, greedy)} Arrow keys walk from point to point; the numbers are in the table of all points.`);
    const grid = svg.append("g").attr("class", "axis").attr("transform", `translate(${m.left},0)`).attr("aria-hidden", "true");
    grid.call(d3.axisLeft(y).ticks(6, "%").tickSize(-(width - m.left - m.right)).tickPadding(8));
    const ticks = logTicks(x.domain(), Math.floor((width - m.left) / UNITS[unit].wide));
    const axis = svg.append("g").attr("class", "axis x").attr("transform", `translate(0,${height - m.bottom})`).attr("aria-hidden", "true");
    axis.call(d3.axisBottom(x).tickValues(ticks.map((t) => t.value)).tickFormat((v) => { const t = ticks.find((t) => t.value === v); return UNITS[unit].tick(t.m, t.e); }).tickSize(5));
    svg.append("text").attr("class", "axis-title").attr("x", width - m.right).attr("y", height - 8).attr("text-anchor", "end").text(UNITS[unit].axis);

    if (greedy) drawGreedy(svg, greedy, x, y);
    if (oracle.length) drawOracle(svg, oracle, x, y, width);
    const line = d3.line((p) => x(p[unit]), (p) => y(p.accuracy));
    const band = d3.area((p) => x(p[unit]), (p) => y(p.low), (p) => y(p.high));
    const series = svg.append("g").selectAll("g").data(curves.toReversed()).join("g").attr("class", "series").attr("data-strategy", (c) => c.strategy);
    series.each(function (c) {
      const g = d3.select(this);
      const { color, shape: kind } = look(c.strategy);
      g.append("path").attr("class", "band").attr("d", band(c.points)).attr("fill", color);
      const prediction = predictions.find((p) => p.strategy === c.strategy);
      if (prediction) drawPrediction(g, prediction, c.points, color, x, y);
      g.append("path").attr("class", "line").attr("d", line(c.points)).attr("fill", "none").attr("stroke", color).attr("stroke-width", 2).attr("stroke-linejoin", "round");
      g.selectAll("path.dot").data(c.points).join("path").attr("class", "dot").attr("d", shape(kind, 52)).attr("fill", color).attr("stroke", "var(--panel)").attr("transform", (p) => `translate(${x(p[unit])},${y(p.accuracy)})`);
      c.points.forEach((p) => spots.push({ strategy: c.strategy, x: x(p[unit]), y: y(p.accuracy), row: p }));
    });
    const ring = svg.append("circle").attr("class", "ring").attr("r", 8).attr("fill", "none").attr("stroke-width", 2).attr("visibility", "hidden");
    const tip = el("div", { class: "tip", role: "status", hidden: "" });
    chart.replaceChildren(svg.node(), tip);
    listen(svg, ring, tip, width);
    highlight(null);
  }

  function drawGreedy(svg, greedy, x, y) {
    const [left, right] = x.range();
    const g = svg.append("g").attr("class", "greedy");
    g.append("line").attr("x1", left).attr("x2", right).attr("y1", y(greedy.mean)).attr("y2", y(greedy.mean)).attr("stroke", "var(--control)").attr("stroke-width", 1.6).attr("stroke-dasharray", "2 3");
    g.append("text").attr("class", "axis-title halo").attr("x", right).attr("y", y(greedy.mean) + 16).attr("text-anchor", "end").text(`greedy ${percent(greedy.mean)}`);
  }

  function drawOracle(svg, oracle, x, y, width) {
    const g = svg.append("g").attr("class", "oracle").attr("role", "img").attr("aria-label", "oracle pass@k: picks by the reference answer, not a strategy");
    g.append("path").attr("d", d3.line((p) => x(p[unit]), (p) => y(p.accuracy.mean))(oracle)).attr("fill", "none").attr("stroke", "var(--control)").attr("stroke-width", 2).attr("stroke-dasharray", "6 4");
    const last = oracle.at(-1);
    const words = width > 560 ? "oracle pass@k: picks by the reference answer, not a strategy" : "oracle pass@k, not a strategy";
    g.append("text").attr("class", "axis-title halo").attr("x", x(last[unit])).attr("y", Math.max(14, y(last.accuracy.mean) - 10)).attr("text-anchor", "end").text(words);
  }

  /** Hollow: what was predicted, with its interval; filled, a little to the right: what the run found. */
  function drawPrediction(g, p, points, color, x, y) {
    const at = x(p.compute);
    const from = points.findLast((q) => q[unit] <= p.up_to * 1.0001) ?? points[0];
    g.append("line").attr("x1", x(from[unit])).attr("y1", y(from.accuracy)).attr("x2", at).attr("y2", y(p.value)).attr("stroke", color).attr("stroke-dasharray", "1 4").attr("stroke-linecap", "round").attr("stroke-width", 1.6);
    g.append("line").attr("x1", at).attr("x2", at).attr("y1", y(p.low)).attr("y2", y(p.high)).attr("stroke", color).attr("stroke-width", 1.4);
    g.append("path").attr("class", "prediction").attr("d", diamond(110)).attr("transform", `translate(${at},${y(p.value)})`).attr("fill", "var(--panel)").attr("stroke", color).attr("stroke-width", 2);
    spots.push({ strategy: p.strategy, x: at, y: y(p.value), prediction: p });
    if (p.observed?.mean == null) return;
    const beside = at + 9;
    g.append("line").attr("x1", beside).attr("x2", beside).attr("y1", y(p.observed.low)).attr("y2", y(p.observed.high)).attr("stroke", color).attr("stroke-width", 1.4);
    g.append("path").attr("class", "observed").attr("d", diamond(80)).attr("transform", `translate(${beside},${y(p.observed.mean)})`).attr("fill", color).attr("stroke", "var(--panel)");
    spots.push({ strategy: p.strategy, x: beside, y: y(p.observed.mean), prediction: p });
  }

  function tipLines({ strategy, row, prediction: p }) {
    if (row)
      return [
        el("strong", {}, strategy), `${row.budget}: ${percent(row.accuracy)}`, el("span", { class: "muted" }, ` (${range(row)}, n=${d3.format(",")(row.n)})`),
        el("div", {}, `${power(row.flops)} FLOPs, ${power(row.tokens)} tokens${row.seconds === null ? "" : `, ${clock(row.seconds)}`}`),
        row.exhausted ? el("div", { class: "muted" }, `${row.exhausted} ran out of budget`) : null,
      ];
    return [
      el("strong", {}, strategy), `predicted ${percent(p.value)}`, el("span", { class: "muted" }, ` (${range(p)})`),
      el("div", {}, p.observed?.mean == null ? "not yet run" : `found ${percent(p.observed.mean)}, ${p.inside ? "inside" : "outside"} the interval`),
      el("div", { class: "muted" }, `at ${power(p.compute)} ${p.unit === "flops" ? "FLOPs" : p.unit}, fitted up to ${power(p.up_to)}; published ${p.made}`),
    ];
  }

  function listen(svg, ring, tip, width) {
    const show = (spot) => {
      highlight(spot?.strategy ?? null);
      ring.attr("visibility", spot ? "visible" : "hidden");
      tip.hidden = !spot;
      if (!spot) return;
      ring.attr("cx", spot.x).attr("cy", spot.y).attr("stroke", look(spot.strategy).color);
      tip.replaceChildren(...tipLines(spot).filter((c) => c !== null));
      const right = spot.x + 18 + tip.offsetWidth > width;
      tip.style.left = `${right ? Math.max(0, spot.x - 18 - tip.offsetWidth) : spot.x + 18}px`;
      tip.style.top = `${Math.max(0, spot.y - tip.offsetHeight / 2)}px`;
    };
    svg.on("pointermove pointerdown", (event) => {
      const [px, py] = d3.pointer(event);
      const best = d3.least(spots, (s) => Math.hypot(s.x - px, s.y - py));
      here = -1;
      show(best && Math.hypot(best.x - px, best.y - py) < 36 ? best : null);
    });
    svg.on("pointerleave blur", () => show(null));
    svg.on("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const other = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (!(step || other) || !spots.length || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      const shown = names.filter((n) => spots.some((s) => s.strategy === n));
      const current = spots[here];
      const name = current ? shown[(shown.indexOf(current.strategy) + (other ?? 0) + shown.length) % shown.length] : shown[0];
      const mine = spots.filter((s) => s.strategy === name).sort((a, b) => a.x - b.x);
      const near = current ? (other ? d3.leastIndex(mine, (s) => Math.abs(s.x - current.x)) : mine.indexOf(current) + step) : 0;
      here = spots.indexOf(mine[Math.max(0, Math.min(mine.length - 1, near))]);
      show(spots[here]);
    });
  }

  function describe(task, curves, oracle, greedy) {
    const ends = (points, value) => `from ${percent(value(points[0]))} to ${percent(value(points.at(-1)))}`;
    return [
      `Accuracy against ${unit === "flops" ? "FLOPs" : "tokens"} per question, ${taskName(task)}.`,
      ...curves.map((c) => `${c.strategy}: ${ends(c.points, (p) => p.accuracy)}.`),
      greedy ? `Greedy: ${percent(greedy.mean)}.` : "",
      oracle.length ? `Oracle pass@k, which is not a strategy: ${ends(oracle, (p) => p.accuracy.mean)}.` : "",
    ].join(" ");
  }

  const drawAll = () => { fillLegend(); drawAccuracy(); };
  taskPicker($("accuracy-task"), data.curves.length ? data.curves : data.references, drawAll);
  fillLegend();
  const setAll = (show) => () => {
    for (const n of names) if (show) hidden.delete(n); else hidden.add(n);
    drawAll();
  };
  $("show-all").addEventListener("click", setAll(true));
  $("show-none").addEventListener("click", setAll(false));
  for (const radio of document.querySelectorAll('input[name="x-axis"]'))
    radio.addEventListener("change", () => { unit = radio.value; drawAll(); });
  redraws.push(drawAccuracy);

  return { data, $, el, look, names, redraws, taskPicker, taskName, range, hidden };
})();
