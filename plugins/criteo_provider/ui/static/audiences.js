/* The page Audiences: asks for the overview every few seconds and changes only the words that are different. */
"use strict";

const byId = (id) => document.getElementById(id);
const table = byId("steps").querySelector("table");
const count = new Intl.NumberFormat("en");
const day = { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
const shortClock = new Intl.DateTimeFormat("en", day);
const clock = new Intl.DateTimeFormat("en", { ...day, year: "numeric", second: "2-digit", timeZoneName: "short" });

/* Nothing is touched that says the same as before: no flicker, and a screen reader repeats nothing. */
function say(element, text) { if (element.textContent !== text) element.textContent = text; }
function show(element, visible) { if (element.hidden === visible) element.hidden = !visible; }
function part(element, name) { return element.querySelector(`[data-part="${name}"]`); }
function copy(template) { return byId(template).content.cloneNode(true); }
function plural(n, one, many) { return `${count.format(n)} ${n === 1 ? one : many}`; }

/* Give `list` as many children as there are `items`, made by `make`, and let `fill` write into each. */
function fillList(list, items, make, fill) {
  while (list.children.length > items.length) list.lastElementChild.remove();
  while (list.children.length < items.length) list.append(make());
  items.forEach((item, at) => fill(list.children[at], item));
}

function fillProblem(card, problem) {
  say(part(card, "where"), problem.where);
  say(part(card, "what"), problem.what);
  say(part(card, "mend"), problem.mend);
  fillList(part(card, "points"), problem.points, () => document.createElement("li"), say);
  const next = new Date(problem.next_try);
  const again = !problem.next_try ? "not tried until it is connected again" : next > new Date() ? `tried again at ${shortClock.format(next)}` : "to be tried again at once";
  say(part(card, "when"), problem.since ? `Since ${shortClock.format(new Date(problem.since))}; ${again}.` : "");
}

/* The rows are made once for each set of canvases and steps; after that only their words change. */
let rows = new Map();
let madeFor = "";

function makeRows(canvases) {
  const wanted = JSON.stringify(canvases.map((canvas) => [canvas.id, canvas.steps.map((step) => step.id)]));
  if (wanted === madeFor) return;
  madeFor = wanted;
  rows = new Map();
  table.querySelectorAll("tbody").forEach((body) => body.remove());
  for (const canvas of canvases) {
    table.append(copy("canvas"));
    const body = table.lastElementChild;
    rows.set(canvas.id, body.firstElementChild);
    for (const step of canvas.steps) {
      body.append(copy("step"));
      const reasons = body.lastElementChild;
      reasons.id = `reasons-${rows.size}`;
      const row = reasons.previousElementSibling;
      part(row, "why").setAttribute("aria-controls", reasons.id);
      rows.set(`${canvas.id}/${step.id}`, row);
    }
  }
}

function fillCanvas(row, canvas) {
  say(part(row, "name"), canvas.name);
  say(part(row, "owner"), `owner ${canvas.owner}`);
  say(part(row, "note"), canvas.notes.join(" "));
  const found = [canvas.told_above && `${canvas.told_above} to mend, told above`, canvas.findings.length && plural(canvas.findings.length, "finding", "findings")].filter(Boolean).join("; ") || "nothing to mend";
  say(part(row, "checked"), canvas.checked ? `Last preflight ${shortClock.format(new Date(canvas.checked))}: ${found}.` : "");
  fillList(part(row, "findings"), canvas.findings, () => document.createElement("li"), say);
}

function fillStep(row, step) {
  say(part(row, "id"), step.id);
  say(part(row, "audience"), step.operation === "add" ? `adds to ${step.audience}` : `removes from ${step.audience}`);
  say(part(row, "where"), `ad account ${step.ad_account}` + (step.criteo_id ? `, Criteo id ${step.criteo_id}` : ""));
  const state = part(row, "state");
  say(state, step.state.text);
  state.className = `state ${step.state.kind}`;
  document.querySelectorAll("thead [aria-describedby]").forEach((term) => {
    const key = term.getAttribute("aria-describedby").slice("meaning-".length);
    say(part(row, key), step.numbers ? count.format(step.numbers[key]) : "–");
  });
  say(part(row, "on-their-way"), `${count.format(step.on_their_way)} on their way`);
  show(part(row, "on-their-way"), step.on_their_way > 0);
  fillReasons(row, step);
}

function fillReasons(row, step) {
  const why = part(row, "why");
  const reasons = Object.entries(step.reasons || {}).sort((one, other) => other[1] - one[1]);
  show(why, reasons.length > 0);
  why.setAttribute("aria-label", `Why are users of ${step.id} not synced?`);
  const below = row.nextElementSibling;
  show(below, reasons.length > 0 && why.getAttribute("aria-expanded") === "true");
  const make = () => document.createElement("li");
  fillList(below.querySelector("ul"), reasons, make, (item, [reason, users]) => say(item, `${plural(users, "user", "users")}: ${reason}`));
}

function render(overview) {
  say(byId("as-of"), clock.format(new Date(overview.as_of)));
  byId("as-of").setAttribute("datetime", overview.as_of);
  show(byId("no-ledger"), Boolean(overview.no_ledger));
  say(byId("no-ledger").querySelector("p"), overview.no_ledger || "");
  show(byId("problems"), overview.problems.length > 0);
  fillList(byId("problems").querySelector("ul"), overview.problems, () => copy("problem"), fillProblem);
  fillList(byId("notes"), overview.notes, () => document.createElement("p"), say);
  fillList(byId("pace"), overview.pace, () => document.createElement("li"), say);
  show(byId("steps"), overview.canvases.length > 0);
  makeRows(overview.canvases);
  for (const canvas of overview.canvases) {
    fillCanvas(rows.get(canvas.id), canvas);
    for (const step of canvas.steps) fillStep(rows.get(`${canvas.id}/${step.id}`), step);
  }
  say(byId("status"), summary(overview));
}

function summary(overview) {
  if (overview.no_ledger) return "No numbers can be shown.";
  if (overview.problems.length) return `${plural(overview.problems.length, "thing", "things")} to mend.`;
  return overview.canvases.length ? "Nothing to mend." : "There is no canvas yet: write one in include/canvases.";
}

/* --- asking, again and again, but not while nobody looks */

let timer = 0;

async function refresh() {
  clearTimeout(timer);
  let next_s = 5;
  try {
    const answer = await fetch(byId("steps").dataset.from, { headers: { Accept: "application/json" } });
    show(byId("sign-in"), answer.status === 401);
    if (answer.ok) {
      const overview = await answer.json();
      render(overview);
      next_s = overview.refresh_s;
    } else {
      say(byId("status"), answer.status === 401 ? "Your Airflow session has ended; the numbers stand still." : `The numbers stand still: Airflow answers with an error (${answer.status}). Trying again.`);
    }
  } catch {
    say(byId("status"), "The numbers stand still: Airflow does not answer. Trying again.");
  }
  document.body.classList.toggle("stale", byId("status").textContent.includes("stand still"));
  if (!document.hidden) timer = setTimeout(refresh, next_s * 1000);
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });

