/* A run's features on a plane: prototypes, synthetic and real images. */

const MAP_ALL = -1;

function showMap(state) {
  const { page } = state;
  const section = byId("map");
  section.hidden = !page.runs.some((run) => run.feature_map);
  if (section.hidden) return;
  const view = {};
  view.class = keepInLink("map", MAP_ALL, Number.isInteger, () => view.class);
  const fields = make("div", { class: "fields" });
  const plot = chart("Features on two principal components", (theme) =>
    mapChart(theme, page, page.runs[state.focus], view.class),
  );
  const update = () => {
    const run = page.runs[state.focus];
    const names = page.class_lists[run.class_list] ?? [];
    if (view.class >= names.length) view.class = MAP_ALL;
    fields.replaceChildren(
      choice(
        "Highlight a class",
        [[MAP_ALL, "none"], ...names.map((name, at) => [at, name || "(empty)"])],
        view.class,
        (at) => {
          view.class = at;
          plot.update();
        },
      ),
    );
    fields.hidden = !run.feature_map;
    plot.update();
  };
  section.append(
    lead(
      "Each point is a feature, projected onto the two directions in which the run's images differ most. ",
      "Images near another class's prototype are those that are predicted as it; a plane shows only part of it.",
    ),
    fields,
    plot.figure,
  );
  state.on("focus", update);
  update();
}

function mapChart(theme, page, run, highlighted) {
  const points = run.feature_map;
  if (!points) return { option: null, words: "The features of this run were not in the store." };
  const names = page.class_lists[run.class_list] ?? [];
  const of = (wanted) => points.kind.map((kind, at) => (wanted(kind, at) ? at : -1)).filter((at) => at >= 0);
  const kinds = [
    ["real, correct", of((kind, at) => kind === "real" && points.correct[at]), theme.series[0], "circle", 6],
    ["real, misclassified", of((kind, at) => kind === "real" && !points.correct[at]), theme.series[1], "triangle", 9],
    ["synthetic", of((kind) => kind === "synthetic"), theme.series[2], "rect", 6],
    ["prototype", of((kind) => kind === "prototype"), theme.ink, "diamond", 11],
  ].filter(([, places]) => places.length);
  const faint = (at) => highlighted !== MAP_ALL && points.class_index[at] !== highlighted;
  const dot = (name, at) => ({
    value: [points.x[at], points.y[at]],
    itemStyle: { opacity: faint(at) ? 0.08 : 0.75 },
    words: [names[points.class_index[at]] ?? String(points.class_index[at]), name],
  });
  const along = (at) => `component ${at + 1} (${percent(points.explained[at], 0)} of the variance)`;
  const round = (value) => String(Number(value.toFixed(2))).replace("-", MINUS);
  const bounds = { type: "value", scale: true, axisLabel: { formatter: round } };
  const option = {
    ...base(theme),
    tooltip: tooltip(theme, ({ data }) => data.words),
    xAxis: axis(theme, along(0), bounds),
    yAxis: axis(theme, along(1), { ...bounds, nameGap: 44 }),
    series: kinds.map(([name, places, colour, symbol, size]) => ({
      type: "scatter",
      symbol,
      symbolSize: size,
      itemStyle: { color: colour, borderColor: theme.panel, borderWidth: 0.5 },
      z: symbol === "diamond" ? 4 : 2,
      data: places.map((at) => dot(name, at)),
    })),
  };
  return {
    option,
    height: 480,
    words: `${kinds.map(([name, places]) => `${places.length} ${name}`).join(", ")}; ${along(0)}, ${along(1)}`,
    legend: kinds.map(([name, , colour, symbol]) => ({ name, colour, symbol })),
  };
}
