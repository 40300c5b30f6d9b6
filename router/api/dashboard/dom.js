// Elements, lists that keep their elements (and so the focus) from one answer to the next, and figures as text.
// Everything shown is set as text, never as markup.

const $ = (id) => document.getElementById(id);

function h(name, attributes, ...children) {
  const svg = /^(svg|path|line|rect|text|circle|g|title)$/.test(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {}))
    if (value === true) made.setAttribute(key, "");
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value);
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

// One child for each item, found again by its key; `make` fills a new one, `update` sees all.
function keyed(parent, items, key, make, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let at = parent.firstElementChild;
  for (const item of items) {
    const name = String(key(item));
    let child = known.get(name);
    known.delete(name);
    if (!child) {
      child = make(item);
      child.dataset.key = name;
    }
    update?.(child, item);
    if (child === at) at = at.nextElementSibling;
    else parent.insertBefore(child, at);
  }
  for (const child of known.values()) child.remove();
}

function whole(value) {
  return value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en");
}

function short(value) {
  if (value === null || value === undefined) return "–";
  for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]])
    if (value >= size) {
      const scaled = value / (unit === "k" ? 1e3 : size);
      return (scaled < 100 ? scaled.toFixed(1) : Math.round(scaled)) + " " + unit;
    }
  return whole(value);
}

function share(part, all) {
  return all > 0 ? (100 * part) / all : null;
}

function percent(value) {
  return value === null ? "–" : (value > 0 && value < 10 ? value.toFixed(1) : Math.round(value)) + " %";
}

function ms(value) {
  if (value === null || value === undefined) return "–";
  if (value >= 10000) return (value / 1000).toFixed(1) + " s";
  return (value >= 100 ? Math.round(value) : value >= 10 ? value.toFixed(1) : value.toFixed(2)) + " ms";
}

function duration(seconds) {
  if (seconds < 60) return Math.round(seconds) + " s";
  if (seconds < 5400) return Math.round(seconds / 60) + " min";
  return seconds < 172800 ? (seconds / 3600).toFixed(1) + " h" : Math.round(seconds / 86400) + " d";
}

function clock(at, seconds = true) {
  const shown = { hour: "2-digit", minute: "2-digit", hour12: false };
  return new Date(at * 1000).toLocaleTimeString("en-GB", seconds ? { ...shown, second: "2-digit" } : shown);
}

// A bar of parts: [size, class, title].
function bar(parts, all, name = "bar") {
  const made = h("div", { class: name });
  for (const [size, kind, title] of parts)
    if (size > 0) {
      const part = h("span", { class: kind, title });
      part.style.width = (100 * size) / (all || 1) + "%";
      made.append(part);
    }
  return made;
}

function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.filter(Boolean).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

function link(kind, id, shown, title) {
  return h("a", { href: `#${kind}/${encodeURIComponent(id)}`, title }, shown);
}

function head(...names) {
  return h("thead", {}, h("tr", {}, names.map(([name, kind]) => h("th", { scope: "col", class: kind }, name))));
}

const words = (slug) => slug.replaceAll("_", " ");
