/* Two runs side by side. */

function showCompare(state) {
  const { page } = state;
  const section = byId("compare");
  const runs = done(page);
  if (runs.length < 2) {
    section.hidden = true;
    return;
  }
  const body = make("div", {});
  const fields = make("div", { class: "fields" });
  const options = runs.map((run) => [run.id, runName(run)]);
  const update = () => {
    const [first, second] = state.pair.map((id) => page.runs[id]);
    fields.replaceChildren(
      choice("Run A", options, first.id, (id) => state.setPair([id, state.pair[1]])),
      choice("Run B", options, second.id, (id) => state.setPair([state.pair[0], id])),
      make("button", { type: "button", onclick: () => state.setPair([second.id, first.id]) }, "Swap"),
    );
    body.replaceChildren(
      ...(first === second ? [nothing("A and B are the same run: choose two.")] : sides(page, first, second)),
    );
  };
  section.append(fields, body);
  state.on("pair", update);
  update();
}

function sides(page, first, second) {
  const rows = figureRows(first, second);
  return [
    verdict(page, first, second),
    make(
      "div",
      { class: "columns" },
      make(
        "div",
        {},
        make("h3", {}, "Metrics"),
        plainTable(
          "Metrics of both runs",
          [["Figure"], ["A", "number"], ["B", "number"], [`A ${MINUS} B`, "number"]],
          rows,
          { quiet: true },
        ),
      ),
      make("div", {}, make("h3", {}, "Settings that differ"), settings(first, second)),
    ),
    make("h3", {}, "Class by class"),
    ...classDifferences(page, first, second),
  ];
}

/** The paired test in words. */
function verdict(page, first, second) {
  const test = paired(first, second);
  const given = givenTest(page, first, second);
  if (!test && !Number.isFinite(given?.difference)) {
    const why =
      given?.reason ??
      "No test image by image: the runs differ in their images, or their predictions are not in this page.";
    return make("p", { class: "verdict" }, make("b", {}, "No paired test. "), said(why));
  }
  const { difference, ci95, p } = test && !given ? test : { ...test, ...given };
  const more = difference === 0 ? "Neither is ahead. " : difference > 0 ? "A is ahead. " : "B is ahead. ";
  return make(
    "div",
    { class: "verdict" },
    make(
      "p",
      {},
      make("b", {}, `${points(difference, 2)} points. `),
      p < 0.05 ? more : "No significant difference at the 5% level. ",
      `95% interval ${interval(ci95, (share) => points(share, 2))}; ${chanceSaid(p)} (McNemar, exact`,
      given && Number.isFinite(given.p_holm)
        ? `; ${chance(given.p_holm)} after Holm over the page's comparisons).`
        : ").",
    ),
    test
      ? make(
          "p",
          { class: "muted" },
          `A alone is right on ${plain(test.only)} of ${plain(first.n)} images, B alone on ${plain(test.other)}. `,
          given ? "The interval is a paired bootstrap." : "The interval is Agresti and Min's.",
        )
      : null,
  );
}

/** The test that the page was given, if one of the two is its reference; turned round if that is A. */
function givenTest(page, first, second) {
  const other = second.id === page.reference ? first : first.id === page.reference ? second : null;
  const test = page.comparisons.find((one) => one.run === other?.id);
  if (!test || other === first || !Number.isFinite(test.difference)) return test ?? null;
  return { ...test, difference: -test.difference, ci95: test.ci95 ? [-test.ci95[1], -test.ci95[0]] : null };
}

