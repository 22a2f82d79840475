/* The table of all runs, and the failed ones. */

function showRuns(state) {
  const { page } = state;
  const section = byId("runs");
  if (done(page).length < 2)
    section.append(
      nothing("One run: nothing to compare. Give lgclip report a sweep, or several runs, to see them side by side."),
    );
  const against = new Map(page.comparisons.map((one) => [one.run, one]));
  const order = keepInLink("sort", { key: "top1", down: true }, isOrder, () => tables[0].table.order());
  const tables = runBlocks(page).map(({ name, runs }) => {
    const columns = runColumns(state, against, runs);
    const by = columns.some((column) => column.key === order.key && column.value) ? order : { key: "id", down: false };
    const table = sortedTable({
      caption: name,
      columns,
      rows: runs,
      tall: runs.length > 25,
      by,
      row: (run) => ({ class: run.metrics ? null : "failed", "data-run": run.id }),
    });
    return { table, runs };
  });
  const status = make("p", { class: "muted small", "aria-live": "polite" });
  const chosen = make("p", { class: "chosen", "aria-live": "polite" });
  const filters = linkedFilters(page);
  const apply = () => {
    const shown = page.runs.filter((run) => passes(run, filters));
    tables.forEach(({ table, runs }) => table.show(runs.filter((run) => shown.includes(run))));
    status.textContent = `${shown.length} of ${page.runs.length} run${page.runs.length === 1 ? "" : "s"} shown`;
  };
  state.on("pair", () => {
    tables.forEach(({ table }) => table.renew());
    chosen.replaceChildren(...pairLine(state));
  });
  section.append(
    page.reference === null || page.runs.length < 2
      ? ""
      : lead(
          `Differences and p are against run ${page.reference}: `,
          said(page.runs[page.reference].name),
          ". p is McNemar's exact test on the same images, then corrected for the number of runs (Holm). ",
          "Tick two runs to see them side by side.",
        ),
    page.runs.length > 1 ? runFilters(page, filters, apply) : "",
    ...tables.map(({ table }) => table.element),
    status,
    chosen,
    ...failures(page),
    ...seeds(page),
  );
  apply();
}

/** Columns: what tells the runs apart, then figures, then the test against the reference. */
function runColumns(state, against, block) {
  const { page } = state;
  const runs = block.filter((run) => run.metrics);
  const of = (run) => against.get(run.id) ?? {};
  const several = (read) => new Set(runs.map(read)).size > 1;
  const some = (read) => runs.some((run) => Number.isFinite(read(run)));
  const domain = room(runs.flatMap((run) => [...(run.metrics.top1_ci95 ?? []), run.metrics.top1]));
  const number = (key, label, read, write, tip, down = true) => ({
    key,
    label,
    tip,
    down,
    kind: "number",
    value: read,
    cell: (run) => (run.metrics ? write(read(run), run) : ""),
  });
  const text = (key, label, read, more = {}) => ({
    key,
    label,
    value: read,
    cell: (run) => (read(run) === "" && !run.metrics ? "" : said(shorten(asText(read(run)), 600))),
    ...more,
  });
  const axis = (key) => page.axes.some((one) => one.key === key);
  const wide = page.axes.length > 6 || !page.axes.length;
  const rivals = [...new Set(runs.flatMap((run) => Object.keys(run.baselines)))];
  return [
    page.runs.length > 1
      ? {
          key: "pick",
          label: "Pick",
          tip: "Tick two runs to compare them",
          kind: "pick",
          cell: (run) => (run.metrics ? pick(state, run) : ""),
        }
      : null,
    { key: "id", label: "Run", kind: "number", head: true, value: (run) => run.id, cell: (run) => runHead(state, run) },
    ...(wide
      ? [text("name", "What", (run) => run.name)]
      : page.axes.map((axis) =>
          text(`axis ${axis.key}`, axis.key, (run) => run.axes[axis.key] ?? null, {
            kind: axis.numeric ? "number" : null,
            cell: (run) => axisCell(run, axis),
          }),
        )),
    !axis("dataset") && several((run) => run.dataset) ? text("dataset", "Data set", (run) => run.dataset) : null,
    !axis("method") && several((run) => run.method) ? text("method", "Method", (run) => run.method) : null,
    number(
      "top1",
      "Top-1",
      top1,
      (value) => make("b", {}, percent(value)),
      "Share of images whose first guess is right",
    ),
    {
      key: "interval",
      label: "95% interval",
      kind: "interval",
      tip: "Wilson's interval of top-1",
      cell: (run) =>
        run.metrics
          ? make(
              "div",
              { class: "forest" },
              whisker(run.metrics.top1_ci95?.[0] ?? null, run.metrics.top1, run.metrics.top1_ci95?.[1] ?? null, domain),
              make("span", {}, interval(run.metrics.top1_ci95)),
            )
          : make("span", { class: "wrong" }, run.status),
    },
    ...(done(page).length < 2 || !runs.length || page.reference === null
      ? []
      : [
          number(
            "difference",
            "Difference",
            (run) => of(run).difference ?? null,
            (value, run) => differenceCell(state, run, of(run)),
            "Top-1 minus the reference's, in points",
          ),
          number("p", "p", (run) => of(run).p ?? null, chance, "McNemar's exact test", false),
          number(
            "holm",
            "p, Holm",
            (run) => of(run).p_holm ?? null,
            (p) => make("span", { class: p < 0.05 ? "sure" : null }, chance(p)),
            "p corrected for the number of runs compared",
            false,
          ),
        ]),
    number(
      "mean",
      "Mean per class",
      (run) => run.metrics?.mean_per_class ?? null,
      (value) => percent(value),
      "Mean of the classes' accuracies",
    ),
    some((run) => run.metrics.top5)
      ? number(
          "top5",
          "Top-5",
          (run) => run.metrics?.top5 ?? null,
          (value) => percent(value),
        )
      : null,
    ...rivals.map((name) =>
      number(
        `baseline ${name}`,
        name,
        (run) => run.baselines[name]?.top1 ?? null,
        (value) => percent(value),
        `Top-1 of ${name} in the same run`,
      ),
    ),
    ...["seen", "unseen", "harmonic"]
      .map((kind) => ({ kind, read: (run) => run.learning?.by_type[run.method]?.[kind] ?? null }))
      .filter(({ read }) => some(read))
      .map(({ kind, read }) => number(kind, KINDS[kind][0], read, (value) => percent(value), KINDS[kind][1])),
    number("seconds", "Time", seconds, duration, "What this run spent; what was stored cost it nothing"),
  ].filter(Boolean);
}

