/** A button for each explanation, named by the token that it explains. */
function drawChoices() {
  if (choices.length === 1) return;
  choices.forEach((one, i) => {
    const [term] = one.explained.terms, button = make("button", i === choice ? "chosen" : "");
    if (term.target.text === null) button.textContent = String(term.target.id);
    else write(button, term.target.text, "line");
    button.title = `${term.position}: ${number(one.value)}`;
    if (i === choice) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => { location.hash = `#choice-${i}`; location.reload(); });
    at("choices").append(button);
  });
  at("choices-part").hidden = false;
}

const N = data.ids.length, L = data.num_layers;
const relevance = decoded(data.layers, Float32Array);  // (L + 1, N)
const special = new Uint8Array(N);
for (const i of data.special) special[i] = 1;
const explained = new Set(terms.map((term) => term.position));
const sourceOf = data.sources && decoded(data.source_of, Int32Array);  // (N,) indices into data.sources

// What the reader has chosen.
let layer = 0, full = 1, pinned = null;

// Per layer, over the tokens that are not special: the greatest magnitude and the sum of magnitudes. Special tokens are
// left out because attention sinks among them outweigh all text by far. The greatest magnitude, not a quantile, is
// the scale, so that no two strong tokens look alike unless the reader asks for it ("full colour at").
const peak = new Float64Array(L + 1), mass = new Float64Array(L + 1);
for (let l = 0; l <= L; l++) {
  for (let i = 0; i < N; i++) {
    if (special[i]) continue;
    const size = Math.abs(relevance[l * N + i]);
    mass[l] += size;
    if (size > peak[l]) peak[l] = size;
  }
}
const peakOfAll = peak.reduce((a, b) => Math.max(a, b), 0);

const label = (i) => (data.tokens ? data.tokens[i] : String(data.ids[i]));

/** Black or white, whichever is easier to read on `colour` (WCAG ratio at least 4.58); the page's own ink counts as one. */
function ink(colour, scheme) {
  const [r, g, b] = colour.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179
    ? (scheme === "light" ? "inherit" : "#000") : (scheme === "dark" ? "inherit" : "#fff");
}

const name = (level) => (level < 0 ? "n" + -level : "p" + level);

for (const scheme of ["light", "dark"]) {
  const rules = ramps[scheme].map((colour, k) => k === STEPS ? "" :  // level 0 is the panel itself
    `.${name(k - STEPS)}{background:rgb(${colour.join()});color:${ink(colour, scheme)}}`);
  const sheet = document.styleSheets[0];
  sheet.insertRule(`@media (prefers-color-scheme: ${scheme}) {${rules.join("")}}`, sheet.cssRules.length);
}

function level(value, scale) {
  if (!(scale > 0)) return 0;
  const x = Math.round((value / scale) * STEPS);
  return x > STEPS ? STEPS : x < -STEPS ? -STEPS : x;
}

// ---- the head of the page

function drawHead() {
  drawQuestion(N);
  let sum = 0, sinks = 0;
  for (let i = 0; i < N; i++) { sum += relevance[i]; if (special[i]) sinks += relevance[i]; }
  const facts = [["Model", data.model], ["Rule", data.rule], ["Tokens", count(N)], ["Layers", count(L)]];
  if (data.bounded) facts.push(["Backward pass", data.bounded]);
  const ofIt = data.special.length ? `, of it ${number(sinks)} in ${count(data.special.length)} special` : "";
  const kept = data.rule.startsWith("cp") ? "" : "; this rule does not conserve it";
  facts.push(["Sum over input tokens", number(sum) + ofIt + kept]);
  drawFacts(facts);
}

/** Fill a table; a heading that starts with # is of numbers. */
function fill(table, headings, rows) {
  const cell = (name, content, k) => make(name, headings[k].startsWith("#") ? "number" : "", ...[content].flat());
  table.append(make("thead", "", make("tr", "", ...headings.map((text, k) => cell("th", text.replace("#", ""), k)))));
  table.append(make("tbody", "", ...rows.map((row) => make("tr", row.total ? "total" : "", ...row.map((content, k) => cell("td", content, k))))));
}

const rank = (token) => count(token.rank + 1);

