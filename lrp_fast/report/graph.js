const L = data.num_layers, N = data.num_tokens;
const positions = decoded(data.positions, Uint32Array), C = positions.length;  // a column for each token that has nodes
const nodeLayer = decoded(data.node_layers, Uint16Array), nodeColumn = decoded(data.node_columns, Uint32Array);
const relevance = decoded(data.relevance, Float32Array), V = relevance.length;
const source = decoded(data.sources, Uint32Array), target = decoded(data.targets, Uint32Array);
const weight = decoded(data.weights, Float32Array), E = weight.length;  // by |weight|, the strongest first
const explained = new Set(terms.map((term) => term.position));

// mass[k]: what the k strongest edges hold, in sums of |weight|.
const mass = new Float64Array(E + 1);
for (let k = 0; k < E; k++) mass[k + 1] = mass[k] + Math.abs(weight[k]);
const peak = E ? Math.abs(weight[0]) : 1, peakOfNodes = relevance.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1;

/** For every node the edges that lead to it (or from it), the strongest first: those of v are list[start[v]..start[v + 1] - 1]. */
function edgesBy(end) {
  const start = new Uint32Array(V + 1), list = new Uint32Array(E);
  for (const v of end) start[v + 1]++;
  for (let v = 0; v < V; v++) start[v + 1] += start[v];
  const next = start.slice();
  for (let k = 0; k < E; k++) list[next[end[k]]++] = k;
  return { start, list };
}
const into = edgesBy(target), from = edgesBy(source);

// What the reader has chosen: how many edges are drawn, the node pointed at and the one that was clicked.
let shown = E, over = null, pinned = null;

const isShown = (v) => into.list[into.start[v]] < shown && into.start[v] < into.start[v + 1] || from.list[from.start[v]] < shown && from.start[v] < from.start[v + 1];
const label = (c) => (data.tokens ? data.tokens[c] : "#" + positions[c]);

// ---- where things are: columns in units of a token, with wider steps where tokens were left out

const unit = new Float64Array(C);
for (let c = 0; c < C; c++) unit[c] = c === 0 ? 0.5 : unit[c - 1] + (positions[c] - positions[c - 1] > 1 ? 1.7 : 1);
const units = C ? unit[C - 1] + 0.5 : 1;
const LETTERS = 12;  // of a token below its column
const letters = (text) => [...visible(text, LETTERS)].reduce((sum, char) => sum + (char > "\u2e7f" ? 2 : 1), 0);
const longest = Array.from({ length: C }, (_, c) => c).reduce((most, c) => Math.max(most, letters(label(c))), 0);
const below = Math.min(88, 7.3 * longest) + 6 + 6 * count(N).length;  // pixels of the longest label, its position with it
const MARGIN = { left: 46, right: 14, top: 40, bottom: Math.round(26 + 0.87 * below) };  // it stands at 60 degrees
let width = 300, height = 300, step = 20, scale = 0, offset = 0;  // pixels a layer, pixels a unit, units left of the plot

const room = () => Math.max(40, width - MARGIN.left - MARGIN.right);
const fitting = () => Math.min(130, room() / units);
const x = (v) => MARGIN.left + (unit[nodeColumn[v]] - offset) * scale;
const xOf = (c) => MARGIN.left + (unit[c] - offset) * scale;
const yOf = (layer) => height - MARGIN.bottom - layer * step;
const y = (v) => yOf(nodeLayer[v]);

function clamp() {
  scale = Math.min(Math.max(scale, fitting()), Math.max(fitting(), 130));
  const inView = room() / scale;
  offset = inView >= units ? (units - inView) / 2 : Math.min(Math.max(offset, 0), units - inView);
}

/** Zoom by a factor about a pixel of the canvas. */
function zoom(factor, pixel = MARGIN.left + room() / 2) {
  const here = offset + (pixel - MARGIN.left) / scale;
  scale *= factor;
  clamp();
  offset = here - (pixel - MARGIN.left) / scale;
  clamp();
  draw();
}

function resize() {
  const all = scale <= fitting() * 1.001;
  width = Math.max(200, at("field").clientWidth);
  step = Math.min(40, Math.max(9, 600 / L));
  height = MARGIN.top + MARGIN.bottom + Math.round(L * step);
  const canvas = at("graph");
  canvas.width = Math.round(width * devicePixelRatio);
  canvas.height = Math.round(height * devicePixelRatio);
  canvas.style.height = height + "px";
  if (all) scale = 0;
  clamp();
  draw();
}

