// The tree's tab: the canvas, its key, and beside it the step that was chosen, in words.
import { html, useEffect, useRef, useState } from "./htm-preact.js";
import { working } from "./session.js";
import { makeTree } from "./tree.js";
import { count, plural } from "./words.js";

export function TreeView({ answer, name }) {
  const canvas = useRef();
  const viewer = useRef();
  const [chosen, setChosen] = useState(null);
  const { tree } = answer;
  useEffect(() => {
    viewer.current = canvas.current.viewer = makeTree(canvas.current, setChosen);
    return () => viewer.current.close();
  }, []);
  useEffect(() => viewer.current.show(tree));
  useEffect(() => {
    if (tree.winner >= 0 && chosen === null) viewer.current.choose(tree.winner, false);
  }, [tree.winner]);
  const { size } = tree.nodes;
  const scored = [...tree.nodes.values()].some((n) => n.score !== null);
  const growing = working(answer) ? `, ${plural(tree.running.length, "branch", "branches")} growing` : "";
  return html`<div class="viewer">
    <div class="stage" data-tall=${size > 60}>
      <canvas ref=${canvas} tabindex="0" role="application" aria-describedby=${`${name}-tree-help`}
        aria-label=${`Search tree of ${plural(size, "step")}${growing}`}></canvas>
      <p class="sr-only" id=${`${name}-tree-help`}>Arrow keys walk from step to step, w goes to the answer, plus and minus zoom, 0 shows all.</p>
      <div class="tree-foot">
        <ul class="tree-key">
          ${scored && html`<li><i class="ramp"></i>score, low to high</li>`}<li><i class="dot"></i>size: tokens</li><li><i class="box"></i>answer</li>
          <li><i class="dashed"></i>pruned</li><li><i class="thick"></i>winner</li>
        </ul>
        <span class="zoom"><button type="button" aria-label="Zoom out" onClick=${() => viewer.current.zoomBy(1 / 1.6)}>−</button><button type="button"
          aria-label="Zoom in" onClick=${() => viewer.current.zoomBy(1.6)}>+</button><button type="button" disabled=${tree.winner < 0}
          onClick=${() => viewer.current.goWinner()}>Winner</button></span>
      </div>
    </div>
    <div class="node" aria-live="polite"><${Node} tree=${tree} id=${chosen} choose=${(id) => viewer.current.choose(id)} /></div>
  </div>`;
}

function Node({ tree, id, choose }) {
  const node = tree.nodes.get(id);
  if (!node) return html`<p class="hint">${tree.nodes.size ? "Choose a step to read it." : "Steps appear here as branches come to their ends."}</p>`;
  const path = [];
  for (let n = node; n; n = tree.nodes.get(n.parent)) path.unshift(n);
  const state = tree.won.has(id) ? (id === tree.winner ? "the answer" : "led to the answer") : tree.pruned.has(id) ? "pruned" : "kept";
  let children = 0;
  for (const n of tree.nodes.values()) children += n.parent === id;
  return html`<h4>${node.answer ? "Answer" : `Step ${path.length}`}</h4>
    ${node.text === undefined ? html`<p class="hint">The operator of this server keeps thoughts hidden.</p>` : html`<pre class=${node.answer ? "final" : ""}>${node.text.trim() || "(the thought ends here)"}</pre>`}
    <dl>
      ${node.score !== null && html`<dt>Score</dt><dd>${node.score.toFixed(3).replace("-", "−")}</dd>`}
      <dt>Tokens</dt><dd>${count(node.tokens)}</dd>
      <dt>Next steps</dt><dd>${children || "none"}</dd>
      <dt>State</dt><dd>${state}</dd>
    </dl>
    ${path.length > 1 && html`<h5>The way here</h5><ol>${path.map((n, i) => html`<li key=${n.id}><button type="button" class=${n.id === id ? "here" : ""} aria-current=${n.id === id ? "step" : null}
      onClick=${() => choose(n.id)}>${n.text === undefined ? `${n.answer ? "Answer" : `Step ${i + 1}`}, ${plural(n.tokens, "token")}` : n.text.trim() || "(the thought ends here)"}</button></li>`)}</ol>`}`;
}