function drawTerms() {
  const difference = (term) => term.target.logit === null || term.contrast_logit === null ? null : term.target.logit - term.contrast_logit;
  const kind = data.explained.kind, ofAll = kind === "function", target = ofAll ? "" : "target";
  const versus = (term) => (term.contrast ? candidate(term.contrast, "contrast") : data.contrast_words ?? "");
  if (ofAll) { at("for").textContent = "raises the value"; at("against").textContent = "lowers it"; }
  if (terms.length > 1) {
    const more = { logit: [], function: [], logprob: ["#log of sum", "#log-probability"] }[kind] ?? ["contrast", "#logit", "#difference"];
    const headings = ["#" + data.candidate_words.at, ofAll ? "first choice" : "target", "#rank", "#logit"].concat(more);
    fill(at("terms"), headings, terms.map((term) => [count(term.position), candidate(term.target, target), rank(term.target), logit(term.target.logit)]
      .concat([versus(term), logit(term.contrast_logit), number(difference(term))].slice(3 - more.length))));
    return;
  }
  const [term] = terms, seen = new Set();
  const row = (role, token, className) => { seen.add(token.id); return [role, candidate(token, className), String(token.id), rank(token), logit(token.logit)]; };
  const rows = [row(ofAll ? "first choice" : "target", term.target, target)];
  if (term.contrast) rows.push(row("contrast", term.contrast, "contrast"));
  else if (data.contrast_words) rows.push(["contrast", data.contrast_words, "", "", logit(term.contrast_logit)]);
  else if (kind === "logprob") rows.push(["log of sum", "exp of all logits", "", "", logit(term.contrast_logit)]);
  if (term.runner_up && !seen.has(term.runner_up.id)) rows.push(row("runner-up", term.runner_up, ""));
  rows.push(Object.assign([{ logit: "explained", function: "explained", logprob: "log-probability" }[kind] ?? "difference", "", "", "", number(data.value)], { total: true }));
  fill(at("terms"), ["", data.explained.of, "#id", "#rank", "#logit"], rows);
}

function drawBest() {
  const best = data.explained.best, last = terms[terms.length - 1];
  at("best-title").prepend(`Best ${data.candidate_words.several}`);
  if (terms.length > 1) at("best-title").append(make("span", "aside", `${data.candidate_words.at} position ${count(last.position)}`));
  if (!best.length) { at("best-part").hidden = true; return; }
  fill(at("best"), ["#rank", data.explained.of, "#id", "#logit", "#below the best"], best.map((token) => {
    const role = data.explained.kind !== "function" && token.id === last.target.id ? "target" : token.id === last.contrast?.id ? "contrast" : "";
    const below = token.logit === null || best[0].logit === null ? null : best[0].logit - token.logit;
    return [rank(token), [candidate(token, role), ...(role ? [make("span", "role", role)] : [])], String(token.id), logit(token.logit), below === 0 ? "" : logit(below)];
  }));
}

// ---- the text

const spans = [];

function drawText() {
  const box = at("text");
  let block, line, inBlock = Infinity, inLine = Infinity;
  if (!data.tokens) box.classList.add("ids");
  for (let i = 0; i < N; i++) {
    if (inLine === Infinity) {
      if (inBlock >= 250) {
        block = make("div", "block");
        box.append(block);
        inBlock = 0;
      }
      line = make("div", "line");
      line.dataset.at = count(i);
      block.append(line);
      inLine = 0;
    }
    const text = label(i), ends = data.tokens ? text.endsWith("\n") : inLine === 99;  // plain ids: a hundred a line
    const span = make("span", "token");
    span.dataset.i = i;
    if (special[i]) write(span, text, "line");
    else if (ends && data.tokens) { write(span, text, "text"); span.lastChild.remove(); }  // the line's end breaks the line already
    else write(span, text, "text");
    spans.push(span);
    line.append(span);
    if (!data.tokens) line.append(" ");
    inBlock++;
    inLine = ends && !special[i] ? Infinity : inLine + 1;
  }
  // A first guess of a block's height, until it has been laid out once.
  const perLine = Math.max(20, (box.clientWidth - 70) / 8.2);
  for (const part of box.children) {
    let rows = 0;
    for (const line of part.children) rows += Math.ceil((line.textContent.length + 1) / perLine);
    part.style.containIntrinsicSize = `100px auto ${Math.round(rows * 23.6)}px`;
  }
  at("text-help").textContent = (explained.size === 1 ? "Underlined: the position explained. " : "Underlined: the positions explained. ")
    + (data.special.length ? "Grey: special tokens, left out of the scale and of every share." : "");
}

