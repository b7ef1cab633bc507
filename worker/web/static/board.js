// Draws what /api/board says, every two seconds, and lets the clocks tick in between. Everything that comes from a vendor is
// text: it goes through textContent and nothing else.
"use strict";

const EVERY_MS = 2000;
const PATIENCE_MS = 8000;
const TOTALS = [
  ["archived", "archived", ""],
  ["claimed", "being collected", "busy"],
  ["owed", "owed", ""],
  ["at_risk", "at risk", "soon"],
  ["overdue", "overdue", "bad"],
  ["held", "held", "soon"],
  ["lost", "lost", "bad"],
];
const URGENCY = { overdue: "overdue", "at-risk": "at risk", fine: "in time" };

const byId = (id) => document.getElementById(id);
const ticking = new Map(); // element → how to write it anew for a moment in time
let clockAheadMs = 0; // of this computer's clock over the ledger's
let lastGoodAt = null;
let knownLost = null;

// --- words -----------------------------------------------------------------------------------------------------------

/** A span in its largest unit and the one below it: "3d 4h", "12m 5s". */
function span(ms) {
  const seconds = Math.floor(Math.abs(ms) / 1000);
  const units = [["d", 86400], ["h", 3600], ["m", 60], ["s", 1]];
  const largest = Math.max(0, units.findIndex(([, size]) => seconds >= size));
  if (seconds === 0) return "0s";
  const parts = [];
  let rest = seconds;
  for (const [unit, size] of units.slice(largest, largest + 2)) {
    if (rest >= size) parts.push(Math.floor(rest / size) + unit);
    rest %= size;
  }
  return parts.join(" ");
}

const number = (value) => value.toLocaleString("en");
const local = (at) => new Date(at).toLocaleString([], { dateStyle: "medium", timeStyle: "medium" });
const ledgerNow = () => Date.now() - clockAheadMs;

function left(deadline, now) {
  const ms = Date.parse(deadline) - now;
  return ms > 0 ? span(ms) : `${span(ms)} over`;
}

function deadlineWords(deadline, now) {
  const ms = Date.parse(deadline) - now;
  return ms > 0 ? `deadline in ${span(ms)}` : `deadline passed ${span(ms)} ago`;
}

// --- small parts of the page -----------------------------------------------------------------------------------------