// ---- what hangs together

/** Marks of the drawn edges and nodes on paths to or from node v. */
function related(v) {
  const edges = new Uint8Array(E), nodes = new Uint8Array(V);
  for (const [by, other] of [[into, source], [from, target]]) {
    const waiting = [v];
    nodes[v] = 1;
    const seen = new Set(waiting);
    while (waiting.length) {
      const node = waiting.pop();
      for (let k = by.start[node]; k < by.start[node + 1] && by.list[k] < shown; k++) {
        const next = other[by.list[k]];
        edges[by.list[k]] = nodes[next] = 1;
        if (!seen.has(next)) { seen.add(next); waiting.push(next); }
      }
    }
  }
  return { edges, nodes };
}
let marked = null;  // `related` of the clicked node

// ---- drawing

const LEVELS = 10;
const level = (k) => Math.max(1, Math.ceil(LEVELS * Math.sqrt(Math.abs(weight[k]) / peak)));

function draw() {
  const context = at("graph").getContext("2d"), style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue("--" + name).trim();
  const positive = colour("positive"), negative = colour("negative"), ink = colour("ink"), faint = colour("faint"), line = colour("line");
  context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
  context.clearRect(0, 0, width, height);
  context.lineCap = "round";

  // Layers, and a dotted line where tokens were left out.
  context.font = "11px system-ui, sans-serif";
  context.textAlign = "right";
  context.textBaseline = "middle";
  const every = [1, 2, 5, 10, 20, 50].find((s) => s * step >= 22) ?? 100;
  context.strokeStyle = line;
  context.lineWidth = 1;
  for (let layer = 0; layer <= L; layer += every) {
    context.globalAlpha = 0.7;
    context.beginPath();
    context.moveTo(MARGIN.left - 4, yOf(layer));
    context.lineTo(width - 6, yOf(layer));
    context.stroke();
    context.globalAlpha = 1;
    context.fillStyle = faint;
    context.fillText(layer, MARGIN.left - 10, yOf(layer));
  }
  context.save();
  context.beginPath();
  context.rect(MARGIN.left - 6, 0, width - MARGIN.left + 6, height);
  context.clip();
  context.setLineDash([1, 4]);
  context.globalAlpha = 0.6;
  context.strokeStyle = faint;
  for (let c = 1; c < C; c++) {
    if (positions[c] - positions[c - 1] === 1 || 1.7 * scale < 9) continue;
    const middle = (xOf(c - 1) + xOf(c)) / 2;
    if (middle < MARGIN.left || middle > width) continue;
    context.beginPath();
    context.moveTo(middle, yOf(L));
    context.lineTo(middle, yOf(0));
    context.stroke();
  }
  context.setLineDash([]);
  context.globalAlpha = 1;

  // Edges, the weakest first, those of one width and sign at once.
  const path = (k) => {
    const x0 = x(source[k]), y0 = y(source[k]), x1 = x(target[k]), y1 = y(target[k]);
    if (Math.max(x0, x1) < 0 || Math.min(x0, x1) > width) return;
    context.moveTo(x0, y0);
    if (x0 === x1) context.lineTo(x1, y1);
    else context.bezierCurveTo(x0, y0 - 0.6 * step, x1, y1 + 0.6 * step, x1, y1);
  };
  for (const faded of marked ? [true, false] : [false]) {
    for (let last = shown; last > 0;) {
      const here = level(last - 1);
      let first = last - 1;
      while (first > 0 && level(first - 1) === here) first--;
      for (const sign of [-1, 1]) {
        context.beginPath();
        for (let k = last - 1; k >= first; k--) if (weight[k] * sign > 0 && (!marked || !marked.edges[k] === faded)) path(k);
        context.strokeStyle = faded ? faint : sign < 0 ? negative : positive;
        context.globalAlpha = faded ? 0.13 : 0.3 + 0.6 * here / LEVELS;
        context.lineWidth = faded ? 0.8 : 0.4 + Math.min(6, 0.5 * step) * here / LEVELS;
        context.stroke();
      }
      last = first;
    }
  }

  // Nodes.
  const most = Math.max(1.2, Math.min(6.5, 0.42 * step, 0.5 * scale));
  for (let v = 0; v < V; v++) {
    if (!isShown(v) || x(v) < -9 || x(v) > width + 9) continue;
    context.globalAlpha = marked && !marked.nodes[v] ? 0.25 : 1;
    context.fillStyle = relevance[v] < 0 ? negative : positive;
    context.beginPath();
    context.arc(x(v), y(v), Math.max(1, most * Math.sqrt(Math.abs(relevance[v]) / peakOfNodes)), 0, 7);
    context.fill();
  }
  context.globalAlpha = 1;
  for (const [v, size] of [[pinned, 2.5], [over, 1.5]]) {
    if (v === null) continue;
    context.strokeStyle = ink;
    context.lineWidth = size;
    context.beginPath();
    context.arc(x(v), y(v), most + 3, 0, 7);
    context.stroke();
  }
  context.restore();
  drawLabels(context, ink, faint);
}