function colourText() {
  const scale = peak[layer] / full, row = layer * N;
  for (let i = 0; i < N; i++) {
    spans[i].className = "token " + (special[i] ? "special" : name(level(relevance[row + i], scale))) + (explained.has(i) ? " explained" : "");
  }
  mark(current);
}

// ---- one readout for the text, the list and the map

let current = null;

function mark(i) {
  if (current !== null) spans[current].classList.remove("now");
  current = i;
  if (i !== null) spans[i].classList.add("now");
}

/** Say what is known of token `i`, at layer `l`; `before` says which bin of the map it stands for. */
function tell(i, l = layer, before = "") {
  const readout = at("readout"), parts = [];
  mark(i);
  at("column").hidden = i === null;
  if (i === null) { readout.textContent = "Point at a token, or step through with the arrow keys; a click keeps it."; return; }
  at("column").style.left = `${100 * i / N}%`;
  at("column").style.width = `${100 / N}%`;
  const value = relevance[l * N + i];
  if (before) parts.push(make("span", "", before));
  parts.push(make("span", "", `position ${count(i)}`));
  if (data.tokens) parts.push(make("span", "", quote(data.tokens[i])));
  parts.push(make("span", "", `id ${data.ids[i]}`), make("span", "", make("b", "", number(value)), l === layer && !before ? "" : ` at layer ${l}`));
  if (data.sources) parts.push(make("span", "", "source ", write(make("span", "quote"), data.sources[sourceOf[i]], "line")));
  parts.push(make("span", "", special[i] ? "special, outside the scale" : `${percent(Math.abs(value), mass[l])} of all |relevance|`));
  readout.replaceChildren(...parts);
}

function pin(i, scroll) {
  pinned = i;
  tell(i);
  if (scroll && i !== null) { reveal(i); requestAnimationFrame(() => reveal(i)); }  // again, once the blocks nearby have real heights
}

/** Scroll the text to token `i`, and the page only if the text is out of sight. */
function reveal(i) {
  const box = at("text"), token = spans[i].getBoundingClientRect(), frame = box.getBoundingClientRect();
  if (token.top < frame.top + 20 || token.bottom > frame.bottom - 20) box.scrollTop += token.top - frame.top - frame.height / 2;
  const top = at("bar").getBoundingClientRect().bottom;
  if (frame.bottom < top + 60 || frame.top > innerHeight - 60) scrollBy(0, frame.top - top - 40);
}

function listen() {
  const box = at("text");
  const tokenOf = (event) => { const span = event.target.closest(".token"); return span ? Number(span.dataset.i) : null; };
  box.addEventListener("pointerover", (event) => { const i = tokenOf(event); if (i !== null) tell(i); });
  box.addEventListener("pointerleave", () => tell(pinned));
  box.addEventListener("click", (event) => { if (getSelection().isCollapsed) pin(tokenOf(event)); });
  box.addEventListener("keydown", (event) => {
    const here = pinned ?? -1;
    const to = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: N - 1 }[event.key];
    if (event.key === "Escape") pin(null);
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    pin(Math.min(Math.max(to, 0), N - 1), true);
  });

  at("strongest").addEventListener("click", (event) => { const item = event.target.closest("button"); if (item) pin(Number(item.dataset.i), true); });
  at("layer").addEventListener("input", (event) => { layer = Number(event.target.value); drawLayer(); });
  at("full").addEventListener("change", (event) => { full = Number(event.target.value); colourText(); drawLegend(); drawMap(); });
  at("each").addEventListener("change", drawMap);
  darkness.addEventListener("change", () => { drawLegend(); drawMap(); });

  const heat = at("heat");
  heat.addEventListener("pointermove", (event) => { const { i, l, before } = cellAt(event); tell(i, l, before); });
  heat.addEventListener("pointerleave", () => tell(pinned));
  heat.addEventListener("click", (event) => pin(cellAt(event).i, true));
  new ResizeObserver(drawMap).observe(at("field"));
}

