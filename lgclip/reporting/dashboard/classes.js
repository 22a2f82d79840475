/* One run's classes: accuracies, and what foretells them. */

const MEASURES = {
  alignment: "mean cosine of a class's synthetic images to its own prototype",
  spread: "mean cosine distance between its synthetic images",
  margin: "1 minus the cosine to the nearest other prototype",
  effective_images: "how many different images its synthetic ones amount to (Vendi score)",
  claimed: "share of its synthetic images nearer to another class",
  gap: "1 minus the cosine of synthetic and real mean; looks at test labels, for diagnosis only",
};

/** Rows of a run's classes. */
function classRows(page, run) {
  const names = page.class_lists[run.class_list] ?? [];
  return run.classes.map((row, at) => ({
    ...row,
    at,
    name: names[at] ?? String(at),
    accuracy: row.n ? row.right / row.n : null,
    ci95: wilson(row.right, row.n),
    taken: row.taken_for === null ? null : (names[row.taken_for] ?? String(row.taken_for)),
    measures: Object.fromEntries(Object.entries(run.diagnostics).map(([key, values]) => [key, values[at] ?? null])),
  }));
}

function showClasses(state) {
  const { page } = state;
  const section = byId("classes");
  const body = make("div", {});
  const view = { by: "accuracy", down: false, measure: null, text: "" };
  let rows = [],
    run = null;
  const bars = chart("Accuracy of each class", (theme, width) => classBars(theme, width, rows, view));
  const cloud = chart("A diagnostic against accuracy", (theme) => scatter(theme, run, rows, view.measure));
  bars.on("click", ({ data }) => data && state.tell("gallery", data.name));
  const update = () => {
    run = page.runs[state.focus];
    rows = classRows(page, run);
    const measures = Object.keys(run.diagnostics);
    if (!measures.includes(view.measure)) view.measure = measures[0] ?? null;
    if (!["accuracy", "name", "n"].includes(view.by) && !measures.includes(view.by)) view.by = "accuracy";
    if (!rows.length) {
      body.replaceChildren(nothing("The metrics of this run's classes are not in this page: see its notes."));
      return;
    }
    const table = classTable(state, run, rows, view);
    const sort = () => {
      bars.update();
      table.sort(view.by, view.down);
    };
    body.replaceChildren(
      make(
        "div",
        { class: "fields" },
        choice(
          "Sort by",
          [["accuracy", "accuracy"], ["name", "name"], ["n", "images"], ...measures.map((key) => [key, key])],
          view.by,
          (key) => {
            view.by = key;
            sort();
          },
        ),
        tick("Largest first", view.down, (on) => {
          view.down = on;
          sort();
        }),
        search("Find a class", (text) => {
          view.text = text;
          table.show(rows.filter((row) => holds(row.name, text)));
        }),
      ),
      bars.figure,
      table.element,
      ...(measures.length
        ? diagnosis(run, view, measures, cloud)
        : [nothing("No synthetic images were used, so there are no diagnostics of prototypes.")]),
    );
    bars.update();
    cloud.update();
  };
  section.append(body);
  state.on("focus", update);
  update();
}

const sortKey = (row, key) => (key in row.measures ? row.measures[key] : row[key]);

function classBars(theme, width, rows, { by, down }) {
  const sorted = [...rows].sort((a, b) => inOrder(sortKey(a, by), sortKey(b, by), down));
  const known = sorted.filter((row) => row.accuracy !== null);
  if (!known.length) return { option: null, words: "No class has an image." };
  const told = (row) =>
    [
      row.name,
      row.n ? `${percent(row.accuracy)}: ${row.right} of ${row.n}, 95% interval ${interval(row.ci95)}` : "no image",
      row.taken !== null && row.times ? `most taken for ${shorten(row.taken, 60)} (${row.times})` : "",
      by in row.measures ? `${by} ${plain(row.measures[by])}` : "",
    ].filter((line, at) => at === 0 || line);
  const few = sorted.length * 24 <= width;
  const option = {
    ...base(theme),
    tooltip: tooltip(theme, (params) => params[0]?.data.words ?? [], "axis"),
    xAxis: axis(theme, "", {
      type: "category",
      data: sorted.map((row) => row.name),
      axisLabel: { show: few, interval: 0, rotate: 55, width: 96, overflow: "truncate", hideOverlap: false },
    }),
    yAxis: shareAxis(theme, [0, 1, 0.2]),
    series: [
      {
        type: "bar",
        barCategoryGap: few ? "28%" : "8%",
        barMaxWidth: 36,
        itemStyle: { color: theme.accent, borderRadius: few ? [3, 3, 0, 0] : 0 },
        data: sorted.map((row) => ({ value: row.accuracy, words: told(row), name: row.name })),
      },
    ],
  };
  const worst = [...known].sort((a, b) => a.accuracy - b.accuracy);
  const top = worst[worst.length - 1];
  return {
    option,
    height: few ? 320 : 240,
    words:
      `${known.length} classes, sorted by ${by}. Lowest ${worst[0].name} with ${percent(worst[0].accuracy)}, ` +
      `highest ${top.name} with ${percent(top.accuracy)}. The table below holds all.`,
  };
}

