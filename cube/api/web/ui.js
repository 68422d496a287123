// The first dashboard: asks each second, draws what it is told. Text is set as text, never as HTML.
"use strict";

const PERIOD_MS = 1000;
const ADDRESSES_MAX = 6; // links per job
const PAGES_MAX = 10; // of 1,000 tasks: more boxes tell nobody anything

const byId = (id) => document.getElementById(id);

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

const TOKEN = "cube-token"; // in the tab's own storage: no cookie that a browser sends by itself

async function read(path) {
  const headers = { Accept: "application/json" };
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.Authorization = `Bearer ${token}`;
  const answer = await fetch(path, { headers });
  const body = await answer.json();
  if (answer.status === 401) {
    askForToken(token ? body.detail : "");
    throw new Unanswered();
  }
  if (!answer.ok) throw new Error(body.detail || answer.statusText);
  return body;
}

class Unanswered extends Error {}

function askForToken(why) {
  sessionStorage.removeItem(TOKEN);
  byId("login").hidden = false;
  document.querySelector("main").hidden = true;
  byId("summary").textContent = "this cluster asks who you are";
  if (why) trouble(why);
}

byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, byId("token").value.trim());
  byId("token").value = "";
  byId("login").hidden = true;
  document.querySelector("main").hidden = false;
  trouble("");
});

// A link into the API opens here: followed by the browser, it would not carry the token.
document.addEventListener("click", async (event) => {
  const link = event.target.closest("a[href^='/v1/']");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  byId("details-title").textContent = link.title.split("\n")[0] || link.textContent;
  try {
    byId("details-text").textContent = JSON.stringify(await read(link.getAttribute("href")), null, 2);
  } catch (error) {
    if (error instanceof Unanswered) return;
    byId("details-text").textContent = error.message;
  }
  byId("details").showModal();
});

async function readAll(path, query = "") {
  const items = [];
  let cursor = "";
  for (let page = 0; page < PAGES_MAX; page++) {
    const body = await read(`${path}?limit=1000${query}${cursor}`);
    items.push(...body.items);
    if (!body.next) break;
    cursor = `&cursor=${encodeURIComponent(body.next)}`;
  }
  return items;
}

function size(bytes) {
  return bytes >= 2 ** 30 ? `${(bytes / 2 ** 30).toFixed(1)} GiB` : `${Math.round(bytes / 2 ** 20)} MiB`;
}

function taskBox(task) {
  const look = task.state === "running" && task.health === "unhealthy" ? "unhealthy" : task.state;
  const box = element("a", `task ${look}`, String(task.slot));
  const why = task.message || task.reason;
  box.title = `${task.name}: ${task.state}${task.health ? ", " + task.health : ""}${why ? "\n" + why : ""}`;
  box.href = `/v1/tasks/${encodeURIComponent(task.id)}`;
  return box;
}

function measure(label, used, capacity, text) {
  const parts = document.createDocumentFragment();
  const line = element("div", "measure");
  line.append(element("span", "", label), element("span", "", `${text(used)} of ${text(capacity)}`));
  const bar = element("div", "bar");
  const fill = element("i");
  fill.style.width = `${capacity ? Math.min(100, (100 * used) / capacity) : 0}%`;
  bar.append(fill);
  parts.append(line, bar);
  return parts;
}

function nodeCard(node, tasks) {
  const card = element("article", `node ${node.status}`);
  const title = element("h3");
  const note = node.status !== "ready" ? node.status : node.draining ? "draining" : node.eligible ? "" : "cordoned";
  title.append(element("span", "", node.name), element("small", "", note));
  title.append(element("span", `badge ${node.role}`, node.role));
  const boxes = element("div", "tasks");
  boxes.append(...tasks.map(taskBox));
  card.append(
    title,
    measure("cores reserved", node.reserved.cpu, node.capacity.cpu, (n) => String(Math.round(n * 100) / 100)),
    measure("memory reserved", node.reserved.memory, node.capacity.memory, size),
    boxes,
  );
  return card;
}

function addresses(tasks) {
  const serving = tasks.filter((task) => task.state === "running" && task.health !== "unhealthy");
  return serving.flatMap((task) =>
    Object.values(task.ports)
      .filter((port) => port.protocol === "tcp")
      .map((port) => `${task.address}:${port.host}`),
  );
}

// The newest deployment of each job, while there is something to say of it.
function rollouts(newest) {
  return new Map(newest.filter((one) => one.status !== "successful").map((one) => [one.job, one]));
}