/** Token texts, below their columns and above the positions that were explained; of those too close the stronger one. */
function drawLabels(context, ink, faint) {
  const turned = (text, at, cx, cy) => {
    context.save();
    context.translate(cx, cy);
    context.rotate(-Math.PI / 3);
    context.textAlign = "right";
    context.font = '12px ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", "DejaVu Sans Mono", monospace';
    context.fillStyle = ink;
    const length = Math.min(88, context.measureText(text).width);  // wide letters are squeezed
    context.fillText(text, 0, 0, length);
    context.font = "10px system-ui, sans-serif";
    context.fillStyle = faint;
    context.fillText(at, -length - 6, 0);
    context.restore();
  };
  const lit = new Uint8Array(C);  // columns with something drawn
  for (let v = 0; v < V; v++) if (isShown(v)) lit[nodeColumn[v]] = 1;
  const placed = [], chosen = (over ?? pinned) === null ? -1 : nodeColumn[over ?? pinned];
  for (const c of [...(chosen < 0 ? [] : [chosen]), ...byStrength]) {
    const cx = xOf(c);
    if (!lit[c] || cx < MARGIN.left - 4 || cx > width) continue;
    if (placed.some((other) => Math.abs(other - cx) < 17)) continue;
    placed.push(cx);
    turned(visible(label(c), LETTERS), count(positions[c]), cx + 2, yOf(0) + 12);
    if (placed.length > 120) break;
  }
  const above = [];
  for (const term of terms) {
    const c = positions.indexOf(term.position);
    if (c < 0 || above.some((other) => Math.abs(other - xOf(c)) < 90)) continue;
    above.push(xOf(c));
    context.textAlign = xOf(c) > width - 120 ? "right" : "center";
    context.font = "12px ui-monospace, Menlo, Consolas, monospace";
    context.fillStyle = ink;
    const named = data.explained.kind === "function" ? [] : [term.target, term.contrast].filter(Boolean);
    const words = named.map((token) => visible(token.text ?? "#" + token.id, LETTERS));
    context.fillText(words.join(" / "), Math.min(xOf(c) + (context.textAlign === "right" ? 12 : 0), width - 8), MARGIN.top - 22);
  }
}

/** A token as one line of text without anything invisible, in `most` signs. */
function visible(text, most) {
  const signs = [...text].map((char) => (char === " " ? "\u2423" : HIDDEN.test(char) ? sign(char) : char)).join("") || "\u2205";
  const all = [...signs];
  return all.length > most ? all.slice(0, most - 1).join("") + "\u2026" : signs;
}

const strength = new Float64Array(C);  // of a column: its greatest |relevance|
for (let v = 0; v < V; v++) strength[nodeColumn[v]] = Math.max(strength[nodeColumn[v]], Math.abs(relevance[v]));
const byStrength = Array.from({ length: C }, (_, c) => c).sort((a, b) => strength[b] - strength[a] || a - b);

// ---- one node in words

function row(k, v) {
  const button = make("button", "",
    make("span", "at", count(positions[nodeColumn[v]])), write(make("span", "word"), label(nodeColumn[v]), "quote"),
    make("span", "weight " + (weight[k] < 0 ? "negative" : "positive"), number(weight[k], 3)));
  button.type = "button";
  button.dataset.node = v;
  return button;
}

