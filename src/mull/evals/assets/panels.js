// Below the accuracy chart: scorers against truth, difficulty, right answers by wrong reasoning, sorting; then the
// window. The last script of the compare page.
"use strict";
(() => {
  const { data, $, el, look, redraws, taskPicker, range } = comparePage;
  const { percent } = mullPage;
  const quiet = { fill: "var(--muted)", tickSize: 0, label: null };
  const whole = d3.format(".0%");

  // ----------------------------------------------------------------------------------- scorers against truth

  function drawScorers() {
    const task = $("scorer-task").value;
    const curves = data.scorers.filter((s) => s.task === task);
    const oracle = (data.references.find((r) => r.task === task)?.oracle ?? []).filter((p) => p.accuracy.mean !== null);
    const cards = curves.map((c) => ({ c, node: el("div", { class: "multiple" }), points: c.points.filter((p) => p.accuracy.mean !== null) }));
    $("scorer-charts").replaceChildren(...(cards.length ? cards.map((c) => c.node) : [el("p", { class: "note" }, "No scorer was used.")]));
    const all = cards.flatMap((c) => c.points);
    if (!all.length) return;
    const top = Math.min(1, d3.max([...all.map((p) => p.accuracy.high), ...oracle.map((p) => p.accuracy.mean)]) + 0.03);
    const bottom = Math.max(0, d3.min(all, (p) => p.accuracy.low) - 0.03);
    const ks = d3.extent([...all, ...oracle], (p) => p.k);
    for (const { c, node, points } of cards) drawScorer(node, c, points, oracle, [bottom, top], ks);
  }

  function drawScorer(node, c, points, oracle, shares, ks) {
    const peak = d3.greatest(points, (p) => p.accuracy.mean);
    node.append(el("h3", {}, c.scorer, el("span", {}, peak ? `best at ${peak.k}: ${percent(peak.accuracy.mean)}` : "not measured")));
    if (!points.length) return;
    const width = Math.max(220, Math.floor(node.clientWidth));
    const frame = {
      width, marginLeft: 42, marginRight: 8, style: { background: "transparent", fontSize: "12px" },
      x: { type: "log", base: 2, domain: ks[0] === ks[1] ? [ks[0] / 2, ks[1] * 2] : ks },
    };
    const ticks = d3.range(Math.ceil(Math.log2(ks[0])), Math.floor(Math.log2(ks[1])) + 1).map((e) => 2 ** e);
    const shown = ticks.filter((_, i) => i % Math.ceil(ticks.length / (width / 42)) === 0);
    const axis = Plot.axisX(shown, { ...quiet, stroke: null, tickFormat: (v) => String(v) });
    const said = `${c.scorer}: accuracy of the chosen answer from ${percent(points[0].accuracy.mean)} at N=${points[0].k} to ${percent(points.at(-1).accuracy.mean)} at N=${points.at(-1).k}`;
    const truth = Plot.plot({
      ...frame, height: 184, marginTop: 22, marginBottom: 22, y: { domain: shares },
      marks: [
        Plot.gridY({ ticks: 4, stroke: "var(--line)", strokeOpacity: 1 }),
        Plot.axisY({ ticks: 4, tickFormat: whole, ...quiet }),
        axis,
        Plot.lineY(oracle, { x: "k", y: (p) => p.accuracy.mean, stroke: "var(--control)", strokeDasharray: "6 4", strokeWidth: 1.8, clip: true }),
        Plot.areaY(points, { x: "k", y1: (p) => p.accuracy.low, y2: (p) => p.accuracy.high, fill: "var(--trained)", fillOpacity: 0.14 }),
        Plot.lineY(points, { x: "k", y: (p) => p.accuracy.mean, stroke: "var(--trained)", strokeWidth: 2.2 }),
        Plot.dot(points, { x: "k", y: (p) => p.accuracy.mean, fill: "var(--trained)", r: 3 }),
        Plot.text(["true: accuracy of the choice"], { frameAnchor: "top-left", dx: -4, dy: -19, fill: "var(--trained)", fontWeight: 600 }),
        Plot.tip(points, Plot.pointerX({ x: "k", y: (p) => p.accuracy.mean, fill: "var(--panel)", stroke: "var(--line)", title: (p) => `best of ${p.k}\n${percent(p.accuracy.mean)} (${range(p.accuracy)})` })),
      ],
    });
    truth.setAttribute("role", "img");
    truth.setAttribute("aria-label", `${said}.`);
    node.append(truth);
    const scored = points.filter((p) => p.score && p.score.mean !== null);
    if (!scored.length) return node.append(el("p", {}, "It gives no value to what it chooses."));
    const scores = Plot.plot({
      ...frame, height: 112, marginTop: 22, marginBottom: 34, className: "strip", y: { nice: true },
      x: { ...frame.x, label: null },
      marks: [
        Plot.gridY({ ticks: 3, stroke: "var(--line)", strokeOpacity: 1 }),
        Plot.axisY({ ticks: 3, tickFormat: "~r", ...quiet }),
        Plot.axisX(shown, { ...quiet, stroke: null, tickFormat: (v) => String(v), label: "N (log scale)", labelAnchor: "right", labelArrow: "none", labelOffset: 32 }),
        Plot.areaY(scored, { x: "k", y1: (p) => p.score.low, y2: (p) => p.score.high, fill: "var(--base)", fillOpacity: 0.16 }),
        Plot.lineY(scored, { x: "k", y: (p) => p.score.mean, stroke: "var(--base)", strokeWidth: 2.2 }),
        Plot.text(["believed: its mean score"], { frameAnchor: "top-left", dx: -4, dy: -19, fill: "var(--base)", fontWeight: 600 }),
        Plot.tip(scored, Plot.pointerX({ x: "k", y: (p) => p.score.mean, fill: "var(--panel)", stroke: "var(--line)", title: (p) => `best of ${p.k}\n${d3.format(".3~g")(p.score.mean)} (${d3.format(".3~g")(p.score.low)} to ${d3.format(".3~g")(p.score.high)})` })),
      ],
    });
    scores.setAttribute("role", "img");
    scores.setAttribute("aria-label", `${c.scorer}: mean value of the choice from ${d3.format(".3~g")(scored[0].score.mean)} to ${d3.format(".3~g")(scored.at(-1).score.mean)}.`);
    node.append(scores);
  }

  taskPicker($("scorer-task"), data.scorers, drawScorers);
  redraws.push(drawScorers);

  // ---------------------------------------------------------------------------------------------- difficulty

  function fillBudgets() {
    const budgets = [...new Set(data.difficulty.filter((d) => d.task === $("difficulty-task").value).map((d) => d.budget))];
    const before = $("difficulty-budget").value;
    $("difficulty-budget").replaceChildren(...budgets.map((b) => el("option", { value: b }, b)));
    $("difficulty-budget").value = budgets.includes(before) ? before : (budgets.at(-1) ?? "");
    $("difficulty-budget").closest("label").hidden = budgets.length < 2;
    drawDifficulty();
  }

  function drawDifficulty() {
    const chart = $("difficulty-chart");
    const found = data.difficulty.find((d) => d.task === $("difficulty-task").value && d.budget === $("difficulty-budget").value);
    if (!found) return chart.replaceChildren(el("p", { class: "empty" }, "Difficulty was not measured."));
    const width = Math.max(260, Math.floor(chart.clientWidth));
    const names = found.rows.map((r) => r.strategy);
    const label = (b, i) => `${i === 0 ? "hardest: " : i === found.bins.length - 1 ? "simplest: " : ""}${whole(b.low).replace("%", "")}–${whole(b.high)}`;
    const facets = found.bins.map(label);
    const rows = found.rows.flatMap((r) =>
      r.accuracy.map((a, i) => ({ ...a, strategy: r.strategy, bin: facets[i], questions: found.bins[i].n })).filter((a) => a.mean !== null),
    );
    const wide = width > 700;
    const facet = wide ? { fx: "bin" } : { fy: "bin" };
    const marginLeft = Math.min(170, Math.max(90, d3.max(names, (n) => n.length) * 7 + 12));
    const plot = Plot.plot({
      width, marginLeft, marginRight: 14, marginBottom: 30, marginTop: wide ? 30 : 26,
      height: wide ? names.length * 25 + 70 : found.bins.length * (names.length * 19 + 34) + 40,
      style: { background: "transparent", fontSize: "13px" },
      x: { domain: [0, 1], insetLeft: 6, insetRight: 6 },
      y: { domain: names, padding: 0.3 },
      fx: { domain: facets, axis: null, padding: 0.14 },
      fy: { domain: facets, axis: null, padding: 0.14 },
      marks: [
        Plot.gridX([0, 0.5, 1], { stroke: "var(--line)", strokeOpacity: 1 }),
        Plot.axisX([0, 0.5, 1], { ...quiet, stroke: null, tickFormat: (v) => (v === 0.5 ? "50%" : String(100 * v)), anchor: "bottom" }),
        Plot.axisY({ ...quiet, tickPadding: 8, fill: "var(--ink)", ...(wide ? { fxAnchor: "left" } : {}) }),
        Plot.ruleY(rows, { ...facet, x1: "low", x2: "high", y: "strategy", stroke: (r) => look(r.strategy).color, strokeWidth: 2, strokeOpacity: 0.55 }),
        Plot.dot(rows, { ...facet, x: "mean", y: "strategy", fill: (r) => look(r.strategy).color, r: 4.2, stroke: "var(--bg)" }),
        Plot.text(facets, { [wide ? "fx" : "fy"]: (d) => d, text: (d) => d, frameAnchor: "top-left", dy: -18, fontWeight: 600, fill: "var(--ink)" }),
        Plot.tip(rows, Plot.pointer({ ...facet, x: "mean", y: "strategy", fill: "var(--panel)", stroke: "var(--line)", title: (r) => `${r.strategy}\n${percent(r.mean)} (${range(r)})\n${r.questions} questions` })),
      ],
    });
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", `Accuracy by difficulty, ${found.budget}. ` + facets.map((f, i) => {
      const best = d3.greatest(rows.filter((r) => r.bin === f), (r) => r.mean);
      return best ? `Base pass rate ${label(found.bins[i], i)}: best is ${best.strategy} with ${percent(best.mean)}.` : "";
    }).join(" "));
    chart.replaceChildren(plot);
  }

  taskPicker($("difficulty-task"), data.difficulty, fillBudgets);
  $("difficulty-budget").addEventListener("change", drawDifficulty);
  fillBudgets();
  redraws.push(drawDifficulty);

  // --------------------------------------------------------------------------- right answers by wrong reasoning

  const traces = data.wrong_reasoning.traces;
  let chosen = traces;
  let at = 0;

  function thoughtLine(line) {
    const state = line.ok === null ? "none" : line.ok ? "ok" : "bad";
    const [mark, spoken] = { ok: ["✓", "true: "], bad: ["✗", "false: "], none: ["·", ""] }[state];
    const badge = ["check", "backtrack"].includes(line.kind) ? el("span", { class: `badge ${line.kind}` }, line.kind) : null;
    const text = el("span", { class: "text" }, el("span", { class: "sr-only" }, spoken), line.text);
    return el("li", { class: state }, el("span", { class: "mark", "aria-hidden": "true" }, mark), text, badge, line.why ? el("span", { class: "why" }, line.why) : null);
  }

  function showTrace() {
    const t = chosen[at];
    $("wrong-count").textContent = chosen.length ? `${at + 1} of ${chosen.length}` : "none";
    $("wrong-previous").disabled = at === 0;
    $("wrong-next").disabled = at >= chosen.length - 1;
    if (!t) return $("wrong-view").replaceChildren(el("p", { class: "note" }, "None was kept."));
    $("wrong-view").replaceChildren(
      el("div", { class: "question" }, el("p", {}, `${t.task}, level ${t.level}`), el("pre", {}, t.question), el("p", {}, `A right answer: ${t.expected}`)),
      el("article", { class: "thought" },
        el("header", {}, el("h3", {}, t.selector), el("span", { class: "size" }, `${d3.format(",")(t.tokens)} tokens`)),
        el("ol", { tabindex: "0", "aria-label": "Lines of the thought" }, ...t.lines.map(thoughtLine)),
        el("footer", {}, el("span", {}, "Answer ", el("code", {}, t.answer)), el("span", { class: "right" }, "right"))),
    );
  }

  const stepTrace = (by) => { if (chosen[at + by]) { at += by; showTrace(); } };
  const selectors = [...new Set(traces.map((t) => t.selector))];
  $("wrong-selector").replaceChildren(el("option", { value: "" }, "all"), ...selectors.map((s) => el("option", { value: s }, s)));
  $("wrong-selector").addEventListener("change", (event) => {
    chosen = traces.filter((t) => !event.target.value || t.selector === event.target.value);
    at = 0;
    showTrace();
  });
  $("wrong-previous").addEventListener("click", () => stepTrace(-1));
  $("wrong-next").addEventListener("click", () => stepTrace(1));
  showTrace();

  // ------------------------------------------------------------------------------------------------- sorting

  function makeSortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    const value = (row, i) => row.cells[i].dataset.v;
    const number = (v) => (v === "" ? NaN : Number(v));
    heads.forEach((head, i) => {
      const button = el("button", { type: "button", class: "sort" }, head.textContent);
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const h of heads) h.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows];
        const numeric = rows.some((r) => !Number.isNaN(number(value(r, i))));
        const sign = down ? -1 : 1;
        rows.sort((a, b) => {
          if (!numeric) return sign * value(a, i).localeCompare(value(b, i));
          const [p, q] = [number(value(a, i)), number(value(b, i))];
          return Number.isNaN(p) - Number.isNaN(q) || sign * (p - q); // what is not a number comes last both ways
        });
        table.tBodies[0].append(...rows);
      });
    });
  }
  makeSortable($("points"));

  // -------------------------------------------------------------------------------------------------- window

  for (const redraw of redraws) redraw();
  mullPage.onNewWidth(() => { for (const redraw of redraws) redraw(); });
  document.documentElement.dataset.ready = "yes"; // for tests: the script reached its end
})();
