// Draws what /api/board says, every two seconds, and lets the clocks tick in between. Everything that comes from a vendor is
// text: it goes through `shown` into textContent, and nothing else.
"use strict";

const EVERY_MS = 2000;
const EVERY_UNSEEN_MS = 30000; // the title and the icon of a tab in the background go on telling
const PATIENCE_MS = 8000;
const FIRST_ROWS = { outputs: 25, archived: 10 };
const TOTALS = [
  ["lost", "lost", "bad"],
  ["held", "held", "soon"],
  ["overdue", "overdue", "bad"],
  ["at_risk", "at risk", "soon"],
  ["owed", "owed", ""],
  ["claimed", "being collected", "busy"],
  ["archived", "archived", ""],
];
const URGENCY = { overdue: "overdue", "at-risk": "at risk", fine: "in time" };

const byId = (id) => document.getElementById(id);
const ticking = new Map(); // element → how to write it anew for a moment in time
const unfolded = new Set(); // lists that are shown as far as they were read
let clockAheadMs = 0; // of this computer's clock over the ledger's
let lastGoodAt = null;
let last = null; // the board that stands
let tag = null; // its ETag
let source = new URLSearchParams(location.search).get("source") || "";

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

/** "820 B", "3.4 GiB". */
function bytes(size) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(units.length - 1, size < 1 ? 0 : Math.floor(Math.log2(size) / 10));
  const value = size / 1024 ** power;
  return `${power && value < 10 ? value.toFixed(1) : Math.round(value)} ${units[power]}`;
}

const number = (value) => value.toLocaleString("en");
const outputs = (count) => `${number(count)} output${count === 1 ? "" : "s"}`;
const local = (at) => new Date(at).toLocaleString([], { dateStyle: "medium", timeStyle: "medium" });
const ledgerNow = () => Date.now() - clockAheadMs;
const ago = (at, now) => `${span(Math.max(0, now - Date.parse(at)))} ago`;

