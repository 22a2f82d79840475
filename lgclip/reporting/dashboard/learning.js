/* What was learnt on the way: a line a run, over the rounds of prompts or the epochs of students. */

/** Accuracy by kind of class, where some classes had labels and others had none. */
const KINDS = {
  seen: ["Seen", "Top-1 on images of classes of which some labels were known"],
  unseen: ["Unseen", "Top-1 on images of classes of which no label was known"],
  harmonic: ["Harmonic", "Harmonic mean of seen and unseen"],
};

const LEARNT = {
  round: {
    precision: "Precision of the guessed labels, by round",
    coverage: "Coverage: fraction of the pool that was trained on, by round",
    accuracy: "Accuracy on the pool's unlabelled images, by round",
    loss: "Loss of the last epoch, by round",
  },
  epoch: { accuracy: "Accuracy on held-out images, by epoch", loss: "Loss, by epoch" },
};

const OWN = "\u0000own"; // no setting of a config
const MOST = 8; // runs with a colour each

function showLearning(state) {
  const { page } = state;
  const section = byId("learning");
  const runs = done(page).filter((run) => run.learning);
  section.hidden = !runs.length;
  if (!runs.length) return;
  const axes = gridAxes(page, runs).filter((axis) => axis.values.length <= 40);
  const view = { fixed: new Map() };
  view.by = keepInLink("learning", colouring(axes, runs), isText, () => view.by);
  const fields = make("div", { class: "fields" });
  const units = [...new Set(runs.map((run) => run.learning.unit))];
  const charts = units.flatMap((unit) =>
    Object.keys(LEARNT[unit])
      .map((name) => ({ name, own: runs.filter((run) => run.learning.unit === unit && run.learning.curves[name]) }))
      .filter(({ own }) => own.length)
      .map(({ name, own }) =>
        chart(LEARNT[unit][name], (theme) =>
          learningChart(theme, name, unit, learningLines(theme, axes, view, own)),
        ),
      ),
  );
  const update = () => {
    fields.replaceChildren(...learningFields(axes, view, update));
    charts.forEach((one) => one.update());
  };
  section.append(
    units.includes("round")
      ? lead(
          "Of a prompt, precision and accuracy come from labels that nothing which learns is given: ",
          "they are for analysis alone. Round 0 is zero-shot.",
        )
      : "",
    runs.length > 1 ? fields : "",
    make(
      "div",
      { class: "columns" },
      charts.map((one) => one.figure),
    ),
  );
  update();
}

/** A few runs have a colour each; of many, those with the same value of a setting: of that with the fewest, no seed. */
function colouring(axes, runs) {
  const told = axes.filter((axis) => axis.key.split(".").at(-1) !== "seed" && axis.values.length <= MOST);
  return runs.length <= MOST || !told.length
    ? OWN
    : told.reduce((first, axis) => (axis.values.length < first.values.length ? axis : first)).key;
}

function learningFields(axes, view, update) {
  const set = (change) => (value) => {
    change(value);
    update();
  };
  return [
    choice(
      "One color for each",
      [[OWN, "run"], ...axes.map((axis) => [axis.key, axis.key])],
      view.by,
      set((key) => {
        view.by = key;
      }),
    ),
    ...axes.map((axis) =>
      choice(
        axis.key,
        [[ANY, "all"], ...axis.values.map((value) => [value, asText(value)])],
        view.fixed.get(axis.key) ?? ANY,
        set((value) => view.fixed.set(axis.key, value)),
      ),
    ),
  ];
}

/** The runs that are shown, each with how it is drawn and what it is called in the legend. */
function learningLines(theme, axes, view, runs) {
  const by = axes.find((axis) => axis.key === view.by);
  const wanted = (run, axis) => {
    const value = view.fixed.get(axis.key) ?? ANY;
    return value === ANY || keyOf(value) === keyOf(axis.read(run));
  };
  return runs
    .map((run, at) => {
      const place = by ? by.values.findIndex((value) => keyOf(value) === keyOf(by.read(run))) : at;
      return {
        run,
        name: by ? asText(by.read(run)) : runName(run),
        colour: theme.series[place % 8],
        dash: DASHES[place % 8],
        symbol: SYMBOLS[place % 8],
      };
    })
    .filter(({ run }) => axes.every((axis) => wanted(run, axis)));
}

function learningChart(theme, name, unit, lines) {
  if (!lines.length) return { option: null, words: "No run has these settings together." };
  const write = (value) => (name === "loss" ? plain(value) : percent(value));
  const points = lines.map(({ run }) =>
    run.learning.curves[name]
      .map((value, at) => [run.learning.first + at, value])
      .filter(([, value]) => Number.isFinite(value)),
  );
  const last = Math.max(...points.flat().map(([at]) => at), 1);
  const option = {
    ...base(theme),
    tooltip: tooltip(theme, ({ data }) => data.words),
    xAxis: axis(theme, unit, {
      type: "value",
      min: "dataMin",
      max: "dataMax",
      minInterval: 1,
      splitLine: { show: false },
    }),
    yAxis:
      name === "loss"
        ? axis(theme, "", { type: "value", scale: true })
        : shareAxis(theme, room(points.flat().map(([, value]) => value))),
    series: lines.map((line, at) => ({
      type: "line",
      symbol: line.symbol,
      symbolSize: last > 30 ? 3 : 6,
      showAllSymbol: true,
      lineStyle: { color: line.colour, type: line.dash, width: lines.length > MOST ? 1.25 : 2 },
      itemStyle: { color: line.colour },
      data: points[at].map((value) => ({
        value,
        words: [runName(line.run), `${unit} ${value[0]}: ${name} ${write(value[1])}`],
      })),
    })),
  };
  const told = (at) => {
    const [first, end] = [points[at][0], points[at].at(-1)];
    return `Run ${lines[at].run.id}: ${write(first[1])} at ${unit} ${first[0]}, ${write(end[1])} at ${unit} ${end[0]}`;
  };
  const legend = [...new Map(lines.map((line) => [line.name, line])).values()].slice(0, 24);
  return {
    option,
    legend,
    words: lines.map((_, at) => told(at)).join("; "),
    numbers: learningNumbers(name, unit, lines, points, last, write),
    height: 300,
  };
}

/** The numbers of a chart; of more than 30 rounds or epochs, some at equal distances and the last. */
function learningNumbers(name, unit, lines, points, last, write) {
  const step = Math.ceil((last + 1) / 30);
  const shown = [...new Set(points.flat().map(([at]) => at))]
    .filter((at) => at === last || at % step === 0)
    .sort((a, b) => a - b);
  const known = points.map((own) => new Map(own));
  return plainTable(
    `${name} by ${unit}`,
    [[unit, "number"], ...lines.map(({ run }) => [`Run ${run.id}`, "number"])],
    shown.map((at) => [String(at), ...known.map((own) => write(own.get(at)))]),
    { quiet: true, tall: shown.length > 15 },
  );
}
