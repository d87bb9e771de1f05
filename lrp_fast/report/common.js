"use strict";
const embedded = JSON.parse(document.getElementById("data").textContent);
// Of several explanations, the one that the address names: page.html#choice-2. The page is drawn anew for another.
const choices = embedded.choices ?? [embedded];
const choice = Math.min(Number(/^#choice-(\d+)$/.exec(location.hash)?.[1] ?? 0), choices.length - 1);
const data = choices[choice];
const at = (id) => document.getElementById(id);
const terms = data.explained ? data.explained.terms : [];

/** Numbers of a type that is little-endian in the file, from base64. */
const decoded = (text, Type) => new Type(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);

// ---- numbers

const count = (n) => n.toLocaleString("en");
const signed = (text, value) => (Number(text) === 0 ? "" : value < 0 ? "\u2212" : "+") + text;

function number(value, digits = 4) {
  if (value === null) return "\u2013";  // was not finite
  const size = Math.abs(value);
  if (size === 0) return "0";
  return signed(size < 1e-4 || size >= 1e5 ? size.toExponential(digits - 2) : size.toPrecision(digits), value);
}
const logit = (value) => (value === null ? "\u2013" : value.toFixed(3).replace("-", "\u2212"));

function percent(part, whole) {
  if (!(whole > 0)) return "\u2013";
  const share = 100 * part / whole;
  return share > 0 && share < 0.01 ? "< 0.01 %" : share.toFixed(share < 9.95 ? 2 : share < 99.95 ? 1 : 0) + " %";
}

// ---- tokens as text; only text nodes are ever made of them

const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/u;

function sign(char) {
  const code = char.codePointAt(0);
  if (char === "\n") return "\u21b5";
  if (char === "\t") return "\u21e5";
  return "U+" + code.toString(16).toUpperCase().padStart(4, "0");
}

/** Append `text` to `node`, with a muted sign for each character that could not be seen or would reorder the page.
 *  how: "text" keeps line breaks and tabs after their sign, "line" does not, "quote" also marks outer spaces. */
function write(node, text, how) {
  const chars = [...text];
  let plain = "";
  const flush = () => { if (plain) node.append(plain); plain = ""; };
  chars.forEach((char, k) => {
    const joiner = (char === "\u200c" || char === "\u200d") && chars.length > 1;
    const outer = how === "quote" && char === " " && (k === 0 || k === chars.length - 1);
    if (!outer && (joiner || !HIDDEN.test(char))) { plain += char; return; }
    flush();
    node.append(make("i", "", outer ? "\u2423" : sign(char)));
    if (how === "text" && (char === "\t" || char === "\n")) plain = char;
  });
  flush();
  if (!chars.length) node.append(make("i", "", "\u2205"));
  return node;
}

function make(name, className = "", ...children) {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children);
  return node;
}
const quote = (text, role = "") => write(make("span", "quote " + role), text, "quote");
const candidate = (token, role) => quote(token.text ?? "#" + token.id, role);

// ---- the head of the page

function joined(tokens, role) {
  const shown = tokens.slice(0, 8).map((token) => candidate(token, role));
  const parts = shown.flatMap((node) => [node, " "]).slice(0, -1);
  return tokens.length > 8 ? [...parts, ` and ${tokens.length - 8} more`] : parts;
}

/** What was explained, of a prompt of N tokens. */
function drawQuestion(N) {
  const [first] = terms, kind = data.explained.kind, last = terms[terms.length - 1];
  const question = at("question");
  const [one, several] = data.value_words, ofAll = kind === "function";
  if (ofAll) question.append("Why this value of a " + one);
  else question.append("Why ", ...joined(terms.map((term) => term.target), "target"));
  if (data.contrast_words) question.append(" rather than " + data.contrast_words);
  else if (first.contrast) question.append(" rather than ", ...joined(terms.map((term) => term.contrast), "contrast"));
  question.append("?");

  const what = ofAll ? "Value" : terms.length > 1 ? `Sum of ${terms.length} ${several}` : one[0].toUpperCase() + one.slice(1);
  at("answer").append(what + " ", make("b", "", number(data.value)));
  if (terms.length === 1) {
    if (kind !== "logit" && !ofAll) at("answer").append(` = ${logit(first.target.logit)} \u2212 ${logit(first.contrast_logit).replace(/^\u2212.*/, "($&)")}`);
    at("answer").append(`, for the ${data.explained.of} ${data.candidate_words.at} position ${count(first.position)}`, first.position === N - 1 ? ", the last." : ".");
  } else {
    const row = terms.every((term, i) => term.position === first.position + i);
    const where = row || terms.length > 6 ? `${count(first.position)} to ${count(last.position)}` : terms.map((term) => count(term.position)).join(", ");
    at("answer").append(`, for the ${data.explained.of}s ${data.candidate_words.at} positions ${where}.`);
  }
  document.title = question.textContent + (data.model ? " \u00b7 " + data.model : "");
  at("note").textContent = data.explained.note;
  at("note").hidden = !data.explained.note;
}

function drawFacts(facts) {
  for (const [term, value] of facts) if (value) at("facts").append(make("div", "", make("dt", "", term), make("dd", "", value)));
  for (const [term, value] of data.facts ?? []) at("facts").append(make("div", "", write(make("dt"), term, "line"), write(make("dd"), value, "line")));
}

/** Where else the reader may go, of a page that is one of several. */
function drawLinks() {
  for (const [text, address] of data.links ?? []) {
    const link = write(make("a"), text, "line");
    link.href = address;
    at("links").append(link);
  }
  at("links").hidden = !data.links?.length;
}

// ---- colours: blue negative, orange positive, which all common kinds of colour blindness tell apart

const STEPS = 24, TINTS = {
  light: { zero: "#ffffff", p: ["#fde6d7", "#f8bd95", "#e9803f", "#b8430b"], n: ["#dfebf6", "#a9cdea", "#5a9fd3", "#1f64a8"] },
  dark: { zero: "#17191d", p: ["#452716", "#864519", "#d2702f", "#ffb683"], n: ["#1a324a", "#22588b", "#3f8fd2", "#97ccff"] },
};
const rgb = (hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));

/** Colours of the levels -STEPS..STEPS in a scheme, as [r, g, b]. */
function ramp({ zero, p, n }) {
  const side = (stops) => Array.from({ length: STEPS + 1 }, (_, k) => {
    const x = (k / STEPS) * stops.length, from = Math.min(Math.floor(x), stops.length - 1);
    const a = rgb(from ? stops[from - 1] : zero), b = rgb(stops[from]);
    return a.map((v, c) => Math.round(v + (b[c] - v) * (x - from)));
  });
  return [...side(n).slice(1).reverse(), ...side(p)];
}

const ramps = { light: ramp(TINTS.light), dark: ramp(TINTS.dark) };
const darkness = matchMedia("(prefers-color-scheme: dark)");
const colours = () => (darkness.matches ? ramps.dark : ramps.light);
