"use strict";
// Items, tiles and the map; page.js has the state and the requests.

// --- items -----------------------------------------------------------------------------------------------------------

// Everything is inserted as text, never as markup: ids and attributes come from a log.
function make(tag, cls, ...inside) {
  const element = document.createElement(tag);
  if (cls) element.className = cls;
  element.append(...inside);
  return element;
}

function button(label, title, act, cls = "small") {
  const element = make("button", cls, label);
  element.type = "button";
  element.title = title;
  element.onclick = () => guarded(act);
  return element;
}

const isAddress = value => /^https?:\/\//.test(value || "");
const said = (name, value) => name.endsWith("_at") && value > 1e11 ? new Date(value).toISOString().slice(0, 10)
  : typeof value === "number" && !Number.isInteger(value) ? String(+value.toPrecision(4)) : Array.isArray(value) ? value.join(", ") : String(value);

function nameOf(id) {
  const title = facts.shown.title && (known.get(String(id)) || {})[facts.shown.title];
  return title ? String(title) : String(id);
}

function heading(id, attributes) {
  const title = facts.shown.title && attributes?.[facts.shown.title], link = facts.shown.link && attributes?.[facts.shown.link];
  const shown = make(isAddress(link) ? "a" : "span", title ? "heading" : "heading id", String(title || id));
  if (isAddress(link)) Object.assign(shown, {href: link, rel: "noopener noreferrer", target: "_blank"});
  return title ? [shown, make("span", "id", String(id))] : [shown];
}

function about(attributes) {
  if (facts.shown.subtitle) return make("div", "facts", said(facts.shown.subtitle, attributes?.[facts.shown.subtitle] ?? ""));
  const hidden = Object.values(facts.shown);
  const shown = Object.entries(attributes || {}).filter(([name, value]) => value !== null && !hidden.includes(name) && !/_?id$/i.test(name)).slice(0, 6);
  return make("div", "facts", shown.map(([name, value]) => `${name} ${said(name, value)}`).join(" · "));
}

// A picture, or a drawn tile: its color is that of the first tag or group, and its ring grows with the length.
function tile(id, attributes) {
  const picture = facts.shown.image && attributes?.[facts.shown.image];
  if (isAddress(picture)) {
    const image = make("img", "tile");
    Object.assign(image, {src: picture, alt: "", loading: "lazy", referrerPolicy: "no-referrer"});
    image.onerror = () => image.replaceWith(drawn(id, attributes));
    return image;
  }
  return drawn(id, attributes);
}

function drawn(id, attributes) {
  const lists = Object.values(attributes || {}).find(Array.isArray);
  const groups = facts.columns.find(each => each.kind === "values");
  const group = String(lists ? lists[0] ?? "" : groups ? attributes?.[groups.name] ?? "" : id);
  const numbers = facts.columns.filter(each => each.kind === "number");
  const ring = numbers.find(each => /length|duration/.test(each.name)) || numbers[0];
  const value = ring && attributes?.[ring.name], share = ring && value != null ? ring.steps.filter(step => step <= value).length / ring.steps.length : 0;
  const hue = [...group].reduce((sum, each) => (sum * 31 + each.codePointAt(0)) % 360, 7);
  const svg = "http://www.w3.org/2000/svg", part = (tag, given) => {
    const element = document.createElementNS(svg, tag);
    for (const [name, each] of Object.entries(given)) element.setAttribute(name, each);
    return element;
  };
  const shown = part("svg", {viewBox: "0 0 46 46", class: "tile", role: "img"}), around = 2 * Math.PI * 15;
  const title = part("title", {});
  title.textContent = [group, ring && value != null ? `${ring.name} ${said(ring.name, value)}` : ""].filter(each => each).join(" · ");
  shown.append(title, part("rect", {width: 46, height: 46, rx: 8, fill: `hsl(${hue} 55% 48%)`}),
    part("circle", {cx: 23, cy: 23, r: 15, fill: "none", stroke: "#fff", "stroke-opacity": .3, "stroke-width": 4}),
    part("circle", {cx: 23, cy: 23, r: 15, fill: "none", stroke: "#fff", "stroke-width": 4, transform: "rotate(-90 23 23)", "stroke-dasharray": `${share * around} ${around}`}));
  return shown;
}

function row(item, best, moves) {
  const id = String(item.item_id), score = make("span", "score", item.score.toFixed(4));
  score.style.setProperty("--part", `${Math.max(0, Math.min(100, 100 * item.score / best))}%`);
  const head = make("div", "head", ...heading(id, item.attributes));
  if (moves) head.append(moved(item, moves));
  head.append(score);
  const actions = make("div", "actions", button("similar", "show the most similar items", () => change({similar: id})));
  if (state.user && !state.history) actions.append(
    button("♥", "record that the user liked the item", () => record(id, "positive")),
    button("✕", "record that the user disliked the item", () => record(id, "negative")));
  else if (state.history) actions.append(button("♥", "add the item to the history", () => change({history: [...ids(state.history), id].join(", "), similar: ""})));
  const reasons = make("div", "reasons", item.reasons?.length ? "similar to " + item.reasons.map(each => `${nameOf(each.item_id)} (${each.similarity.toFixed(2)})`).join(", ") : "");
  reasons.dataset.item = id;
  return make("li", "", make("span", "rank", String(item.rank)), tile(id, item.attributes), make("div", "", head, about(item.attributes), reasons, actions));
}

