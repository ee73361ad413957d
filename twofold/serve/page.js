"use strict";
const at = id => document.getElementById(id);
const BEST = 10; // items that place the user on the map
let facts = {shown: {}, columns: [], has_map: false, beside: null};
let map = null, trail = [], state = {}, known = new Map();

// --- the state, which the address holds ------------------------------------------------------------------------------

const FIELDS = ["user", "history", "filter", "exclude", "k"];

function readAddress() {
  const given = new URLSearchParams(location.search), found = {values: {}, ranges: {}};
  for (const name of [...FIELDS, "similar"]) found[name] = given.get(name) || "";
  for (const name of ["include_seen", "beside", "pick"]) found[name] = given.has(name);
  for (const [key, value] of given) {
    if (key.startsWith("v.")) (found.values[key.slice(2)] ||= []).push(value);
    if (key.startsWith("r.")) found.ranges[key.slice(2)] = value.split("..").map(Number);
  }
  found.k = found.k || "10";
  return found;
}

function address() {
  const query = new URLSearchParams();
  for (const name of [...FIELDS, "similar"]) if (state[name] && !(name === "k" && state.k === "10")) query.set(name, state[name]);
  for (const name of ["include_seen", "beside", "pick"]) if (state[name]) query.set(name, "1");
  for (const [name, values] of Object.entries(state.values)) for (const value of values) query.append("v." + name, value);
  for (const [name, range] of Object.entries(state.ranges)) query.set("r." + name, range.join(".."));
  return `${location.pathname}?${query}`;
}

// A change is a step of the browser's history, except that all moves of one drag are one step.
function change(changes, {isDragging = false} = {}) {
  Object.assign(state, changes);
  if (address() !== location.pathname + location.search) history[isDragging ? "replaceState" : "pushState"](null, "", address());
  showState();
  return refresh();
}

function showState() {
  for (const name of FIELDS) at(name).value = state[name];
  at("include_seen").checked = state.include_seen;
  at("compare").setAttribute("aria-pressed", state.beside);
  at("picking").hidden = !state.pick;
  showFilters();
}

function fromFields() {
  const changes = Object.fromEntries(FIELDS.map(name => [name, at(name).value.trim()]));
  return {...changes, k: changes.k || "10", include_seen: at("include_seen").checked, similar: ""};
}

// --- requests --------------------------------------------------------------------------------------------------------

async function send(path, body) {
  const headers = {"content-type": "application/json"};
  if (at("token").value) headers.authorization = "Bearer " + at("token").value;
  const reply = await fetch(path, body ? {method: "POST", headers, body: JSON.stringify(body)} : {headers});
  const content = await reply.json();
  if (reply.status === 401) at("tokens").hidden = false;
  if (!reply.ok) throw new Error(content.detail);
  return content;
}

const ids = text => text.split(",").map(id => id.trim()).filter(id => id);
const column = name => '"' + name.replaceAll('"', '""') + '"';
const text = value => "'" + value.replaceAll("'", "''") + "'";

function filter() {
  const parts = state.filter ? [`(${state.filter})`] : [];
  for (const [name, values] of Object.entries(state.values)) {
    const found = facts.columns.find(each => each.name === name), isFlag = typeof found?.values[0]?.value === "boolean";
    const either = part => `(${values.map(part).join(" OR ")})`;
    if (values.length) parts.push(isFlag ? either(value => `${column(name)} IS ${value === "true" ? "TRUE" : "FALSE"}`)
      : found?.kind === "lists" ? either(value => `${text(value)} IN ${column(name)}`)
      : `${column(name)} IN (${values.map(text).join(", ")})`);
  }
  for (const [name, [low, high]] of Object.entries(state.ranges)) parts.push(`${column(name)} >= ${low} AND ${column(name)} <= ${high}`);
  return parts.length === 1 && state.filter ? state.filter : parts.join(" AND ") || null;
}

function who() {
  return state.history ? {history: ids(state.history)} : {user_id: state.user};
}

function options() {
  const body = {...who(), k: Number(state.k), exclude: ids(state.exclude), exclude_seen: state.include_seen ? false : null, explain: true, describe: true};
  return filter() ? {...body, filter: filter()} : body;
}

// One request at a time: while it is on its way, further changes wait, and only the last of them is sent.
let isBusy = false, isStale = false, explainSoon = 0;
async function refresh() {
  if (isBusy) { isStale = true; return; }
  isBusy = true;
  try {
    do { isStale = false; await guarded(load); } while (isStale);
  } finally { isBusy = false; }
}

