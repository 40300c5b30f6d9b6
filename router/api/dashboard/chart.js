// Reuse over the last quarter of an hour: the share as a line, requests a second as bars beneath, breaks as marks.
// Buckets are kept here too, so that the line goes on across a restart of the router.

const BUCKET = 5, SPAN = 900, SMOOTH = 3;
const buckets = new Map();
const CHART = { width: 800, height: 300, left: 44, right: 8, top: 12, line: 204, bars: 272 };
let pointed = null;

function remember(timeline, now) {
  for (const bucket of timeline) buckets.set(bucket.at, bucket);
  for (const at of buckets.keys()) if (at < now - SPAN - BUCKET) buckets.delete(at);
}

function total(from, until) {
  const sum = { requests: 0, errors: 0, prompt_tokens: 0, reused_tokens: 0, breaks: 0, answered: 0, ttft_s: 0 };
  for (const [at, bucket] of buckets) if (at >= from && at < until) for (const name in sum) sum[name] += bucket[name];
  return sum;
}

function drawChart(now) {
  const { height, left, right, top, line, bars } = CHART, width = (CHART.width = $("chart").clientWidth || 800);
  const end = Math.floor(now / BUCKET) * BUCKET + BUCKET, begin = end - SPAN;
  const x = (at) => left + ((at - begin) / SPAN) * (width - left - right);
  const y = (value) => line - (value / 100) * (line - top);
  const old = $("chart").firstElementChild;
  const svg = old || h("svg", { role: "img", tabindex: 0 });
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren();
  for (const value of [0, 50, 100]) svg.append(h("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }), h("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, value + " %"));
  for (let at = Math.ceil(begin / 300) * 300; at < end; at += 300) svg.append(h("text", { x: x(at), y: height - 4, "text-anchor": "middle" }, clock(at, false)));
  const most = Math.max(...[...buckets.values()].map((bucket) => bucket.requests), 1);
  svg.append(h("text", { x: left - 8, y: bars - 36, "text-anchor": "end" }, (most / BUCKET).toFixed(most < 50 ? 1 : 0) + "/s"));
  const points = [];
  for (let at = begin; at < end; at += BUCKET) {
    const bucket = buckets.get(at), tall = (count) => (count / most) * (bars - line - 26);
    if (bucket?.requests) svg.append(h("rect", { class: "load", x: x(at) + 0.4, width: x(at + BUCKET) - x(at) - 0.8, y: bars - tall(bucket.requests), height: tall(bucket.requests) }));
    if (bucket?.errors) svg.append(h("rect", { class: "failed", x: x(at) + 0.4, width: x(at + BUCKET) - x(at) - 0.8, y: bars - tall(bucket.errors), height: tall(bucket.errors) }));
    if (bucket?.breaks) svg.append(h("path", { class: "break", d: `M${x(at) - 2} ${bars - 1}h8l-4 -7z` }));
    const sum = total(at - (SMOOTH - 1) * BUCKET, at + BUCKET);
    if (sum.prompt_tokens) points.push([x(at) + 2, y((100 * sum.reused_tokens) / sum.prompt_tokens), at]);
  }
  for (const run of runs(points)) {
    const path = run.map(([px, py], place) => `${place ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("");
    svg.append(h("path", { class: "area", d: `${path}L${run.at(-1)[0].toFixed(1)} ${line}L${run[0][0].toFixed(1)} ${line}Z` }), h("path", { class: "line", d: path }));
  }
  drawPointed(svg, points, begin, x);
  const sum = total(begin, end), now5 = total(end - 300, end);
  svg.setAttribute("aria-label", `Share of prompt tokens reused: ${percent(share(sum.reused_tokens, sum.prompt_tokens))} over 15 minutes, ${percent(share(now5.reused_tokens, now5.prompt_tokens))} over the last 5. Left and right arrows read single times.`);
  if (!old) {
    $("chart").append(svg);
    readable(svg);
  }
  drawMinutes(end);
}

function runs(points) {
  const found = [];
  for (const point of points) {
    if (!found.length || point[2] - found.at(-1).at(-1)[2] > BUCKET) found.push([]);
    found.at(-1).push(point);
  }
  return found;
}

// The time under the pointer, or chosen with the arrow keys.
function drawPointed(svg, points, begin, x) {
  const point = pointed === null ? null : points.find(([, , at]) => at === pointed);
  text($("chart-at"), "last 15 minutes");
  if (!point) return;
  const sum = total(pointed - (SMOOTH - 1) * BUCKET, pointed + BUCKET), bucket = buckets.get(pointed);
  svg.append(h("line", { class: "cross", x1: point[0], x2: point[0], y1: CHART.top, y2: CHART.bars }), h("circle", { class: "spot", cx: point[0], cy: point[1], r: 4.5 }));
  const rate = (bucket?.requests ?? 0) / BUCKET;
  text($("chart-at"), `${clock(pointed)}  ${percent(share(sum.reused_tokens, sum.prompt_tokens))} reused, ${rate.toFixed(1)} requests/s` + (bucket?.breaks ? `, ${bucket.breaks} breaks` : ""));
}

function readable(svg) {
  const times = () => [...buckets.keys()].sort((a, b) => a - b);
  const point = (at) => {
    pointed = at;
    drawChart(live.now);
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), ratio = ((event.clientX - box.left) / box.width) * CHART.width;
    const at = Math.floor(live.now / BUCKET) * BUCKET + BUCKET - SPAN + ((ratio - CHART.left) / (CHART.width - CHART.left - CHART.right)) * SPAN;
    point(Math.floor(at / BUCKET) * BUCKET);
  });
  svg.addEventListener("pointerleave", () => point(null));
  svg.addEventListener("blur", () => point(null));
  svg.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    event.preventDefault();
    const known = times(), at = known.indexOf(pointed);
    point(known[at < 0 ? known.length - 1 : Math.min(known.length - 1, Math.max(0, at + (event.key === "ArrowLeft" ? -1 : 1)))] ?? null);
    text($("said"), $("chart-at").textContent);
  });
}

function drawMinutes(end) {
  const minutes = Array.from({ length: 15 }, (_, place) => Math.floor(end / 60) * 60 - place * 60);
  keyed($("chart-table").tBodies[0], minutes, (at) => at, () => h("tr", {}, h("th", { scope: "row" }), Array.from({ length: 6 }, () => h("td"))), (row, at) => {
    const sum = total(at, at + 60);
    const shown = [clock(at, false), whole(sum.requests), whole(sum.errors), whole(sum.prompt_tokens), percent(share(sum.reused_tokens, sum.prompt_tokens)), sum.answered ? ms((sum.ttft_s / sum.answered) * 1e3) : "–", whole(sum.breaks)];
    shown.forEach((value, place) => text(row.children[place], value));
  });
}