/** A stranger's text with what would be unseen, or would turn the reading direction, spelt out: "invoice[U+202E]fdp.exe". */
function shown(text) {
  const unseen = /[\u0000-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
  return text.replace(unseen, (one) => `[U+${one.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}]`);
}

const nameOf = (row) => shown(row.filename || `job ${row.job_id}`);

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
function element(tag_, name, text) {
  const made = document.createElement(tag_);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Change a text only when it differs, so that neither a selection nor a screen reader is disturbed. */
function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Write a sentence of ours, in which `…` is a command. */
function prose(node, text) {
  if (node.dataset.text === text) return;
  node.dataset.text = text;
  node.replaceChildren(...text.split("`").map((part, index) => (index % 2 ? element("code", "", part) : part)));
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

/** Give the rows of a list that are shown now, and let its button show the others. */
function unfold(list, rows) {
  const most = unfolded.has(list) ? rows.length : FIRST_ROWS[list];
  const button = byId(`${list}-further`);
  button.hidden = rows.length <= most;
  write(button, `Show ${number(rows.length - most)} more`);
  return rows.slice(0, most);
}

/** A command to type, with a button that copies it. */
function command(text) {
  const line = element("li");
  const code = element("code", "", text);
  const button = element("button", "copy", "Copy");
  button.type = "button";
  button.setAttribute("aria-label", `Copy: ${text}`);
  button.addEventListener("click", async () => {
    let done = "Copied";
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      getSelection().selectAllChildren(code); // a page without TLS may not write there
      done = "Selected";
    }
    write(button, done);
    write(byId("said"), `${done}: ${text}`);
    setTimeout(() => write(button, "Copy"), 2000);
  });
  line.append(code, button);
  return line;
}

/** The archived outputs of a day, slot by slot; without a scale, since the words beside it have the numbers. */
function drawSpark(svg, flow) {
  const highest = Math.max(1, ...flow);
  let path = "";
  flow.forEach((count, slot) => {
    const height = count ? Math.max(2, (26 * count) / highest) : 0;
    if (height) path += `M${slot} 28v-${height.toFixed(1)}h1v${height.toFixed(1)}z`;
  });
  svg.firstElementChild.setAttribute("d", path);
}

function makeSpark(slots) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "spark");
  svg.setAttribute("viewBox", `0 0 ${slots} 28`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true"); // the words beside it say it
  svg.append(document.createElementNS("http://www.w3.org/2000/svg", "path"));
  return svg;
}

// --- the parts of the board ------------------------------------------------------------------------------------------

function drawHealth({ health, everything }) {
  const workers = `${number(health.workers)} worker${health.workers === 1 ? "" : "s"} alive`;
  const node = byId("health");
  node.className = `health ${health.ok ? "well" : "ill"}`;
  write(node, health.ok ? `live · ${workers}, beat ticks` : `${workers}${health.workers ? ", beat is silent" : ""}`);
  const troubles = health.ok ? [] : [`Outputs are not being collected as they should: ${health.reason}.`];
  if (everything) troubles.push(`Everything is paused: ${shown(everything.why)}.`);
  byId("silence").hidden = !troubles.length;
  prose(byId("silence"), troubles.length ? `${troubles.join(" ")} Deadlines go on.` : "");
}

/** One sentence for whoever was woken. It is read aloud when it changes, so it holds nothing that changes all the time. */
function drawVerdict({ totals, sources, health, everything }) {
  const needed = [totals.lost ? `${outputs(totals.lost)} lost` : "", totals.held ? `${outputs(totals.held)} held` : ""].filter(Boolean);
  const paused = everything ? ["everything"] : sources.filter((one) => one.paused_until).map((one) => one.name);
  const words = [];
  if (needed.length) words.push(`You are needed: ${needed.join(" and ")}.`);
  if (totals.overdue) words.push(`${outputs(totals.overdue)} overdue.`);
  if (totals.at_risk > totals.overdue) words.push(`${outputs(totals.at_risk - totals.overdue)} at risk.`);
  if (paused.length) words.push(`Paused: ${paused.join(", ")}.`);
  const failed = (one) => one.enabled && !one.paused_until && one.last_poll_result && one.last_poll_result !== "ok";
  const unlisted = everything ? [] : sources.filter(failed).map((one) => one.name);
  if (unlisted.length) words.push(`Last listing failed: ${unlisted.join(", ")}.`);
  const bad = totals.lost || totals.held || totals.overdue;
  if (!words.length) words.push(health.ok ? "All is well." : "Nothing is late yet.");
  byId("verdict").parentElement.className = `verdict ${bad ? "bad" : words[0] === "All is well." ? "well" : "soon"}`;
  write(byId("verdict"), words.join(" "));
  const deadlines = sources.map((one) => one.nearest_deadline).filter(Boolean).sort();
  tick(byId("verdict-more"), (now) => {
    if (!deadlines.length) return "Nothing is owed.";
    return bad || totals.at_risk ? "" : `${number(totals.owed + totals.claimed)} owed, nearest ${deadlineWords(deadlines[0], now)}.`;
  });
  const worst = totals.lost ? `${totals.lost} lost` : totals.overdue ? `${totals.overdue} overdue` : `${totals.owed + totals.claimed} owed`;
  document.title = `${worst} · lastcall`;
  byId("icon").href = bad || !health.ok ? "static/alarm.svg" : "static/icon.svg";
}

function drawTotals(all) {
  const totals = { ...all, at_risk: all.at_risk - all.overdue }; // at risk and not overdue yet, as the colours say it
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

function drawCases(section, { rows, more }, total, all) {
  section.hidden = total === 0;
  write(section.querySelector(".count"), number(total));
  arrange(
    section.querySelector(".cases"),
    rows,
    (row) => row.id,
    (row) => {
      const item = element("li");
      const title = element("p", "name");
      title.append(element("bdi"), ` · ${row.source}`);
      const commands = element("ul");
      commands.setAttribute("aria-label", "What to do");
      commands.append(...row.commands.map(command));
      item.append(title, element("p", "why"), commands);
      return item;
    },
    (item, row) => {
      write(item.children[0].firstElementChild, nameOf(row));
      tick(item.children[1], (now) => `${shown(row.last_error || "no reason given")} (${deadlineWords(row.deadline, now)})`);
    },
  );
  const rest = section.querySelector(".more");
  rest.hidden = more === 0;
  prose(rest, more ? `and ${number(more)} more: \`${all}\`` : "");
}

function stateWords(row, now) {
  if (row.state === "claimed") return ["being collected", row.attempts > 1 ? `, attempt ${row.attempts}` : ""];
  const waits = row.not_before && Date.parse(row.not_before) > now ? `, next try in ${span(Date.parse(row.not_before) - now)}` : "";
  return [URGENCY[row.urgency], `${waits}${row.last_error ? `: ${shown(row.last_error)}` : ""}`];
}

function drawOutputs({ rows, more }) {
  arrange(
    byId("outputs"),
    unfold("outputs", rows),
    (row) => row.id,
    (row) => {
      const item = element("li");
      const title = element("div");
      const where = element("p", "where", `${row.source} · job `);
      const name = element("p", "name");
      name.append(element("bdi", "", nameOf(row)));
      where.append(element("bdi", "", shown(row.job_id)));
      title.append(name, where);
      title.title = `${nameOf(row)}\n${row.id}`;
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
  const all = source ? `lastcall outputs --source ${source}` : "lastcall outputs";
  prose(byId("outputs-more"), more ? `and ${number(more)} more, less urgent: \`${all}\`` : "");
}

function drawNothing({ outputs: { rows }, sources, totals, health }) {
  const polled = sources.some((one) => one.last_poll_at);
  byId("nothing").hidden = rows.length > 0;
  if (!sources.length) write(byId("nothing"), "No source is configured.");
  else if (!polled) write(byId("nothing"), "No source was listed yet.");
  else if (!health.ok || sources.some((one) => one.enabled && (one.paused_until || one.last_poll_result !== "ok")))
    write(byId("nothing"), "Nothing is owed, as far as the vendors were listed.");
  else {
    const all = totals.archived && !totals.lost && !totals.held;
    write(byId("nothing"), all ? "Nothing is owed: what the vendors offer is archived." : "Nothing is owed.");
  }
}

const CELLS = ["Owed", "Held", "Lost", "Archived", "Last 24 hours", "Nearest deadline", "Last poll"];

function makeSource(one) {
  const row = element("tr");
  row.setAttribute("role", "row");
  const name = element("th", "", one.name);
  name.scope = "row";
  name.setAttribute("role", "rowheader");
  name.append(element("small"));
  row.append(name);
  for (const label of CELLS) {
    const cell = element("td");
    cell.setAttribute("role", "cell");
    cell.dataset.label = label; // what a narrow page shows in place of the heading
    cell.append(element("span"), element("small"));
    row.append(cell);
  }
  row.children[5].firstElementChild.append(makeSpark(one.flow.length));
  return row;
}

function drawSources({ sources, everything }) {
  arrange(byId("sources"), sources, (one) => one.name, makeSource, (row, one) => {
    const [name, owed, held, lost, archived, flow, deadline, poll] = row.children;
    write(name.lastElementChild, one.enabled ? one.vendor : `${one.vendor}, not enabled`);
    for (const [cell, count, kind] of [
      [owed, one.owed + one.claimed, ""],
      [held, one.held, "soon"],
      [lost, one.lost, "bad"],
      [archived, one.archived, ""],
    ]) {
      cell.className = `number ${count ? kind : "zero"}`;
      write(cell.firstElementChild, number(count));
    }
    write(owed.lastElementChild, one.claimed ? `${number(one.claimed)} being collected` : "");
    flow.className = "flow";
    drawSpark(flow.querySelector("svg"), one.flow);
    const day = `${number(one.day.outputs)} archived, ${bytes(one.day.size)}`;
    const hour = one.hour.outputs && one.hour.outputs !== one.day.outputs ? `\nlast hour ${number(one.hour.outputs)}, ${bytes(one.hour.size)}` : "";
    write(flow.lastElementChild, one.day.outputs ? day + hour : "nothing");
    deadline.className = one.overdue ? "overdue" : one.at_risk ? "at-risk" : "";
    tick(deadline.firstElementChild, (now) => (one.nearest_deadline ? left(one.nearest_deadline, now) : "–"));
    const soon = one.at_risk - one.overdue;
    const late = [one.overdue ? `${number(one.overdue)} overdue` : "", soon ? `${number(soon)} at risk` : ""];
    write(deadline.lastElementChild, late.filter(Boolean).join(", "));
    poll.className = `${one.last_poll_result && one.last_poll_result !== "ok" ? "poor" : ""} ${one.paused_until ? "paused" : ""}`;
    tick(poll.firstElementChild, (now) => (one.last_poll_at ? `${one.last_poll_result}, ${ago(one.last_poll_at, now)}` : "not yet"));
    tick(poll.lastElementChild, (now) => {
      const own = one.paused_until && one.paused_why !== everything?.why; // what pauses everything is said once, above
      if (own) return `paused for ${span(Math.max(0, Date.parse(one.paused_until) - now))}: ${shown(one.paused_why || "")}`;
      return shown(one.last_poll_error || "");
    });
  });
  const select = byId("source");
  byId("filter").hidden = sources.length < 2;
  const names = ["", ...sources.map((one) => one.name)];
  if (names.join() === [...select.options].map((option) => option.value).join()) return;
  select.replaceChildren(...names.map((name) => new Option(name || "all", name)));
  select.value = source;
}

function drawArchived(rows) {
  prose(byId("archived-advice"), rows.length ? "A name is a link into the bucket, made when you click and good for five minutes." : "Nothing since the ledger was made. What was archived before is in the bucket.");
  arrange(
    byId("archived"),
    unfold("archived", rows),
    (row) => `${row.id} ${row.archived_at}`,
    (row) => {
      const item = element("li");
      const link = element("a", "name");
      link.href = `open?output=${encodeURIComponent(row.id)}`;
      link.target = "_blank";
      link.rel = "noopener noreferrer";
      link.title = `${nameOf(row)}\n${row.id}`;
      link.append(element("bdi", "", nameOf(row)));
      item.append(link, element("p", "where", row.source), element("p", "size", bytes(row.size)), element("p", "when"));
      item.lastElementChild.title = local(row.archived_at);
      return item;
    },
    (item, row) => tick(item.lastElementChild, (now) => ago(row.archived_at, now)),
  );
}

function draw(board) {
  clockAheadMs = Date.now() - Date.parse(board.now);
  byId("board").hidden = false;
  drawHealth(board);
  drawVerdict(board);
  drawTotals(board.totals);
  drawForecast(board.totals);
  drawCases(byId("lost"), board.lost, board.totals.lost, "lastcall outputs --state lost");
  drawCases(byId("held"), board.held, board.totals.held, "lastcall outputs --state held");
  drawSources(board);
  drawOutputs(board.outputs);
  drawNothing(board);
  drawArchived(board.archived);
}

// --- life ------------------------------------------------------------------------------------------------------------

function trouble(text) {
  const since = lastGoodAt ? ` What stands below is of ${new Date(lastGoodAt).toLocaleTimeString()}.` : "";
  write(byId("trouble"), text ? text + since : "");
  byId("trouble").hidden = !text;
  document.body.classList.toggle("stale", Boolean(text));
  if (!text) return;
  byId("health").className = "health ill";
  write(byId("health"), "not live");
}

async function read() {
  let reply;
  const asked = source;
  try {
    reply = await fetch(`api/board${asked ? `?source=${encodeURIComponent(asked)}` : ""}`, {
      headers: tag ? { "If-None-Match": tag } : {},
      signal: AbortSignal.timeout(PATIENCE_MS),
    });
  } catch {
    return trouble("The board's server does not answer; it is asked again every two seconds.");
  }
  if (reply.status === 401) return trouble("The password is no longer taken; load the page again.");
  if (reply.status === 404 && asked) return choose(""); // the source was taken out of the configuration
  if (!reply.ok && reply.status !== 304) {
    const why = await reply.json().then((answer) => answer.error, () => `status ${reply.status}`);
    return trouble(`The ledger cannot be read: ${why}${/[.?!]$/.test(why) ? "" : "."}`);
  }
  const found = reply.status === 304 ? null : await reply.json().catch(() => undefined);
  if (found === undefined) return trouble("The board's server broke off.");
  if (asked !== source) return undefined; // another one was chosen meanwhile
  if (found) {
    last = found;
    tag = reply.headers.get("ETag");
  }
  lastGoodAt = Date.now();
  trouble("");
  if (found) return draw(found);
  return drawHealth(last);
}

function choose(name) {
  source = name;
  tag = null;
  byId("source").value = name;
  history.replaceState(null, "", name ? `?source=${encodeURIComponent(name)}` : location.pathname);
  return read();
}

async function live() {
  for (;;) {
    await read();
    const readAt = Date.now();
    // Until it is time, or somebody looks again.
    await new Promise((resolve) => {
      const waiting = setInterval(() => {
        if (Date.now() - readAt < (document.hidden ? EVERY_UNSEEN_MS : EVERY_MS)) return;
        clearInterval(waiting);
        resolve();
      }, 250);
    });
  }
}

setInterval(() => {
  for (const [node, text] of ticking) write(node, text(ledgerNow()));
}, 1000);
for (const list of Object.keys(FIRST_ROWS)) {
  byId(`${list}-further`).addEventListener("click", () => {
    const next = byId(list).children.length;
    unfolded.add(list);
    draw(last);
    const row = byId(list).children[next]; // where reading goes on, also for who does not see the page
    row.tabIndex = -1;
    row.focus({ preventScroll: true });
  });
}
byId("source").addEventListener("change", (event) => choose(event.target.value));
live();