function versionCell(job, rollout) {
  const cell = element("td", "", `v${job.version}`);
  if (!rollout || rollout.version !== job.version || !rollout.replaces) return cell;
  const groups = Object.values(rollout.groups);
  const sum = (key) => groups.reduce((total, group) => total + group[key], 0);
  const word = rollout.awaits_promotion ? "canaries wait to be promoted" : rollout.status === "running" ? "rolling out" : rollout.status;
  const note = element("small", "rollout", ` ${word}, ${sum("healthy")} of ${sum("desired")}`);
  note.title = rollout.message;
  cell.append(note);
  return cell;
}

// A cron job's last run, and when the next one is due; its history behind the link.
function runsCell(job) {
  const cell = element("td");
  const [run] = job.runs;
  if (run) {
    const at = run.finished_at || run.started_at || run.scheduled_at;
    const link = element("a", "", `${run.run === null ? "" : `run ${run.run} `}${run.status}`);
    link.href = `/v1/jobs/${encodeURIComponent(job.name)}/runs`;
    link.title = `runs of ${job.name}${run.message ? "\n" + run.message : ""}`;
    cell.append(link, at ? ` ${moment(at)}` : "");
  } else {
    cell.append("no run yet");
  }
  if (job.next_run_at) cell.append(element("small", "soft", ` next ${moment(job.next_run_at)}`));
  return cell;
}

// In the browser's own time zone; the day only when it is another one.
function moment(text) {
  const at = new Date(text);
  const day = at.toDateString() === new Date().toDateString() ? "" : `${at.toLocaleDateString()} `;
  return day + at.toLocaleTimeString();
}

function jobRow(job, tasks, rollout) {
  const row = element("tr");
  const groups = Object.values(job.groups);
  const sum = (key) => groups.reduce((total, group) => total + group[key], 0);
  const done = job.type === "batch" ? `${sum("completed")} of ${sum("count")} complete` : `${sum("healthy")} of ${sum("count")}`;
  const name = element("td");
  const link = element("a", "", job.name);
  link.href = `/v1/jobs/${encodeURIComponent(job.name)}/why`;
  link.title = "why it is as it is";
  name.append(link);
  const status = element("td");
  status.append(element("span", `badge ${job.status}`, job.status));
  const places = element("td");
  const found = addresses(tasks);
  for (const address of found.slice(0, ADDRESSES_MAX)) {
    const place = element("a", "", address);
    place.href = `http://${address}/`;
    places.append(place, " ");
  }
  if (found.length > ADDRESSES_MAX) places.append(`and ${found.length - ADDRESSES_MAX} more`);
  const progress = job.type === "cron" ? runsCell(job) : element("td", "", done);
  row.append(name, element("td", "", job.type), versionCell(job, rollout), status, progress, places);
  return row;
}

function show(status, nodes, tasks, jobs, deployments) {
  byId("cluster").textContent = status.cluster_name || "Cube";
  const leader = status.leader ? `leader ${status.leader.name}` : "no leader";
  byId("summary").textContent =
    `${leader} · term ${status.term} · index ${status.applied_index} · ${status.voters.length} voters · answered by ${status.node.name}`;
  trouble(status.quorum ? "" : "There is no quorum: reads go on, changes wait.");
  byId("warnings").hidden = status.warnings.length === 0;
  byId("warnings").replaceChildren(...status.warnings.map((text) => element("li", "", text)));
  byId("nodes").replaceChildren(
    ...nodes.map((node) => nodeCard(node, tasks.filter((task) => task.node_id === node.id))),
  );
  byId("jobs").hidden = jobs.length === 0;
  const underWay = rollouts(deployments);
  byId("job-rows").replaceChildren(
    ...jobs.map((job) => jobRow(job, tasks.filter((task) => task.job === job.name), underWay.get(job.name))),
  );
  const unplaced = tasks.filter((task) => task.node_id === null);
  byId("waiting").hidden = unplaced.length === 0;
  byId("unplaced").replaceChildren(...unplaced.map(taskBox));
  byId("empty").hidden = jobs.length > 0;
}

function trouble(text) {
  byId("trouble").textContent = text;
  byId("trouble").hidden = !text;
}

async function round() {
  if (!document.hidden && byId("login").hidden) {
    try {
      show(
        await read("/v1/status"),
        await readAll("/v1/nodes"),
        await readAll("/v1/tasks"),
        await readAll("/v1/jobs"),
        await readAll("/v1/deployments", "&latest=1"),
      );
    } catch (error) {
      if (!(error instanceof Unanswered)) trouble(`This node does not answer as it should: ${error.message}`);
    }
  }
  setTimeout(round, PERIOD_MS);
}

round();
