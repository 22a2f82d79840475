/* What can be measured of a class's synthetic images, and how well it predicts its accuracy. */

const MEASURES = {
  alignment: "mean cosine of a class's synthetic images to its own prototype",
  spread: "mean cosine distance between its synthetic images",
  margin: "1 minus the cosine to the nearest other prototype",
  effective_images: "how many different images its synthetic ones amount to (Vendi score)",
  claimed: "share of its synthetic images nearer to another class",
  gap: "1 minus the cosine of synthetic and real mean; looks at test labels, for diagnosis only",
};

/** Which measure predicts a class's accuracy. */
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
      "What can be measured of the synthetic images, and how well it predicts the accuracy of a class ",
      "(Spearman's rank correlation).",
    ),
    make(
      "div",
      { class: "columns" },
      make("div", {}, make("div", { class: "fields" }, shown), cloud.figure),
      plainTable(
        "How well each diagnostic predicts accuracy",
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
