// The page at /-/: what comes in (server-sent events), what is stored (/-/api/entries), how to point a tool here.
// Text from outside is only ever set as textContent.

const PAGE = 100;
const SPARK_POINTS = 60;
const $ = (id) => document.getElementById(id);
const here = `${location.origin}/`;

// -- text ------------------------------------------------------------------------------------------------------------

function size(bytes) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (bytes >= 1000 && unit < units.length - 1) { bytes /= 1000; unit += 1; }
  return `${unit && bytes < 100 ? bytes.toFixed(1) : Math.round(bytes)} ${units[unit]}`;
}

function duration(seconds) {
  if (seconds < 60) return `${Math.ceil(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

const ago = (at) => (at ? duration(Math.max(0, Date.now() / 1000 - at)) : "–");
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

function fileName(url) {
  const path = url.split("?")[0].replace(/\/$/, "");
  return decode(path.slice(path.lastIndexOf("/") + 1)) || url;
}

function decode(text) {
  try { return decodeURIComponent(text); } catch { return text; }
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function news(text) { $("news").textContent = text; }

// -- what comes in ---------------------------------------------------------------------------------------------------

const fills = new Map(); // key → { row, parts, samples: [[time, bytes]] }

function showFills(list, failures) {
  const keys = new Set(list.map((fill) => fill.key));
  let isOneOver = false;
  for (const [key, shown] of fills) {
    if (keys.has(key)) continue;
    isOneOver = true;
    const failure = failures.find((each) => each.url === shown.url.split("?")[0] && each.at >= shown.startedAt);
    news(failure ? `${fileName(shown.url)} failed: ${failure.message}` : `${fileName(shown.url)} is in`);
    shown.row.remove();
    fills.delete(key);
  }
  for (const fill of list) {
    if (!fills.has(fill.key)) fills.set(fill.key, newFill(fill));
    updateFill(fills.get(fill.key), fill);
  }
  $("no-fills").hidden = list.length > 0;
  $("none").textContent = list.length ? "Nothing is stored whole yet." : "Nothing is stored yet.";
  $("running-title").textContent = list.length ? `Coming in (${list.length})` : "Coming in";
  if (isOneOver) loadSoon();
}

function newFill(fill) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "spark");
  svg.setAttribute("viewBox", `0 0 ${SPARK_POINTS - 1} 20`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const path = svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "path"));
  const name = fileName(fill.url);
  const progress = make("progress", { ariaLabel: name });
  const facts = make("p", { className: "facts" });
  const trouble = make("p", { className: "trouble", hidden: true });
  const title = make("div", {}, make("div", { className: "name", textContent: name }), make("div", { className: "url", textContent: fill.url }));
  const row = make("li", {}, title, svg, progress, facts, trouble);
  $("fills").append(row);
  return { row, path, progress, facts, trouble, samples: [], rates: [], url: fill.url, startedAt: fill.started_at };
}

function updateFill(shown, fill) {
  const now = performance.now() / 1000;
  const { samples, rates } = shown;
  samples.push([now, fill.bytes]);
  while (samples.length > 2 && samples[0][0] < now - 5) samples.shift(); // the rate of the last five seconds
  const [then, before] = samples[0];
  const rate = samples.length > 1 && now > then ? (fill.bytes - before) / (now - then) : fill.rate;
  rates.push(rate);
  if (rates.length > SPARK_POINTS) rates.shift();
  const top = Math.max(...rates, 1);
  shown.path.setAttribute("d", rates.map((each, index) => `${index ? "L" : "M"}${SPARK_POINTS - rates.length + index} ${(19 - (18 * each) / top).toFixed(1)}`).join(""));

  if (fill.length) {
    shown.progress.max = fill.length;
    shown.progress.value = fill.bytes;
  }
  const done = fill.length ? `${size(fill.bytes)} of ${size(fill.length)} (${Math.floor((100 * fill.bytes) / fill.length)} %)` : size(fill.bytes);
  const left = fill.length && rate > 0 ? `${duration((fill.length - fill.bytes) / rate)} left` : null;
  const host = fill.source.split("/")[2] ?? fill.source;
  const state = fill.state === "asking" ? "asking upstream" : fill.length && fill.bytes === fill.length ? "checking and storing" : rate > 0 ? `${size(rate)}/s` : "nothing comes just now";
  shown.facts.replaceChildren(
    make("b", { textContent: done }),
    [` · ${state}`, left, plural(fill.readers, "reader"), `from ${host}`].filter(Boolean).join(" · "),
  );
  const mended = fill.resumes ? `Went on after ${plural(fill.resumes, "break")}. ` : "";
  shown.trouble.hidden = !fill.trouble;
  shown.trouble.textContent = fill.trouble ? `${mended}Last: ${fill.trouble}` : "";
}

function showTotals(status) {
  const { requests, sent_bytes: sent, fetched_bytes: fetched } = status.totals;
  const count = (...words) => words.reduce((sum, word) => sum + (requests[word] ?? 0), 0);
  const hits = count("HIT", "REVALIDATED", "STALE", "FOLLOW");
  const all = hits + count("MISS", "BYPASS");
  $("saved").textContent = size(Math.max(0, sent - fetched));
  $("saved-more").textContent = `${size(sent)} given out, ${size(fetched)} fetched`;
  $("hits").textContent = all ? `${Math.round((100 * hits) / all)} %` : "–";
  $("hits-more").textContent = `${plural(all, "request")}, ${plural(count("ERROR"), "error")}`;
  const { stored, reserved, max_size: most } = status.space;
  const free = Math.max(0, status.space.free); // below 0 while more is to come than fits
  $("stored-bytes").textContent = size(stored);
  $("disk").max = most || stored + free || 1;
  $("disk").value = stored;
  $("disk-more").textContent = `${most ? `of ${size(most)}` : `${size(free)} free`}${reserved ? `, ${size(reserved)} to come` : ""}`;
  const worker = status.workers[0];
  const how = [location.host, status.workers.length > 1 && `${status.workers.length} processes`, worker.offline && "offline: upstream is never asked", fleet(status), status.s3 && bucket(status.s3)];
  $("server").textContent = how.filter(Boolean).join(" · ");
}

function fleet({ peers, lease }) {
  const silent = Object.entries({ ...peers, Redis: lease ?? "answers" }).filter(([, state]) => state !== "answers");
  return silent.length > 0 && `left alone for a while: ${silent.map(([name]) => name).join(", ")}`;
}

function bucket({ absent, waiting, lookups, bytes }) {
  if (absent) return "the shared bucket does not answer";
  const hits = plural((lookups.hit ?? 0) + (lookups.stale ?? 0), "hit");
  return `shared bucket: ${hits}, ${size(bytes.read ?? 0)} from it${waiting ? `, ${waiting} on their way there` : ""}`;
}

function showFailures(failures) {
  $("failures-section").hidden = failures.length === 0;
  const rows = failures.slice(0, 20).map((failure) => {
    const at = new Date(failure.at * 1000);
    const time = make("time", { dateTime: at.toISOString(), textContent: `${at.toLocaleTimeString()} · ${failure.cause}` });
    return make("li", {}, make("div", { className: "name", textContent: fileName(failure.url) }), make("div", { textContent: failure.message }), time);
  });
  $("failures").replaceChildren(...rows);
}

function listen() {
  const events = new EventSource("/-/events");
  const say = (state, text) => { $("link").className = state; $("link").textContent = text; };
  events.addEventListener("open", () => { say("live", "live"); loadEntries(); });
  events.addEventListener("error", () => {
    say("lost", "the server does not answer; trying again");
    for (const { row } of fills.values()) row.remove(); // nobody knows what becomes of them
    fills.clear();
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, 3000);
  });
  events.addEventListener("status", (event) => {
    const status = JSON.parse(event.data);
    showTotals(status);
    showFills(status.fills, status.failures);
    showFailures(status.failures);
  });
}

// -- what is stored --------------------------------------------------------------------------------------------------

const view = { sort: "stored_at", order: "desc", shown: PAGE, asked: 0 };

async function call(path, method = "GET", body = undefined) {
  const answer = await fetch(path, { method, headers: body === undefined ? {} : { "Content-Type": "application/json" }, body: body === undefined ? undefined : JSON.stringify(body) });
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.message);
  return value;
}

let soon;
let loadedAt = 0;

// Hundreds of small files may come one after the other: the list is asked for every three seconds at most.
function loadSoon() {
  clearTimeout(soon);
  soon = setTimeout(loadEntries, Math.max(0, loadedAt + 3000 - Date.now()));
}

async function loadEntries() {
  loadedAt = Date.now();
  const number = (view.asked += 1);
  const query = new URLSearchParams({ q: $("search").value.trim(), sort: view.sort, order: view.order, limit: Math.min(view.shown, 1000) });
  let found;
  try { found = await call(`/-/api/entries?${query}`); } catch (error) { news(error.message); return; }
  if (number !== view.asked) return; // a later question has been asked meanwhile
  showEntries(found);
}

function showEntries({ total, bytes, entries }) {
  const isSearch = $("search").value.trim() !== "";
  const focused = document.activeElement?.closest("tr")?.dataset.key;
  const action = document.activeElement?.dataset?.action;
  $("rows").replaceChildren(...entries.map(entryRow));
  if (focused && action) document.querySelector(`tr[data-key="${focused}"] [data-action="${action}"]`)?.focus();
  $("entries").hidden = total === 0;
  $("first").hidden = total > 0 || isSearch;
  $("no-match").hidden = total > 0 || !isSearch;
  $("count").textContent = total ? `${plural(total, "URL")}, ${size(bytes)}` : "";
  $("more").hidden = entries.length >= total || view.shown >= 1000;
  for (const button of document.querySelectorAll("[data-sort]")) {
    const heading = button.closest("th");
    if (button.dataset.sort === view.sort) heading.setAttribute("aria-sort", view.order === "asc" ? "ascending" : "descending");
    else heading.removeAttribute("aria-sort");
  }
}

function entryRow(entry) {
  const name = fileName(entry.url);
  const tags = [];
  if (entry.verified) tags.push(make("span", { className: "tag good", textContent: "verified", title: `by ${entry.verified}` }));
  if (entry.state === "partial") tags.push(make("span", { className: "tag", textContent: entry.length ? `${Math.floor((100 * entry.size) / entry.length)} % is here` : "not whole" }));
  const number = (label, text) => { const cell = make("td", { className: "number", textContent: text }); cell.dataset.label = label; return cell; };
  const action = (id, text, label, run) => { const button = make("button", { type: "button", textContent: text, ariaLabel: label }); button.dataset.action = id; button.addEventListener("click", run); return button; };
  const actions = make("td", { className: "actions" });
  if (entry.state === "complete") {
    const pin = action("pin", entry.pinned ? "Pinned" : "Pin", `Pin ${name}: never evict it`, () => pinEntry(entry));
    pin.setAttribute("aria-pressed", String(entry.pinned));
    actions.append(pin, " ", action("verify", "Verify", `Verify ${name}: read it again and compare its digest`, (event) => verifyEntry(entry, event.currentTarget)), " ");
  }
  actions.append(action("remove", "Remove", `Remove ${name}`, () => removeEntry(entry)));
  const heading = make("th", { scope: "row" }, make("span", { className: "name", textContent: name }), ...tags, make("div", { className: "url", textContent: entry.url }));
  const row = make("tr", {}, heading, number("size", size(entry.size)), number("age", ago(entry.stored_at)), number("used", ago(entry.used_at)), number("hits", String(entry.hits)), actions);
  row.dataset.key = entry.key;
  return row;
}

async function attempt(work, done) {
  try { const value = await work(); news(done(value)); } catch (error) { news(error.message); }
  await loadEntries();
}

const pinEntry = (entry) => attempt(
  () => call(`/-/api/entries/${entry.key}/pin`, "POST", { pinned: !entry.pinned }),
  ({ pinned }) => `${fileName(entry.url)} is ${pinned ? "pinned" : "no longer pinned"}`,
);

function verifyEntry(entry, button) {
  button.disabled = true;
  button.textContent = "Reading…";
  return attempt(
    () => call(`/-/api/entries/${entry.key}/verify`, "POST", {}),
    ({ state, message }) => (state === "ok" ? `${fileName(entry.url)} is as it was stored` : `${fileName(entry.url)} is damaged: ${message}. It is fetched again when somebody asks for it`),
  ).then(() => document.querySelector(`tr[data-key="${entry.key}"] [data-action="verify"]`)?.focus());
}

async function removeEntry(entry) {
  const dialog = $("confirm");
  $("confirm-url").textContent = entry.url;
  dialog.returnValue = "no";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  if (dialog.returnValue !== "yes") return;
  await attempt(() => call(`/-/api/entries/${entry.key}`, "DELETE"), () => `${fileName(entry.url)} is removed`);
  $("stored").focus();
}

for (const button of document.querySelectorAll("[data-sort]")) {
  button.addEventListener("click", () => {
    const isSame = view.sort === button.dataset.sort;
    view.order = isSame ? (view.order === "asc" ? "desc" : "asc") : button.dataset.sort === "url" ? "asc" : "desc";
    view.sort = button.dataset.sort;
    loadEntries();
  });
}
let typing;
$("search").addEventListener("input", () => { clearTimeout(typing); view.shown = PAGE; typing = setTimeout(loadEntries, 150); });
$("more").addEventListener("click", () => { view.shown += PAGE; loadEntries(); });

// -- tools -----------------------------------------------------------------------------------------------------------

function copyLine({ text, about }) {
  const button = make("button", { type: "button", className: "copy", textContent: "Copy" });
  button.addEventListener("click", () => copy(text, button));
  const line = make("div", { className: "line" }, make("code", { textContent: text }), button);
  return about ? make("div", {}, make("p", { textContent: `${about}:` }), line) : line;
}

const withCode = (text) => text.split("`").map((part, index) => (index % 2 ? make("code", { textContent: part }) : part));

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    news("copied");
  } catch { // not allowed here, as on a plain http address of another machine: select it, Ctrl+C does the rest
    getSelection().selectAllChildren(button.previousElementSibling);
    button.textContent = "Selected";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}

async function loadTools() {
  const { tools, version } = await call("/-/api/tools");
  $("version").textContent = `fetchonce ${version}`;
  $("tool").replaceChildren(...tools.map((tool) => make("option", { value: tool.tool, textContent: tool.tool })));
  const show = () => {
    const tool = tools.find((each) => each.tool === $("tool").value);
    $("hint").replaceChildren(...tool.steps.map(copyLine), make("p", {}, ...withCode(tool.note)));
  };
  $("tool").addEventListener("change", show);
  show();
}

for (const element of document.querySelectorAll(".here")) element.textContent = here;
const example = `curl -fLO ${here}cloud-images.ubuntu.com/releases/noble/release/ubuntu-24.04-server-cloudimg-amd64.img`;
$("first-line").textContent = example;
$("first-line").nextElementSibling.addEventListener("click", (event) => copy(example, event.currentTarget));
listen();
loadTools().catch((error) => news(error.message));
setInterval(() => { if (!document.hidden) loadEntries(); }, 60_000); // ages and hits
