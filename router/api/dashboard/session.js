// One session: its steps, what each resent, reused and computed, and its breaks. One replica: what is known of it.

async function showSession(id, body) {
  const told = await ask("sessions/" + encodeURIComponent(id) + "?limit=200");
  const saved = told.prompt_tokens - told.prefilled_tokens;
  body.append(
    h("p", { class: "lead" }, `${whole(told.steps)} steps sent ${short(told.prompt_tokens)} prompt tokens; ${short(told.prefilled_tokens)} were computed, ${short(saved)} reused (${percent(share(saved, told.prompt_tokens))}).`),
    facts([
      ["name", told.name],
      ["model", told.model || "–"],
      told.tenant ? ["tenant", told.tenant] : null,
      ["lost to breaks", whole(told.lost_to_breaks_tokens) + " tokens"],
      ["GPU time saved, about", duration(told.saved_gpu_seconds)],
      ["replicas", Object.entries(told.replicas).map(([name, count]) => `${name} (${count})`).join(", ") || "–"],
      told.parent ? ["forked from", link("session", told.parent, told.parent)] : null,
    ]),
  );
  showSteps(told.table, body);
  if (told.recent_breaks.length) body.append(h("h3", {}, "Prefix breaks"), h("ol", { class: "plain" }, alike(told.recent_breaks).map(breakItem)));
  body.append(h("h3", {}, "Step by step"), stepTable(told.table));
}

function showSteps(table, body) {
  const most = Math.max(...table.map((step) => step.prompt_tokens), 1);
  const steps = table.map((step) => {
    const reused = step.reused_tokens ?? 0;
    const title = `step ${step.step}: ${whole(reused)} of ${whole(step.prompt_tokens)} tokens reused` + (step.break ? `, ${words(step.break.kind)}` : "");
    const column = h("a", { href: "#request/" + encodeURIComponent(step.request), title, "aria-label": title, class: step.break ? "broken" : null });
    for (const [tokens, kind] of [[step.prompt_tokens - reused, "compute-fill"], [reused, "reuse-fill"]]) {
      const part = h("span", { class: kind });
      part.style.height = (94 * tokens) / most + "%";
      column.append(part);
    }
    return column;
  });
  body.append(
    h("h3", {}, "Prompt tokens by step"),
    h("div", { class: "steps" }, steps),
    h("p", { class: "aside legend" }, h("i", { class: "reuse" }), "reused", h("i", { class: "compute" }), "computed"),
  );
}

// Breaks of one kind at one place are one line: a clock in the system prompt breaks every step.
function alike(steps) {
  const groups = new Map();
  for (const step of steps) {
    const key = [step.break.kind, step.break.message, step.break.field].join(" ");
    groups.set(key, [...(groups.get(key) || []), step]);
  }
  return [...groups.values()];
}

function breakItem(steps) {
  const lost = steps.reduce((sum, step) => sum + step.break.tokens_lost, 0), last = steps.at(-1);
  const at = steps.length > 4 ? `${steps.length} steps from ${steps[0].step} to ${last.step}` : `step ${steps.map((step) => step.step).join(", ")}`;
  return h("li", {}, breakText(last.break), `, ${at}: ${whole(lost)} tokens can't be reused`, diff(last.break));
}

function stepTable(table) {
  const names = [["step"], ["what"], ["replica"], ["prompt", "n"], ["resent", "n"], ["reused", "n"], ["recomputed", "n"], ["without reuse, sum", "n"], ["computed, sum", "n"], ["first token", "n"]];
  const rows = table.map((step) => {
    const what = step.break ? h("td", { class: "warn" }, words(step.break.kind)) : h("td", {}, step.relation, step.cause && step.cause !== "new" ? `, ${words(step.cause)}` : "");
    const counts = [step.prompt_tokens, step.resent_tokens, step.reused_tokens, step.recomputed_tokens, step.sum_without_reuse, step.sum_prefilled];
    return h("tr", {}, h("th", { scope: "row" }, link("request", step.request, String(step.step))), what, h("td", {}, step.replica || "–"), counts.map((count) => h("td", { class: "n" }, whole(count))), h("td", { class: "n" }, ms(step.ttft_ms)));
  });
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Steps" }, h("table", {}, head(...names), h("tbody", {}, rows)));
}

async function showReplica(id, body) {
  const told = live?.replicas.find((one) => one.id === id);
  if (!told) throw new Error(`There is no replica ${id} now.`);
  const feed = told.feed;
  const known = feed.kind === "events" ? "Its KV events say what it holds." : `Its cache is modelled, not followed: ${feed.reason || "it publishes no events"}.`;
  body.append(
    h("p", { class: "lead" }, `${told.health === "up" ? "Takes requests." : `Is ${told.health}: ${told.reason || "no reason given"}.`} ${known}`),
    facts([
      ["engine", [told.engine, told.version].filter(Boolean).join(" ") || "–"],
      ["models", [...told.models, ...told.adapters].join(", ") || "–"],
      ["address", told.url],
      ["named by", told.sources.join(", ") || "–"],
      ["in this state for", duration(told.since_s)],
      ["KV cache", whole(told.kv_tokens) + " tokens"],
      ["blocks in the index", whole(feed.blocks)],
      ["event lag", feed.lag_s === undefined ? "–" : ms(feed.lag_s * 1e3)],
      ["gaps in events", whole(feed.gaps)],
      ["times all was forgotten", whole(feed.clears)],
      ["weight", told.weight === 1 ? "full" : String(told.weight)],
      ["circuit", words(told.circuit)],
      told.quarantined ? ["quarantined", told.quarantined] : null,
    ]),
  );
}