// ---- the strongest tokens of a layer

/** Positions of the `k` greatest of sign * relevance at this layer, of tokens that are not special, strictly above 0. */
function strongest(sign, k) {
  const row = layer * N, found = [];
  for (let i = 0; i < N; i++) if (!special[i] && sign * relevance[row + i] > 0) found.push(i);
  return found.sort((a, b) => sign * (relevance[row + b] - relevance[row + a]) || a - b).slice(0, k);
}

/** The tokens from..to - 1, on one line. */
function stretch(from, to) {
  const node = make("span", "", data.tokens ? "\u200b" : " ");  // never empty, so that rows share a baseline
  for (let i = Math.max(0, from); i < Math.min(N, to); i++) write(node, label(i) + (data.tokens ? "" : " "), "line");
  return node;
}

function drawStrongest() {
  at("strongest-help").textContent = "Select one to see it in the text."
    + (mass[layer] > 0 ? ` Shares are of the summed |relevance| at layer ${layer}, ${number(mass[layer]).replace("+", "")}` + (data.special.length ? ", special tokens left out." : ".") : "");
  for (const [id, sign] of [["positive", 1], ["negative", -1]]) {
    const items = strongest(sign, N > 200 ? 20 : 10).map((i) => {
      const value = relevance[layer * N + i];
      const meter = make("span", "meter");
      meter.style.setProperty("--length", 100 * Math.abs(value) / peak[layer]);
      const button = make("button", "",
        make("span", "at", count(i)),
        make("span", "context", make("span", "before", stretch(i - 6, i)), write(make("span", "word"), label(i), "quote"), make("span", "after", stretch(i + 1, i + 7))),
        make("span", "relevance", number(value, 3)), make("span", "share", percent(Math.abs(value), mass[layer])), meter);
      button.type = "button";
      button.dataset.i = i;
      return make("li", "", button);
    });
    at(id).replaceChildren(...(items.length ? items : [make("li", "none", "none")]));
  }
}

// ---- the sources at a layer

const MOST_SOURCES = 200;  // rows

function drawSources() {
  if (!data.sources) return;
  const S = data.sources.length, sum = new Float64Array(S), size = new Float64Array(S), tokens = new Uint32Array(S);
  for (let i = 0; i < N; i++) {
    const value = relevance[layer * N + i], s = sourceOf[i];
    sum[s] += value;
    size[s] += Math.abs(value);
    tokens[s]++;
  }
  const all = size.reduce((a, b) => a + b, 0), order = Array.from(sum.keys()).sort((a, b) => Math.abs(sum[b]) - Math.abs(sum[a]) || a - b);
  at("sources").replaceChildren();
  fill(at("sources"), ["source", "#tokens", "#relevance", "#|relevance|", "#share"], order.slice(0, MOST_SOURCES).map((s) =>
    [write(make("span", "quote"), data.sources[s], "line"), count(tokens[s]), number(sum[s]), number(size[s]).replace("+", ""), percent(size[s], all)]));
  at("sources-help").textContent = `Sums over all tokens of a source at layer ${layer}, special ones included. Shares are of the summed |relevance|, ${number(all).replace("+", "")}.`
    + (S > MOST_SOURCES ? ` The ${count(MOST_SOURCES)} strongest of ${count(S)}.` : "");
  at("sources-part").hidden = false;
}

// ---- layers x positions

// Column c of the W columns of pixels shows the tokens from(c)..from(c + 1) - 1, or one token where tokens are wider than pixels.
const from = (c, W) => Math.floor((c * N) / W);

/** The token that stands for column c at layer l: the greatest magnitude of those that are not special; -1 if all are. */
function strongestOf(c, W, l) {
  let best = -1, size = -1;
  for (let i = from(c, W), end = Math.max(i + 1, from(c + 1, W)); i < end; i++) {
    const here = Math.abs(relevance[l * N + i]);
    if (!special[i] && here > size) { best = i; size = here; }
  }
  return best;
}

