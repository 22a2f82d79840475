/* Top-1 along one setting, a line for each value of another. */

/** Where values stand: numbers by size (by their logarithm if they span much), other values in a row. */
function positions(axis) {
  if (!axis.numeric) return { at: axis.values.map((_, n) => n), log: false };
  const log = Math.min(...axis.values) > 0 && Math.max(...axis.values) / Math.min(...axis.values) > 8;
  return { at: axis.values.map((value) => (log ? Math.log2(value) : value)), log };
}

function lineChart(theme, page, axes, grid, runs) {
  const { along, across, rows } = cells(page, axes, grid, runs);
  const { at, log } = positions(along);
  const span = Math.max(...at) - Math.min(...at) || 1;
  const shift = (row) => (row - (rows.length - 1) / 2) * Math.min(0.012, 0.08 / rows.length) * span;
  const name = (row) => (across.values[row] === ANY ? "all runs" : asText(across.values[row]));
  const lines = rows.map((row, r) => ({
    name: name(r),
    row: row.map((cell, n) => cell && { ...cell, x: at[n] + shift(r), label: asText(along.values[n]) }),
    colour: theme.series[r % 8],
    dash: DASHES[r % 8],
    symbol: SYMBOLS[r % 8],
  }));
  const known = lines.flatMap((line) => line.row.filter(Boolean));
  if (!known.length) return { option: null, words: "No run has these settings together." };
  const rivals = grid.baselines ? besideLines(theme, rows, at, name) : [];
  const bounds = lineRoom(known, rivals);
  const nearest = (x) => asText(along.values[at.findIndex((one) => Math.abs(one - x) < 1e-9)] ?? "");
  const option = {
    ...base(theme),
    tooltip: tooltip(theme, ({ data }) => data.words ?? []),
    xAxis: axis(theme, log ? `${along.key} (logarithmic)` : along.key, {
      type: "value",
      min: Math.min(...at) - span * 0.06,
      max: Math.max(...at) + span * 0.06,
      splitLine: { show: false },
      axisLabel: { customValues: at, formatter: (x) => shorten(nearest(x), 18) },
    }),
    yAxis: shareAxis(theme, bounds),
    series: [...rivals.map((rival) => rivalSeries(rival)), ...lines.flatMap((line) => lineSeries(line, along.numeric))],
  };
  const words = lines
    .filter((line) => line.row.some(Boolean))
    .map(
      (line) =>
        `${line.name}: ${line.row
          .filter(Boolean)
          .map((cell) => `${percent(cell.mean)} at ${cell.label}`)
          .join(", ")}`,
    )
    .join("; ");
  return { option, words, legendOf: across.key || null, legend: [...lines, ...rivals].slice(0, 24), height: 340 };
}

/** Bounds that show all means, and of intervals as much as leaves the means room. */
function lineRoom(known, rivals) {
  const middles = [
    ...known.map((cell) => cell.mean),
    ...rivals.flatMap((rival) => rival.points.map((point) => point[1])),
  ];
  const low = Math.min(...middles);
  const high = Math.max(...middles);
  const more = Math.max(0.6 * (high - low), 0.02);
  const ends = known.flatMap((cell) => cell.ci95 ?? []).map((end) => Math.min(high + more, Math.max(low - more, end)));
  return room([...middles, ...ends]);
}

function lineSeries(line, joined) {
  const told = (cell) => [
    line.name,
    `${cell.label}: ${percent(cell.mean, 2)}`,
    cell.ci95 ? `95% interval ${interval(cell.ci95)}` : `${cell.runs.length} runs`,
    ...cell.runs.slice(0, 6).map(runName),
  ];
  const bars = line.row
    .filter((cell) => cell?.ci95)
    .flatMap((cell) => [
      [cell.x, cell.ci95[0]],
      [cell.x, cell.ci95[1]],
      [cell.x, null],
    ]);
  return [
    {
      type: "line",
      data: bars,
      silent: true,
      symbol: "rect",
      symbolSize: [9, 1.5],
      showAllSymbol: true,
      lineStyle: { width: 1.5, color: line.colour, opacity: 0.75 },
      itemStyle: { color: line.colour },
      z: 2,
    },
    {
      type: "line",
      data: line.row.map((cell) => (cell ? { value: [cell.x, cell.mean], words: told(cell) } : null)).filter(Boolean),
      symbol: line.symbol,
      symbolSize: 9,
      showAllSymbol: true,
      lineStyle: { width: joined ? 2.25 : 0, type: line.dash, color: line.colour },
      itemStyle: { color: line.colour },
      emphasis: { scale: 1.4 },
      z: 3,
    },
  ];
}

const RIVALS = [
  [2, 4],
  [8, 3, 2, 3],
  [12, 5],
  [1, 2],
];

/** Methods judged beside, as dashed lines; lines that are the same everywhere are one. */
function besideLines(theme, rows, at, name) {
  const found = new Map();
  rows.forEach((row, r) => {
    for (const method of new Set(row.flatMap((cell) => cell?.runs.flatMap((run) => Object.keys(run.baselines)) ?? []))) {
      const points = row
        .map((cell, n) => [
          at[n],
          mean((cell?.runs ?? []).map((run) => run.baselines[method]?.top1).filter(Number.isFinite)),
        ])
        .filter((point) => Number.isFinite(point[1]));
      const key = keyOf([method, points]);
      if (!found.has(key)) found.set(key, { method, points, of: [] });
      found.get(key).of.push([r, name(r)]);
    }
  });
  const methods = [...new Set([...found.values()].map((one) => one.method))];
  return [...found.values()].map(({ method, points, of }) => ({
    points,
    name: of.length === rows.length ? method : `${method} (${of.map(([, text]) => text).join(", ")})`,
    colour: of.length === rows.length ? theme.muted : theme.series[of[0][0] % 8],
    dash: RIVALS[methods.indexOf(method) % RIVALS.length],
  }));
}

function rivalSeries(rival) {
  return {
    type: "line",
    data: rival.points.map((value) => ({ value, words: [rival.name, percent(value[1], 2)] })),
    symbol: "circle",
    symbolSize: 5,
    showSymbol: true,
    lineStyle: { type: rival.dash, width: 1.25, color: rival.colour },
    itemStyle: { color: rival.colour, opacity: 0.7 },
    z: 1,
  };
}
