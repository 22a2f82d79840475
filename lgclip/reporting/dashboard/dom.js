/* Elements. Whatever came from a run goes in as text: no string is ever read as markup. */

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes, listeners (`onclick: function`) and children; what is null is left out. */
function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for a drawing. */
function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(2).filter((child) => child !== null && child !== undefined));
  return element;
}

const byId = (id) => document.getElementById(id);

/** A text from a run: its own direction, and never a bare nothing. */
function said(text, kind = "") {
  return text === ""
    ? make("span", { class: "muted" }, "(empty)")
    : make("bdi", { class: `said ${kind}`, title: text.length > 40 ? text : null }, text);
}

/** Any value of a config as text. */
function asText(value) {
  if (value === null || value === undefined) return "none";
  return typeof value === "string" ? value : JSON.stringify(value);
}

const keyOf = (value) => JSON.stringify(value ?? null);

/** A labelled choice. `options` are [value, text]; `change` is given the chosen value. */
function choice(label, options, chosen, change) {
  const select = make(
    "select",
    { onchange: () => change(options[select.selectedIndex][0]) },
    options.map(([value, text]) => make("option", { selected: keyOf(value) === keyOf(chosen) }, shorten(text, 80))),
  );
  return field(label, select);
}

/** A labelled line of text that is searched for while it is typed. */
function search(label, change, text = "") {
  const input = make("input", {
    type: "search",
    value: text,
    autocomplete: "off",
    spellcheck: "false",
    oninput: () => change(input.value),
  });
  return field(label, input, "field grow");
}

let fields = 0;

/** A control under its label. */
function field(label, control, kind = "field") {
  fields += 1;
  control.id = `field-${fields}`;
  return make("div", { class: kind }, make("label", { for: control.id }, label), control);
}

function tick(label, checked, change) {
  const box = make("input", { type: "checkbox", checked, onchange: () => change(box.checked) });
  return make("label", { class: "tick" }, box, make("span", {}, label));
}

const shorten = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

/** Whether a text holds all words that are searched for, whatever their case. */
function holds(text, wanted) {
  const low = text.toLowerCase();
  return wanted
    .toLowerCase()
    .split(/\s+/)
    .every((word) => low.includes(word));
}

const nothing = (text) => make("p", { class: "empty" }, text);
const lead = (...text) => make("p", { class: "lead" }, ...text);

/** A part that opens. */
function fold(summary, ...children) {
  return make("details", {}, make("summary", {}, summary), ...children);
}

/** Pictures in a row, each with a text that says what it shows. */
function strip(page, keys, alt) {
  return make(
    "span",
    { class: "strip" },
    keys
      .filter((key) => key in page.thumbs)
      .map((key, at) => make("img", { src: page.thumbs[key], alt: `${alt}, ${at + 1}`, decoding: "async" })),
  );
}

/** An interval as a line with a mark at its middle, on a scale from `domain[0]` to `domain[1]`. */
function whisker(low, middle, high, domain, kind = "") {
  const at = (value) => Math.min(98, Math.max(2, 4 + (92 * (value - domain[0])) / (domain[1] - domain[0] || 1)));
  const line = low === null ? null : draw("line", { x1: at(low), x2: at(high), y1: 8, y2: 8, class: "span" });
  const zero =
    domain[0] < 0 && domain[1] > 0 ? draw("line", { x1: at(0), x2: at(0), y1: 0, y2: 16, class: "zero" }) : null;
  return draw(
    "svg",
    { class: `whisker ${kind}`, viewBox: "0 0 100 16", preserveAspectRatio: "none", "aria-hidden": "true" },
    draw("line", { x1: 4, x2: 96, y1: 8, y2: 8, class: "track" }),
    zero,
    line,
    draw("line", { x1: at(middle), x2: at(middle), y1: 2, y2: 14, class: "middle" }),
  );
}

/** A line of a list of bars: a name, its share of the longest, and its figure. */
function shareLine(name, share, figure) {
  return make("div", { class: "share" }, said(name), meter(share), make("b", {}, figure));
}

/** A share as a bar. */
function meter(share, kind = "") {
  return draw(
    "svg",
    { class: `meter ${kind}`, viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
    draw("rect", { x: 0, y: 0, width: 100, height: 10, class: "track" }),
    draw("rect", { x: 0, y: 0, width: 100 * share, height: 10, class: "part" }),
  );
}
