// Where a question is written, and what each side may spend on it.
import { html, useEffect, useRef, useState } from "./htm-preact.js";
import { Icon, NumberField } from "./parts.js";
import { prediction } from "./words.js";

const EFFORTS = ["none", "low", "medium", "high"];
const TITLES = { none: "None", low: "Low", medium: "Medium", high: "High" };

export function Composer({ session, onAsk }) {
  const [text, setText] = useState("");
  const [more, setMore] = useState(false);
  const area = useRef();
  const { busy, config, shown } = session;
  const empty = !text.trim();

  useEffect(() => area.current.focus({ preventScroll: true }), []);
  useEffect(() => {
    // as high as its text, up to the limit in the style
    area.current.style.height = "auto";
    area.current.style.height = `${area.current.scrollHeight}px`;
  }, [text]);

  const send = () => {
    if (busy || empty || !config) return;
    onAsk(text.trim());
    setText("");
  };
  const stop = () => {
    session.stop();
    area.current.focus({ preventScroll: true }); // the button will be gone
  };
  const onKey = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  };
  return html`<form class="composer" onSubmit=${(event) => { event.preventDefault(); send(); }}>
    ${more && config && html`<div class="sides" id="settings">
      ${shown.map((settings, side) => html`<${Advanced} key=${side} session=${session} side=${side} settings=${settings} />`)}
    </div>`}
    <label class="sr-only" for="question">Your question</label>
    <textarea id="question" ref=${area} rows="1" value=${text} placeholder="Ask something that takes thought" enterkeyhint="send"
      onInput=${(event) => setText(event.target.value)} onKeyDown=${onKey}></textarea>
    <div class="controls">
      <div class="efforts">
        ${shown.map((settings, side) => html`<${Effort} key=${side} session=${session} side=${side} settings=${settings} />`)}
      </div>
      <div class="buttons">
        <button type="button" class="tool" aria-expanded=${more} aria-controls="settings" title="Strategy, budget, seed, temperature" onClick=${() => setMore(!more)}>
          <${Icon} name="tune" /><span>Advanced</span></button>
        ${busy
          ? html`<button type="button" class="send" key="stop" aria-label="Stop" title="Stop (Esc)" onClick=${stop}><${Icon} name="stop" /></button>`
          : html`<button type="submit" class="send" key="send" aria-label="Ask" title="Ask (Enter)" disabled=${empty || !config}><${Icon} name="up" /></button>`}
      </div>
    </div>
  </form>`;
}

function Effort({ session, side, settings }) {
  const { compare, config, efforts, several } = session;
  const whose = compare ? ` of ${"AB"[side]}` : "";
  const known = EFFORTS.filter((e) => e !== "none" || !config?.strict);
  return html`<fieldset class="effort">
    <legend class="sr-only">${several ? "Model and effort" : "Effort"}${whose}</legend>
    ${compare && html`<span class="side" aria-hidden="true">${"AB"[side]}</span>`}
    ${several && html`<label class="picker"><span class="sr-only">Model${whose}</span><select value=${settings.model} onChange=${(event) => session.set(side, { model: event.target.value })}>
      ${config.models.map(({ name }) => html`<option key=${name} value=${name}>${name}</option>`)}
    </select></label>`}
    <div class="switch">
      ${known.map((effort) => html`<label key=${effort}><input type="radio" name=${`effort-${side}`} value=${effort} checked=${settings.effort === effort}
        onChange=${() => session.set(side, { effort })} /><span>${TITLES[effort]}</span></label>`)}
    </div>
    <output class="prediction">${config ? prediction(settings, config, efforts[settings.model]) : ""}${several && uncalibrated(session, settings) ? " · not calibrated" : ""}</output>
  </fieldset>`;
}

/** Whether this model's efforts are the built-in ones while another's follow what was measured. */
const uncalibrated = (session, settings) => session.config.models.some((m) => m.calibrated) && !session.modelOf(settings).calibrated;

function Advanced({ session, side, settings }) {
  const { compare, config } = session;
  const set = (name) => (value) => session.set(side, { [name]: value });
  const { strategies } = session.modelOf(settings);
  const strategy = strategies.find((s) => s.name === settings.strategy);
  return html`<fieldset class="advanced">
    <legend>${compare ? `Advanced settings of ${"AB"[side]}` : "Advanced settings"}</legend>
    <label class="field wide"><span>Strategy</span><select value=${settings.strategy} onChange=${(event) => set("strategy")(event.target.value)}>
      <option value="">as the effort says</option>
      ${strategies.map(({ name }) => html`<option key=${name} value=${name}>${name}</option>`)}
    </select></label>
    <${NumberField} label="Samples" value=${settings.samples} hint="effort" min="1" max=${config.max_samples} onChange=${set("samples")} />
    <${NumberField} label="Thinking budget" value=${settings.budget} hint="tokens" min="0" onChange=${set("budget")} />
    <${NumberField} label="Seed" value=${settings.seed} hint="random" min="0" onChange=${set("seed")} />
    ${!config.strict && html`<${NumberField} label="Temperature" value=${settings.temperature} hint="1" min="0" max="2" step="any" onChange=${set("temperature")} />`}
    ${strategy && html`<p class="hint">${strategy.name}: samples are ${strategy.samples}.</p>`}
  </fieldset>`;
}
