// The lists: requests as they end, breaks, sessions, prefixes.

const ROWS = 16;
let held = false;

// A list stays as it is while someone reads it: under the pointer, with the focus in it, or on hold.
const read = (list) => held || list.matches(":hover") || list.contains(document.activeElement);

// Why a list is empty: under policies that don't look at caches prompts may be passed on unread.
function nothing(otherwise) {
  const unread = flow.length && flow.every((one) => one.prompt_tokens === null);
  return unread ? "Not known: under this policy prompts are passed on unread (observe.prompts: always reads them)." : otherwise;
}

function drawRequests(fresh) {
  const table = $("requests");
  if (read(table)) return;
  const seen = new Set(fresh.map((one) => one.id));
  const make = (one) => {
    const reused = one.reused_tokens, parts = [[reused ?? 0, "reuse-fill"], [one.prompt_tokens - (reused ?? 0), reused === null ? "c5" : "compute-fill"]];
    const why = one.status >= 400 ? h("td", { class: "bad" }, `${one.status}`) : h("td", {}, words(one.reason), one.broken ? h("span", { class: "warn" }, " ▾ break") : null);
    const tokens = h("span", { class: "aside" }, reused === null ? short(one.prompt_tokens) : `${short(reused)} of ${short(one.prompt_tokens)}`);
    return h("tr", { class: seen.has(one.id) ? "fresh" : null },
      h("td", { class: "mute" }, clock(one.at)), h("td", {}, link("request", one.id, h("span", { class: "clip" }, one.id), "Why it went there")),
      h("td", {}, one.replica ?? "–"), why, h("td", {}, h("div", { class: "meter" }, bar(parts, one.prompt_tokens), tokens)), h("td", { class: "n" }, ms(one.ttft_ms)));
  };
  keyed(table.tBodies[0], flow.slice(0, ROWS), (one) => run + one.seq, make);
}

function drawBreaks(told) {
  if (read($("breaks"))) return;
  const make = (one) => h("li", {},
    h("div", { class: "row" }, h("span", {}, link("request", one.id, words(one.break.kind))), h("span", { class: "aside" }, clock(one.at))),
    h("div", { class: "mute" }, [one.break.message === null ? "" : `message ${one.break.message}, `, one.break.field, one.break.offset === null ? "" : `, character ${whole(one.break.offset)}`].join("") || "the chat template's text"),
    h("div", {}, `${whole(one.break.tokens_lost)} tokens lost, `, one.session ? link("session", one.session, `step ${one.step}`) : ""));
  keyed($("breaks"), told.breaks.slice(0, 7), (one) => run + one.seq, make);
  if (!told.breaks.length) $("breaks").replaceChildren(h("li", { class: "empty", "data-key": "none" }, nothing("None so far.")));
}

function drawSessions(told) {
  if (read($("sessions"))) return;
  text($("session-count"), `${whole(told.session_count)} remembered`);
  const make = (one) => h("tr", {},
    h("th", { scope: "row" }, link("session", one.id, h("span", { class: "clip" }, one.named_by_client ? one.name : one.id), one.name)),
    h("td", {}, h("span", { class: "clip" }, one.model)), h("td", { class: "n" }), h("td", { class: "n" }),
    h("td", {}, h("div", { class: "meter" }, bar([[1, "reuse-fill"]], 1), h("span"))), h("td"), h("td"), h("td", { class: "n" }));
  keyed($("sessions").tBodies[0], told.sessions, (one) => one.id, make, (row, one) => {
    const reused = share(one.reused_tokens, one.prompt_tokens), broken = Object.values(one.breaks).reduce((sum, count) => sum + count, 0);
    const names = Object.keys(one.replicas), cells = row.children;
    text(cells[2], whole(one.steps));
    text(cells[3], short(one.prompt_tokens));
    cells[4].querySelector(".bar span").style.width = (reused ?? 0) + "%";
    text(cells[4].querySelector(".meter > span"), percent(reused));
    text(cells[5], names.length > 2 ? `${names[0]} and ${names.length - 1} more` : names.join(", ") || "–");
    text(cells[6], broken ? `${broken}: ${Object.keys(one.breaks).map(words).join(", ")}` : "–");
    cells[6].className = broken ? "warn" : "mute";
    text(cells[7], duration(Math.max(0, told.now - one.last)) + " ago");
  });
}

function drawPrefixes(told) {
  const most = Math.max(...told.prefixes.map((one) => one.tokens * one.requests), 1);
  const make = (one) => h("li", {}, h("div", { class: "row" }, h("span"), h("span", { class: "aside" })), bar([[1, "reuse-fill"]], 1));
  keyed($("hot"), told.prefixes, (one) => one.key, make, (item, one) => {
    text(item.querySelector(".row").children[0], `${short(one.tokens)} tokens × ${one.requests < 10 ? one.requests.toFixed(1) : whole(one.requests)} requests`);
    text(item.querySelector(".aside"), one.model);
    item.title = "last block " + one.key;
    item.querySelector(".bar span").style.width = (100 * one.tokens * one.requests) / most + "%";
  });
  if (!told.prefixes.length) $("hot").append(h("li", { class: "empty", "data-key": "none" }, nothing("No prefix was sent twice lately.")));
}
