// Watches the server and shows what it says; comes back by itself after the server was gone.

const SILENT = 5; // seconds after which a stage that says nothing is worth a word
const PATIENCE = 6000; // milliseconds without a word of the server
const AGAIN = 1000;

const STATUS = {
  connecting: ["wait", "Connecting…"],
  loading: ["wait", "The model is being loaded"],
  serving: ["good", "Serving"],
  silent: ["warn", "The engine does not answer"],
  draining: ["warn", "The server is shutting down: running requests may finish"],
  ended: ["bad", "The engine has ended; the server must be started again"],
  gone: ["bad", "The server is gone; trying to reach it again"],
  locked: ["wait", "Locked"],
  crowded: ["warn", "Too many watch this server already"],
};

function show(status, words = STATUS[status][1], level = STATUS[status][0]) {
  $("status").dataset.level = $("banner").dataset.level = level;
  setText($("status"), level === "good" ? words : words.split(/[;:]/)[0]);
  setText($("banner"), words);
  $("banner").hidden = level === "good" || level === "wait";
  $("content").classList.toggle("stale", ["gone", "ended", "silent", "connecting"].includes(status));
  $("content").hidden = status === "locked";
  $("lock").hidden = status !== "locked";
}

const lanes = new Lanes();
const charts = new Charts();
const requests = new Requests((words) => setText($("chat-told"), words));
new Chat();

function take({ engine, samples, requests: listed, others }) {
  const silent = engine.stages.findIndex((stage) => stage.heartbeat_age > SILENT);
  if (engine.status === "serving" && silent >= 0) {
    const age = seconds(engine.stages[silent].heartbeat_age);
    show("silent", `Stage ${silent} has not answered for ${age}`);
  } else {
    show(engine.status);
  }
  const stages = engine.stages.length;
  setText($("model"), engine.model + (stages ? ` · ${stages} ${stages === 1 ? "stage" : "stages"}` : ""));
  document.title = `${engine.model} · ppinfer`;
  lanes.take(engine);
  charts.take(samples, engine);
  requests.take(listed, others);
}

async function watch() {
  const controller = new AbortController();
  const stop = () => controller.abort();
  const hide = () => document.hidden && stop(); // a tab that nobody sees costs the server nothing
  document.addEventListener("visibilitychange", hide);
  let timer = setTimeout(stop, PATIENCE);
  try {
    for await (const event of events("live", { signal: controller.signal })) {
      clearTimeout(timer);
      timer = setTimeout(stop, PATIENCE);
      take(event);
    }
    return "gone";
  } catch (error) {
    if (document.hidden) return "connecting";
    if (error.status === 401) return "locked";
    if (error.status === 429) return "crowded";
    return error.code === "shutting_down" ? "draining" : "gone";
  } finally {
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", hide);
  }
}

const once = (target, name) => new Promise((done) => target.addEventListener(name, done, { once: true }));

function unlock() {
  if (sessionStorage.getItem(KEY)) setText($("lock-words"), "The server does not know this key.");
  sessionStorage.removeItem(KEY);
  $("key").focus();
  return once($("lock"), "submit").then((event) => {
    event.preventDefault();
    sessionStorage.setItem(KEY, $("key").value);
    $("key").value = "";
  });
}

$("forget").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  location.reload();
});

async function main() {
  lanes.run();
  for (;;) {
    if (document.hidden) await once(document, "visibilitychange");
    $("forget").hidden = !sessionStorage.getItem(KEY);
    const status = await watch();
    if (document.hidden) continue;
    show(status);
    requests.take([], 0);
    if (status === "locked") await unlock();
    else await sleep(AGAIN);
  }
}

main();