async function load() {
  clearTimeout(explainSoon);
  if (state.pick && !at("choices").children.length) await showChoices();
  if (state.pick) showPicked();
  if (state.similar) return showSimilar();
  if (!state.user && !state.history) { at("items").replaceChildren(); return; }
  const started = performance.now(), list = await send("v1/recommend", options());
  at("time").textContent = `${list.items.length} in ${Math.max(performance.now() - started, .1).toFixed(1)} ms`;
  for (const each of [...list.history, ...list.items]) known.set(String(each.item_id), each.attributes);
  const of = list.user_id === null ? "this history" : `user ${list.user_id}`;
  show(at("title"), at("items"), list, `${list.source === "popularity" ? "Popular items, because nothing is known of" : "Recommendations for"} ${of}`);
  const unknown = list.unknown_items ? [`${list.unknown_items} of the item ids are unknown`] : [];
  at("warnings").textContent = [...list.warnings, ...unknown].join("; ");
  showHistory(list.history);
  await showBeside(list);
  place(list);
  if (list.source === "model") explainSoon = setTimeout(() => guarded(() => explain(list)), 250);
}

async function guarded(act) {
  at("problem").textContent = "";
  try { await act(); } catch (error) { at("problem").textContent = error.message; }
}

// --- lists -----------------------------------------------------------------------------------------------------------

async function showSimilar() {
  const started = performance.now();
  const body = {item_id: state.similar, k: Number(state.k), describe: true};
  const found = await send("v1/similar", filter() ? {...body, filter: filter()} : body);
  at("time").textContent = `${found.items.length} in ${(performance.now() - started).toFixed(1)} ms`;
  for (const each of found.items) known.set(String(each.item_id), each.attributes);
  show(at("title"), at("items"), found, `Items similar to ${nameOf(state.similar)}`);
  at("others").hidden = true;
  document.querySelector("main").classList.remove("two");
}

async function showBeside(list) {
  const isShown = state.beside && facts.beside !== null;
  at("others").hidden = !isShown;
  document.querySelector("main").classList.toggle("two", isShown);
  if (!isShown) return;
  const other = await send("v1/recommend:beside", options());
  const ranks = items => new Map(items.map(item => [String(item.item_id), item.rank]));
  show(at("other_title"), at("other_items"), other, `Run ${facts.beside}`, ranks(list.items));
  show(at("title"), at("items"), list, at("title").textContent, ranks(other.items));
}

// Which items of the history carry each answer: its score falls by so much without them.
async function explain(list) {
  if (!list.items.length) return;
  const found = await send("v1/explain", {...who(), item_ids: list.items.slice(0, 100).map(item => item.item_id)});
  for (const each of found.items) {
    const line = [...at("items").querySelectorAll(".reasons")].find(shown => shown.dataset.item === String(each.item_id));
    if (!line || !each.carried_by.length) continue;
    const part = change => change <= each.score ? `${(100 * change / each.score).toFixed(0)} %` : change.toPrecision(2);
    line.textContent = "because of " + each.carried_by.slice(0, 3).map(one => `${nameOf(one.item_id)} (${part(one.change)})`).join(", ");
    line.title = "share of the retriever's score that is lost if this item of the history is left out";
  }
}

async function record(item_id, kind) {
  const user_id = state.user, before = trail.length, accepted = await send("v1/events", {events: [{user_id, item_id, kind}]});
  state.similar = "";
  await refresh();
  at("warnings").append(` ${nameOf(item_id)} was recorded. `, button("undo", "take the event back", async () => {
    await send("v1/events:remove", {user_id, item_id, at: accepted.at});
    trail.length = Math.max(before - 1, 0);
    await refresh();
  }));
}

// --- pick five -------------------------------------------------------------------------------------------------------

async function showChoices() {
  const popular = await send("v1/recommend", {user_id: `visitor ${Date.now()}`, k: 24, describe: true});
  at("choices").replaceChildren(...popular.items.map(item => {
    const id = String(item.item_id);
    known.set(id, item.attributes);
    const choice = button("", "pick this item", () => {
      const chosen = ids(state.history), next = chosen.includes(id) ? chosen.filter(each => each !== id) : [...chosen, id];
      return change({history: next.join(", "), user: "", similar: "", pick: next.length < 5});
    }, "");
    choice.dataset.item = id;
    choice.append(tile(id, item.attributes), make("span", "", ...heading(id, item.attributes).slice(0, 1).map(each => each.textContent)));
    return choice;
  }));
}

