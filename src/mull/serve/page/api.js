// Calls to the server that this page came from. Addresses are relative, so that a proxy may put all of it under a path.

const KEY = "mull-key";

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** What the server refused, in OpenAI's shape: {message, type, param, code}, with the HTTP status and the wait. */
export class Refused extends Error {
  constructor(status, error, wait = null) {
    super(error?.message ?? `The server answered with status ${status}.`);
    Object.assign(this, { status, code: error?.code ?? null, param: error?.param ?? null, wait: wait === null ? null : Number(wait) });
  }
}

async function call(path, body, signal) {
  const headers = {};
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal, cache: "no-store" });
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new Refused(0, { message: "The server cannot be reached." });
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => null);
  throw new Refused(response.status, said?.error, response.headers.get("retry-after"));
}

export const getJson = async (path) => (await call(path)).json();
export const postJson = async (path, body) => (await call(path, body)).json();

/** Ends the thinking of a request; whether it was still running. */
export async function answerNow(request) {
  try {
    await call(`mull/requests/${encodeURIComponent(request)}/answer`, {});
    return true;
  } catch (problem) {
    if (problem.status === 404) return false;
    throw problem;
  }
}

/** [name, data] of every event of an answer as it comes. Throws `Refused`, also for a refusal in the stream. */
export async function* ask(body, signal) {
  const response = await call("mull/ask", body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let ended = false;
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (problem) {
      if (problem.name === "AbortError") throw problem;
      throw new Refused(0, { message: "The connection broke off." });
    }
    if (piece.done) break;
    const blocks = (rest + piece.value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      if (!block || block.startsWith(":")) continue; // a comment keeps the connection open
      const [name, data] = fields(block);
      if (name === "error") throw new Refused(data.status, data.error, data.retry_after);
      ended = name === "result";
      yield [name, data];
    }
  }
  if (!ended) throw new Refused(0, { message: "The connection broke off." });
}

function fields(block) {
  let name = "message";
  let data = "";
  for (const line of block.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    else if (line.startsWith("data: ")) data += line.slice(6);
  }
  return [name, JSON.parse(data)];
}
