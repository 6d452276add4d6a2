// The conversation: turns of one question and one answer for each side, and what comes in for them.
import { answerNow, ask, getJson, key, postJson, Refused } from "./api.js";
import { agreement, clock, plural, thinkingLine } from "./words.js";

const SPOKEN = 20; // seconds between two words on progress for those who listen
const NEW = { model: "", effort: "medium", strategy: "", samples: null, budget: null, temperature: null, seed: null };

/** What a tree of steps is to a reader; `changed` counts, because the map is filled in place. */
const newTree = () => ({ nodes: new Map(), running: [], won: new Set(), pruned: new Set(), winner: -1, changed: 0 });

function newAnswer(side, settings, body) {
  return {
    side, settings, body, state: "waiting", began: performance.now(), seconds: 0, plan: null, progress: null, sections: [],
    thought: "", text: "", tree: newTree(), result: null, problem: null, correct: null, version: 0, control: new AbortController(),
  };
}

export class Session {
  config = null;
  efforts = {}; // by model
  tasks = [];
  turns = [];
  sides = [{ ...NEW }, { ...NEW, effort: "high" }];
  compare = false;
  chosen = false; // whether anybody has said what the second side is asked with
  locked = false; // the server wants a key
  problem = null; // of the page itself
  said = ""; // for those who listen

  /** `draw()` is called whenever something has changed. */
  constructor(draw) {
    this.draw = draw;
  }

  get shown() {
    return this.compare ? this.sides : this.sides.slice(0, 1);
  }

  /** Whether there is more than one model: then it is said everywhere which one is meant. */
  get several() {
    return this.config?.models.length > 1;
  }

  get busy() {
    return this.turns.at(-1)?.answers.some(working) ?? false;
  }

  async open() {
    try {
      const [config, efforts, examples] = await Promise.all(["mull/config", "mull/efforts", "mull/examples"].map(getJson));
      const others = await Promise.all(config.models.slice(1).map(({ name }) => getJson(effortsOf(name))));
      const first = !this.config;
      Object.assign(this, { config, tasks: examples.tasks, locked: false, problem: null });
      for (const one of [efforts, ...others]) this.efforts[one.model] = one.efforts;
      document.title = `mull · ${config.models.map(({ name }) => name).join(", ")}`;
      if (first) this.begin(efforts.default);
    } catch (problem) {
      this.locked = problem.status === 401;
      // Without a key at hand there is nothing wrong yet.
      this.problem = this.locked && !key.get() ? null : problem;
    }
    this.draw();
  }

  begin(effort) {
    const [one, two] = this.sides;
    const { model } = this.config;
    this.sides = [{ ...one, model, effort }, { ...two, model, effort: effort === "high" ? "low" : two.effort }];
  }

  unlock(value) {
    key.set(value.trim());
    return this.open();
  }

  set(side, change) {
    this.sides = this.sides.map((s, i) => (i === side ? this.fitting({ ...s, ...change }) : s));
    this.chosen ||= side === 1;
    this.draw();
  }

  /** One side or two. With several models, the second side asks another one, with all else alike, until somebody says otherwise. */
  flip() {
    this.compare = !this.compare;
    if (this.compare && this.several && !this.chosen) {
      const [one] = this.sides;
      const other = this.config.models.find(({ name }) => name !== one.model);
      this.sides = [one, this.fitting({ ...one, model: other.name })];
    }
    this.draw();
  }

  modelOf(settings) {
    return this.config.models.find(({ name }) => name === settings.model);
  }

  /** Not every strategy runs with every model: a scorer may be the other one's. */
  fitting(settings) {
    return this.modelOf(settings).strategies.some(({ name }) => name === settings.strategy) ? settings : { ...settings, strategy: "" };
  }

  restart() {
    this.stop();
    this.turns = [];
    this.problem = null;
    this.draw();
  }

  /** Asks all sides at once. `example`: the id of the problem, where it is one. */
  ask(question, example = null) {
    if (this.busy || !this.config) return;
    const answers = this.shown.map((settings, side) => newAnswer(side, settings, this.body(question, side, settings)));
    this.turns = [...this.turns, { question, example, answers }];
    this.say("Thinking.");
    for (const answer of answers) this.run(this.turns.at(-1), answer);
  }

  /** The last question once more, for sides that came to nothing. */
  again(turn, side) {
    const { settings, body } = turn.answers[side];
    turn.answers = turn.answers.map((a, i) => (i === side ? newAnswer(a.side, settings, body) : a));
    this.run(turn, turn.answers[side]);
  }

  stop() {
    for (const answer of this.turns.at(-1)?.answers ?? []) if (working(answer)) answer.control.abort();
  }

