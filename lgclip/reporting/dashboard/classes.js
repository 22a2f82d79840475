/* One run's classes: accuracies, and what predicts them. */

/** Number of bars; the table below has all classes. */
const BARS = 20;

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
  const view = linkedView("classes", { by: "accuracy", down: false, measure: null, text: "" });
  let rows = [],
    run = null;
  const bars = chart(`Accuracy of classes, the first ${BARS} in this order`, (theme, width) =>
    classBars(theme, width, rows, view),
  );
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
        search(
          "Find a class",
          (text) => {
            view.text = text;
            table.show(rows.filter((row) => holds(row.name, text)));
          },
          view.text,
        ),
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

/** A section's view with what the page's link has of it, as far as it is of the usual type. */
function linkedView(name, usual) {
  const view = { ...usual };
  const fits = (value) => value !== null && typeof value === "object";
  const linked = keepInLink(name, { ...usual }, fits, () => view);
  for (const key of Object.keys(usual)) {
    const isUsual = usual[key] === null ? isText : (value) => typeof value === typeof usual[key];
    if (isUsual(linked[key])) view[key] = linked[key];
  }
  return view;
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
  const shown = sorted.slice(0, BARS);
  const labelWidth = Math.min(420, Math.round(width * 0.45));
  const name = (row) => shorten(row.name, 120);
  // Names are whole: a long one takes several lines, and all bars the room of the longest.
  const lines = Math.max(...shown.map((row) => Math.ceil((name(row).length * 7.2) / labelWidth)), 1);
  const option = {
    ...base(theme),
    tooltip: tooltip(theme, (params) => params[0]?.data.words ?? [], "axis"),
    yAxis: axis(theme, "", {
      type: "category",
      inverse: true,
      data: shown.map(name),
      splitLine: { show: false },
      axisLabel: { interval: 0, width: labelWidth, overflow: "break", lineHeight: 15, hideOverlap: false },
    }),
    xAxis: shareAxis(theme, [0, 1, 0.2]),
    series: [
      {
        type: "bar",
        barCategoryGap: "28%",
        barMaxWidth: 18,
        itemStyle: { color: theme.accent, borderRadius: [0, 3, 3, 0] },
        data: shown.map((row) => ({ value: row.accuracy, words: told(row), name: row.name })),
      },
    ],
  };
  const worst = [...known].sort((a, b) => a.accuracy - b.accuracy);
  const top = worst[worst.length - 1];
  return {
    option,
    height: 50 + shown.length * (9 + 15 * lines),
    words:
      `${shown.length} of ${sorted.length} classes, sorted by ${by}. ` +
      `Lowest ${worst[0].name} with ${percent(worst[0].accuracy)}, ` +
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
