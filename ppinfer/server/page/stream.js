// Talks to the server, with the key where there is one. Addresses are relative to the page.

const KEY = "ppinfer-key";

class Refused extends Error {
  constructor(status, detail) {
    super(detail.message || `The server answered with status ${status}.`);
    this.status = status;
    this.code = detail.code || "";
  }
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  const answer = await fetch(path, { ...options, headers, cache: "no-store" });
  if (!answer.ok) {
    const body = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, body.error || {});
  }
  return answer;
}

const WORKED_LONG = 8; // milliseconds

// The data of server-sent events, until the server says that it was the last one.
//
// While more has come already, awaiting it lets nothing else run, not even a frame be drawn: so
// there is a break now and then.
async function* events(path, options) {
  const answer = await ask(path, options);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", rested = performance.now();
  for (;;) {
    if (performance.now() - rested > WORKED_LONG) {
      await new Promise((done) => setTimeout(done));
      rested = performance.now();
    }
    const asked = performance.now();
    const { done, value } = await reader.read();
    if (performance.now() - asked > 1) rested = performance.now(); // it waited, and others ran
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Refused(0, event.error);
      yield event;
    }
  }
}
