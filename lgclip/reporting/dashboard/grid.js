/* The grid: top-1 over any two settings as a heat map, and means over seeds. */

const SEEDS = ["seed", "prompt_order_seed"];

function showGrid(state) {
  const { page } = state;
  const section = byId("grid");
  const runs = done(page);
  const sets = setsOf(page);
  const varies = (axis) => sets.some((set) => new Set(set.runs.map((run) => keyOf(axis.read(run)))).size > 1);
  const axes = gridAxes(page, runs).filter(varies);
  section.hidden = runs.length < 2;
  if (!axes.length) {
    section.append(nothing("No setting differs between these runs."));
    return;
  }
  const grid = linkedGrid(axes, defaults(axes, sets.find((set) => set.runs.includes(best(runs))).runs));
  const fields = make("div", { class: "fields" });
  const words = make("p", { class: "muted small", "aria-live": "polite" });
  const panels = sets.map((set) => gridPanel(state, axes, grid, set, sets.length > 1));
  const update = () => {
    fields.replaceChildren(...gridFields(page, axes, grid, update));
    words.textContent = gridWords(axes, grid);
    panels.forEach((panel) => panel.update());
  };
  section.append(fields, words, ...panels.map((panel) => panel.element));
  state.on("theme", () => panels.forEach((panel) => panel.paint()));
  update();
}

/** One data set's heat map and lines. */
function gridPanel(state, axes, grid, set, several) {
  const map = make("figure", {});
  const title = several ? `Top-1 along one setting, ${set.name}` : "Top-1 along one setting";
  const lines = chart(title, (theme) => lineChart(theme, state.page, axes, grid, set.runs));
  const paint = () => map.replaceChildren(...heatMap(state, axes, grid, set.runs));
  return {
    element: make(
      "div",
      {},
      several ? make("h3", {}, said(set.name)) : null,
      make("div", { class: "columns" }, map, lines.figure),
    ),
    paint,
    update: () => {
      paint();
      lines.update();
    },
  };
}

/** The grid as the page's link has it; of a link for other runs, what there still is. */
function linkedGrid(axes, usual) {
  const keys = axes.map((axis) => axis.key);
  const grid = { ...usual };
  const read = () => ({ ...grid, fixed: [...grid.fixed] });
  const fits = (value) => keys.includes(value?.along) && Array.isArray(value.fixed);
  const linked = keepInLink("grid", read(), fits, read);
  grid.along = linked.along;
  grid.across = keys.includes(linked.across) && linked.across !== linked.along ? linked.across : null;
  grid.baselines = linked.baselines === true;
  const fixed = linked.fixed.filter((entry) => Array.isArray(entry) && keys.includes(entry[0]));
  grid.fixed = new Map([...usual.fixed, ...fixed.filter(([key, value]) => key !== "method" || value !== ANY)]);
  return grid;
}

/** The settings that vary among finished runs; the data set and the method are among them where they vary. */
function gridAxes(page, runs) {
  const own = page.axes.map((axis) => ({ ...axis, read: (run) => run.axes[axis.key] ?? null }));
  for (const key of ["dataset", "method"]) {
    const values = [...new Set(runs.map((run) => run[key]))];
    if (values.length < 2 || own.some((axis) => axis.key === key)) continue;
    own.push({ key, numeric: false, values, read: (run) => run[key] });
  }
  return own
    .map((axis) => ({
      ...axis,
      values: axis.values.filter((value) => runs.some((run) => keyOf(axis.read(run)) === keyOf(value))),
    }))
    .filter((axis) => axis.values.length > 1);
}

/** First a number along, then the setting with the fewest values; of the others what the best run has, of seeds all. */
function defaults(axes, runs) {
  const weight = (axis) => (SEEDS.includes(axis.key) ? 2 : axis.numeric ? 0 : 1);
  const sorted = [...axes].sort((a, b) => weight(a) - weight(b));
  const along = sorted[0];
  const across =
    axes
      .filter((axis) => axis !== along && !SEEDS.includes(axis.key))
      .sort((a, b) => a.values.length - b.values.length)[0] ?? null;
  const first = best(runs);
  const fixed = new Map(axes.map((axis) => [axis.key, SEEDS.includes(axis.key) ? ANY : axis.read(first)]));
  const grid = { along: along.key, across: across?.key ?? null, fixed, baselines: false };
  const pooled = axes.map((axis) => [axis.key, axis.key === "method" ? axis.read(first) : ANY]);
  const all = { ...grid, fixed: new Map(pooled) };
  const filled = (one) => cells({ groups: [] }, axes, one, runs).rows.flat().filter(Boolean).length;
  return 2 * filled(grid) < filled(all) ? all : grid; // no full grid: most places would stay empty
}

