// Small parts that several others use. Text is only ever put in as text: models wrote much of it.
import { html, useEffect, useRef, useState } from "./htm-preact.js";

const PATHS = {
  up: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  tune: "M4 7h9M17 7h3M4 17h3M11 17h9M15 4.5v5M9 14.5v5",
  columns: "M4 5h16v14H4zM12 5v14",
  plus: "M12 5v14M5 12h14",
  moon: "M20 14.5A8 8 0 0 1 9.5 4 8 8 0 1 0 20 14.5z",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2.5v2M12 19.5v2M2.5 12h2M19.5 12h2M5.3 5.3l1.4 1.4M17.3 17.3l1.4 1.4M18.7 5.3l-1.4 1.4M6.7 17.3l-1.4 1.4",
  down: "M6 9l6 6 6-6",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  terminal: "M5 8l4 4-4 4M12 17h7",
  check: "M5 12.5l4.5 4.5L19 7.5",
  cross: "M6 6l12 12M18 6L6 18",
  again: "M4 12a8 8 0 1 0 2.5-5.8M4 4v4.5h4.5",
  fast: "M5 5l7 7-7 7M12.5 5l7 7-7 7",
};

export const Icon = ({ name }) => html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d=${PATHS[name]} /></svg>`;

export const Mark = () => html`<svg class="mark" viewBox="0 0 32 32" aria-hidden="true">
  <path class="faint" d="M5 16h4C16 16 13 6 21 6h4M10 16c6 0 3 10 11 10h4" /><path d="M5 16h21" />
  <circle cx="5" cy="16" r="3" /><circle class="faint" cx="26" cy="6" r="2.4" /><circle cx="27" cy="16" r="3.2" /><circle class="faint" cx="26" cy="26" r="2.4" />
</svg>`;

/** Tabs with arrow keys, Home and End. `tabs`: [id, title, content()]. */
export function Tabs({ name, tabs, chosen, choose }) {
  const list = useRef();
  const at = Math.max(0, tabs.findIndex(([id]) => id === chosen));
  const turn = (event) => {
    const to = { ArrowRight: (at + 1) % tabs.length, ArrowLeft: (at - 1 + tabs.length) % tabs.length, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(tabs[to][0]);
    list.current.children[to].focus();
  };
  const [id, , content] = tabs[at];
  return html`<div class="tabs" role="tablist" aria-label=${name} ref=${list} onKeyDown=${turn}>
      ${tabs.map(([tab, title], i) => html`<button key=${tab} type="button" role="tab" id=${`${name}-${tab}`} aria-selected=${i === at} tabindex=${i === at ? 0 : -1}
        aria-controls=${`${name}-panel`} onClick=${() => choose(tab)}>${title}</button>`)}
    </div>
    <div class="tabpanel" role="tabpanel" id=${`${name}-panel`} aria-labelledby=${`${name}-${id}`} tabindex="0" key=${id}>${content()}</div>`;
}

/** Puts text on the clipboard; where the browser denies that (no TLS), by way of a selection. */
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "sr-only";
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

export function Copy({ icon, label, text }) {
  const [done, setDone] = useState(false);
  useEffect(() => {
    if (!done) return;
    const timer = setTimeout(() => setDone(false), 1600);
    return () => clearTimeout(timer);
  }, [done]);
  const copy = async () => {
    await copyText(text());
    setDone(true);
  };
  return html`<button type="button" class="quiet" onClick=${copy}><${Icon} name=${done ? "check" : icon} />${done ? "Copied" : label}</button>`;
}

/** A number that may be left out. */
export function NumberField({ label, value, hint, onChange, ...limits }) {
  const change = (event) => {
    const number = event.target.value === "" ? null : event.target.valueAsNumber;
    if (number === null || event.target.validity.valid) onChange(number);
  };
  return html`<label class="field"><span>${label}</span><input type="number" value=${value ?? ""} placeholder=${hint} onInput=${change} ...${limits} /></label>`;
}

/** Prose with its code set apart: fences and `spans`. Nothing else of Markdown, and never HTML. */
export function Prose({ text }) {
  return text.split(/```[^\n`]*\n([\s\S]*?)(?:```|$)/).map((part, i) => (i % 2 ? html`<pre class="code">${part.replace(/\n$/, "")}</pre>` : part.trim() && html`<p>${spans(part.trim())}</p>`));
}

const spans = (text) => text.split(/`([^`\n]+)`/).map((part, i) => (i % 2 ? html`<code>${part}</code>` : part));
