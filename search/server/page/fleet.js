// The fleet page: asks the server again and again, and draws what it says. A server that went away is asked again too.

import { ago, bars, counted, curve, element, number } from "./draw.js";

const EVERY = 2000;
const CLOSED = 20; // studies that are shown although they are over
const ACTIONS = {
  running: ["pause", "stop"],
  "no worker": ["pause", "stop"],
  paused: ["resume", "stop"],
  stopped: ["resume"],
};
const TONE = { running: "good", "no worker": "warn", paused: "warn", stopped: "warn" };
const place = (id) => document.getElementById(id);
let seen = null; // when the server answered last
let me = null; // who is signed in
const drawn = new Map(); // what each part shows: the same is not drawn again, so that a button stays under the finger

async function get(path) {
  const answer = await fetch(path, { headers: { accept: "application/json" }, signal: AbortSignal.timeout(15000) });
  if (answer.status === 401) location.assign(`/login?next=${encodeURIComponent(location.pathname)}`);
  if (!answer.ok) throw new Error(String(answer.status));
  return answer.json();
}

async function ask() {
  try {
    me ??= await get("/v1/me");
    const told = await get("/v1/fleet");
    seen = Date.now();
    draw(told);
    live("live", false);
  } catch {
    const since = seen === null ? "" : `, this is how it was ${ago((Date.now() - seen) / 1000)}`;
    live(`no answer from the server${since}`, true);
  }
}

function live(said, away) {
  place("live").textContent = said;
  place("live").classList.toggle("away", away);
}

function draw(told) {
  place("who").textContent = `${me.name} (${me.role})`;
  place("out").hidden = !me.login;
  replace("numbers", counts(told), numbers);
  replace("machines", told.workers, machines);
  replace("studies", [told.studies, told.queue.map(place_in_queue)], () => [studies(told)]);
  replace("pace", told.settled_by_hour, pace);
  replace("failures", [told.failed, told.failures, Math.round(told.at / 60)], () => failures(told));
}

// Draw a part again where what it shows has changed. Whoever had come to a button with the keyboard stays there.
function replace(id, what, make) {
  const key = JSON.stringify(what);
  if (drawn.get(id) === key) return;
  drawn.set(id, key);
  const part = place(id);
  const name = part.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
  part.replaceChildren(...make(what));
  if (name) part.querySelector(`[aria-label="${CSS.escape(name)}"]`)?.focus();
}

function counts(told) {
  const alive = told.workers.filter((one) => !one.silent);
  const busy = alive.filter((one) => one.training !== null);
  const open = told.studies.filter((one) => ["running", "no worker"].includes(one.state));
  const queue = open.reduce((sum, one) => sum + Math.max(0, one.trials - one.settled - one.running), 0);
  const hosts = new Set(alive.map((one) => one.host)).size;
  const failed = Object.values(told.failed).reduce((sum, count) => sum + count, 0);
  return [
    [hosts, hosts === 1 ? "machine" : "machines"],
    [`${busy.length}/${alive.length}`, "workers training"],
    [open.length, "open studies"],
    [queue, "trials in the queue"],
    [told.settled_by_hour[told.settled_by_hour.length - 1], "trials in the last hour"],
    [failed, "failed in 24 hours"],
  ];
}

function numbers(rows) {
  return rows.map(([value, label]) =>
    element("div", { class: "number" }, element("b", {}, String(value)), element("span", {}, label)));
}

function machines(workers) {
  if (workers.length === 0) {
    return [element("p", { class: "dim" }, "No worker is alive. Start one on any machine that reaches the database: dialin worker")];
  }
  return [...grouped(workers)].map(([host, workers]) =>
    element("article", { class: "machine" },
      element("h3", {}, host, element("span", {}, ` ${counted(workers.length, "worker")}`)),
      element("div", { class: "slots" }, ...workers.map(slot))));
}

function grouped(workers) {
  const hosts = new Map();
  for (const one of workers) hosts.set(one.host, [...(hosts.get(one.host) ?? []), one]);
  return hosts;
}

function slot(worker) {
  const { training } = worker;
  const what = worker.study ? (training ? `${worker.study} trial ${training.trial}` : worker.study) : "waits for a study";
  const sign = worker.silent ? `no sign for ${Math.round(worker.seen_ago)} s` : `pid ${worker.pid}`;
  const top = element("div", { class: "top" },
    element("strong", {}, worker.slot || "?"),
    element("span", { class: worker.silent ? "bad" : "dim" }, sign));
  const card = element("div", { class: worker.silent ? "slot silent" : "slot" }, top, element("p", { title: what }, what));
  if (worker.note) card.append(element("p", { class: "dim note" }, worker.note));
  if (training === null) {
    if (worker.study) card.append(element("p", { class: "dim" }, "trains nothing just now"));
    return card;
  }
  const label = `${training.metric} of trial ${training.trial} by epoch`;
  card.append(curve(training.curve, training.epochs, label));
  if (training.epochs) card.append(element("progress", { max: training.epochs, value: training.epoch, "aria-label": "epochs" }));
  const of = training.epochs ? ` of ${training.epochs}` : "";
  card.append(element("p", { class: "dim note" },
    `epoch ${training.epoch}${of}, ${training.metric} ${number(training.now)}, best ${number(training.best)}`));
  return card;
}

