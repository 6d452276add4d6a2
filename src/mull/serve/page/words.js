// Numbers and states as words. Nothing here knows of the page.

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const whole = new Intl.NumberFormat("en");

/** 950 as "950", 3120 as "3.1k". */
export const short = (n) => (n < 1000 ? String(Math.round(n)) : n < 10000 ? `${(n / 1000).toFixed(1).replace(".0", "")}k` : compact.format(n).toLowerCase().replace("m", "M").replace("b", "B"));
export const count = (n) => whole.format(n);
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;
/** "a", "a and b", "a, b and c" */
export const listed = (names) => [names.slice(0, -1).join(", "), names.at(-1)].filter(Boolean).join(" and ");
export const percent = (share) => `${Math.round(100 * share)}%`;

/** Of a running clock: "0 s", "14 s", "2 min 5 s". */
export function clock(seconds) {
  const s = Math.floor(seconds);
  return s < 60 ? `${s} s` : `${Math.floor(s / 60)} min ${s % 60} s`;
}

/** Of what is over: "0.04 s", "2.3 s", "14 s". */
export const took = (seconds) => (seconds < 0.995 ? `${seconds.toFixed(2)} s` : seconds < 9.95 ? `${seconds.toFixed(1)} s` : clock(Math.round(seconds)));

function spoken(seconds) {
  const n = seconds < 9.95 ? seconds.toFixed(seconds < 0.95 ? 1 : 0) : Math.round(seconds);
  return seconds < 0.05 ? "a moment" : seconds < 59.5 ? `${n} ${Number(n) === 1 ? "second" : "seconds"}` : clock(Math.round(seconds));
}

const SUPERSCRIPT = "⁰¹²³⁴⁵⁶⁷⁸⁹";
/** 12,300,000 as "1.23×10⁷". */
export function power(value) {
  if (value < 1e6) return count(Math.round(value));
  const [mantissa, exponent] = value.toExponential(2).split("e");
  return `${mantissa}×10${[...String(Number(exponent))].map((c) => SUPERSCRIPT[Number(c)]).join("")}`;
}

/** "Thinking 14 s · 3.1k/8k tokens · 4/16 branches", and what it becomes when it is over. */
export function thinkingLine(answer, now) {
  const { state, plan, progress, result } = answer;
  if (state === "waiting") return "Waiting for a place…";
  if (state === "failed") return "No answer";
  if (state === "stopped") return `Stopped after ${spoken(answer.seconds)}`;
  if (state === "done") {
    const { seconds } = result.mull;
    return plan.think_tokens ? `Thought for ${spoken(seconds)}` : `Answered in ${spoken(seconds)}, without thinking`;
  }
  const parts = [`${answer.text ? "Answering" : "Thinking"} ${clock((now - answer.began) / 1000)}`];
  if (progress) {
    parts.push(`${short(progress.tokens)}/${short(progress.most_tokens)} tokens`);
    if (progress.branches > 1) parts.push(`${progress.done}/${progress.branches} branches`);
  }
  return parts.join(" · ");
}

const EARLY = { asked: "answered early", time: "time limit reached", lost: "a part of the work was lost" };

/** What a reader must know of an answer, as [label, explanation]. */
export function labels({ result, plan }) {
  if (!result) return plan?.wanted ? [reduced(plan)] : [];
  const m = result.mull;
  const found = [];
  if (m.early) found.push([EARLY[m.early], { asked: "You asked for an answer before the thinking was over.", time: "The server's limit on wall-clock time ended the thinking.", lost: "What samples or scores went away; this is the best that there was." }[m.early]]);
  if (m.exhausted) found.push(["budget exhausted", "The thinking used up its tokens before the strategy was done."]);
  if (m.wanted) found.push(reduced(m));
  if (m.looped) found.push([`${plural(m.looped, "branch", "branches")} went in circles`, "Their thought repeated itself and was closed."]);
  if (m.lost && m.early !== "lost") found.push([`${plural(m.lost, "failure")} on the way`, "The answer comes from what was left."]);
  if (result.finish === "length") found.push(["cut off", "The answer used up its own tokens."]);
  if (m.ignored.length) found.push([`ignored: ${m.ignored.join(", ")}`, "This strategy cannot obey these settings."]);
  return found;
}

const reduced = (p) => [`fan-out reduced from ${p.wanted} to ${p.samples}`, "There was no room for all the branches that were asked for."];

/** Free answers are equal when they are the same words. */
export const same = (a, b) => [a, b].map((text) => text.split(/\s+/).join(" ").trim().toLowerCase()).reduce((x, y) => x === y);

/** {count, of, share} of the branches that came to the answer; null where nothing was voted on. */
export function agreement({ content, mull }) {
  const of = mull.votes.reduce((sum, v) => sum + v.count, 0);
  if (of < 2) return null;
  const count = mull.votes.reduce((sum, v) => sum + (same(v.answer, content) ? v.count : 0), 0);
  return { count, of, share: count / of };
}

/** What an effort will spend: "about 310 tokens · 0.8 s". */
export function prediction(settings, config, efforts) {
  const effort = efforts?.[settings.effort];
  if (!effort) return "";
  const { strategy, samples, budget } = settings;
  if (settings.effort !== "none" && (strategy || samples || budget !== null)) {
    const chains = Math.min(samples ?? effort.chains, config.max_samples);
    const all = chains * (config.think_tokens + config.answer_tokens);
    return `up to ${short(budget === null ? all : Math.min(all, budget + config.answer_tokens))} tokens`;
  }
  if (effort.median_tokens === null) return `up to ${short(effort.most_tokens)} tokens`;
  return `about ${short(effort.median_tokens)} tokens · ${took(effort.median_seconds)}`;
}

/** One sentence on what went wrong, and what to do. */
export function trouble(problem) {
  const said = /[.!?]$/.test(problem.message) ? problem.message : `${problem.message}.`;
  if (problem.status === 0) return `${said} Check that mull serve is still running, then try again.`;
  if (problem.status === 401) return `${said.replace(/:.*/, ".")} Enter the key above, then try again.`;
  if (problem.status === 503) return `${said} Nothing is wrong with the question.`;
  if (problem.code === "context_length_exceeded") return `${said} A new conversation has room again.`;
  if (problem.status >= 500) return `${said} What happened is in the server's log.`;
  return said;
}
