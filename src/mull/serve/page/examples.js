// Problems to begin with: one click asks one.
import { html, useState } from "./htm-preact.js";

export function Examples({ tasks, ask }) {
  return html`<ul class="examples" aria-label="Example problems">
    ${tasks.map((task) => html`<${Example} key=${task.task} ...${task} ask=${ask} />`)}
  </ul>`;
}

function Example({ task, description, problems, ask }) {
  const levels = [...new Set(problems.map((p) => p.level))];
  const [level, setLevel] = useState(levels[Math.min(1, levels.length - 1)]);
  const [turn, setTurn] = useState(0); // which of the level's problems is next
  const here = problems.filter((p) => p.level === level);
  const problem = here[turn % here.length];
  const go = () => {
    setTurn(turn + 1);
    ask(problem.text, problem.id);
  };
  return html`<li class="example">
    <div class="example-head"><h3>${task}</h3>
      <label><span class="sr-only">Level of ${task}</span><select value=${level} onChange=${(event) => setLevel(Number(event.target.value))}>
        ${levels.map((n) => html`<option key=${n} value=${n}>level ${n}</option>`)}
      </select></label>
    </div>
    <button type="button" class="example-ask" onClick=${go} aria-label=${`Ask: ${task}, level ${level}: ${problem.text}`}>
      <small>${description}</small><code>${problem.text}</code>
    </button>
  </li>`;
}