// What decides which study a worker of the queue takes next.
function place_in_queue({ name, priority, workers, share, concurrency }) {
  return { name, priority, workers, share, concurrency };
}

function studies(told) {
  if (told.studies.length === 0) return element("p", { class: "dim" }, "There is no study yet: dialin submit digits");
  const columns = [["study"], ["objective"], ["state"], ["trials"], ["", "right"], ["workers", "right"], ["share", "right"],
    ["priority", "right"], ["best", "right"], [""]];
  const head = element("tr", {}, ...columns.map(([text, side]) => element("th", { class: side }, text)));
  const queued = new Map(told.queue.map((one) => [one.name, one]));
  const first = told.studies.filter((one) => queued.has(one.name));
  const rest = told.studies.filter((one) => !queued.has(one.name));
  const rows = [...first, ...rest.slice(0, CLOSED)].map((one) => row(one, queued.get(one.name), me.may_write));
  const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
  const more = rest.length - CLOSED;
  return more > 0 ? element("div", {}, table, element("p", { class: "dim" }, `and ${counted(more, "older study", "older studies")}`)) : table;
}

function row(study, queued, mayWrite) {
  const objective = (study.objective ?? "-").split("/").pop();
  const done = study.trials === null ? String(study.settled) : `${study.settled}/${study.trials}`;
  const best = study.best === null ? "-" : `${study.metric ?? "value"} ${number(study.best)}`;
  const buttons = mayWrite ? (ACTIONS[study.state] ?? []).map((action) => button(study.name, action)) : [];
  return element("tr", { "data-study": study.name },
    element("td", { class: "name" }, study.name),
    element("td", { class: "aside" }, objective),
    element("td", { class: `state ${TONE[study.state] ?? ""}`, title: study.reason }, study.state),
    element("td", { class: "aside" }, study.trials ? element("progress", { max: study.trials, value: study.settled, "aria-label": "trials" }) : null),
    element("td", { class: "right done" }, done),
    element("td", { class: "right aside" }, queued ? String(queued.workers) : "-"),
    element("td", { class: "right aside", title: "of all workers, by priority" }, share(queued)),
    element("td", { class: "right aside" }, queued ? `${queued.priority}${queued.concurrency ? `, at most ${queued.concurrency}` : ""}` : "-"),
    element("td", { class: "right best" }, best),
    element("td", { class: "do" }, ...buttons));
}

function share(queued) {
  return queued && queued.share !== null ? `${Math.round(100 * queued.share)}%` : "-";
}

function button(study, action) {
  const made = element("button", { type: "button", "aria-label": `${action} ${study}` }, action);
  made.addEventListener("click", () => act(study, action, made));
  return made;
}

async function act(study, action, made) {
  if (action === "stop" && !confirm(`Stop ${study}? Its workers hand back what they train; resume goes on with it.`)) return;
  made.disabled = true;
  let said = "";
  try {
    const answer = await fetch(`/v1/studies/${encodeURIComponent(study)}/${action}`, { method: "POST" });
    if (!answer.ok) said = (await answer.json()).detail;
  } catch {
    said = "the server did not answer";
  }
  place("refused").textContent = said ? `${study}: ${said}` : "";
  place("refused").hidden = !said;
  drawn.delete("studies");
  await ask();
}

function pace(counts) {
  const all = counts.reduce((sum, count) => sum + count, 0);
  const said = `${counted(all, "trial")} ended in the last ${counts.length} hours, ${counts[counts.length - 1]} of them in the last one`;
  const under = element("div", { class: "under dim" }, element("span", {}, `${counts.length} h ago`), element("span", {}, "now"));
  return [bars(counts, said), under, element("p", { class: "dim" }, `${said}.`)];
}

function failures(told) {
  const kinds = Object.entries(told.failed);
  const words = kinds.map(([kind, count]) => `${count} ${kind.replaceAll("_", " ")}`).join(", ");
  const list = told.failures.map((one) =>
    element("li", {}, `${one.study} trial ${one.trial}: ${one.outcome.replaceAll("_", " ")}, ${ago(told.at - one.settled_at)}`,
      element("div", { class: "dim" }, one.reason)));
  return [element("p", { class: words ? "bad" : "dim" }, words || "none"), element("ul", {}, ...list)];
}

async function forever() {
  if (!document.hidden) await ask();
  setTimeout(forever, EVERY);
}

document.addEventListener("visibilitychange", () => document.hidden || ask());
forever();
