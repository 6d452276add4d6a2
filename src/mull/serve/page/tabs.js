// What stands in the tabs under a thinking line, but for the tree and the numbers.
import { html, useEffect, useRef } from "./htm-preact.js";
import { working } from "./session.js";
import { agreement, percent, plural, same } from "./words.js";

export function Summary({ answer }) {
  const { sections, state, plan } = answer;
  if (!sections.length) {
    const soon = plan?.single ? "What it thinks about is told here as it goes on." : "What its branches agree on is told here as they come to answers.";
    return html`<p class="hint">${state === "thinking" ? soon : "There is nothing to sum up."}</p>`;
  }
  return html`<ol class="summary">
    ${sections.map((s, i) => html`<li key=${i}><h4>${s.title}</h4>${s.text !== s.title && html`<p>${s.text}</p>`}</li>`)}
  </ol>`;
}

export function Thought({ answer }) {
  const box = useRef();
  const follows = useRef(true);
  const { thought, plan, result } = answer;
  useEffect(() => {
    if (box.current && follows.current && working(answer)) box.current.scrollTop = box.current.scrollHeight;
  }, [thought]);
  if (!thought) {
    const many = plan && !plan.single;
    return html`<p class="hint">${!result ? (many ? "The thought that gives the answer stands here when it is chosen. Until then the tree has all of them." : "Nothing yet.") : "No single thought gave this answer."}</p>`;
  }
  const onScroll = ({ target }) => (follows.current = target.scrollHeight - target.scrollTop - target.clientHeight < 24);
  return html`<pre class="raw" ref=${box} onScroll=${onScroll}>${thought}</pre>`;
}

const MOST = 12; // answers with a row of their own

export function Votes({ answer }) {
  const { content, mull } = answer.result;
  const sure = agreement(answer.result);
  const { of } = sure;
  const most = mull.votes[0].count;
  const rest = mull.votes.slice(MOST);
  return html`<p class="lead"><b>${percent(sure.share)} agree</b>: ${sure.count} of ${plural(of, "branch", "branches")}</p>
    <table class="votes"><caption class="sr-only">Answers of all branches</caption>
      <thead class="sr-only"><tr><th scope="col">Answer</th><th scope="col">Share</th><th scope="col">Branches</th></tr></thead>
      <tbody>${mull.votes.slice(0, MOST).map((vote, i) => html`<tr key=${i} class=${same(vote.answer, content) ? "won" : ""}>
        <th scope="row">${vote.answer}</th>
        <td><span class="share"><${Bar} share=${vote.count / most} /></span></td>
        <td class="num">${vote.count} <small>${percent(vote.count / of)}</small></td></tr>`)}
      </tbody></table>
    ${rest.length > 0 && html`<p class="hint">and ${plural(rest.length, "other answer")} of ${plural(rest.reduce((sum, v) => sum + v.count, 0), "branch", "branches")}</p>`}`;
}

/** A bar of this share of its place. An SVG, because the page's policy allows no style attributes. */
export const Bar = ({ share, kind = "" }) => html`<svg class="hbar ${kind}" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true"><rect width=${100 * share} height="10" /></svg>`;