/** A run's value of a setting; a dash where its method does not use it, and nothing where it is not known. */
function axisCell(run, axis) {
  if (axis.key in run.axes) return said(shorten(asText(run.axes[axis.key]), 600));
  if (!run.metrics) return "";
  return make("span", { class: "muted", title: "not used by this method" }, "–");
}

function pick(state, run) {
  return make("input", {
    type: "checkbox",
    "aria-label": `Compare run ${run.id}`,
    checked: state.picked.includes(run.id),
    onchange: (event) => state.pick(run.id, event.target.checked),
  });
}

function runHead(state, run) {
  if (!run.metrics) return String(run.id);
  const link = make(
    "button",
    {
      type: "button",
      class: "link",
      "aria-label": `Run ${run.id}: look at its classes`,
      onclick: () => state.look(run.id, "focus"),
    },
    String(run.id),
  );
  const reference = state.page.runs.length > 1 && run.id === state.page.reference;
  return reference
    ? [link, " ", make("span", { class: "tag", title: "The run that the others are compared with" }, "ref")]
    : link;
}

function differenceCell(state, run, test) {
  if (run.id === state.page.reference) return "";
  if (!Number.isFinite(test.difference))
    return make("span", { class: "muted", title: test.reason ?? null }, test.reason ? "not comparable" : "–");
  return make(
    "span",
    { title: test.ci95 ? `95% interval ${interval(test.ci95, points)} points` : null },
    points(test.difference),
  );
}

function pairLine(state) {
  if (state.picked.length < 2) return state.picked.length ? [`Run ${state.picked[0]} is picked: tick one more.`] : [];
  const [a, b] = state.picked;
  return [make("a", { href: "#compare" }, `Compare run ${a} with run ${b}`)];
}

/** The runs that failed, each with its error. */
function failures(page) {
  const lost = page.runs.filter((run) => !run.metrics);
  if (!lost.length) return [];
  const rows = lost.map((run) => [
    String(run.id),
    said(run.name),
    make("pre", { class: "error" }, run.error ?? ""),
    said(run.folder),
  ]);
  return [
    make("h3", {}, `${lost.length} failed`),
    plainTable("Runs that failed", [["Run", "number"], ["What"], ["Error"], ["Folder"]], rows, { quiet: true }),
  ];
}
