/* The page Accounts: shows connections with their ad accounts, and lets people connect, choose and disconnect. */
"use strict";

const byId = (id) => document.getElementById(id);
const list = byId("connections");
const root = list.dataset.root;
const clock = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "short" });
const QUIET_MS = 30_000;
const BUSY_MS = 1_500;

const TRYING = "The new consent is being tried.";
const STATES = {
  ok: ["ok", "Works"],
  expiring: ["paused", "Expiring"],
  invalid: ["trouble", "Invalid"],
  unchecked: ["waiting", "Not checked yet"],
  disconnected: ["paused", "Disconnected"],
  unchosen: ["waiting", "Not chosen"],
  unconnected: ["waiting", "Not connected yet"],
};
/* What the way back from Criteo is told by; nothing else of the address is ever shown. */
const RETURNED = {
  consented: "",
  cancelled: "You cancelled at Criteo. Nothing was stored.",
  refused: "Criteo did not give the consent. Nothing was stored; try again.",
  "consent-lost": "Criteo did not accept its own code any more. Nothing was stored; try again.",
  "wrong-client-pair": "Criteo does not know this pair of client id and secret. Correct the connection under Admin > Connections.",
  misconfigured: "The connection is not complete. Its sentence below says what to correct.",
  busy: "Criteo's rate limit was reached. Nothing was stored; try again in a minute.",
  unavailable: "Criteo did not answer. Nothing was stored; try again.",
};

function say(element, text) { if (element.textContent !== text) element.textContent = text; }
function show(element, visible) { if (element.hidden === visible) element.hidden = !visible; }
function part(element, name) { return element.querySelector(`[data-part="${name}"]`); }
function copy(template) { return byId(template).content.cloneNode(true); }
function fillList(holder, items, make, fill) {
  while (holder.children.length > items.length) holder.lastElementChild.remove();
  while (holder.children.length < items.length) holder.append(make());
  items.forEach((item, at) => fill(holder.children[at], item));
}
const newItem = () => document.createElement("li");
function path(connection, ...more) { return ["connections", connection, ...more].map(encodeURIComponent).join("/"); }
function accountName(account) { return account.name ? `${account.name} (${account.ad_account})` : account.ad_account; }

class Refused extends Error {}

