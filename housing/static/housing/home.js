// Asks each list and shows what it cost; sends a change and shows which remembered answers it made stale.

const KEPT = 8; // how many costs of the past a list shows
const lists = [...document.querySelectorAll("[data-list]")].map((card) => ({ card, url: card.dataset.list, costs: [] }));
const entries = [...document.querySelectorAll("[data-entry]")].map((row) => ({ row, url: row.dataset.entry }));

/** GET as a program does; never from the browser's own cache. Throws an Error that says what the service answered. */
async function read(url) {
  const response = await fetch(url, { cache: "no-store", headers: { Accept: "application/json" } });
  if (!response.ok) throw new Error(`${url} answered ${response.status}.`);
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

function show(list, answer) {
  const { card, costs } = list;
  list.answer = answer;
  costs.push(answer.queries);
  card.querySelector("[data-sql]").textContent = counted(answer.queries);
  card.querySelector("[data-time]").textContent = milliseconds(answer.time);
  card.querySelector("[data-status]").textContent = answer.status || "none";
  card.querySelector("[data-asked]").textContent = `Queries so far: ${costs.slice(-KEPT).join(", ")}`;
  for (const what of ["queries", "time"]) {
    const most = Math.max(...lists.map((each) => each.answer?.[what] ?? 0));
    for (const each of lists) {
      each.card.querySelector(`[data-bar=${what}]`).style.setProperty("--part", (each.answer?.[what] ?? 0) / most || 0);
    }
  }
}

async function askTheLists() {
  for (const list of lists) show(list, await read(list.url));
  const texts = new Set(lists.map((list) => list.answer.text));
  const costs = lists.map((list) => counted(list.answer.queries)).join(", then ");
  say("compared", `${costs}: ${texts.size === 1 ? "the same bytes three times." : "a change came between."}`);
}

const say = (id, text) => (document.getElementById(id).textContent = text);

/** What an answer says of its entry: `warm`, `stale`, or in the service's own words. */
const found = ({ status }) => ({ hit: "warm", "fwd=stale; stored": "stale" })[status] ?? status;

/** Make an entry warm, if it can be. */
async function warm({ row, url }) {
  let answer = await read(url);
  if (found(answer) !== "warm") answer = await read(url);
  mark(row.querySelector("[data-before]"), found(answer), found(answer));
  row.querySelector("[data-after]").textContent = "–";
}

function mark(cell, found, text) {
  const pill = document.createElement("span");
  pill.className = "pill";
  pill.dataset.found = found;
  pill.textContent = text;
  cell.replaceChildren(pill);
}

/** POST the form. Returns whether it was saved; what is wrong is in the page. */
async function send(form) {
  const response = await fetch(form.action, { method: "POST", body: new FormData(form), headers: { Accept: "application/json" } });
  const wrong =
    response.status === 204 ? []
    : response.headers.get("Content-Type") === "application/json" ? Object.values(await response.json()).flat()
    : [response.status === 403 ? "This is not, or no longer, yours to change. Load the page again and log in." : `The service answered ${response.status}.`];
  complain(form, wrong);
  return !wrong.length;
}

function complain(form, wrong) {
  const field = form.querySelector("input:not([type=hidden])");
  const errors = form.querySelector("[data-errors]");
  errors.id = `${field.id}_error`;
  errors.replaceChildren(...wrong.map((text) => Object.assign(document.createElement("p"), { textContent: text })));
  field.setAttribute("aria-describedby", errors.id);
  field.setAttribute("aria-invalid", wrong.length > 0);
  if (wrong.length) field.focus();
}

async function change(form) {
  say("said", "");
  say("compared", "");
  for (const entry of entries) await warm(entry);
  if (await send(form)) await lookAgain(form);
}

/** Ask for each entry once more: the first read after the change is that of the first page. */
async function lookAgain(form) {
  const all = [];
  for (const { row, url } of entries) {
    const answer = await read(url);
    all.push(answer);
    const cell = row.querySelector("[data-after]");
    mark(cell, found(answer), { warm: "stayed warm", stale: "went stale" }[found(answer)] ?? answer.status);
    cell.append(` ${counted(answer.queries)}`);
    for (const list of lists) if (list.url === url) show(list, answer);
  }
  const home = JSON.parse(all[0].text).results.find(({ id }) => id === Number(form.dataset.home));
  const value = home && (form.elements.price ? home.price : home.agent.office.name);
  const count = (kind) => all.filter((answer) => found(answer) === kind).length;
  const next = value ? `The very next read says ${value}.` : "Saved; newer listings fill the first page.";
  say("said", `${next} ${count("stale")} went stale, ${count("warm")} stayed warm.`);
}

/** One thing after another. A failure is said where the result would be. */
let last = Promise.resolve();
function queue(act, said) {
  last = last.then(act).catch((error) => say(said, `Not finished: ${error.message}`));
}

document.getElementById("ask").addEventListener("click", () => queue(askTheLists, "compared"));
for (const form of document.querySelectorAll("form")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    queue(() => change(form), "said");
  });
}
queue(askTheLists, "compared");
