// Asks the router every second, says when it is away, and opens what the address (#request/ID, ...) names.

const PAUSE = 1000, PATIENCE = 5000, FLOW = 600;
const KINDS = { request: showRequest, session: showSession, replica: showReplica, state: showState };
let live = null, run = "", seq = 0, flow = [], missed = 0;

async function ask(path) {
  const answer = await fetch(path, { headers: { accept: "application/json" }, signal: AbortSignal.timeout(PATIENCE), cache: "no-store" });
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(told.error?.message || `The router answered ${answer.status}.`);
  return told;
}

async function poll() {
  try {
    const told = await ask("live?since=" + seq);
    if (run && told.run !== run) {
      if (seq > 0) {  // asked with the numbering of another run
        [seq, flow, run, missed] = [0, [], told.run, 0];
        say("The router was restarted.");
        return void setTimeout(poll, 0);
      }
    } else if (missed > 1) say("The router answers again.");
    document.body.classList.remove("away");
    [missed, run, seq, live] = [0, told.run, told.seq, told];
    draw(told);
  } catch (error) {
    missed += 1;
    if (missed > 1) away(error);
  }
  setTimeout(poll, PAUSE);
}

function draw(told) {
  flow = [...told.requests, ...flow].slice(0, FLOW);
  remember(told.timeline, told.now);
  $("state").dataset.state = told.ready.status;
  text($("state"), told.ready.status[0].toUpperCase() + told.ready.status.slice(1));
  text($("heard"), clock(told.now));
  drawFigures(told);
  drawChart(told.now);
  drawPrefixes(told);
  drawFleet(told);
  drawRequests(told.requests);
  drawBreaks(told);
  drawSessions(told);
}

function away(error) {
  document.body.classList.add("away");
  $("state").dataset.state = "away";
  text($("state"), "Away");
  const since = live ? `, last heard at ${clock(live.now)}` : "";
  say(`The router does not answer${since}. Asking again every second. (${error.message})`, true);
}

let quiet = 0;
function say(message, stays = false) {
  clearTimeout(quiet);
  text($("news"), message);
  if (!stays) quiet = setTimeout(() => text($("news"), ""), 8000);
}

async function showState(id, body) {
  if (!live) throw new Error("The router has not answered yet.");
  const { ready } = live;
  const lead = ready.degraded.length ? "Requests flow; this is not as it should be:" : "Everything is as it should be.";
  body.append(h("p", { class: "lead" }, ready.status === "unavailable" ? "No request can be routed." : lead), h("ul", {}, ready.degraded.map((line) => h("li", {}, line))));
}

let opener = null;
async function openDetail() {
  const [kind, id] = location.hash.slice(1).split("/", 2), dialog = $("detail");
  if (!(kind in KINDS)) return void (dialog.open && dialog.close());
  if (!dialog.open) opener = document.activeElement;
  const name = decodeURIComponent(id ?? ""), body = h("div");
  text($("detail-title"), kind === "state" ? "State" : `${kind[0].toUpperCase()}${kind.slice(1)} ${name}`);
  $("detail-body").replaceChildren(h("p", { class: "mute" }, "Asking the router"));
  if (!dialog.open) dialog.showModal();
  $("detail-title").focus();
  try {
    await KINDS[kind](name, body);
  } catch (error) {
    body.replaceChildren(h("p", { class: "lead" }, error.message));
  }
  if (location.hash.slice(1).split("/", 2).join("/") === [kind, id].filter((part) => part !== undefined).join("/")) {
    $("detail-body").replaceChildren(body);
    dialog.scrollTop = 0;
  }
}

function theme(next) {
  const choices = ["system", "light", "dark"], dark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = choices.includes(localStorage.getItem("theme")) ? localStorage.getItem("theme") : "system";
  if (next) localStorage.setItem("theme", (chosen = choices[(choices.indexOf(chosen) + 1) % 3]));
  document.documentElement.classList.toggle("dark", chosen === "dark" || (chosen === "system" && dark.matches));
  text($("theme"), "Theme: " + chosen);
}

$("theme").addEventListener("click", () => theme(true));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme(false));
$("state").addEventListener("click", () => live && (location.hash = "state"));
$("hold").addEventListener("click", () => $("hold").setAttribute("aria-pressed", String((held = !held))));
$("detail").addEventListener("close", () => {
  history.replaceState(null, "", location.pathname + location.search);
  opener?.focus?.();
});
$("detail").addEventListener("click", (event) => event.target === $("detail") && $("detail").close());
addEventListener("hashchange", openDetail);
theme(false);
poll().then(openDetail);