/** The strongest drawn edges of a node, and how many there are. */
function fill(list, by, other, v) {
  const edges = by.list.subarray(by.start[v], by.start[v + 1]).filter((k) => k < shown);
  const sum = edges.reduce((total, k) => total + Math.abs(weight[k]), 0);
  const items = Array.from(edges.subarray(0, 5), (k) => {
    const button = row(k, other[k]);
    button.append(make("span", "share", percent(Math.abs(weight[k]), sum)));
    return make("li", "", button);
  });
  if (edges.length > 5) items.push(make("li", "none", `and ${count(edges.length - 5)} more`));
  at(list).replaceChildren(...(items.length ? items : [make("li", "none", "none")]));
}

function tell() {
  const v = over ?? pinned;
  at("graph").classList.toggle("over", over !== null);
  if (v === null) {
    at("node-name").replaceChildren("No node chosen");
    at("node-about").textContent = "Point at a node to read it; click it to see what leads there and what comes of it.";
    at("readout").textContent = "Point at a node, or click it.";
    for (const list of ["outgoing", "incoming"]) at(list).replaceChildren();
    return;
  }
  const c = nodeColumn[v];
  at("node-name").replaceChildren(...(data.tokens ? [quote(data.tokens[c])] : []), ` position ${count(positions[c])}`);
  const layer = nodeLayer[v] === 0 ? "layer 0, the embedding" : nodeLayer[v] === L ? `layer ${L}, the last` : `layer ${nodeLayer[v]} of ${L}`;
  at("node-about").replaceChildren(layer, ", relevance ", make("b", "", number(relevance[v])), explained.has(positions[c]) && nodeLayer[v] === L ? ", explained here" : "");
  at("readout").replaceChildren(...(data.tokens ? [quote(data.tokens[c])] : []), ` position ${count(positions[c])}, layer ${nodeLayer[v]}, relevance `, make("b", "", number(relevance[v])));
  fill("outgoing", from, target, v);
  fill("incoming", into, source, v);
}

function choose(v) {
  pinned = v;
  marked = v === null ? null : related(v);
  if (v !== null && (x(v) < MARGIN.left || x(v) > width)) { offset = unit[nodeColumn[v]] - room() / scale / 2; clamp(); }
  tell();
  draw();
}

/** How many edges hold the share that the slider says, of all the mass on this page. */
function keep() {
  const share = Number(at("kept").value) / 1000;
  let low = 0, high = E;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (mass[middle] < share * mass[E] * (1 - 1e-12)) low = middle + 1; else high = middle;
  }
  shown = share === 1 ? E : low;
  at("kept-name").textContent = `${count(shown)} of ${count(data.num_edges)}, ${percent(mass[shown], data.mass)} of all |weight|`;
  if (over !== null && !isShown(over)) over = null;
  choose(pinned !== null && isShown(pinned) ? pinned : null);
}

// ---- what the reader does

function nearest(event) {
  const box = at("graph").getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top;
  let best = null, least = (event.pointerType === "touch" ? 22 : 13) ** 2;
  for (let v = 0; v < V; v++) {
    const distance = (x(v) - px) ** 2 + (y(v) - py) ** 2;
    if (distance < least && isShown(v)) { best = v; least = distance; }
  }
  return best;
}