async function ask(method, where, body) {
  const headers = { Accept: "application/json", [list.dataset.header]: "1" };
  if (body) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(`${root}/api/${where}`, { method, headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Refused("Airflow does not answer. Try again.");
  }
  const told = await answer.json().catch(() => ({}));
  if (answer.ok) return told;
  show(byId("sign-in"), answer.status === 401);
  if (answer.status === 401) throw new Refused("Your session has ended.");
  throw new Refused(typeof told.detail === "string" ? told.detail : `Airflow refused this (HTTP ${answer.status}).`);
}

/* Criteo cannot be shown inside a frame, so the whole window goes there; a link in the outer page may do that. */
function leaveFor(address) {
  const link = document.createElement("a");
  link.href = address;
  link.dataset.top = "";
  link.hidden = true;
  document.body.append(link);
  link.click();
  link.remove();
}

/* --- what is shown */

let book = { connections: [], may_write: false };

function fillBook() {
  const can = book.may_write && !book.cannot_connect;
  show(byId("connect"), can);
  const askSomebody = !book.may_write && book.connections.some((one) => ["invalid", "expiring", "unconnected"].includes(one.state));
  const notes = [askSomebody && "You may look. To connect or reconnect, ask somebody who may write Airflow connections.", book.cannot_connect, book.no_ledger && "There is no ledger yet; it is made when the first account is connected."];
  fillList(byId("notes"), notes.filter(Boolean), () => document.createElement("p"), say);
  show(byId("empty"), !book.connections.length);
  say(part(byId("empty"), "how"), can ? "Press Connect Criteo to begin." : "Ask somebody who may write Airflow connections to connect one.");
  fillList(list, book.connections, () => copy("connection"), fillConnection);
}

function fillConnection(section, connection) {
  section.dataset.connection = connection.connection_id;
  const title = part(section, "id");
  title.id = `connection-${connection.connection_id}`;
  say(title, connection.connection_id);
  section.setAttribute("aria-labelledby", title.id);
  fillState(part(section, "state"), connection.state);
  say(part(section, "sentence"), connection.sentence);
  say(part(section, "about"), about(connection));
  const byPerson = connection.grant_type === "authorization_code";
  const connected = connection.state !== "unconnected" && connection.grant_type !== null;
  button(section, "check", book.may_write && connected);
  button(section, "choose", book.may_write && (connected || connection.has_candidate) && !connection.handover?.running);
  const start = button(section, "start", book.may_write && byPerson && !book.cannot_connect && !connection.handover?.running);
  say(start, connected ? "Reconnect" : "Connect");
  fillCheck(part(section, "check"), connection);
  const table = section.querySelector("[role=region]");
  show(table, connection.accounts.length > 0);
  table.setAttribute("aria-label", `Ad accounts of ${connection.connection_id}`);
  fillList(table.querySelector("tbody"), connection.accounts, () => copy("account"), (row, account) => fillAccount(row, connection, account));
}

function button(section, name, visible) {
  const found = section.querySelector(`[data-do="${name}"]`);
  show(found, visible);
  found.setAttribute("aria-describedby", `connection-${section.dataset.connection}`);
  return found;
}

function fillState(element, state) {
  const [kind, words] = STATES[state] || ["waiting", state];
  element.className = `state ${kind}`;
  say(element, words);
}

function about(connection) {
  const told = [];
  if (connection.grant_type === "client_credentials") told.push("Client credentials: the application speaks for itself.");
  if (connection.by) told.push(`Connected by ${connection.by} on ${clock.format(new Date(connection.at))}.`);
  if (connection.checked) told.push(`Last check ${clock.format(new Date(connection.checked))}.`);
  if (connection.lives_in === "environment") told.push("This connection is set in the environment: it can be used and connected here, but not edited.");
  if (!connection.lives_in && connection.grant_type) told.push("Airflow's database does not hold this connection; if a secrets backend does, it can be used and connected here, but not edited.");
  if (connection.has_candidate && !connection.handover) told.push("A new consent waits for you to choose ad accounts.");
  return told.join(" ");
}

function fillCheck(box, connection) {
  const check = connection.handover;
  show(box, Boolean(check));
  if (!check) return;
  box.className = `check card ${check.running ? "running" : ""}`;
  const bar = box.querySelector("progress");
  show(bar, check.running);
  bar.max = Math.max(check.total, 1);
  bar.value = check.done;
  const interrupted = !check.running && !check.failures.length;
  const old = check.old_is_dead ? "The old one does not work any more." : "The old one is still in force.";
  say(box.querySelector("h3"), check.running
    ? `Trying the new consent: ${check.done} of ${check.total} done. ${check.old_is_dead ? old : "The old one goes on until all is well."}`
    : `${interrupted ? "The check of the new consent was interrupted." : "The new consent does not reach everything."} ${old}`);
  say(box.querySelector('[data-do="keep"]'), check.old_is_dead ? "Drop the new consent" : "Keep the old consent");
  fillList(box.querySelector("ul"), check.failures, newItem, say);
  show(box.querySelector(".buttons"), book.may_write);
  for (const name of ["again", "keep"]) show(box.querySelector(`[data-do="${name}"]`), name === "keep" || !check.running);
  show(box.querySelector('[data-do="anyway"]'), !check.running && check.old_is_dead);
}

function fillAccount(row, connection, account) {
  row.dataset.account = account.ad_account;
  say(part(row, "name"), account.name || account.ad_account);
  say(part(row, "id"), account.name ? account.ad_account : "");
  fillState(part(row, "state"), account.state);
  say(part(row, "sentence"), ["ok", "unchecked"].includes(account.state) ? "" : account.sentence === connection.sentence ? "See above." : account.sentence);
  say(part(row, "by"), account.usable && account.by ? `Chosen by ${account.by} on ${clock.format(new Date(account.at))}.` : "");
  say(part(row, "used"), account.used_by.join(", ") || "–");
  const action = part(row, "action");
  const known = account.usable || account.state === "disconnected";
  show(action, book.may_write && known);
  action.dataset.do = account.usable ? "disconnect" : "reconnect";
  say(action, account.usable ? "Disconnect" : "Reconnect");
  action.setAttribute("aria-label", `${action.textContent} ${accountName(account)}`);
}

/* --- what people do */

function dialog(id) {
  const box = byId(id);
  say(box.querySelector(".wrong"), "");
  if (!box.open) box.showModal();
  return box;
}

/* Run `act` when a dialog is confirmed; it closes when that went well, and says what went wrong otherwise. */
function onOk(id, act) {
  const box = byId(id);
  const ok = box.querySelector("[data-ok]");
  box.querySelector("[data-close]").addEventListener("click", () => box.close());
  box.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    ok.disabled = true;
    say(box.querySelector(".wrong"), "");
    try {
      await act(box);
      box.close();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      say(box.querySelector(".wrong"), error.message);
    } finally {
      ok.disabled = false;
    }
  });
}