function drawMap() {
  const heat = at("heat"), W = Math.max(1, Math.round(at("field").clientWidth * devicePixelRatio)), rows = L + 1;
  const height = Math.round(rows * Math.min(16, Math.max(5, 300 / rows)));
  heat.width = W;
  heat.height = rows;
  heat.style.height = height + "px";
  const context = heat.getContext("2d"), image = context.createImageData(W, rows), palette = colours();
  const grey = rgb(getComputedStyle(document.documentElement).getPropertyValue("--special").trim());
  for (let l = 0; l <= L; l++) {
    const scale = (at("each").value ? peak[l] : peakOfAll) / full;
    for (let c = 0; c < W; c++) {
      const i = strongestOf(c, W, l), pixel = 4 * ((L - l) * W + c);  // the last layer on top
      const colour = i < 0 ? grey : palette[STEPS + level(relevance[l * N + i], scale)];
      image.data.set(colour, pixel);
      image.data[pixel + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);

  const axis = (box, values, place) => box.replaceChildren(...values.map((value) => { const mark = make("span", "", count(value)); place(mark, value); return mark; }));
  const ticks = (last, room) => {  // 0 to last in round steps
    const step = [1, 2, 5, 10, 20, 25, 50].flatMap((s) => [s, s * 100, s * 1e4]).sort((a, b) => a - b).find((s) => last / s <= room) ?? last;
    return Array.from({ length: Math.floor(last / step) + 1 }, (_, k) => k * step);
  };
  at("layers-axis").style.height = height + "px";
  axis(at("layers-axis"), ticks(L, height / 22), (node, l) => { node.style.top = `${100 * (L - l + 0.5) / rows}%`; });
  axis(at("positions-axis"), ticks(N - 1, at("field").clientWidth / 80), (node, i) => { node.style.left = `${100 * (i + 0.5) / N}%`; });
  at("row").style.top = `${100 * (L - layer) / rows}%`;
  at("row").style.height = `${100 / rows}%`;

  const wide = Math.ceil(N / W);
  at("map-help").textContent = "Bottom row: embeddings. Framed row: the layer chosen above, the one that the scale above belongs to. Click a column to see its token in the text."
    + (N > W ? ` ${count(N)} tokens share ${count(W)} columns, up to ${wide} each: a column shows the value of greatest magnitude among its tokens that are not special.` : "")
    + (data.special.length ? " Grey: special tokens only." : "");
}

function cellAt(event) {
  const heat = at("heat"), box = heat.getBoundingClientRect(), W = heat.width;
  const part = (x, size, n) => Math.min(n - 1, Math.max(0, Math.floor((x / size) * n)));
  const c = part(event.clientX - box.left, box.width, W), l = L - part(event.clientY - box.top, box.height, L + 1);
  const first = from(c, W), last = Math.max(first, from(c + 1, W) - 1), best = strongestOf(c, W, l);
  return { i: best < 0 ? first : best, l, before: last > first ? `strongest of ${count(first)} to ${count(last)}` : "" };
}

// ---- all that depends on the layer

function drawLegend() {
  const scale = peak[layer] / full, bound = number(scale, 3).replace("+", "");
  const canvas = at("ramp"), palette = colours();
  canvas.width = palette.length;
  const context = canvas.getContext("2d"), image = context.createImageData(palette.length, 1);
  palette.forEach((colour, k) => image.data.set([...colour, 255], 4 * k));
  context.putImageData(image, 0, 0);
  at("low").textContent = scale > 0 ? (full > 1 ? "\u2264 " : "") + "\u2212" + bound : "0";
  at("high").textContent = scale > 0 ? (full > 1 ? "\u2265 " : "") + "+" + bound : "0";
}

function drawLayer() {
  at("layer-name").textContent = layer === 0 ? "0 \u00b7 embeddings" : layer === L ? `${L} \u00b7 last` : `${layer} of ${L}`;
  colourText();
  drawLegend();
  drawStrongest();
  drawSources();
  at("row").style.top = `${100 * (L - layer) / (L + 1)}%`;
  tell(pinned);
}

at("layer").max = L;
drawLinks();
drawChoices();
drawHead();
drawTerms();
drawBest();
drawText();
drawLayer();
drawMap();
listen();
if (/^#\d+$/.test(location.hash) && Number(location.hash.slice(1)) < N) pin(Number(location.hash.slice(1)), true);  // page.html#12: position 12