function gridFields(page, axes, grid, update) {
  const named = axes.map((axis) => [axis.key, axis.key]);
  const set = (change) => {
    change();
    update();
  };
  const others = axes.filter((axis) => axis.key !== grid.along && axis.key !== grid.across);
  return [
    choice("Along", named, grid.along, (key) =>
      set(() => {
        if (key === grid.across) grid.across = grid.along;
        grid.along = key;
      }),
    ),
    choice(
      "One line for each",
      [[null, "no setting"], ...named.filter(([key]) => key !== grid.along)],
      grid.across,
      (key) =>
        set(() => {
          grid.across = key;
        }),
    ),
    ...others.map((axis) =>
      choice(
        axis.key,
        // A mean over methods would be the accuracy of nothing.
        [
          ...(axis.key === "method" ? [] : [[ANY, "mean of all"]]),
          ...axis.values.map((value) => [value, asText(value)]),
        ],
        grid.fixed.get(axis.key),
        (value) =>
          set(() => {
            grid.fixed.set(axis.key, value);
          }),
      ),
    ),
    page.runs.some((run) => Object.keys(run.baselines).length)
      ? tick("Baselines", grid.baselines, (on) =>
          set(() => {
            grid.baselines = on;
          }),
        )
      : null,
  ].filter(Boolean);
}

function gridWords(axes, grid) {
  const pooled = axes
    .filter((axis) => axis.key !== grid.along && axis.key !== grid.across && grid.fixed.get(axis.key) === ANY)
    .map((axis) => axis.key);
  return pooled.length
    ? `Each figure is a mean over ${pooled.join(", ")}. An interval is given where only seeds differ.`
    : "Each value is one run, with its 95% interval.";
}

/** Runs at one place of the grid. */
function runsAt(axes, grid, runs, along, across) {
  return runs.filter((run) =>
    axes.every((axis) => {
      const wanted = axis.key === grid.along ? along : axis.key === grid.across ? across : grid.fixed.get(axis.key);
      return wanted === ANY || !usesAxis(run, axis) || keyOf(axis.read(run)) === keyOf(wanted);
    }),
  );
}

/** Mean top-1 of some runs and its interval: Wilson's of one run, Student's t of a group of seeds, else none. */
function cellOf(page, runs) {
  if (!runs.length) return null;
  if (runs.length === 1) return { mean: top1(runs[0]), ci95: runs[0].metrics.top1_ci95 ?? null, runs };
  const ids = keyOf(runs.map((run) => run.id).sort((a, b) => a - b));
  // Repeats of one run, such as those that differ in a setting which their method does not use.
  if (new Set(runs.map((run) => keyOf(run.axes))).size === 1 && new Set(runs.map(top1)).size === 1)
    return { mean: top1(runs[0]), ci95: runs[0].metrics.top1_ci95 ?? null, runs };
  const group = page.groups.find((one) => keyOf([...one.runs].sort((a, b) => a - b)) === ids);
  return { mean: mean(runs.map(top1)), ci95: cut(group?.ci95), runs };
}

function cells(page, axes, grid, runs) {
  const along = axes.find((axis) => axis.key === grid.along);
  const across = axes.find((axis) => axis.key === grid.across) ?? { key: "", values: [ANY] };
  return {
    along,
    across,
    rows: across.values.map((second) =>
      along.values.map((first) => cellOf(page, runsAt(axes, grid, runs, first, second))),
    ),
  };
}

/** The heat map is a table: its cells are coloured, and hold their figures. */
function heatMap(state, axes, grid, runs) {
  const { along, across, rows } = cells(state.page, axes, grid, runs);
  const theme = colours();
  const means = rows
    .flat()
    .filter(Boolean)
    .map((cell) => cell.mean);
  if (!means.length)
    return [make("figcaption", {}, "Top-1 over two settings"), nothing("No run has these settings together.")];
  const low = Math.min(...means);
  const high = Math.max(...means);
  const cell = (one) => {
    if (!one) return make("td", { class: "none" }, make("span", { class: "muted" }, "–"));
    const mark = heat(theme, high > low ? (one.mean - low) / (high - low) : 0.5);
    const id = one.runs[0].id;
    const button = make(
      "button",
      { type: "button", title: one.runs.map(runName).join("\n"), onclick: () => state.look(id, "focus") },
      make("b", {}, percent(one.mean)),
      make("small", {}, one.ci95 ? interval(one.ci95) : `${one.runs.length} runs`),
    );
    button.style.background = mark.fill;
    button.style.color = mark.ink;
    return make("td", {}, button);
  };
  const head = make(
    "tr",
    {},
    make("td", {}),
    along.values.map((value) => make("th", { scope: "col" }, said(asText(value)))),
  );
  const body = rows.map((row, at) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, across.values[at] === ANY ? "all" : said(asText(across.values[at]))),
      row.map(cell),
    ),
  );
  const caption = `Top-1 by ${along.key}${across.key ? ` and ${across.key}` : ""}`;
  const table = make(
    "table",
    { class: "heat" },
    make("caption", { class: "quiet" }, caption),
    make("thead", {}, head),
    make("tbody", {}, body),
  );
  const ramp = make("span", { class: "ramp", "aria-hidden": "true" });
  ramp.style.background = `linear-gradient(to right, ${theme.heat.join(", ")})`;
  return [
    make(
      "figcaption",
      {},
      "Top-1 by ",
      said(along.key),
      across.key ? " (columns) and " : "",
      across.key ? said(across.key) : "",
      across.key ? " (rows)" : "",
    ),
    boxed(table, caption, false),
    make("p", { class: "scale muted small" }, percent(low), ramp, percent(high)),
  ];
}