function openNew() {
  const box = dialog("new");
  const known = book.connections.filter((one) => one.grant_type === "authorization_code");
  const ids = book.connections.map((one) => one.connection_id);
  const field = box.querySelector("[name=connection_id]");
  if (ids.includes(field.value)) field.value = "";
  fillList(part(box, "known"), known, () => document.createElement("label"), (label, one) => {
    const choice = document.createElement("input");
    Object.assign(choice, { type: "radio", name: "which", value: one.connection_id });
    label.replaceChildren(choice, ` ${one.connection_id}`);
  });
  show(byId("which"), known.length > 0);
  box.querySelector(known.length ? "[name=which]" : '[name=which][value=""]').checked = true;
  whichChanged();
  say(byId("redirect-uri"), book.redirect_uri);
  show(byId("redirect-note"), !book.redirect_uri.startsWith("https://"));
}

function which() { return byId("new").querySelector("[name=which]:checked").value; }
function whichChanged() {
  show(byId("fields"), which() === "");
  byId("fields").querySelectorAll("input").forEach((input) => { input.disabled = which() !== ""; });
}
byId("which").addEventListener("change", whichChanged);

onOk("new", async (box) => {
  const connection = which();
  if (connection) {
    leaveFor(`${root}/oauth/start/${encodeURIComponent(connection)}`);
    return;
  }
  const value = (name) => box.querySelector(`[name=${name}]`).value;
  const fields = ["connection_id", "client_id", "client_secret", "base_url"];
  const begun = await ask("POST", "connections", Object.fromEntries(fields.map((name) => [name, value(name)])));
  box.querySelector("[name=client_secret]").value = "";
  leaveFor(begun.start);
});

async function openChoose(connection) {
  tell("Asking Criteo for the ad accounts …");
  const offer = await ask("GET", path(connection, "offer"));
  tell("");
  const box = dialog("choose");
  box.dataset.connection = connection;
  const first = !offer.ad_accounts.some((one) => one.chosen);
  fillList(part(box, "offered"), offer.ad_accounts, () => document.createElement("label"), (label, one) => {
    const tick = document.createElement("input");
    Object.assign(tick, { type: "checkbox", value: one.ad_account, checked: one.chosen || (first && one.used_by.length > 0) });
    const used = document.createElement("span");
    used.className = "muted";
    say(used, one.used_by.length ? `used by ${one.used_by.join(", ")}` : "");
    label.replaceChildren(tick, ` ${accountName(one)} `, used);
  });
  show(byId("replaces"), offer.replaces);
  say(box.querySelector(".wrong"), offer.ad_accounts.length ? "" : "The consent covers no ad account. Reconnect, and choose some at Criteo.");
}

