// Many cases: what they have in common on top, and a table of them. cells[key][r] is what row r has in the column `key`,
// null where it has nothing. What the reader has chosen stands in the address, so that it can be passed on, and is there
// again on the way back from a case.
const { columns, cells, keys } = data, CHUNK = 100;  // rows drawn at once
const byKey = new Map(columns.map((column) => [column.key, column]));
const isText = ({ kind }) => kind === "text" || kind === "token" || kind === "why" || kind === "case";
const alphabet = new Intl.Collator("en", { numeric: true });
const narrow = matchMedia("(max-width: 700px)");

/** What is read in `text`, where there is no place for nodes. */
const seen = (text) => write(make("span"), text, "line").textContent;

// ---- a cell

const FIRST = 65 + STEPS;  // a strip's letter of relevance 0: A is the lowest level; a dot is a special token

function strip(text) {
  const canvas = make("canvas");
  canvas.width = text.length;
  canvas.height = 1;
  canvas.dataset.levels = text;
  paint(canvas);
  return canvas;
}

function paint(canvas) {
  const text = canvas.dataset.levels, context = canvas.getContext("2d"), image = context.createImageData(text.length, 1);
  const palette = colours(), grey = rgb(getComputedStyle(document.documentElement).getPropertyValue("--special").trim());
  for (let i = 0; i < text.length; i++) {
    image.data.set(text[i] === "." ? grey : palette[text.charCodeAt(i) - FIRST + STEPS], 4 * i);
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

function plain(value) {
  if (typeof value !== "number" || Number.isInteger(value)) return String(value);
  return String(Number(value.toPrecision(5))).replace("-", "\u2212");
}
const written = {
  signed: (value) => number(value),
  number: (value) => value.toFixed(3).replace("-", "\u2212"),
  count: count,
  plain: plain,
  text: (value) => write(make("span"), value, "line"),
  why: (value) => write(make("span"), value, "line"),
  case: (value) => write(make("span"), value, "line"),
  token: (value, column, r) => {
    const size = column.sign ? cells[column.sign][r] : 0;
    return quote(value, size > 0 ? "target" : size < 0 ? "contrast" : "");
  },
  strip: strip,
};

function cell(column, r) {
  const value = cells[column.key][r], node = make(column.kind === "case" ? "th" : "td");
  node.className = isText(column) || column.kind === "strip" ? column.kind : "number";
  if (column.kind === "case") node.scope = "row";
  if (value === null) {
    const why = column.instead && cells[column.instead]?.[r];
    node.append(why ? write(make("span", "wrong"), why, "line") : make("span", "nothing", "\u2013"));
    if (why) node.title = seen(why);
    return node;
  }
  let content = written[column.kind](value, column, r);
  if (column.at !== undefined && cells[column.linked][r] !== null) {
    const link = make("a", "", content);
    link.href = `${column.at}${keys[r]}.html`;
    if (column.kind === "strip") link.setAttribute("aria-label", seen(`${column.title}, ${cells.case[r]}`));
    content = link;
  }
  if (isText(column) && column.kind !== "why") node.title = seen(value);
  node.append(content);
  return node;
}

// ---- what is chosen

let query = "", sorted = null, down = false, visible = new Set();
const chosen = new Map();  // of a column that is filtered: the value
const usual = () => columns.filter((column) => (narrow.matches ? column.narrow : column.shown)).map(({ key }) => key);

function read() {
  const given = new URLSearchParams(location.hash.slice(1)), by = given.get("sort") ?? "";
  query = given.get("search") ?? "";
  down = by.startsWith("-");
  sorted = byKey.get(by.replace(/^-/, "")) ?? null;
  visible = new Set(given.has("column") ? given.getAll("column").filter((key) => byKey.has(key)) : usual());
  chosen.clear();
  for (const column of facets) if (given.has("is-" + column.key)) chosen.set(column, given.get("is-" + column.key));
}

function keep() {
  const said = new URLSearchParams(), now = [...visible];
  if (query) said.set("search", query);
  if (sorted) said.set("sort", (down ? "-" : "") + sorted.key);
  for (const [column, value] of chosen) said.set("is-" + column.key, value);
  if (now.join() !== usual().join()) for (const key of now) said.append("column", key);
  history.replaceState(null, "", "#" + said);
}

// ---- rows

const words = columns.filter(isText);
const haystack = keys.map((_, r) => words.map(({ key }) => cells[key][r] ?? "").join("\n").toLowerCase());

function found() {
  const wanted = query.toLowerCase().split(/\s+/).filter(Boolean), rows = [];
  for (let r = 0; r < keys.length; r++) {
    if (wanted.every((word) => haystack[r].includes(word)) && [...chosen].every(([column, value]) => said(column, r) === value)) rows.push(r);
  }
  if (!sorted) return rows;
  const values = cells[sorted.key], by = down ? -1 : 1;
  const compare = isText(sorted) || sorted.kind === "strip" ? alphabet.compare : (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : alphabet.compare(a, b));
  return rows.sort((a, b) => {  // what is not there comes last, either way
    if (values[a] === null || values[b] === null) return (values[a] === null) - (values[b] === null) || a - b;
    return by * compare(values[a], values[b]) || a - b;
  });
}

let rows = [], drawn = 0;

function more() {
  const own = columns.filter(({ key }) => visible.has(key)), until = Math.min(rows.length, drawn + CHUNK);
  at("rows").append(...rows.slice(drawn, until).map((r) => make("tr", "", ...own.map((column) => cell(column, r)))));
  drawn = until;
  at("more").hidden = drawn === rows.length;
  at("more").textContent = `Show ${count(Math.min(CHUNK, rows.length - drawn))} more of ${count(rows.length - drawn)}`;
}

function draw() {
  rows = found();
  drawn = 0;
  at("headings").replaceChildren(...columns.filter(({ key }) => visible.has(key)).map(heading));
  at("rows").replaceChildren();
  more();
  if (!rows.length) {
    const none = make("td", "", "No case is like that.");
    none.colSpan = visible.size;
    at("rows").append(make("tr", "", none));
    at("rows").lastChild.id = "empty";
  }
  at("shown").textContent = rows.length === keys.length ? count(rows.length) : `${count(rows.length)} of ${count(keys.length)}`;
}

function heading(column) {
  const node = make("th", isText(column) || column.kind === "strip" ? "" : "number");
  node.scope = "col";
  if (column.help) node.title = seen(column.help);
  if (column.kind === "strip") { write(node, column.title, "line"); return node; }
  const button = write(make("button"), column.title, "line");
  button.type = "button";
  button.dataset.column = columns.indexOf(column);
  node.setAttribute("aria-sort", column !== sorted ? "none" : down ? "descending" : "ascending");
  node.append(button);
  return node;
}

function sort(column) {
  const first = !isText(column);  // of numbers the greatest, of texts the alphabet's first
  if (column !== sorted) { sorted = column; down = first; } else if (down === first) down = !first; else sorted = null;
  change();
  at("headings").querySelector(`[data-column="${columns.indexOf(column)}"]`).focus();
}

function change() {
  draw();
  keep();
  at("scroll").scrollTop = 0;
}

// ---- filters: of a column with few different values

const said = ({ key }, r) => (cells[key][r] === null ? "" : String(cells[key][r]));

function different(column) {
  const counts = new Map();
  for (let r = 0; r < keys.length && counts.size <= 12; r++) counts.set(said(column, r), (counts.get(said(column, r)) ?? 0) + 1);
  return counts;
}
const facets = columns.filter((column) => {
  const { size } = column.facet ? different(column) : { size: 0 };
  return size > 1 && size <= 12 && 2 * size <= keys.length;
}).slice(0, 8);
const choosers = [];  // each shows what is chosen in its filter

function drawFilters() {
  for (const column of facets) {
    const select = make("select"), every = make("option", "", "all");
    every.value = "all";
    select.append(every);
    const values = [...different(column)].sort((a, b) => alphabet.compare(a[0], b[0]));
    values.forEach(([value, number], k) => {
      const option = make("option", "", `${value ? seen(value) : "\u2013"} (${count(number)})`);
      option.value = k;
      select.append(option);
    });
    select.addEventListener("change", () => {
      if (select.value === "all") chosen.delete(column); else chosen.set(column, values[select.value][0]);
      change();
    });
    choosers.push(() => {
      const k = values.findIndex(([value]) => value === chosen.get(column));
      select.value = k < 0 ? "all" : k;
    });
    at("columns-part").before(make("label", "", write(make("span"), column.title, "line"), select));
  }
  for (const column of columns) {
    const box = make("input");
    box.type = "checkbox";
    box.dataset.column = columns.indexOf(column);
    box.disabled = column.kind === "case";
    box.addEventListener("change", () => {
      const on = [...at("columns").querySelectorAll("input:checked")];  // in the order of the columns
      visible = new Set(on.map((one) => columns[one.dataset.column].key));
      change();
    });
    const label = make("label", "", box, write(make("span"), column.title, "line"));
    if (column.help) label.title = seen(column.help);
    at("columns").append(label);
  }
}

/** Show in the filters what is chosen. */
function show() {
  at("query").value = query;
  for (const choose of choosers) choose();
  for (const box of at("columns").querySelectorAll("input")) box.checked = visible.has(columns[box.dataset.column].key);
}

// ---- the head of the page

function drawHead() {
  write(at("title"), data.title, "line");
  document.title = at("title").textContent;
  write(at("answer"), data.subtitle, "line");
  drawLinks();
  drawFacts([]);
  at("notes").append(...data.notes.map((text) => write(make("p", "note"), text, "line")));
  at("help").textContent = data.help;
  for (const { title, alt, svg } of data.figures) {
    const image = make("img");
    image.src = "data:image/svg+xml;base64," + svg;
    image.alt = seen(alt);
    at("figures").append(make("figure", "", write(make("h2"), title, "line"), image, write(make("figcaption"), alt, "line")));
  }
  for (const { title, help, headings, rows } of data.tables) {
    const line = (name, row) => make("tr", "", ...row.map((text, k) => {
      const node = write(make(name === "td" && k === 0 ? "th" : name, headings[k].startsWith("#") ? "number" : ""), name === "th" ? text.replace("#", "") : text, "line");
      if (text.length > 60) node.classList.add("long");
      if (node.localName === "th") node.scope = name === "th" ? "col" : "row";
      return node;
    }));
    const table = make("table", "", make("thead", "", line("th", headings)), make("tbody", "", ...rows.map((row) => line("td", row))));
    table.setAttribute("aria-label", seen(title));
    at("tables").append(make("div", "", write(make("h2"), title, "line"), make("div", "wide", table), help ? write(make("p", "help"), help, "line") : ""));
  }
}

function listen() {
  at("query").addEventListener("input", (event) => { query = event.target.value; change(); });
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  at("headings").addEventListener("click", (event) => { const button = event.target.closest("button"); if (button) sort(columns[button.dataset.column]); });
  at("reset").addEventListener("click", () => { history.replaceState(null, "", "#"); read(); show(); draw(); });
  at("more").addEventListener("click", more);
  new IntersectionObserver((seen) => { if (seen[0].isIntersecting) more(); }, { root: at("scroll"), rootMargin: "600px" }).observe(at("more"));
  addEventListener("hashchange", () => { read(); show(); draw(); });
  darkness.addEventListener("change", () => at("rows").querySelectorAll("canvas").forEach(paint));
}

drawHead();
drawFilters();
read();
show();
draw();
listen();