function classTable(state, run, rows, view) {
  const measures = Object.keys(run.diagnostics);
  const pictures = run.gallery.some((drawn) => drawn.length);
  const name = (row) =>
    pictures
      ? make(
          "button",
          { type: "button", class: "link", title: "Show its images", onclick: () => state.tell("gallery", row.name) },
          said(row.name),
        )
      : said(row.name);
  return sortedTable({
    caption: `Classes of run ${run.id}`,
    rows: rows.filter((row) => holds(row.name, view.text)),
    tall: rows.length > 12,
    by: { key: view.by, down: view.down },
    columns: [
      { key: "name", label: "Class", head: true, kind: "name", value: (row) => row.name, cell: name },
      { key: "n", label: "Images", kind: "number", down: true, value: (row) => row.n, cell: (row) => plain(row.n) },
      {
        key: "accuracy",
        label: "Accuracy",
        kind: "number",
        down: true,
        value: (row) => row.accuracy,
        cell: (row) => percent(row.accuracy),
      },
      {
        key: "interval",
        label: "95% interval",
        kind: "interval",
        tip: "Wilson's",
        cell: (row) =>
          row.ci95
            ? make(
                "div",
                { class: "forest" },
                whisker(row.ci95[0], row.accuracy, row.ci95[1], [0, 1]),
                make(
                  "span",
                  {},
                  interval(row.ci95, (share) => (100 * share).toFixed(0)),
                ),
              )
            : "",
      },
      {
        key: "taken",
        label: "Most taken for",
        kind: "name",
        value: (row) => (row.times ? row.taken : null),
        cell: (row) => (row.times && row.taken !== null ? [said(row.taken), ` (${row.times})`] : ""),
      },
      ...measures.map((key) => ({
        key,
        label: key.replaceAll("_", " "),
        tip: MEASURES[key],
        kind: "number",
        down: true,
        value: (row) => row.measures[key],
        cell: (row) => (row.measures[key] === null ? "–" : row.measures[key].toFixed(3)),
      })),
    ],
  });
}

/** Which measure foretells a class's accuracy. */
function diagnosis(run, view, measures, cloud) {
  const rows = measures.map((key) => [
    said(key.replaceAll("_", " ")),
    coefficient(run.correlations[key]?.spearman),
    chance(run.correlations[key]?.p),
    MEASURES[key] ?? "",
  ]);
  const shown = choice(
    "Diagnostic",
    measures.map((key) => [key, key.replaceAll("_", " ")]),
    view.measure,
    (key) => {
      view.measure = key;
      cloud.update();
    },
  );
  return [
    make("h3", {}, "Why is a class bad?"),
    lead(
      "What can be measured of the synthetic images, and how well it foretells the accuracy of a class ",
      "(Spearman's rank correlation).",
    ),
    make(
      "div",
      { class: "columns" },
      make("div", {}, make("div", { class: "fields" }, shown), cloud.figure),
      plainTable(
        "How well each diagnostic foretells accuracy",
        [["Diagnostic"], ["Spearman", "number"], ["p", "number"], ["What it is", "what"]],
        rows,
        { quiet: true },
      ),
    ),
  ];
}

const coefficient = (r) => (Number.isFinite(r) ? signed(Math.abs(r).toFixed(2), r) : "–");

function scatter(theme, run, rows, measure) {
  const dots = rows.filter((row) => row.accuracy !== null && Number.isFinite(row.measures[measure]));
  if (!measure || dots.length < 2) return { option: null, words: "There are not two classes with this diagnostic." };
  const label = measure.replaceAll("_", " ");
  const { spearman, p } = run.correlations[measure] ?? {};
  const bounds = room(dots.map((row) => row.accuracy));
  const xs = dots.map((row) => row.measures[measure]);
  const width = Math.max(...xs) - Math.min(...xs) || 1;
  const round = (x) => Number(x.toPrecision(3));
  const option = {
    ...base(theme),
    tooltip: tooltip(theme, ({ data }) => data.words),
    xAxis: axis(theme, label, {
      type: "value",
      min: round(Math.min(...xs) - width * 0.06),
      max: round(Math.max(...xs) + width * 0.06),
      axisLabel: { formatter: plain, showMinLabel: false, showMaxLabel: false },
    }),
    yAxis: shareAxis(theme, bounds),
    series: [
      {
        type: "scatter",
        symbolSize: 9,
        itemStyle: { color: theme.accent, opacity: 0.7, borderColor: theme.panel, borderWidth: 1 },
        data: dots.map((row) => ({
          value: [row.measures[measure], row.accuracy],
          words: [row.name, `accuracy ${percent(row.accuracy)}`, `${label} ${plain(row.measures[measure])}`],
        })),
      },
    ],
  };
  const found = `${coefficient(spearman)}, p ${chance(p)}`;
  const words = `${dots.length} classes. Spearman's correlation of ${label} with accuracy ${found}`;
  return {
    option,
    words,
    height: 300,
    legend: [{ name: `Spearman ${found}`, colour: theme.accent, symbol: "bar" }],
  };
}
