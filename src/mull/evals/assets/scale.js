// Draws the scaling law: what it was fitted to, what it said, and what was found.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const { el, percent, power, superscript, logTicks } = mullPage;
  const range = (i) => `${percent(i.low).replace("%", "")} to ${percent(i.high)}`;
  const taskName = (task) => (task === "mean" ? "all problems" : task);
  // drawn in this order, so that the law lies on top
  const LINES = {
    error: { color: "var(--s-4)", dash: "2 4", words: "power law of the error, fitted to the same points" },
    log: { color: "var(--s-2)", dash: "7 4", words: "straight line in log compute, likewise" },
    refit: { color: "var(--control)", dash: "1 3", words: "the sigmoid through all points, made afterwards" },
    sigmoid: { color: "var(--trained)", dash: null, words: "the published law, with its 95% band" },
  };
  const diamond = (size) => d3.symbol(d3.symbolDiamond, size)();
  let spots = []; // what can be pointed at: {x, y, lines}
  let here = -1;

  function swatch(draw) {
    const svg = d3.create("svg").attr("width", 24).attr("height", 12).attr("aria-hidden", "true");
    draw(svg);
    return svg.node();
  }
  const dot = (svg, x, y, heldOut) =>
    svg.append("circle").attr("class", heldOut ? "dot held-out" : "dot").attr("cx", x).attr("cy", y).attr("r", heldOut ? 3.6 : 3)
      .attr("fill", heldOut ? "var(--panel)" : "var(--trained)").attr("stroke", heldOut ? "var(--base)" : "var(--panel)").attr("stroke-width", heldOut ? 1.7 : 0.6);
  const rhomb = (svg, x, y, size, color, hollow) =>
    svg.append("path").attr("d", diamond(size)).attr("transform", `translate(${x},${y})`).attr("fill", hollow ? "var(--panel)" : color).attr("stroke", hollow ? color : "var(--panel)").attr("stroke-width", hollow ? 2 : 1);

  function fillKey() {
    const chart = data.charts.find((c) => c.task === $("law-task").value);
    const shown = Object.entries(LINES).filter(([law]) => chart?.lines.some((l) => l.law === law)).reverse();
    const rows = shown.map(([, look]) => [
      swatch((svg) => svg.append("line").attr("x2", 24).attr("y1", 6).attr("y2", 6).attr("stroke", look.color).attr("stroke-width", 2).attr("stroke-dasharray", look.dash)),
      look.words,
    ]);
    rows.push([swatch((svg) => dot(svg, 12, 6, false)), "evaluations that the law was fitted to"], [swatch((svg) => dot(svg, 12, 6, true)), "evaluations of the held-out half"]);
    rows.push([swatch((svg) => rhomb(svg, 12, 6, 50, "var(--trained)", true)), "predicted, with its 95% interval"], [swatch((svg) => rhomb(svg, 12, 6, 50, "var(--base)", false)), "what was then found there, mean of the seeds"]);
    $("law-key").replaceChildren(...rows.map(([icon, words]) => el("li", {}, icon, el("span", {}, words))));
  }

  function drawLaw() {
    const chart = $("law-chart");
    const found = data.charts.find((c) => c.task === $("law-task").value);
    const points = (found?.points ?? []).filter((p) => p.accuracy !== null && p.compute > 0);
    spots = [];
    here = -1;
    if (!points.length) {
      chart.replaceChildren(el("p", { class: "empty" }, "No point to draw: nothing was measured."));
      return;
    }
    const predictions = data.predictions.filter((p) => p.task === found.task && p.law === "sigmoid");
    const width = Math.max(260, Math.floor(chart.clientWidth));
    const height = Math.round(Math.min(560, Math.max(330, width * 0.6)));
    const m = { top: 26, right: 16, bottom: 48, left: 46 };
    const cs = [...points.map((p) => p.compute), ...predictions.map((p) => p.compute)];
    const x = d3.scaleLog([d3.min(cs) / 1.25, d3.max(cs) * 1.12], [m.left, width - m.right]);
    const [from, to] = x.domain();
    const lines = found.lines.map((l) => ({ law: l.law, points: l.points.filter((p) => p.compute >= from && p.compute <= to && p.value !== null) }));
    const law = lines.find((l) => l.law === "sigmoid");
    const ys = [...points.map((p) => p.accuracy), ...(law?.points ?? []).flatMap((p) => [p.low, p.high]), ...predictions.flatMap((p) => [p.low, p.high, p.observed?.mean ?? p.value])];
    if (found.start.mean !== null) ys.push(found.start.mean);
    const y = d3.scaleLinear([Math.max(0, Math.floor(d3.min(ys) * 10) / 10), Math.min(1, Math.ceil(d3.max(ys) * 10 + 0.2) / 10)], [height - m.bottom, m.top]).clamp(true);

    const svg = d3.create("svg").attr("width", width).attr("height", height).attr("tabindex", 0).attr("role", "img").attr("aria-label", describe(found, points, predictions));
    const edge = x(data.up_to);
    svg.append("rect").attr("class", "beyond").attr("x", edge).attr("y", m.top).attr("width", Math.max(0, width - m.right - edge)).attr("height", height - m.top - m.bottom);
    const grid = svg.append("g").attr("class", "axis").attr("transform", `translate(${m.left},0)`).attr("aria-hidden", "true");
    grid.call(d3.axisLeft(y).ticks(6, "%").tickSize(-(width - m.left - m.right)).tickPadding(8));
    const ticks = logTicks([from, to], Math.floor((width - m.left) / 66));
    const label = (v) => { const t = ticks.find((t) => t.value === v); return t.m === 1 ? `10${superscript(t.e)}` : `${t.m}×10${superscript(t.e)}`; };
    svg.append("g").attr("class", "axis x").attr("transform", `translate(0,${height - m.bottom})`).attr("aria-hidden", "true")
      .call(d3.axisBottom(x).tickValues(ticks.map((t) => t.value)).tickFormat(label).tickSize(5));
    svg.append("text").attr("class", "axis-title").attr("x", width - m.right).attr("y", height - 8).attr("text-anchor", "end").text("FLOPs of training (log scale)");
    if (width - m.right - edge > 60) svg.append("text").attr("class", "axis-title").attr("x", width - m.right).attr("y", m.top - 8).attr("text-anchor", "end").text("held out");

    if (found.start.mean !== null) {
      svg.append("line").attr("class", "start").attr("x1", m.left).attr("x2", width - m.right).attr("y1", y(found.start.mean)).attr("y2", y(found.start.mean)).attr("stroke", "var(--base)").attr("stroke-width", 1.4).attr("stroke-dasharray", "2 3");
      svg.append("text").attr("class", "axis-title halo").attr("x", width - m.right - 6).attr("y", y(found.start.mean) + 17).attr("text-anchor", "end").text(`before training ${percent(found.start.mean)}`);
    }
    if (law?.points.length)
      svg.append("path").attr("class", "band").attr("d", d3.area((p) => x(p.compute), (p) => y(p.low), (p) => y(p.high))(law.points)).attr("fill", "var(--trained)").attr("opacity", 0.14);
    const path = d3.line((p) => x(p.compute), (p) => y(p.value));
    for (const [name, look] of Object.entries(LINES)) {
      const line = lines.find((l) => l.law === name);
      if (!line?.points.length) continue;
      svg.append("path").attr("class", "law").attr("data-law", name).attr("d", path(line.points)).attr("fill", "none").attr("stroke", look.color).attr("stroke-width", name === "sigmoid" ? 2.4 : 1.7).attr("stroke-dasharray", look.dash);
    }
    for (const p of points) {
      dot(svg, x(p.compute), y(p.accuracy), p.held_out);
      spots.push({ x: x(p.compute), y: y(p.accuracy), lines: [`seed ${p.seed}, step ${p.step}`, percent(p.accuracy), `${power(p.compute)} FLOPs${p.held_out ? ", held out" : ""}`] });
    }
    for (const p of predictions) drawPrediction(svg, p, x, y);
    const ring = svg.append("circle").attr("class", "ring").attr("r", 8).attr("fill", "none").attr("stroke", "var(--ink)").attr("stroke-width", 1.6).attr("visibility", "hidden");
    const tip = el("div", { class: "tip", role: "status", hidden: "" });
    chart.replaceChildren(svg.node(), tip);
    spots.sort((a, b) => a.x - b.x);
    listen(svg, ring, tip, width);
  }

  /** Hollow: what was predicted; filled, a little to the right: what was found. */
  function drawPrediction(svg, p, x, y) {
    const at = x(p.compute);
    svg.append("line").attr("x1", at).attr("x2", at).attr("y1", y(p.low)).attr("y2", y(p.high)).attr("stroke", "var(--trained)").attr("stroke-width", 1.6);
    rhomb(svg, at, y(p.value), 80, "var(--trained)", true).attr("class", "prediction");
    const told = p.observed?.mean == null ? "not yet run" : `found ${percent(p.observed.mean)}, ${p.inside ? "inside" : "outside"} the interval`;
    const lines = [`predicted ${percent(p.value)} (${range(p)})`, told, `at ${power(p.compute)} FLOPs; published ${p.made}`];
    spots.push({ x: at, y: y(p.value), lines });
    if (p.observed?.mean == null) return;
    rhomb(svg, at + 8, y(p.observed.mean), 60, "var(--base)", false).attr("class", "observed");
    spots.push({ x: at + 8, y: y(p.observed.mean), lines });
  }

  function listen(svg, ring, tip, width) {
    const show = (spot) => {
      ring.attr("visibility", spot ? "visible" : "hidden");
      tip.hidden = !spot;
      if (!spot) return;
      ring.attr("cx", spot.x).attr("cy", spot.y);
      const [head, ...rest] = spot.lines;
      tip.replaceChildren(el("strong", {}, head), ...rest.map((line) => el("div", {}, line)));
      const right = spot.x + 18 + tip.offsetWidth > width;
      tip.style.left = `${right ? Math.max(0, spot.x - 18 - tip.offsetWidth) : spot.x + 18}px`;
      tip.style.top = `${Math.max(0, spot.y - tip.offsetHeight / 2)}px`;
    };
    svg.on("pointermove pointerdown", (event) => {
      const [px, py] = d3.pointer(event);
      const best = d3.least(spots, (s) => Math.hypot(s.x - px, s.y - py));
      here = -1;
      show(best && Math.hypot(best.x - px, best.y - py) < 30 ? best : null);
    });
    svg.on("pointerleave blur", () => show(null));
    svg.on("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step || !spots.length || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      here = Math.max(0, Math.min(spots.length - 1, here + step));
      show(spots[here]);
    });
  }

  function describe(chart, points, predictions) {
    const last = predictions.at(-1);
    return [
      `Accuracy against FLOPs of training, ${taskName(chart.task)}: ${points.length} evaluations, ${points.filter((p) => p.held_out).length} of them held out.`,
      last ? `At ${power(last.compute)} FLOPs the law predicted ${percent(last.value)} (${range(last)}).` : "",
      last?.observed?.mean != null ? `Found: ${percent(last.observed.mean)}.` : "",
      "Arrow keys walk from point to point.",
    ].join(" ");
  }

  const picker = $("law-task");
  picker.replaceChildren(...data.charts.map((c) => el("option", { value: c.task }, taskName(c.task))));
  picker.closest("label").hidden = data.charts.length < 2;
  const drawAll = () => { fillKey(); drawLaw(); };
  picker.addEventListener("change", drawAll);
  drawAll();
  mullPage.onNewWidth(drawLaw);
  document.documentElement.dataset.ready = "yes"; // for tests: the script reached its end
})();