  async answerNow(answer) {
    try {
      await answerNow(answer.plan.request);
    } catch (problem) {
      this.problem = problem;
      this.draw();
    }
  }

  /** What is asked, as /v1/chat/completions takes it. The seed is always there, so that the same call has the same answer. */
  body(question, side, settings) {
    const messages = [];
    for (const turn of this.turns) {
      const answer = turn.answers[Math.min(side, turn.answers.length - 1)];
      if (!answer.text || answer.state === "failed") continue;
      messages.push({ role: "user", content: turn.question }, { role: "assistant", content: answer.text });
    }
    messages.push({ role: "user", content: question });
    const body = { model: settings.model, messages, reasoning_effort: settings.effort };
    body.seed = settings.seed ?? crypto.getRandomValues(new Uint32Array(1))[0];
    if (settings.budget !== null) body.thinking_token_budget = settings.budget;
    if (settings.temperature !== null) body.temperature = settings.temperature;
    if (settings.strategy || settings.samples !== null) {
      body.mull = { ...(settings.strategy && { strategy: settings.strategy }), ...(settings.samples !== null && { samples: settings.samples }) };
    }
    return body;
  }

  async run(turn, answer) {
    const clockwork = setInterval(() => this.touch(answer), 250);
    let spoken = 1;
    try {
      this.touch(answer);
      for await (const [name, data] of ask(answer.body, answer.control.signal)) {
        take(answer, name, data);
        const seconds = (performance.now() - answer.began) / 1000;
        if (!answer.text && seconds > spoken * SPOKEN) this.say(`Still thinking, ${clock(SPOKEN * spoken++)}.`);
        this.touch(answer);
      }
      await this.finish(turn, answer);
    } catch (problem) {
      this.fail(answer, problem);
    } finally {
      clearInterval(clockwork);
      answer.seconds = (performance.now() - answer.began) / 1000;
      answer.tree.running = [];
      this.touch(answer);
    }
  }

  async finish(turn, answer) {
    answer.state = "done";
    const sure = agreement(answer.result);
    const agree = sure ? ` ${sure.count} of ${plural(sure.of, "branch", "branches")} agree.` : "";
    const whose = [turn.answers.length > 1 && "AB"[answer.side], this.several && answer.body.model].filter(Boolean).join(", ");
    this.say(`${whose && `${whose}: `}${thinkingLine(answer, 0)}. Answer: ${answer.text.slice(0, 400)}.${agree}`);
    this.touch(answer);
    // What follows is a service to the reader: the answer stands without it.
    if (turn.example) answer.correct = (await postJson("mull/check", { id: turn.example, answer: answer.text }).catch(() => null))?.correct ?? null;
    const known = await getJson(effortsOf(answer.body.model)).catch(() => null);
    if (known) this.efforts[known.model] = known.efforts;
  }

  fail(answer, problem) {
    if (answer.state === "done") return;
    answer.state = problem.name === "AbortError" ? "stopped" : "failed";
    if (answer.state === "stopped") this.say("Stopped.");
    else answer.problem = problem;
    if (!(problem instanceof Refused) && answer.state === "failed") console.error(problem);
    this.locked ||= problem.status === 401;
  }

  say(text) {
    this.said = text;
    this.draw();
  }

  touch(answer) {
    answer.version++;
    this.draw();
  }
}

const effortsOf = (model) => `mull/efforts?model=${encodeURIComponent(model)}`;

export const working = (answer) => answer.state === "waiting" || answer.state === "thinking";

/** One event of the stream. */
function take(answer, name, data) {
  const { tree } = answer;
  if (name === "begun") Object.assign(answer, { state: "thinking", plan: data, began: performance.now() });
  else if (name === "progress") {
    answer.progress = data;
    tree.running = data.running;
    tree.changed++;
  } else if (name === "section") answer.sections = [...answer.sections, data];
  else if (name === "thought") answer.thought += data.text;
  else if (name === "delta") answer.text += data.text;
  else if (name === "nodes") {
    for (const node of data) tree.nodes.set(node.id, node);
    tree.changed++;
  } else if (name === "result") {
    Object.assign(answer, { result: data, text: data.content, thought: data.thought ?? "" });
    for (const [id, text] of data.answers) tree.nodes.get(id).text = text;
    for (const [id, score] of data.scores) tree.nodes.get(id).score = score;
    tree.winner = data.winner;
    for (let at = data.winner; at >= 0; at = tree.nodes.get(at).parent) tree.won.add(at);
    tree.pruned = new Set(data.pruned);
    tree.running = [];
    tree.changed++;
  }
}