function moved(item, ranks) {
  const before = ranks.get(String(item.item_id));
  if (before === undefined) return make("span", "move up", "only here");
  const by = before - item.rank;
  return by === 0 ? make("span", "move", "same place") : make("span", `move ${by > 0 ? "up" : "down"}`, `${by > 0 ? "▲" : "▼"} ${Math.abs(by)}`);
}

function show(title, list, found, heading, moves) {
  title.textContent = heading;
  const best = Math.max(...found.items.map(item => item.score), 1e-9);
  list.replaceChildren(...found.items.map(item => row(item, best, moves)));
  if (!found.items.length) list.append(make("li", "plain soft", "No item satisfies the filter and the exclusions."));
}

function showHistory(events) {
  at("events").textContent = `${events.length === 50 ? "the last " : ""}${events.length}`;
  at("seen").replaceChildren(...events.map(event => make("li", event.kind, make("span"), tile(event.item_id, event.attributes),
    make("div", "", make("div", "head", ...heading(event.item_id, event.attributes)), about(event.attributes),
      make("div", "actions", button("similar", "show the most similar items", () => change({similar: String(event.item_id)})))))));
  if (!events.length) at("seen").append(make("li", "plain soft", "No events."));
}

// --- the map ---------------------------------------------------------------------------------------------------------

async function loadMap() {
  if (!facts.has_map) return;
  const found = await send("v1/map");
  const ends = values => [Math.min(...values), Math.max(...values)];
  map = {...found, rows: new Map(found.item_ids.map((id, index) => [id, index])), ends: [ends(found.x), ends(found.y)]};
  at("place").hidden = false;
}

function place(list) {
  if (!map) return;
  const rows = list.items.map(item => map.rows.get(String(item.item_id))).filter(index => index !== undefined).slice(0, BEST);
  const middle = values => [...values].sort((a, b) => a - b)[values.length >> 1];
  const whose = state.user || state.history && "history";
  if (trail.whose !== whose) trail = Object.assign([], {whose});
  if (rows.length) {
    const spot = [middle(rows.map(index => map.x[index])), middle(rows.map(index => map.y[index]))], last = trail.at(-1);
    if (!last || last[0] !== spot[0] || last[1] !== spot[1]) trail.push(spot);
    at("cluster").textContent = map.clusters[middle(rows.map(index => map.cluster[index]))];
  }
  walk(rows);
}

function walk(rows) {
  const to = trail.at(-1), from = trail.at(-2) || to, began = performance.now();
  const step = now => {
    const part = matchMedia("(prefers-reduced-motion: reduce)").matches ? 1 : Math.min((now - began) / 600, 1);
    drawMap(rows, to && from.map((start, axis) => start + (to[axis] - start) * part * (2 - part)));
    if (part < 1 && to === trail.at(-1)) requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
}

function drawMap(rows, spot) {
  const canvas = at("map"), pen = canvas.getContext("2d"), {width, height} = canvas, ink = getComputedStyle(document.body).color;
  const on = (value, axis) => 14 + (value - map.ends[axis][0]) / (map.ends[axis][1] - map.ends[axis][0] || 1) * ((axis ? height : width) - 28);
  const dot = (x, y, radius, fill) => { pen.beginPath(); pen.arc(on(x, 0), on(y, 1), radius, 0, 7); pen.fillStyle = fill; pen.fill(); };
  pen.clearRect(0, 0, width, height);
  pen.globalAlpha = .45;
  for (let index = 0; index < map.x.length; index++) dot(map.x[index], map.y[index], 1.8, `hsl(${map.cluster[index] * 137 % 360} 50% 55%)`);
  pen.globalAlpha = 1;
  pen.font = "bold 13px system-ui";
  rows.forEach((index, rank) => {
    dot(map.x[index], map.y[index], 5, ink);
    pen.fillText(String(rank + 1), on(map.x[index], 0) + 7, on(map.y[index], 1) - 5);
  });
  if (!spot) return;
  pen.strokeStyle = "#e4572e";
  pen.lineWidth = 2.5;
  pen.beginPath();
  for (const [x, y] of [...trail.slice(0, -1), spot]) pen.lineTo(on(x, 0), on(y, 1));
  pen.stroke();
  dot(...spot, 11, "#fff");
  dot(...spot, 8.5, "#e4572e");
}
