// The numbers of an answer: where its tokens went, and what it cost.
import { html } from "./htm-preact.js";
import { count, plural, power, short, took } from "./words.js";

export function Numbers({ answer, several }) {
  const { plan, progress, result, body } = answer;
  if (!plan) return html`<p class="hint">Nothing yet.</p>`;
  const m = result?.mull;
  const cached = result?.usage.prompt_tokens_details.cached_tokens;
  const rows = [
    several && ["Model", body.model],
    ["Strategy", m?.strategy ?? plan.strategy],
    ["Branches", m?.wanted ? `${m.samples}, reduced from ${m.wanted}` : `${plan.samples} at most`],
    m && ["Time to answer", took(m.seconds)],
    m && m.first_token !== null && ["Time to first token", took(m.first_token)],
    m && ["Compute", m.flops ? `${power(m.flops)} FLOPs` : "unknown"],
    m && m.scorer_tokens > 0 && ["Tokens read by the scorer", count(m.scorer_tokens)],
    cached > 0 && ["Prompt tokens from the cache", count(cached)],
    ["Weights", `version ${result?.policy_version ?? plan.policy_version}`],
    ["Seed", String(body.seed)],
    ["Request", plan.request],
  ].filter(Boolean);
  return html`<${Spent} parts=${parts(plan, progress, result)} most=${plan.prompt_tokens + plan.most_tokens} />
    <dl class="facts">${rows.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}

function parts(plan, progress, result) {
  const prompt = ["prompt", "prompt", plan.prompt_tokens];
  if (!result) return [prompt, ["sampled", "sampled so far", progress?.tokens ?? 0]];
  const { completion_tokens: all, completion_tokens_details: details } = result.usage;
  const thinking = details.reasoning_tokens;
  return [
    prompt,
    ["thought", "thinking that led to the answer", result.path_tokens],
    ["wasted", "thinking in other branches", thinking - result.path_tokens - result.mull.summary_tokens],
    ...(result.mull.summary_tokens ? [["told", "summary", result.mull.summary_tokens]] : []),
    ["final", "answer", all - thinking],
  ];
}

/** A bar split by what the tokens were spent on; its empty end is the part of the budget that was not needed. */
function Spent({ parts, most }) {
  const used = parts.reduce((sum, [, , n]) => sum + n, 0);
  const whole = Math.max(most, used);
  let at = 0;
  const pieces = parts.map(([kind, , n]) => {
    const x = at;
    at += n;
    return html`<rect key=${kind} class=${kind} x=${(1000 * x) / whole} width=${(1000 * n) / whole} height="10" />`;
  });
  const said = parts.map(([, name, n]) => `${name} ${n}`).join(", ");
  return html`<svg class="spent" viewBox="0 0 1000 10" preserveAspectRatio="none" role="img" aria-label=${`Tokens: ${said}, of a budget of ${most}`}>${pieces}</svg>
    <ul class="key">
      ${parts.map(([kind, name, n]) => html`<li key=${kind}><i class=${kind}></i><b>${count(n)}</b> ${name}</li>`)}
      <li><i></i><b>${count(whole - used)}</b> of ${plural(whole, "token")} not needed</li>
    </ul>
    <p class="hint">${short(used)} tokens in all.</p>`;
}
