// The key figures, the fleet, and each replica's requests of the last minute as they come in.

function drawFigures(told) {
  const sum = total(told.now - 300, told.now + BUCKET), last = total(told.now - 65, Math.floor(told.now / BUCKET) * BUCKET);
  const running = told.replicas.reduce((all, one) => all + one.running, 0), totals = told.totals;
  const up = told.replicas.filter((one) => one.health === "up").length;
  const figures = [
    ["Reused, last 5 min", percent(share(sum.reused_tokens, sum.prompt_tokens)), `of ${short(sum.prompt_tokens)} prompt tokens`],
    ["Requests", (last.requests / 60).toFixed(1) + " /s", `${whole(running)} running` + (sum.errors ? `, ${whole(sum.errors)} failed in 5 min` : "")],
    ["First token, last 5 min", sum.answered ? ms((sum.ttft_s / sum.answered) * 1e3) : "–", "on average"],
    ["Not computed again", short(totals.reused_tokens), `tokens, about ${duration(totals.saved_gpu_seconds)} of GPU time`],
    ["Lost to prefix breaks", short(totals.lost_to_breaks_tokens), "tokens since the start"],
    ["Replicas up", `${up} of ${told.replicas.length}`, told.ready.degraded.length ? `${told.ready.degraded.length} degraded: see the state above` : "nothing degraded"],
  ];
  keyed($("figures"), figures, ([name]) => name, ([name]) => h("div", {}, h("dt", {}, name), h("dd"), h("dd", { class: "more" })), (made, [, value, more]) => {
    text(made.children[1], value);
    text(made.children[2], more);
  });
}

function stateOf(one) {
  if (one.health !== "up") return [one.health === "down" ? "bad" : "warn", one.health];
  if (one.circuit === "open") return ["bad", "ejected"];
  if (one.quarantined) return ["warn", "quarantined"];
  if (one.feed.kind !== "events") return ["warn", "up, cache modelled"];
  return ["ok", one.weight < 1 ? "up, starting slowly" : "up"];
}

function drawFleet(told) {
  const make = (one) => h("tr", {},
    h("th", { scope: "row" }, link("replica", one.id, one.id)),
    h("td", {}, h("span", { class: "dot" })), h("td", { class: "n" }), h("td", { class: "n" }), h("td", { class: "n" }),
    h("td", {}, h("div", { class: "meter" }, bar([[1, "reuse-fill"]], 1), h("span", { class: "n" }))),
    h("td", {}, h("svg", { class: "strip", viewBox: "0 0 600 30", preserveAspectRatio: "none", role: "img" })));
  const recent = flow.filter((one) => one.at > told.now - 62);
  const most = Math.max(...recent.map((one) => one.prompt_tokens), 1);
  keyed($("fleet").tBodies[0], told.replicas, (one) => one.id, make, (row, one) => {
    const [kind, state] = stateOf(one), used = one.reported === null ? null : 100 * one.reported.kv_usage;
    const cells = row.children, dot = cells[1].firstElementChild;
    dot.className = "dot " + kind;
    dot.title = one.reason || "";
    text(dot, state);
    text(cells[2], whole(one.running));
    text(cells[3], whole(one.reported?.waiting));
    text(cells[4], short(one.pending_prefill_tokens));
    cells[5].querySelector(".bar span").style.width = (used ?? 0) + "%";
    text(cells[5].querySelector(".n"), percent(used));
    drawStrip(cells[6].firstElementChild, recent.filter((each) => each.replica === one.id), told.now, most);
  });
}

// Each request a column at its time: its height the prompt's tokens, the lower part what was reused.
function drawStrip(svg, requests, now, most) {
  const reused = requests.reduce((all, one) => all + (one.reused_tokens ?? 0), 0), prompt = requests.reduce((all, one) => all + one.prompt_tokens, 0);
  svg.setAttribute("aria-label", `${requests.length} requests in the last minute, ${percent(share(reused, prompt))} of their prompt tokens reused`);
  svg.replaceChildren(h("line", { class: "axis", x1: 0, x2: 600, y1: 29.5, y2: 29.5 }));
  for (const one of requests) {
    const x = 600 - (now - one.at) * 10 - 4, all = Math.max(2, (28 * one.prompt_tokens) / most);
    const low = one.prompt_tokens ? (all * (one.reused_tokens ?? 0)) / one.prompt_tokens : 0;
    const failed = one.status >= 400;
    svg.append(h("rect", { class: failed ? "failed" : "compute", x, width: 3, y: 29 - all, height: all - low }), h("rect", { class: "reuse", x, width: 3, y: 29 - low, height: low }));
  }
}
