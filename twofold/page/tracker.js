"use strict";
const $ = (selector, within = document) => [...within.querySelectorAll(selector)];
const rows = $("tr.run");
const dialog = document.getElementById("dialog"), inside = document.getElementById("inside");

const show = nodes => { inside.replaceChildren(...nodes); dialog.showModal(); };
const element = (name, text, css) => {
  const made = document.createElement(name);
  made.textContent = text;
  if (css) made.className = css;
  return made;
};

// Pinned rows stay on top; a comment counts as text of its row.
const order = body => {
  const pinned = row => (row.querySelector("input.pin").checked ? 0 : 1);
  [...body.rows].sort((a, b) => pinned(a) - pinned(b)).forEach(row => body.append(row));
};
$("th[data-column]").forEach(head => {
  head.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") !== "descending";
    const body = head.closest("table").tBodies[0], column = head.cellIndex;
    $("th[data-column]", head.parentNode).forEach(each => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const compare = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      const difference = Number(a) - Number(b);
      const sign = Number.isNaN(difference) ? a.localeCompare(b) * -1 : difference;
      return down ? -sign : sign;
    };
    [...body.rows].sort((a, b) => compare(key(a), key(b))).forEach(row => body.append(row));
    order(body);
  });
});
document.getElementById("filter").addEventListener("input", event => {
  const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  rows.forEach(row => {
    const text = row.textContent.toLowerCase();
    row.hidden = !row.querySelector("input.pin").checked && !words.every(word => text.includes(word));
    shown += row.hidden ? 0 : 1;
  });
  document.getElementById("count").textContent = `${shown} of ${rows.length} runs`;
});
$("input.pin").forEach(box => box.addEventListener("change", () => {
  box.toggleAttribute("checked", box.checked);
  order(box.closest("tbody"));
}));
$("button.drawing-button").forEach(button => button.addEventListener("click", () => {
  const drawing = document.getElementById(button.dataset.drawing).content.cloneNode(true);
  show([element("h2", button.dataset.run), drawing]);
}));

// Two chosen rows side by side; the two oldest choices make room for a third.
const chosen = [];
const columnsOf = row => new Map([...row.closest("table").tHead.rows[0].cells]
  .filter(head => head.dataset.column && head.dataset.column !== "run")
  .map(head => [head.dataset.column, {name: head.innerText, text: row.cells[head.cellIndex].innerText.trim()}]));
const compare = () => {
  const [one, other] = chosen, sides = [one, other].map(columnsOf);
  const table = element("table", "", "dense"), head = table.createTHead().insertRow();
  ["", one.dataset.run, other.dataset.run].forEach(text => head.append(element("th", text)));
  const body = table.createTBody(), isOneGroup = one.closest("tbody") === other.closest("tbody");
  new Set(sides.flatMap(side => [...side.keys()])).forEach(column => {  // tables of two questions have other columns
    const found = sides.map(side => side.get(column)), texts = found.map(each => each?.text ?? "");
    if (texts[0] === texts[1]) return;
    const row = body.insertRow();
    row.append(element("th", (found[0] ?? found[1]).name));
    texts.forEach(text => row.append(element("td", text, "setting")));
  });
  const warning = "These runs were tested on different questions: their metrics cannot be compared.";
  show([element("h2", `${one.dataset.run} and ${other.dataset.run}`), ...(isOneGroup ? [] : [element("p", warning, "bad")]), table]);
};
$("input.choose").forEach(box => box.addEventListener("change", () => {
  const row = box.closest("tr");
  if (!box.checked) chosen.splice(chosen.indexOf(row), 1);
  else if (chosen.push(row) > 2) chosen.shift().querySelector("input.choose").checked = false;
  document.getElementById("compare").disabled = chosen.length !== 2;
}));
document.getElementById("compare").addEventListener("click", compare);

// Comments are edited in the page; a saved copy holds them.
let isEdited = false;
$("td.comment-cell").forEach(cell => cell.addEventListener("input", () => { isEdited = true; }));
document.getElementById("save").addEventListener("click", () => {
  $("input.choose").forEach(box => { box.checked = false; });
  const text = "<!doctype html>\n" + document.documentElement.outerHTML;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "text/html"}));
  link.download = "tracker.html";
  link.click();
  isEdited = false;
});
window.addEventListener("beforeunload", event => { if (isEdited) event.preventDefault(); });
