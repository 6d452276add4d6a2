// One answer: the thinking line over its tabs, the answer's text, and what can be done with it.
import { html, useEffect, useMemo, useState } from "./htm-preact.js";
import { key } from "./api.js";
import { Copy, Icon, Prose, Tabs } from "./parts.js";
import { Numbers } from "./numbers.js";
import { working } from "./session.js";
import { Summary, Thought, Votes } from "./tabs.js";
import { TreeView } from "./tree_view.js";
import { agreement, labels, percent, thinkingLine, trouble } from "./words.js";

export function Answer({ session, turn, index, answer }) {
  // Drawn again only when something has come in: earlier turns cost nothing.
  const last = turn === session.turns.at(-1);
  return useMemo(() => html`<${Drawn} ...${{ session, turn, index, answer, last }} />`, [answer, answer.version, last, session.compare]);
}

function Drawn({ session, turn, index, answer, last }) {
  const name = turn.answers.length > 1 ? `${index}${"ab"[answer.side]}` : String(index);
  const two = turn.answers.length > 1;
  const { several } = session;
  const title = `Answer${two ? ` ${"AB"[answer.side]}` : ""}${several ? `, model ${answer.body.model}` : ""}${two ? `, effort ${answer.settings.effort}` : ""}`;
  return html`<article class="answer" aria-label=${title} id=${`answer-${name}`} data-state=${answer.state}>
    ${(two || several) && html`<h3 class="column">${two && html`<span class="side">${"AB"[answer.side]}</span> `}${described(turn, answer, several)}</h3>`}
    ${answer.state !== "failed" && html`<${Thinking} ...${{ session, answer, name }} />`}
    ${answer.text && html`<div class="text"><${Prose} text=${answer.text} />${answer.state === "thinking" && html`<span class="caret" aria-hidden="true"></span>`}</div>`}
    ${answer.problem && html`<${Failed} ...${{ session, turn, answer, last }} />`}
    ${answer.result && html`<${Foot} answer=${answer} />`}
    ${answer.state === "stopped" && last && html`<${Again} go=${() => session.again(turn, turn.answers.indexOf(answer))} />`}
  </article>`;
}

/** What a side was asked with, and which model where there are several: what tells the sides apart comes first. */
function described(turn, { settings, plan, body }, several) {
  const alike = turn.answers.length > 1 && turn.answers.every((a) => a.body.model === body.model);
  const effort = `${settings.effort} effort`;
  const asked = !several ? [effort] : alike ? [effort, body.model] : [body.model, effort];
  const more = [settings.strategy, settings.samples && `${settings.samples} samples`, settings.budget !== null && `${settings.budget} tokens`];
  const [first, ...rest] = [...asked, ...more, plan && plan.policy_version > 0 && `weights ${plan.policy_version}`].filter(Boolean);
  return html`<span>${several ? html`<b>${first}</b>` : first}${rest.map((part) => `, ${part}`)}</span>`;
}

function Thinking({ session, answer, name }) {
  const [open, setOpen] = useState(null); // null: nobody has said, so it folds when the answer begins
  const [tab, setTab] = useState("");
  const { state, plan, progress, result, tree } = answer;
  const active = working(answer);
  const thinks = plan?.think_tokens > 0;
  const unfolded = open ?? (active && thinks && !answer.text);
  const { config } = session;
  const tabs = [
    config.summaries && ["summary", "Summary", () => html`<${Summary} answer=${answer} />`],
    ["tree", "Search tree", () => html`<${TreeView} answer=${answer} name=${name} />`],
    config.thoughts && ["thought", "Thought", () => html`<${Thought} answer=${answer} />`],
    result && agreement(result) && ["votes", "Votes", () => html`<${Votes} answer=${answer} />`],
    ["numbers", "Numbers", () => html`<${Numbers} answer=${answer} several=${session.several} />`],
  ].filter(Boolean);
  const choose = (id) => {
    setTab(id);
    setOpen(true);
  };
  const now = () => {
    session.answerNow(answer);
    document.getElementById("question").focus({ preventScroll: true }); // the button will be gone
  };
  const done = progress ? Math.min(1, progress.tokens / progress.most_tokens) : 0;
  return html`<section class="thinking" data-active=${active}>
    <div class="thinking-head">
      <button type="button" class="line" aria-expanded=${unfolded} aria-controls=${`${name}-body`} onClick=${() => setOpen(!unfolded)} disabled=${!plan}>
        <span class="pulse" aria-hidden="true"></span><span class="words">${thinkingLine(answer, performance.now())}</span><${Icon} name="down" /></button>
      ${state === "thinking" && !answer.text && html`<button type="button" class="now" onClick=${now}><${Icon} name="fast" />Answer now</button>`}
    </div>
    ${active && html`<progress class="bar" max="1" value=${done} aria-label="Tokens of the budget"></progress>`}
    <div id=${`${name}-body`} class="thinking-body" hidden=${!unfolded}>
      ${unfolded && html`<${Tabs} name=${`thinking-${name}`} tabs=${tabs} chosen=${tab} choose=${choose} />`}
    </div>
  </section>`;
}

function Foot({ answer }) {
  const sure = agreement(answer.result);
  const marks = labels(answer);
  return html`<footer class="foot">
    <div class="chips">
      ${answer.correct !== null && html`<span class="chip ${answer.correct ? "right" : "wrong"}"><${Icon} name=${answer.correct ? "check" : "cross"} />${answer.correct ? "correct" : "not correct"}</span>`}
      ${sure && html`<span class="chip">${percent(sure.share)} of ${sure.of} agree</span>`}
      ${marks.map(([label, why]) => html`<span class="chip note" key=${label} title=${why}>${label}</span>`)}
    </div>
    <div class="actions">
      <${Copy} icon="copy" label="Copy" text=${() => answer.text} />
      <${Copy} icon="terminal" label="Copy as curl" text=${() => curl(answer.body)} />
    </div>
  </footer>`;
}

function Failed({ session, turn, answer, last }) {
  const { problem } = answer;
  return html`<div class="failed">
    <p role="alert">${trouble(problem)}</p>
    ${last && html`<${Again} wait=${problem.wait} go=${() => session.again(turn, turn.answers.indexOf(answer))} />`}
  </div>`;
}

/** A button that waits for as long as the server has asked for. */
function Again({ wait, go }) {
  const [left, setLeft] = useState(Math.ceil(wait ?? 0));
  useEffect(() => {
    if (left <= 0) return;
    const timer = setTimeout(() => setLeft(left - 1), 1000);
    return () => clearTimeout(timer);
  }, [left]);
  return html`<button type="button" class="tool" disabled=${left > 0} onClick=${go}><${Icon} name="again" />${left > 0 ? `Try again in ${left} s` : "Try again"}</button>`;
}

/** The same call of the public API. The key is not in it. */
export function curl(body) {
  const address = new URL("v1/chat/completions", document.baseURI).href;
  const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
  const auth = key.get() ? ` \\\n  -H "Authorization: Bearer $MULL_API_KEY"` : "";
  return `curl ${quoted(address)}${auth} \\\n  -H 'Content-Type: application/json' \\\n  -d ${quoted(JSON.stringify(body))}`;
}
