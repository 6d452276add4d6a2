// The page: its head, the conversation, and the composer at its foot.
import { html, render, useEffect, useReducer, useRef, useState } from "./htm-preact.js";
import { Answer } from "./answer.js";
import { Composer } from "./composer.js";
import { Examples } from "./examples.js";
import { Icon, Mark } from "./parts.js";
import { Session } from "./session.js";
import { listed, trouble } from "./words.js";

/** The session, drawn at most once a frame however much comes in. */
function useSession() {
  const [, draw] = useReducer((n) => n + 1, 0);
  const held = useRef();
  if (!held.current) {
    let asked = false;
    held.current = new Session(() => {
      if (asked) return;
      asked = true;
      requestAnimationFrame(() => {
        asked = false;
        draw();
      });
    });
  }
  return held.current;
}

function App() {
  const session = useSession();
  const follows = useRef(true); // whether the reader is at the end of the conversation
  const moving = useRef(0); // until when what comes in is scrolled to: an answer's foot comes a moment after it
  useEffect(() => {
    session.open();
    const onScroll = () => (follows.current = atEnd());
    const onKey = (event) => event.key === "Escape" && session.stop();
    addEventListener("scroll", onScroll, { passive: true });
    addEventListener("keydown", onKey);
    return () => {
      removeEventListener("scroll", onScroll);
      removeEventListener("keydown", onKey);
    };
  }, []);
  useEffect(() => {
    if (session.busy) moving.current = performance.now() + 1000;
    if (follows.current && performance.now() < moving.current) toEnd();
  });
  const ask = (text, example) => {
    follows.current = true;
    session.ask(text, example);
    document.getElementById("question").focus({ preventScroll: true });
  };
  const { turns, tasks, compare, said } = session;
  return html`<div class="page" data-compare=${compare}>
    <${Head} session=${session} />
    <main>
      ${session.locked && html`<${KeyField} session=${session} />`}
      ${session.problem && html`<div class="failed"><p role="alert">${trouble(session.problem)}</p></div>`}
      ${!turns.length && !session.locked && html`<${Welcome} session=${session} />`}
      ${!turns.length && tasks.length > 0 && !session.locked && html`<${Examples} tasks=${tasks} ask=${ask} />`}
      ${turns.map((turn, i) => html`<section class="turn" key=${i} aria-label=${`Question ${i + 1}`}>
        <div class="question"><p class=${turn.example ? "puzzle" : ""}>${turn.question}</p></div>
        <div class="answers" data-sides=${turn.answers.length}>
          ${turn.answers.map((answer, side) => html`<${Answer} key=${side} ...${{ session, turn, index: i, answer }} />`)}
        </div>
      </section>`)}
    </main>
    <div class="dock"><${Composer} session=${session} onAsk=${ask} /></div>
    <div class="sr-only" role="status" aria-live="polite">${said}</div>
  </div>`;
}

const atEnd = () => document.documentElement.scrollHeight - scrollY - innerHeight < 80;
const toEnd = () => scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });

function Head({ session }) {
  const { config, compare, busy, turns, several } = session;
  return html`<header class="head">
    <h1><${Mark} /><span>mull</span></h1>
    ${config && html`<span class="model" title=${several ? "The models that are served" : "The model that is served"}>${config.models.map(({ name }) => name).join(", ")}</span>`}
    <nav aria-label="Conversation">
      <button type="button" class="tool" aria-pressed=${compare} disabled=${busy} onClick=${() => session.flip()} title="Ask two sides at once"><${Icon} name="columns" /><span>Compare</span></button>
      <button type="button" class="tool" disabled=${!turns.length} onClick=${() => session.restart()} title="New conversation"><${Icon} name="plus" /><span>New</span></button>
      <${Theme} />
    </nav>
  </header>`;
}

function Theme() {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const [dark, setDark] = useState(root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  useEffect(() => {
    const onChange = () => root.dataset.theme || setDark(system.matches);
    system.addEventListener("change", onChange);
    return () => system.removeEventListener("change", onChange);
  }, []);
  const flip = () => {
    root.dataset.theme = dark ? "light" : "dark";
    localStorage.setItem("mull-theme", root.dataset.theme);
    setDark(!dark);
    dispatchEvent(new Event("themechange"));
  };
  return html`<button type="button" class="tool bare" aria-pressed=${dark} aria-label="Dark mode" title="Dark mode" onClick=${flip}><${Icon} name=${dark ? "sun" : "moon"} /></button>`;
}

function Welcome({ session }) {
  const { config, several } = session;
  const one = config && html`<b>${config.model}</b> thinks before it answers.`;
  const more = several && html`<b>${listed(config.models.map(({ name }) => name))}</b> think before they answer, one at a time or side by side.`;
  return html`<div class="welcome">
    <h2>Watch it think</h2>
    <p>${more || one || "Connecting…"} Choose how hard it should try, follow the search while it runs, and take the answer when you have seen enough.</p>
  </div>`;
}

function KeyField({ session }) {
  const [value, setValue] = useState("");
  const submit = (event) => {
    event.preventDefault();
    session.unlock(value);
  };
  return html`<form class="keyfield" onSubmit=${submit}>
    <label for="key">This server asks for an API key</label>
    <p class="hint">It stays in this tab and is forgotten when the tab is closed.</p>
    <div><input id="key" type="password" autocomplete="off" value=${value} onInput=${(event) => setValue(event.target.value)} required />
      <button type="submit" class="tool primary">Use it</button></div>
  </form>`;
}

document.getElementById("app").replaceChildren();
render(html`<${App} />`, document.getElementById("app"));
document.documentElement.dataset.ready = "yes";
