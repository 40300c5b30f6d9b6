// One request: where it went and why, where its prompt tokens came from, and what each candidate would have cost.

const REASONS = {
  prefix: "it holds more of this prompt than the others",
  shared: "all that are equally good hold as much, and it has least to do",
  cold: "nobody holds any of this prompt",
  spilled: "another replica holds more, but this one was predicted to answer sooner",
  only: "there was no other choice",
  sticky: "it keeps the state that this request needs",
  retry: "another replica was tried first, and failed",
};
const CAUSES = {
  reused: ["reuse-fill", "were in its KV cache"],
  new: ["c1", "had not been computed before"],
  mutated: ["c4", "the client changed what came before them"],
  evicted: ["c3", "had been dropped to make room"],
  spilled: ["c2", "another replica holds them"],
  replica_gone: ["c5", "were on a replica that left or restarted"],
  index_stale: ["c6", "the index was wrong about them"],
  token_mismatch: ["c7", "the replica tokenizes differently"],
  unknown: ["c5", "why can't be told"],
};
const TERMS = [
  ["base", "c5", "network and the step under way"],
  ["queue", "c2", "prompt tokens queued there"],
  ["crowd", "c3", "sequences running there"],
  ["prefill", "c1", "this prompt's tokens that it would compute"],
  ["later", "c6", "the session's next steps, there"],
];

async function showRequest(id, body) {
  const told = await ask("requests/" + encodeURIComponent(id));
  const where = told.replica === null ? "No replica answered." : `Went to ${told.replica} because ${REASONS[told.reason] || `the policy (${words(told.reason)}) chose it`}.`;
  body.append(
    h("p", { class: "lead" }, where),
    facts([
      ["model", told.model || "–"],
      told.tenant ? ["tenant", told.tenant] : null,
      ["session", told.session ? h("span", {}, link("session", told.session, told.session), `, step ${told.step}`) : "–"],
      ["status", h("span", { class: told.status >= 400 ? "bad" : null }, String(told.status))],
      ["first token", ms(told.ttft_ms)],
      ["whole answer", ms(told.total_ms)],
      ["token ids", told.tokens],
      ["answered tokens", whole(told.completion_tokens)],
    ]),
  );
  showTokens(told, body);
  if (told.break)
    body.append(h("div", { class: "callout" }, breakText(told.break), `: ${whole(told.break.tokens_lost)} tokens can't be reused`, diff(told.break)));
  showCandidates(told, body);
  const stages = Object.entries(told.stages_ms);
  if (stages.length) body.append(h("h3", {}, "The router's own time"), facts(stages.map(([stage, value]) => [stage, ms(value)])));
  if (told.tries.length > 1)
    body.append(h("h3", {}, "Tries"), h("ol", {}, told.tries.map(([replica, error]) => h("li", {}, `${replica}: ${error ? words(error) : "answered"}`))));
  if (told.error) body.append(h("p", { class: "bad" }, `Ended with: ${words(told.error)}`));
}

function showTokens(told, body) {
  if (told.cause === null) return;
  const computed = Object.entries(told.computed_tokens);
  const reused = told.prompt_tokens - computed.reduce((sum, [, tokens]) => sum + tokens, 0);
  const parts = [["reused", reused], ...computed].filter(([, tokens]) => tokens > 0);
  body.append(
    h("h3", {}, `Where ${whole(told.prompt_tokens)} prompt tokens came from`),
    bar(parts.map(([cause, tokens]) => [tokens, CAUSES[cause][0], words(cause)]), told.prompt_tokens, "bar big"),
    h("ul", { class: "key" }, parts.map(([cause, tokens]) => {
      const name = cause === "reused" ? "reused" : "computed: " + words(cause);
      return h("li", {}, h("i", { class: CAUSES[cause][0] }), h("span", { class: "n" }, whole(tokens)), h("span", {}, name), h("span", { class: "mute" }, CAUSES[cause][1]));
    })),
  );
}

function showCandidates(told, body) {
  if (!told.candidates.length) return;
  body.append(h("h3", {}, "What each replica would have cost"));
  const costs = told.candidates.map((one) => one.cost_s).filter(Boolean);
  const most = Math.max(...costs.map((cost) => TERMS.reduce((sum, [name]) => sum + cost[name], 0)), 1e-9);
  if (costs.length)
    body.append(h("ul", { class: "key inline" }, TERMS.map(([name, kind, meaning]) => h("li", {}, h("i", { class: kind }), `${name}: ${meaning}`))));
  const rows = told.candidates.map((one) => {
    const cost = one.cost_s;
    const cells = cost
      ? [h("td", { class: "wide" }, bar(TERMS.map(([name, kind]) => [cost[name], kind, `${name} ${ms(cost[name] * 1e3)}`]), most)),
         ...TERMS.map(([name]) => h("td", { class: "n" }, ms(cost[name] * 1e3))),
         h("td", { class: "n" }, cost.affinity ? "−" + ms(cost.affinity * 1e3) : "–"),
         h("td", { class: "n" }, ms(cost.total * 1e3))]
      : costs.length ? [h("td", { colspan: 8, class: "mute" }, "not priced")] : [];
    return h("tr", { class: one.replica === told.replica ? "chosen" : null }, h("th", { scope: "row" }, one.replica), h("td", { class: "n" }, whole(one.matched_tokens)), cells);
  });
  const priced = [["cost", "wide"], ...TERMS.map(([name]) => [name, "n"]), ["affinity", "n"], ["total", "n"]];
  const table = h("table", {}, head(["replica"], ["held", "n"], ...(costs.length ? priced : [])), h("tbody", {}, rows));
  body.append(h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Candidates" }, table));
  if (!costs.length) body.append(h("p", { class: "mute" }, "This policy, or a fleet of one, needs no costs."));
}

function breakText(broken) {
  const where = broken.message === null ? broken.field : `message ${broken.message} (${broken.role}), ${broken.field}`;
  const at = broken.offset === null ? "" : `, character ${whole(broken.offset)}`;
  return h("span", {}, h("strong", {}, words(broken.kind)), ` in ${where || "the prompt"}${at}`);
}

function diff(broken) {
  if (!broken.before && !broken.after) return null;
  return h("div", { class: "diff" }, h("span", {}, "was"), h("code", {}, broken.before), h("span", {}, "is"), h("code", {}, broken.after));
}
