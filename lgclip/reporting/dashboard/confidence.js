/* One run's figures, beside other methods, and how far its confidence can be trusted. */

/** The run in focus, beside the methods that were judged in the same pass. */
function showFigures(state) {
  const { page } = state;
  const body = make("div", {});
  const update = () => {
    const run = page.runs[state.focus];
    const heads = [
      ["Method"],
      ["Top-1", "number"],
      ["95% interval", "number"],
      ["Top-5", "number"],
      ["Mean per class", "number"],
      ["95% interval", "number"],
    ];
    const row = (name, figures) => [
      said(name),
      make("b", {}, percent(figures.top1)),
      interval(figures.top1_ci95),
      percent(figures.top5),
      percent(figures.mean_per_class),
      interval(figures.mean_per_class_ci95),
    ];
    const tests = Object.entries(run.paired).map(([name, test]) => [
      said(`${run.method} ${MINUS} ${name}`),
      points(test.difference, 2),
      interval(test.ci95, (share) => points(share, 2)),
      plain(test.only_this),
      plain(test.only_other),
      chance(test.p),
    ]);
    body.replaceChildren(
      lead(
        said(run.name),
        ". ",
        `${plain(run.n)} images of ${plain(run.classes.length)} classes of `,
        said(run.dataset),
        ", ",
        said(run.split),
        ".",
      ),
      plainTable(
        `Metrics of run ${run.id}`,
        heads,
        [row(run.method, run.metrics), ...Object.entries(run.baselines).map(([name, figures]) => row(name, figures))],
        { quiet: true },
      ),
      tests.length
        ? plainTable(
            "Against the baselines, on the same images",
            [
              ["Difference of"],
              ["Points", "number"],
              ["95% interval", "number"],
              ["First alone right", "number"],
              ["Second alone right", "number"],
              ["p", "number"],
            ],
            tests,
          )
        : "",
      power(run),
    );
  };
  byId("figures").append(body);
  state.on("focus", update);
  update();
}

/** What this many images could show at all. */
function power(run) {
  const least = run.detectable?.difference;
  if (!Number.isFinite(least)) return "";
  return make(
    "p",
    { class: "muted small" },
    `With ${plain(run.n)} images, a difference of ${points(least).slice(1)} points is found `,
    `${percent(run.detectable.power, 0)} of the time; smaller ones may stay hidden.`,
  );
}

function showConfidence(state) {
  const { page } = state;
  const section = byId("confidence");
  const body = make("div", {});
  const curve = chart("Accuracy when the least sure images are left out", (theme) =>
    rejection(theme, page, state.focus),
  );
  const bins = chart("Reliability: accuracy by confidence", (theme) =>
    reliabilityChart(theme, page.runs[state.focus]),
  );
  const update = () => {
    const { confidence } = page.runs[state.focus];
    if (!confidence) {
      body.replaceChildren(nothing("The confidences of this run are not known."));
      return;
    }
    const row = (name, value, what) => [name, value, what];
    body.replaceChildren(
      make(
        "div",
        { class: "columns" },
        curve.figure,
        bins.figure,
      ),
      plainTable(
        "Confidence",
        [["Metric"], ["Value", "number"], ["What it is", "what"]],
        [
          row("Calibration error", percent(confidence.ece, 2), "mean gap of confidence and accuracy, 15 bins; 0 is right"),
          row("Negative log-likelihood", plain(confidence.nll), "of the true class; lower is better"),
          row("Brier score", plain(confidence.brier), "squared error of the probabilities; lower is better"),
          row("Risk over coverage", plain(confidence.aurc), "area under the risk-coverage curve; lower is better"),
          row("Temperature", plain(confidence.temperature), `from ${confidence.fitted_on}`),
        ],
        { quiet: true },
      ),
    );
    curve.update();
    bins.update();
  };
  section.append(body);
  state.on("focus", update);
  update();
}

function rejection(theme, page, focus) {
  const shown = [...new Set([focus, page.reference])]
    .filter((id) => page.runs[id]?.confidence?.rejection?.length)
    .map((id) => page.runs[id]);
  if (!shown.length) return { option: null, words: "The curve is not known." };
  const lines = shown.map((run, at) => ({
    run,
    name: runName(run),
    colour: at ? theme.muted : theme.accent,
    dash: at ? [6, 4] : "solid",
    points: [...run.confidence.rejection].sort((a, b) => a.coverage - b.coverage),
  }));
  const bounds = room(lines.flatMap((line) => line.points.map((point) => point.top1)));
  const option = {
    ...base(theme),
    tooltip: tooltip(theme, ({ data }) => data.words),
    xAxis: axis(theme, "coverage", {
      type: "value",
      min: 0,
      max: 1,
      axisLabel: { formatter: (share) => percent(share, 0) },
    }),
    yAxis: shareAxis(theme, bounds),
    series: lines.map((line) => ({
      type: "line",
      symbol: "circle",
      symbolSize: 6,
      showAllSymbol: true,
      lineStyle: { color: line.colour, type: line.dash, width: 2 },
      itemStyle: { color: line.colour },
      data: line.points.map((point) => ({
        value: [point.coverage, point.top1],
        words: [line.name, `${percent(point.top1)} of the surest ${percent(point.coverage, 0)}`],
      })),
    })),
  };
  const told = (point) => `${percent(point.top1)} at ${percent(point.coverage, 0)}`;
  const words = lines.map((line) => `Run ${line.run.id}: ${line.points.map(told).join(", ")}`).join("; ");
  const numbers = plainTable(
    "Top-1 by coverage",
    [["Coverage", "number"], ...lines.map((line) => [`Run ${line.run.id}`, "number"])],
    lines[0].points.map((point, at) => [
      percent(point.coverage, 0),
      ...lines.map((line) => percent(line.points[at]?.top1, 2)),
    ]),
    { quiet: true },
  );
  return { option, words, legend: lines, height: 300, numbers };
}