function figureRows(first, second) {
  const row = (name, read, write, apart = (a, b) => points(a - b)) => {
    const [a, b] = [first, second].map((run) => read(run) ?? NaN);
    return Number.isFinite(a) || Number.isFinite(b)
      ? [name, write(a), write(b), Number.isFinite(a - b) ? apart(a, b) : "–"]
      : null;
  };
  const small = (a, b) => signed(Math.abs(a - b).toPrecision(2), a - b);
  const rivals = [...new Set([first, second].flatMap((run) => Object.keys(run.baselines)))];
  return [
    row("Top-1", top1, percent),
    row("Top-5", (run) => run.metrics.top5, percent),
    row("Mean per class", (run) => run.metrics.mean_per_class, percent),
    ...rivals.map((name) => row(said(`${name} (baseline)`), (run) => run.baselines[name]?.top1, percent)),
    row("Calibration error", (run) => run.confidence?.ece, percent),
    row("Negative log-likelihood", (run) => run.confidence?.nll, plain, small),
    row("Brier score", (run) => run.confidence?.brier, plain, small),
    row("Area under risk and coverage", (run) => run.confidence?.aurc, plain, small),
    row(
      "Evaluated images",
      (run) => run.n,
      plain,
      (a, b) => signed(plain(Math.abs(a - b)), a - b),
    ),
    row("Seconds", seconds, duration, (a, b) => signed(duration(Math.abs(a - b)), a - b)),
  ].filter(Boolean);
}

/** The settings in which two runs differ, key by key. */
function settings(first, second) {
  const keys = [...new Set([...Object.keys(first.config), ...Object.keys(second.config)])]
    .filter((key) => keyOf(first.config[key]) !== keyOf(second.config[key]))
    .sort();
  if (!keys.length) return nothing("The same settings in both.");
  const told = (run, key) =>
    key in run.config ? said(asText(run.config[key])) : make("span", { class: "muted" }, "not set");
  return plainTable(
    "Settings that differ",
    [["Setting"], ["A"], ["B"]],
    keys.map((key) => [said(key, "code"), told(first, key), told(second, key)]),
    { quiet: true, tall: keys.length > 14 },
  );
}

function classDifferences(page, first, second) {
  if (first.class_list !== second.class_list) return [nothing("The runs were not evaluated on the same classes.")];
  if (!first.classes.length || !second.classes.length)
    return [nothing("The metrics of classes are not in this page: see its notes.")];
  const names = page.class_lists[first.class_list];
  const share = ({ n, right }) => (n ? right / n : null);
  const rows = names
    .map((name, at) => ({
      at,
      name,
      a: share(first.classes[at]),
      b: share(second.classes[at]),
      n: first.classes[at].n,
    }))
    .filter((row) => row.a !== null && row.b !== null);
  rows.forEach((row) => {
    row.difference = row.a - row.b;
  });
  if (!rows.length) return [nothing("No class has an image in both runs.")];
  const most = Math.max(...rows.map((row) => Math.abs(row.difference)), 0.01);
  const ahead = rows.filter((row) => row.difference > 0).length;
  const behind = rows.filter((row) => row.difference < 0).length;
  const table = sortedTable({
    caption: "Difference of each class",
    rows,
    tall: rows.length > 12,
    by: { key: "difference", down: true },
    columns: [
      {
        key: "name",
        label: "Class",
        head: true,
        kind: "name",
        value: (row) => row.name,
        cell: (row) => said(row.name),
      },
      { key: "n", label: "Images", kind: "number", down: true, value: (row) => row.n, cell: (row) => plain(row.n) },
      { key: "a", label: "A", kind: "number", down: true, value: (row) => row.a, cell: (row) => percent(row.a) },
      { key: "b", label: "B", kind: "number", down: true, value: (row) => row.b, cell: (row) => percent(row.b) },
      {
        key: "difference",
        label: `A ${MINUS} B, points`,
        kind: "number",
        down: true,
        value: (row) => row.difference,
        cell: (row) => points(row.difference),
      },
      { key: "bar", label: "", kind: "interval", cell: (row) => diverging(row.difference / most) },
    ],
  });
  return [
    lead(`A is better on ${ahead} classes, B on ${behind}, the same on ${rows.length - ahead - behind}.`),
    table.element,
  ];
}

/** A bar to the left or the right of the middle. */
function diverging(share) {
  const width = 48 * Math.abs(share);
  return draw(
    "svg",
    { class: "meter diverging", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
    draw("rect", { x: 0, y: 0, width: 100, height: 10, class: "track" }),
    draw("rect", { x: share < 0 ? 50 - width : 50, y: 0, width, height: 10, class: share < 0 ? "minus" : "part" }),
    draw("line", { x1: 50, x2: 50, y1: 0, y2: 10, class: "zero" }),
  );
}