/** An element with this class and this text. */
function element(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Change a text only when it differs, so that neither a selection nor a screen reader is disturbed. */
function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Keep a text right from second to second. */
function tick(node, text) {
  ticking.set(node, text);
  write(node, text(ledgerNow()));
}

/** Make the children of `parent` those of `rows`, in this order; a row that stays keeps its element. */
function arrange(parent, rows, key, make, update) {
  const wanted = new Set(rows.map(key));
  const standing = new Map();
  for (const child of [...parent.children]) {
    if (wanted.has(child.dataset.key)) standing.set(child.dataset.key, child);
    else {
      for (const node of child.querySelectorAll("*")) ticking.delete(node);
      child.remove();
    }
  }
  let place = parent.firstElementChild;
  for (const row of rows) {
    let child = standing.get(key(row));
    if (!child) {
      child = make(row);
      child.dataset.key = key(row);
    }
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
    update(child, row);
  }
}

function showMore(node, more, what) {
  node.hidden = more === 0;
  write(node, more ? `and ${number(more)} more: ${what}` : "");
}

// --- the parts of the board ------------------------------------------------------------------------------------------

function drawHealth(board) {
  const { health } = board;
  const node = byId("health");
  node.className = `health ${health.ok ? "well" : "ill"}`;
  const workers = `${health.workers} worker${health.workers === 1 ? "" : "s"} alive`;
  if (health.ok) tick(node, (now) => `${workers}, beat ticked ${span(Math.max(0, now - Date.parse(health.beat_at)))} ago`);
  else {
    ticking.delete(node);
    write(node, health.reason);
  }
}

function drawTotals(totals) {
  arrange(
    byId("totals"),
    TOTALS,
    ([field]) => field,
    ([, word]) => {
      const tile = element("div");
      tile.append(element("dt", "", word), element("dd"));
      return tile;
    },
    (tile, [field, , kind]) => {
      tile.className = totals[field] ? kind : "zero";
      write(tile.lastElementChild, number(totals[field]));
    },
  );
}

function drawForecast({ forecast }) {
  const node = byId("forecast");
  node.hidden = forecast.open === 0;
  node.className = `forecast ${forecast.missed ? "soon" : ""}`;
  write(node, `Forecast: ${forecast.text}.`);
}

function drawCases(section, { rows, more }, total, command) {
  section.hidden = total === 0;
  write(section.querySelector(".count"), number(total));
  arrange(
    section.querySelector(".cases"),
    rows,
    (row) => row.id,
    (row) => {
      const item = element("li");
      const commands = element("ul");
      commands.setAttribute("aria-label", "What to do");
      for (const text of row.commands) {
        const line = element("li");
        line.append(element("code", "", text));
        commands.append(line);
      }
      item.append(element("p", "name"), element("p", "why"), commands);
      return item;
    },
    (item, row) => {
      write(item.children[0], `${row.filename || `job ${row.job_id}`} · ${row.source}`);
      tick(item.children[1], (now) => `${row.last_error || "no reason given"} (${deadlineWords(row.deadline, now)})`);
    },
  );
  showMore(section.querySelector(".more"), more, command);
}

function stateWords(row, now) {
  if (row.state === "claimed") return ["being collected", row.attempts > 1 ? `, attempt ${row.attempts}` : ""];
  const waits = row.not_before && Date.parse(row.not_before) > now ? `, next try in ${span(Date.parse(row.not_before) - now)}` : "";
  return [URGENCY[row.urgency], `${waits}${row.last_error ? `: ${row.last_error}` : ""}`];
}

function drawOutputs({ rows, more }) {
  arrange(
    byId("outputs"),
    rows,
    (row) => row.id,
    (row) => {
      const item = element("li");
      const title = element("div");
      title.append(element("p", "name", row.filename || `job ${row.job_id}`), element("p", "where", `${row.source} · job ${row.job_id}`));
      title.title = row.id;
      const bar = element("div", "bar");
      bar.setAttribute("role", "img");
      bar.append(element("div", "used"));
      const state = element("p", "state");
      state.append(element("b"), element("span"));
      item.append(title, bar, element("p", "left"), state);
      return item;
    },
    (item, row) => {
      const [, bar, remaining, state] = item.children;
      const ready = Date.parse(row.ready_at);
      const life = Math.max(1, Date.parse(row.deadline) - ready);
      const used = Math.min(100, Math.max(0, (100 * (ledgerNow() - ready)) / life));
      item.className = row.state === "claimed" ? "claimed" : row.urgency;
      bar.firstElementChild.style.width = `${used.toFixed(1)}%`;
      bar.title = `ready ${local(row.ready_at)}, deadline ${local(row.deadline)}`;
      bar.setAttribute("aria-label", `${Math.round(used)} % of its time is over; deadline ${local(row.deadline)}`);
      tick(remaining, (now) => left(row.deadline, now));
      const [word, detail] = stateWords(row, ledgerNow());
      write(state.firstElementChild, word);
      tick(state.lastElementChild, (now) => stateWords(row, now)[1]);
      state.title = detail;
    },
  );
  showMore(byId("outputs-more"), more, "lastcall outputs");
}

function drawNothing(board) {
  const { owed, claimed, archived } = board.totals;
  const polled = board.sources.some((source) => source.last_poll_at);
  byId("nothing").hidden = owed + claimed > 0;
  if (!board.sources.length) write(byId("nothing"), "No source is configured.");
  else if (!polled) write(byId("nothing"), "No source was listed yet.");
  else write(byId("nothing"), archived ? "Nothing is owed: what the vendors offer is archived." : "Nothing is owed.");
}

function drawSources(sources) {
  const columns = ["owed", "claimed", "archived", "held", "lost"];
  arrange(
    byId("sources"),
    sources,
    (source) => source.name,
    (source) => {
      const row = element("tr");
      const name = element("th", "", source.name);
      name.scope = "row";
      name.append(element("small", "", source.vendor));
      const deadline = element("td");
      deadline.append(element("span"), element("small"));
      const poll = element("td");
      poll.append(element("span"), element("small"));
      row.append(name, ...columns.map(() => element("td", "number")), deadline, poll);
      return row;
    },
    (row, source) => {
      write(row.children[0].lastElementChild, source.enabled ? source.vendor : `${source.vendor}, not enabled`);
      columns.forEach((column, index) => {
        const cell = row.children[index + 1];
        const kind = { lost: "bad", held: "soon" }[column] || "";
        cell.className = `number ${source[column] ? kind : "zero"}`;
        write(cell, number(source[column]));
      });
      const [deadline, poll] = [row.children[6], row.children[7]];
      deadline.className = source.overdue ? "overdue" : source.at_risk ? "at-risk" : "";
      tick(deadline.firstElementChild, (now) => (source.nearest_deadline ? left(source.nearest_deadline, now) : "–"));
      const overdue = source.overdue ? `, ${number(source.overdue)} of them overdue` : "";
      write(deadline.lastElementChild, source.at_risk ? `${number(source.at_risk)} at risk${overdue}` : "");
      poll.className = source.paused_until ? "paused" : "";
      tick(poll.firstElementChild, (now) => {
        if (!source.last_poll_at) return "not yet";
        return `${source.last_poll_result}, ${span(Math.max(0, now - Date.parse(source.last_poll_at)))} ago`;
      });
      tick(poll.lastElementChild, (now) => {
        if (!source.paused_until) return "";
        return `paused for ${span(Math.max(0, Date.parse(source.paused_until) - now))}: ${source.paused_why || ""}`;
      });
    },
  );
}

function announce(board) {
  const { lost, overdue } = board.totals;
  if (knownLost !== null && lost > knownLost) write(byId("announce"), `${lost} output${lost === 1 ? " is" : "s are"} lost.`);
  knownLost = lost;
  const worst = lost ? `${lost} lost` : overdue ? `${overdue} overdue` : `${board.totals.owed + board.totals.claimed} owed`;
  document.title = `${worst} · lastcall`;
}

function draw(board) {
  clockAheadMs = Date.now() - Date.parse(board.now);
  drawHealth(board);
  drawTotals(board.totals);
  drawForecast(board.totals);
  drawCases(byId("lost"), board.lost, board.totals.lost, "lastcall outputs --state lost");
  drawCases(byId("held"), board.held, board.totals.held, "lastcall outputs --state held");
  drawOutputs(board.outputs);
  drawNothing(board);
  drawSources(board.sources);
  announce(board);
}

// --- life ------------------------------------------------------------------------------------------------------------

function trouble(text) {
  const since = lastGoodAt ? ` What stands below is of ${new Date(lastGoodAt).toLocaleTimeString()}.` : "";
  write(byId("trouble"), text ? text + since : "");
  byId("trouble").hidden = !text;
  document.body.classList.toggle("stale", Boolean(text));
}

async function read() {
  let reply;
  try {
    reply = await fetch("api/board", { signal: AbortSignal.timeout(PATIENCE_MS) });
  } catch {
    return trouble("The board's server does not answer.");
  }
  if (reply.status === 401) return trouble("The password is no longer taken; load the page again.");
  if (!reply.ok) {
    const why = await reply.json().then((answer) => answer.error, () => `status ${reply.status}`);
    return trouble(`The ledger cannot be read: ${why}.`);
  }
  draw(await reply.json());
  lastGoodAt = Date.now();
  return trouble("");
}

async function live() {
  for (;;) {
    if (!document.hidden) await read();
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
  }
}

setInterval(() => {
  for (const [node, text] of ticking) write(node, text(ledgerNow()));
}, 1000);
document.addEventListener("visibilitychange", () => document.hidden || read());
live();