function showPicked() {
  const chosen = ids(state.history);
  at("picked").textContent = `${chosen.length} of 5`;
  for (const choice of at("choices").children) choice.setAttribute("aria-pressed", chosen.includes(choice.dataset.item));
}

// --- filters ---------------------------------------------------------------------------------------------------------

function showFilters() {
  if (at("filters").contains(document.activeElement) && document.activeElement.type === "range") return showEnds();
  const hidden = Object.values(facts.shown);
  const usable = facts.columns.filter(each => each.kind !== "other" && !hidden.includes(each.name)).slice(0, 8);
  at("sieve").hidden = !usable.length;
  at("filters").replaceChildren(...usable.map(each => each.kind === "number" ? slider(each) : chips(each)));
  showEnds();
}

function chips({name, values}) {
  const chosen = state.values[name] || [];
  return make("div", "facet", make("span", "name", name), ...values.map(({value, items}) => {
    const word = String(value), isChosen = chosen.includes(word);
    const chip = button(word, `${items.toLocaleString("en")} items`, () => {
      const next = isChosen ? chosen.filter(each => each !== word) : [...chosen, word];
      const all = {...state.values, [name]: next};
      if (!next.length) delete all[name];
      return change({values: all});
    }, "chip");
    chip.setAttribute("aria-pressed", isChosen);
    return chip;
  }));
}

function slider({name, steps}) {
  const [low, high] = state.ranges[name] || [steps[0], steps.at(-1)], last = steps.length - 1;
  const end = (label, value) => {
    const input = make("input");
    const place = steps.findIndex(step => step >= value);
    Object.assign(input, {type: "range", min: 0, max: last, step: 1, ariaLabel: `${label} of ${name}`});
    input.value = place < 0 ? last : place;
    return input;
  };
  const from = end("minimum", low), to = end("maximum", high);
  let isDragging = false;
  const move = moving => {
    if (Number(from.value) > Number(to.value)) (moving === from ? from : to).value = (moving === from ? to : from).value;
    const ranges = {...state.ranges, [name]: [steps[from.value], steps[to.value]]};
    if (from.value === "0" && to.value === String(last)) delete ranges[name];
    change({ranges}, {isDragging});
    isDragging = true;
  };
  for (const input of [from, to]) {
    input.oninput = () => move(input);
    input.onchange = () => { isDragging = false; input.blur(); };
  }
  const ends = make("span", "ends");
  ends.dataset.column = name;
  return make("div", "facet", make("span", "name", name), make("span", "range", from, to), ends);
}

function showEnds() {
  for (const shown of document.querySelectorAll(".ends")) {
    const {name, steps} = facts.columns.find(each => each.name === shown.dataset.column);
    const [low, high] = state.ranges[name] || [steps[0], steps.at(-1)];
    shown.textContent = `${said(name, low)} – ${said(name, high)}`;
  }
}

// --- the beginning ---------------------------------------------------------------------------------------------------

async function begin() {
  const health = await send("health");
  at("about").textContent = `run ${health.run} · bundle ${health.bundle} · ${health.items.toLocaleString("en")} items · ${health.users.toLocaleString("en")} users`;
  facts = await send("v1/page");
  const users = (await send("v1/users")).user_ids.map(String);
  at("users").replaceChildren(...users.map(id => Object.assign(make("option"), {value: id})));
  at("compare").hidden = facts.beside === null;
  at("compare").textContent = `compare with ${facts.beside}`;
  at("another").onclick = () => change({user: users[(users.indexOf(state.user) + 1) % users.length], history: "", similar: "", pick: false});
  await loadMap();
  state = readAddress();
  if (!state.user && !state.history && !state.similar && !state.pick && users.length) {
    state.user = users[users.length >> 1];
    history.replaceState(null, "", address());
  }
  at("sieve").open = innerWidth > 700 || Object.keys({...state.values, ...state.ranges}).length > 0; // answers first
  showState();
  await refresh();
}

at("request").onsubmit = event => { event.preventDefault(); change({...fromFields(), pick: false}); };
at("user").oninput = () => { at("history").value = ""; };
at("user").onchange = () => { if (at("user").value.trim()) change({...fromFields(), pick: false}); };
at("history").oninput = () => { at("user").value = ""; };
at("pick").onclick = () => change({pick: !state.pick, similar: "", ...(state.pick ? {} : {user: "", history: ""})});
at("compare").onclick = () => change({beside: !state.beside, similar: ""});
at("token").onchange = () => guarded(begin);
window.onpopstate = () => { state = readAddress(); showState(); refresh(); };
guarded(begin);