function listen() {
  const canvas = at("graph"), fingers = new Map();
  let moved = 0, waiting = false;
  const soon = () => { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; draw(); }); } };
  canvas.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, event.clientX);
    if (fingers.size === 1) moved = 0;
    if (event.isTrusted) canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (before === undefined) {
      const v = nearest(event);
      if (v !== over) { over = v; tell(); soon(); }
      return;
    }
    const others = [...fingers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
    fingers.set(event.pointerId, event.clientX);
    moved += Math.abs(event.clientX - before);
    if (moved < 4) return;
    canvas.classList.add("moving");
    if (others.length) {
      const apart = Math.abs(event.clientX - others[0]), was = Math.abs(before - others[0]);
      if (was > 8 && apart > 8) zoom(apart / was, (event.clientX + others[0]) / 2 - canvas.getBoundingClientRect().left);
    } else {
      offset -= (event.clientX - before) / scale;
      clamp();
      soon();
    }
  });
  const release = (event) => { fingers.delete(event.pointerId); canvas.classList.remove("moving"); };
  canvas.addEventListener("pointerup", (event) => { release(event); if (moved < 4) { const v = nearest(event); choose(v === pinned ? null : v); } });
  canvas.addEventListener("pointercancel", (event) => { moved = 4; release(event); });
  canvas.addEventListener("pointerleave", () => { over = null; tell(); soon(); });
  canvas.addEventListener("wheel", (event) => {  // a plain wheel scrolls the page
    if (event.ctrlKey || event.metaKey) zoom(Math.exp(-event.deltaY / 240), event.clientX - canvas.getBoundingClientRect().left);
    else if (event.deltaX || event.shiftKey) { offset += (event.deltaX || event.deltaY) / scale; clamp(); soon(); }
    else return;
    event.preventDefault();
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const by = { ArrowUp: [from, target], ArrowDown: [into, source] }[event.key];
    if (event.key === "Escape") choose(null);
    else if (event.key === "+" || event.key === "=") zoom(1.4);
    else if (event.key === "-") zoom(1 / 1.4);
    else if (by || event.key === "ArrowLeft" || event.key === "ArrowRight") walk(by, event.key === "ArrowLeft" ? -1 : 1);
    else return;
    event.preventDefault();
  });
  at("node").addEventListener("click", (event) => { const item = event.target.closest("button"); if (item) choose(Number(item.dataset.node)); });
  at("kept").addEventListener("input", keep);
  at("in").addEventListener("click", () => zoom(1.6));
  at("out").addEventListener("click", () => zoom(1 / 1.6));
  at("all").addEventListener("click", () => { scale = 0; clamp(); draw(); });
  darkness.addEventListener("change", draw);
  new ResizeObserver(resize).observe(at("field"));
}

/** Along the strongest edge, or to the next node of the layer; from nowhere to the strongest node of the last layer. */
function walk(by, way) {
  if (pinned === null) {
    let best = null;
    for (let v = 0; v < V; v++) if (isShown(v) && nodeLayer[v] === L && (best === null || Math.abs(relevance[v]) > Math.abs(relevance[best]))) best = v;
    choose(best);
  } else if (by) {
    const [edges, other] = by, k = edges.list[edges.start[pinned]];
    if (edges.start[pinned] < edges.start[pinned + 1] && k < shown) choose(other[k]);
  } else {
    let v = pinned + way;
    while (v >= 0 && v < V && nodeLayer[v] === nodeLayer[pinned] && !isShown(v)) v += way;
    if (v >= 0 && v < V && nodeLayer[v] === nodeLayer[pinned]) choose(v);
  }
}

// ---- the page

function drawHead() {
  if (data.explained) drawQuestion(N);
  else at("question").textContent = "A graph that does not say what was explained";
  drawFacts([
    ["Model", data.model], ["Rule", data.rule], ["Tokens", `${count(N)}, ${count(C)} of them here`], ["Layers", count(L)],
    ...(data.bounded ? [["Backward pass", data.bounded]] : []),
    ["Nodes", count(V) + (E < data.num_edges ? " here" : "")], ["Edges", count(data.num_edges)], ["Sum of |weight|", number(data.mass).replace("+", "")],
  ]);
  const [gone, less] = data.dropped;
  const weak = data.num_edges > E ? `This page holds the ${count(E)} strongest of the graph's ${count(data.num_edges)} edges, ${percent(mass[E], data.mass)} of the sum of |weight|. ` : "";
  at("left-out").textContent = weak + `Not in the graph: edges that together hand on ${number(gone)} and ${number(less)}, left out when it was built and pruned.`
    + (C < N ? ` Tokens without nodes here, ${count(N - C)}, are left out; a dotted line stands where some are missing.` : "");
  at("help").textContent = "Tokens from left to right, layers from the embeddings at the bottom up. Lines are edges: wider, the more relevance they hand on (by the square root); "
    + "the size of a node is its relevance. Drag to move, zoom with the buttons, two fingers or Ctrl and the wheel; "
    + "arrow keys walk along the strongest edges, Escape lets go.";
}

drawHead();
at("kept").value = 1000;
if (E > 2000) at("kept").value = Math.floor(1000 * mass[2000] / mass[E]);  // a first view that can be read
listen();
resize();
keep();
const asked = location.hash.match(/^#(\d+),(\d+)$/);  // page.html#3,12: layer 3, position 12
if (asked) {
  for (let v = 0; v < V; v++) if (nodeLayer[v] === Number(asked[1]) && positions[nodeColumn[v]] === Number(asked[2])) choose(v);
}