/* --- reasons, and definitions on hover, focus and touch */

document.addEventListener("click", (event) => {
  const why = event.target.closest(".why");
  if (!why) return;
  const open = why.getAttribute("aria-expanded") !== "true";
  why.setAttribute("aria-expanded", String(open));
  byId(why.getAttribute("aria-controls")).hidden = !open;
});

const tip = byId("tip");

function explain(term) {
  say(tip, byId(term.getAttribute("aria-describedby")).textContent);
  tip.hidden = false;
  const at = term.getBoundingClientRect();
  const below = at.bottom + 6 + tip.offsetHeight <= innerHeight;
  tip.style.top = `${below ? at.bottom + 6 : Math.max(4, at.top - 6 - tip.offsetHeight)}px`;
  tip.style.left = `${Math.max(4, Math.min(at.left, innerWidth - tip.offsetWidth - 8))}px`;
}

function termOf(event) { return event.target.closest && event.target.closest(".term"); }

for (const kind of ["mouseover", "focusin", "click"]) {
  document.addEventListener(kind, (event) => { const term = termOf(event); if (term) explain(term); });
}
for (const kind of ["mouseout", "focusout"]) {
  document.addEventListener(kind, (event) => { if (termOf(event) && event.relatedTarget !== tip) tip.hidden = true; });
}
tip.addEventListener("mouseleave", () => { tip.hidden = true; });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
addEventListener("scroll", () => { tip.hidden = true; }, true);

refresh();