onOk("choose", async (box) => {
  const ticked = [...box.querySelectorAll("[type=checkbox]:checked")].map((tick) => tick.value);
  if (!ticked.length) throw new Refused("Choose at least one ad account, or press Later.");
  const answer = await ask("POST", path(box.dataset.connection, "choice"), { ad_accounts: ticked });
  tell(answer.done ? "Connected." : TRYING);
  await refresh();
  if (answer.done) press(byId(`connection-${box.dataset.connection}`).closest("section").querySelector('[data-do="check"]'));
});

let confirmed = async () => {};
function confirmFirst(title, what, steps, ok, act) {
  const box = dialog("confirm");
  say(byId("confirm-title"), title);
  say(part(box, "what"), what);
  fillList(part(box, "steps"), steps, newItem, say);
  say(box.querySelector("[data-ok]"), ok);
  confirmed = act;
}
onOk("confirm", async () => { await confirmed(); await refresh(); });

const ACTIONS = {
  check: async (connection) => {
    tell("Asking Criteo …");
    const verdict = await ask("POST", path(connection, "check"));
    tell(verdict.ok ? `${connection} works.` : verdict.sentence);
  },
  choose: (connection) => openChoose(connection),
  start: (connection) => leaveFor(`${root}/oauth/start/${encodeURIComponent(connection)}`),
  again: async (connection) => { await ask("POST", path(connection, "handover")); tell(TRYING); },
  anyway: async (connection) => { await ask("POST", path(connection, "handover", "anyway")); tell("The new consent is in force."); },
  keep: async (connection) => { await ask("DELETE", path(connection, "handover")); tell("The old consent stays in force."); },
  reconnect: async (connection, account) => {
    await ask("PUT", path(connection, "accounts", account.ad_account));
    tell(`${accountName(account)} is connected again.`);
  },
  disconnect: (connection, account) => {
    const steps = account.used_by.length
      ? "These steps stop at once; their people stay pending until it is connected again, for 13 hours at most. Others go on."
      : "No step uses it.";
    confirmFirst(`Disconnect ${accountName(account)}?`, steps, account.used_by, "Disconnect", async () => {
      await ask("DELETE", path(connection, "accounts", account.ad_account));
      tell(`${accountName(account)} is disconnected.`);
    });
  },
};

list.addEventListener("click", (event) => {
  const pressed = event.target.closest("button[data-do]");
  if (pressed) press(pressed);
});

async function press(pressed) {
  const id = pressed.closest("[data-connection]").dataset.connection;
  const row = pressed.closest("[data-account]");
  const connection = book.connections.find((one) => one.connection_id === id);
  const account = row && connection.accounts.find((one) => one.ad_account === row.dataset.account);
  pressed.disabled = true;
  try {
    await ACTIONS[pressed.dataset.do](id, account);
    await refresh();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    tell(error.message);
  } finally {
    pressed.disabled = false;
  }
}
byId("connect").addEventListener("click", openNew);

/* --- reading */

let said = "";
function tell(sentence) { said = sentence; say(byId("status"), sentence); }

function isBusy() { return book.connections.some((one) => one.handover?.running); }

let timer = 0;
async function refresh() {
  clearTimeout(timer);
  try {
    book = await ask("GET", "accounts");
    show(byId("sign-in"), false);
    fillBook();
    if (said === TRYING && !isBusy()) said = "";
    say(byId("status"), said);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    say(byId("status"), error.message);
  }
  timer = setTimeout(refresh, isBusy() ? BUSY_MS : QUIET_MS);
}

/* Somebody who comes back from Criteo is told how it went, and then chooses ad accounts; a reload tells nothing again. */
async function begin() {
  const query = new URLSearchParams(location.search);
  const connection = query.get("connection");
  const returned = query.get("returned");
  if (returned) history.replaceState(null, "", location.pathname);
  await refresh();
  if (!Object.hasOwn(RETURNED, returned)) return;
  tell(RETURNED[returned]);
  if (returned !== "consented" || !book.connections.some((one) => one.connection_id === connection)) return;
  try {
    await openChoose(connection);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    tell(error.message);
  }
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
begin();
