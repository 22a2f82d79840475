/* What the predictions of one run show together: the confusion matrix, and how far a confidence can be trusted. */

const MATRIX_CLASSES = 40;

/** The classes of a matrix: all, or of many those with the most mistakes, in the data set's order. */
function matrixClasses(run) {
  const mistakes = new Map();
  for (const [right, wrong, count] of run.matrix)
    for (const at of [right, wrong]) mistakes.set(at, (mistakes.get(at) ?? 0) + count);
  const all = run.classes.map((_, at) => at);
  if (all.length <= MATRIX_CLASSES) return all;
  return all
    .filter((at) => mistakes.has(at))
    .sort((a, b) => mistakes.get(b) - mistakes.get(a) || a - b)
    .slice(0, MATRIX_CLASSES)
    .sort((a, b) => a - b);
}

/** A color for a fraction of mistakes; even a single one stands out from the page's background. */
const mistakeColour = (theme, share) => heat(theme, 0.35 + 0.65 * Math.min(1, share)).fill;

/** Cells as squares, rows of true classes; each is colored by its fraction of the images of the true class. */
function matrixChart(theme, width, page, run) {
  if (!run.matrix.length)
    return { option: null, words: "This run makes no mistake, or its confusion matrix is not in this page." };
  const names = page.class_lists[run.class_list] ?? [];
  const shown = matrixClasses(run);
  const place = new Map(shown.map((at, row) => [at, row]));
  const label = (at) => shorten(names[at] ?? String(at), 40);
  const diagonal = shown.filter((at) => run.classes[at].n).map((at) => [at, at, run.classes[at].right]);
  const cells = [...diagonal, ...run.matrix.filter(([a, b]) => place.has(a) && place.has(b))].filter((cell) => cell[2]);
  const side = Math.max(5, Math.min(26, Math.floor((Math.min(width, 900) - 180) / shown.length)));
  const data = cells.map(([right, wrong, count]) => {
    const share = count / (run.classes[right]?.n || count);
    return {
      value: [place.get(wrong), place.get(right)],
      itemStyle: { color: right === wrong ? theme.muted : mistakeColour(theme, share) },
      words: [
        right === wrong ? `${label(right)}: correct` : `${label(right)} predicted as ${label(wrong)}`,
        `${plain(count)} of ${plain(run.classes[right]?.n)} images, ${percent(share)}`,
      ],
    };
  });
  const labels = { type: "category", data: shown.map(label), splitLine: { show: false } };
  const few = side >= 11;
  const option = {
    ...base(theme, { right: Math.max(20, width - 180 - side * shown.length) }),
    tooltip: tooltip(theme, ({ data: cell }) => cell.words),
    xAxis: axis(theme, "predicted", {
      ...labels,
      nameGap: 12,
      position: "bottom",
      axisLabel: { show: few, interval: 0, rotate: 90, width: 130, overflow: "truncate", hideOverlap: false },
    }),
    yAxis: axis(theme, "", {
      ...labels,
      inverse: true,
      axisLabel: { show: few, interval: 0, width: 150, overflow: "truncate", hideOverlap: false },
    }),
    series: [{ type: "scatter", symbol: "rect", symbolSize: Math.max(3, side - 2), data }],
  };
  const most = [...run.matrix].sort((a, b) => b[2] - a[2]);
  const all = run.matrix.reduce((total, cell) => total + cell[2], 0);
  const left = run.classes.length - shown.length;
  return {
    option,
    height: side * shown.length + (few ? 190 : 60),
    words:
      `${plain(all)} mistakes in ${plain(run.matrix.length)} cells. ` +
      `The largest: ${label(most[0][0])} predicted as ${label(most[0][1])}, ${plain(most[0][2])} images.` +
      (left > 0 ? ` ${plain(left)} classes with fewer mistakes are not shown.` : ""),
    legend: [
      { name: "correct", colour: theme.muted, symbol: "bar" },
      { name: "a few of a class's images", colour: mistakeColour(theme, 0), symbol: "bar" },
      { name: "all of them", colour: mistakeColour(theme, 1), symbol: "bar" },
    ],
    numbers: plainTable(
      "Mistakes by pair of classes",
      [["True class"], ["Predicted"], ["Images", "number"], ["Of the class", "number"]],
      most
        .slice(0, 200)
        .map(([right, wrong, count]) => [
          said(names[right] ?? String(right)),
          said(names[wrong] ?? String(wrong)),
          plain(count),
          percent(count / (run.classes[right]?.n || NaN)),
        ]),
      { quiet: true, tall: most.length > 12 },
    ),
  };
}

/** Accuracy by mean confidence of each bin; a calibrated run lies on the diagonal. */
function reliabilityChart(theme, run) {
  if (!run.reliability.length) return { option: null, words: "The confidences of this run are not known." };
  const dots = run.reliability.map((bin) => ({
    value: [bin.confidence, bin.accuracy],
    symbolSize: 6 + 14 * Math.sqrt(bin.n / run.n),
    words: [
      `confidence ${percent(bin.confidence)}`,
      `accuracy ${percent(bin.accuracy)}`,
      `${plain(bin.n)} of ${plain(run.n)} images`,
    ],
  }));
  const shares = { type: "value", min: 0, max: 1, interval: 0.2, axisLabel: { formatter: (at) => percent(at, 0) } };
  const option = {
    ...base(theme),
    tooltip: tooltip(theme, ({ data }) => data?.words ?? []),
    xAxis: axis(theme, "mean confidence", shares),
    yAxis: axis(theme, "", shares),
    series: [
      {
        type: "line",
        silent: true,
        symbol: "none",
        lineStyle: { color: theme.muted, type: [6, 4], width: 1.5 },
        data: [
          [0, 0],
          [1, 1],
        ],
      },
      {
        type: "line",
        symbol: "circle",
        showAllSymbol: true,
        lineStyle: { color: theme.accent, width: 2 },
        itemStyle: { color: theme.accent },
        data: dots,
      },
    ],
  };
  const numbers = plainTable(
    "Reliability by bin of confidence",
    [["Mean confidence", "number"], ["Accuracy", "number"], ["Images", "number"]],
    run.reliability.map((bin) => [percent(bin.confidence), percent(bin.accuracy), plain(bin.n)]),
    { quiet: true },
  );
  return {
    option,
    numbers,
    height: 300,
    words: run.reliability.map((bin) => `${percent(bin.accuracy)} at confidence ${percent(bin.confidence)}`).join(", "),
    legend: [
      { name: `accuracy by bin of run ${run.id}`, colour: theme.accent, symbol: "circle" },
      { name: "perfectly calibrated", colour: theme.muted, dash: [6, 4] },
    ],
  };
}
