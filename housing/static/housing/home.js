// Reads each list and shows its cost. Sends a change and shows which cached responses it invalidated.

const KEPT = 8; // how many earlier costs a list shows
const lists = [...document.querySelectorAll("[data-list]")].map((card) => ({ card, url: card.dataset.list, costs: [] }));
const entries = [...document.querySelectorAll("[data-entry]")].map((row) => ({ row, url: row.dataset.entry }));

/** GET as an API client, bypassing the browser's cache. Throws an Error with the status of a failed response. */
async function read(url) {
  const response = await fetch(url, { cache: "no-store", headers: { Accept: "application/json" } });
  if (!response.ok) throw new Error(`${url} returned ${response.status}.`);
  const timing = response.headers.get("Server-Timing");
  return {
    queries: Number(/sql;desc="(\d+)/.exec(timing)[1]),
    time: Number(/total;dur=([\d.]+)/.exec(timing)[1]),
    status: response.headers.get("Cache-Status")?.replace("housing; ", "") ?? "",
    text: await response.text(),
  };
}

const counted = (queries) => `${queries}\u00a0${queries === 1 ? "query" : "queries"}`;
const milliseconds = (time) => `${time.toFixed(1)}\u00a0ms`;

function show(list, response) {
  const { card, costs } = list;
  list.response = response;
  costs.push(response.queries);
  card.querySelector("[data-sql]").textContent = counted(response.queries);
  card.querySelector("[data-time]").textContent = milliseconds(response.time);
  card.querySelector("[data-status]").textContent = response.status || "none";
  card.querySelector("[data-history]").textContent = `Queries so far: ${costs.slice(-KEPT).join(", ")}`;
  for (const what of ["queries", "time"]) {
    const most = Math.max(...lists.map((each) => each.response?.[what] ?? 0));
    for (const each of lists) {
      each.card.querySelector(`[data-bar=${what}]`).style.setProperty("--part", (each.response?.[what] ?? 0) / most || 0);
    }
  }
}

async function readTheLists() {
  for (const list of lists) {
    show(list, await read(list.url));
    if (list.response.status.endsWith("; stored")) show(list, await read(list.url)); // it is cached now, so show a hit, too
  }
  const texts = new Set(lists.map((list) => list.response.text));
  const costs = lists.map((list) => counted(list.response.queries)).join(", then ");
  say("compared", `${costs}: ${texts.size === 1 ? "the same bytes in all variants." : "the data changed in between."}`);
}

const say = (id, text) => (document.getElementById(id).textContent = text);

/** The state of a cached response before this read: `warm`, `stale`, or its Cache-Status. */
const found = ({ status }) => ({ hit: "warm", "fwd=stale; stored": "stale" })[status] ?? status;

/** Warm an entry, if it can be stored. */
async function warm({ row, url }) {
  let response = await read(url);
  if (found(response) !== "warm") response = await read(url);
  mark(row.querySelector("[data-before]"), found(response), found(response));
  row.querySelector("[data-after]").textContent = "–";
}

function mark(cell, found, text) {
  const pill = document.createElement("span");
  pill.className = "pill";
  pill.dataset.found = found;
  pill.textContent = text;
  cell.replaceChildren(pill);
}

/** POST the form, and show its errors. Returns whether it was saved. */
async function send(form) {
  const response = await fetch(form.action, { method: "POST", body: new FormData(form), headers: { Accept: "application/json" } });
  const wrong =
    response.status === 204 ? []
    : response.headers.get("Content-Type") === "application/json" ? Object.values(await response.json()).flat()
    : [response.status === 403 ? "You are no longer allowed to change this. Reload the page and log in." : `The service returned ${response.status}.`];
  showErrors(form, wrong);
  return !wrong.length;
}

function showErrors(form, wrong) {
  const field = form.querySelector("input:not([type=hidden])");
  const errors = form.querySelector("[data-errors]");
  errors.id = `${field.id}_error`;
  errors.replaceChildren(...wrong.map((text) => Object.assign(document.createElement("p"), { textContent: text })));
  field.setAttribute("aria-describedby", errors.id);
  field.setAttribute("aria-invalid", wrong.length > 0);
  if (wrong.length) field.focus();
}

async function change(form) {
  say("result", "");
  say("compared", "");
  for (const entry of entries) await warm(entry);
  if (await send(form)) await lookAgain(form);
}

/** Read each entry again. The first read after the change is the first page. */
async function lookAgain(form) {
  const all = [];
  for (const { row, url } of entries) {
    const response = await read(url);
    all.push(response);
    const cell = row.querySelector("[data-after]");
    mark(cell, found(response), { warm: "stayed warm", stale: "became stale" }[found(response)] ?? response.status);
    cell.append(` ${counted(response.queries)}`);
    for (const list of lists) if (list.url === url) show(list, response);
  }
  const home = JSON.parse(all[0].text).results.find(({ id }) => id === Number(form.dataset.home));
  const value = home && (form.elements.price ? home.price : home.agent.office.name);
  const count = (kind) => all.filter((response) => found(response) === kind).length;
  const next = value ? `The next read shows ${value}.` : "Saved. The first page is full of newer listings.";
  say("result", `${next} ${count("stale")} became stale, ${count("warm")} stayed warm.`);
}

/** Run one action after another. A failure is shown in place of the result. */
let last = Promise.resolve();
function queue(act, place) {
  last = last.then(act).catch((error) => say(place, `Failed: ${error.message}`));
}

document.getElementById("again").addEventListener("click", () => queue(readTheLists, "compared"));
for (const form of document.querySelectorAll("form")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    queue(() => change(form), "result");
  });
}
queue(readTheLists, "compared");
