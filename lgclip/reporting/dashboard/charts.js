/* Charts: one way to draw them, in the colours of the theme. */

// ECharts writes style attributes into its SVG. The page's policy allows no style in markup, but what a script sets.
const plainSet = SVGElement.prototype.setAttribute;
SVGElement.prototype.setAttribute = function setAttribute(name, value) {
  if (name === "style") this.style.cssText = value;
  else plainSet.call(this, name, value);
};

const SYMBOLS = ["circle", "rect", "triangle", "diamond", "roundRect", "pin", "arrow", "circle"];
const DASHES = ["solid", [7, 3], [2, 3], [9, 3, 2, 3], [4, 2], [12, 4], [1, 3], [6, 2, 1, 2, 1, 2]];
const drawn = new Set();

/** Colours of the theme that is on. */
function colours() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(`--${name}`).trim();
  return {
    ink: read("ink"),
    muted: read("muted"),
    line: read("line"),
    panel: read("panel"),
    accent: read("accent"),
    series: [1, 2, 3, 4, 5, 6, 7, 8].map((n) => read(`c${n}`)),
    heat: [1, 2, 3].map((n) => read(`heat${n}`)),
  };
}

/**
 * A figure with a chart, what it shows in words, and its numbers.
 * build(colours, width) gives {option, words, legend, legendOf, height, numbers}; option null draws nothing but the words.
 */
function chart(title, build) {
  const canvas = make("div", { class: "chart", role: "img" });
  const key = make("div", { class: "legend" });
  const note = make("div", { class: "numbers" });
  const tools = make(
    "div",
    { class: "tools" },
    chartExports(title, () => standalone(title, key, canvas)),
  );
  const figure = make("figure", {}, make("figcaption", {}, title), key, canvas, tools, note);
  let plot = null,
    width = 0;
  function update() {
    width = canvas.clientWidth;
    const { option, words, legend = [], legendOf = null, height = 320, numbers = null } = build(colours(), width);
    canvas.setAttribute("aria-label", `${title}. ${words}`);
    canvas.style.height = option ? `${height}px` : "auto";
    key.replaceChildren(...(legendOf ? [said(`${legendOf}:`)] : []), ...legend.map(keyEntry));
    tools.hidden = !option;
    const open = note.querySelector("details")?.open ?? false;
    note.replaceChildren(...(numbers ? [fold("The numbers", numbers)] : []));
    if (open && numbers) note.querySelector("details").open = true;
    if (!option) {
      plot?.dispose();
      plot = null;
      canvas.replaceChildren(nothing(words));
      return;
    }
    if (!plot) canvas.replaceChildren();
    plot ??= echarts.init(canvas, null, { renderer: "svg" });
    plot.resize();
    plot.setOption(option, true);
  }
  new ResizeObserver(() => {
    if (canvas.clientWidth !== width && canvas.clientWidth) update();
  }).observe(canvas);
  const handle = { figure, update, resize: (size) => plot?.resize(size), on: (event, act) => plot?.on(event, act) };
  drawn.add(handle);
  return handle;
}

/** A line of a legend: the mark as it is drawn, and its name. */
function keyEntry({ name, colour, dash = "solid", symbol = null }) {
  const dashes = dash === "solid" ? null : dash.join(" ");
  const mark = draw(
    "svg",
    { viewBox: "0 0 28 12", class: "mark", "aria-hidden": "true" },
    symbol === "bar"
      ? draw("rect", { x: 8, y: 0, width: 12, height: 12, rx: 2, fill: colour })
      : draw("line", { x1: 0, x2: 28, y1: 6, y2: 6, stroke: colour, "stroke-width": 2, "stroke-dasharray": dashes }),
    symbol && symbol !== "bar" ? draw("path", { d: SHAPES[symbol] ?? SHAPES.circle, fill: colour }) : null,
  );
  return make("span", { class: "key" }, mark, said(name));
}

const SHAPES = {
  circle: "M14 2a4 4 0 1 0 .01 0z",
  rect: "M10 2h8v8h-8z",
  triangle: "M14 1l5 9h-10z",
  diamond: "M14 0l5 6-5 6-5-6z",
  roundRect: "M11 2h6a1 1 0 0 1 1 1v6a1 1 0 0 1-1 1h-6a1 1 0 0 1-1-1v-6a1 1 0 0 1 1-1z",
  pin: "M14 12l-4-7a4 4 0 1 1 8 0z",
  arrow: "M14 1l5 10-5-3-5 3z",
};

/** What is shared by all charts. */
function base(theme, { left = 8, right = 20, top = 16, bottom = 8 } = {}) {
  return {
    animation: false,
    color: theme.series,
    backgroundColor: "transparent",
    textStyle: { fontFamily: getComputedStyle(document.body).fontFamily, color: theme.ink },
    grid: { left, right, top, bottom, outerBoundsMode: "same", outerBoundsContain: "all" },
  };
}

function axis(theme, name, more = {}) {
  return {
    name,
    nameLocation: "middle",
    nameGap: 26,
    nameTextStyle: { color: theme.muted, fontSize: 12 },
    axisLine: { show: true, onZero: false, lineStyle: { color: theme.line } },
    axisTick: { show: false },
    splitLine: { lineStyle: { color: theme.line, opacity: 0.6 } },
    ...more,
    axisLabel: { color: theme.muted, fontSize: 12, hideOverlap: true, ...more.axisLabel },
  };
}

/** A tooltip of elements, so that names in it stay text. `lines(params)` gives its lines, the first of them bold. */
function tooltip(theme, lines, trigger = "item") {
  return {
    trigger,
    confine: true,
    transitionDuration: 0,
    backgroundColor: theme.panel,
    borderColor: theme.line,
    padding: [8, 12],
    textStyle: { color: theme.ink, fontSize: 13 },
    axisPointer: { type: "shadow", shadowStyle: { color: theme.muted, opacity: 0.08 } },
    formatter: (params) =>
      make(
        "div",
        { class: "tip" },
        lines(params).map((line, at) => make(at ? "div" : "strong", {}, said(shorten(line, 300)))),
      ),
  };
}

/** Bounds for shares that leave a little room, on whole steps, and the step. */
function room(values) {
  const known = values.filter(Number.isFinite);
  if (!known.length) return [0, 1, 0.2];
  const low = Math.min(...known);
  const high = Math.max(...known);
  const step = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2].find((one) => Math.max(high - low, 0.02) / one <= 6) ?? 0.2;
  const first = Math.max(0, Math.floor((low - step / 4) / step) * step);
  const last = Math.min(1, Math.ceil((high + step / 4) / step) * step);
  return [first, last, step].map((value) => Number(value.toFixed(6)));
}

/** An axis of shares between such bounds. */
function shareAxis(theme, [min, max, step]) {
  return axis(theme, "", {
    type: "value",
    min,
    max,
    interval: step,
    axisLabel: { formatter: (share) => percent(share, step < 0.01 ? 1 : 0) },
  });
}

/** A colour between those of the heat scale, and the ink that reads best on it. */
function heat(theme, share) {
  const [a, b, part] =
    share < 0.5 ? [theme.heat[0], theme.heat[1], share * 2] : [theme.heat[1], theme.heat[2], share * 2 - 1];
  const mix = channels(a).map((value, at) => Math.round(value + (channels(b)[at] - value) * part));
  const light = mix.map((value) => value / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  const bright = 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2];
  return { fill: `rgb(${mix.join(" ")})`, ink: bright > 0.179 ? "#000" : "#fff" };
}

const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

const redrawCharts = () => drawn.forEach((one) => one.update());
