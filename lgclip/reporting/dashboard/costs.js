/* What the runs cost: each of them, together, and against two towers. */

function showCost(state) {
  const { page } = state;
  const section = byId("cost");
  const runs = done(page).filter((run) => run.stages.length);
  if (!runs.length) {
    section.append(nothing("No run tells what it cost."));
    return;
  }
  const view = { before: false };
  const totals = make("div", {});
  const towers = make("div", {});
  const stages = [...new Set(runs.flatMap((run) => run.stages.map((stage) => stage.stage)))];
  const bars = chart("Seconds of each run", (theme) => costBars(theme, runs, stages, view.before));
  const known = runs.some((run) =>
    Object.values(run.cost.computed_before ?? {}).some((one) => Number.isFinite(one?.seconds)),
  );
  const update = () => bars.update();
  const perRun = () =>
    towers.replaceChildren(...towerTable(page.runs[state.focus]), ...payback(page.runs[state.focus]));
  section.append(
    lead(
      "What each run spent. A stage that finds its things in the store costs next to nothing; ",
      "their past cost can be added.",
    ),
    known
      ? make(
          "div",
          { class: "fields" },
          tick("Add the past cost of reused items", false, (on) => {
            view.before = on;
            update();
          }),
        )
      : "",
    bars.figure,
    totals,
    towers,
  );
  totals.replaceChildren(totalTable(runs, stages, page.computed_before));
  state.on("focus", perRun);
  perRun();
  update();
}

/** Seconds of a stage in a run, with what its reused things once cost if `before`. */
function stageSeconds(run, name, before) {
  const own = run.stages.filter((stage) => stage.stage === name).reduce((total, stage) => total + stage.seconds, 0);
  return own + (before ? (run.cost.computed_before?.[name]?.seconds ?? 0) : 0);
}

function costBars(theme, runs, stages, before) {
  const shown = [...runs].reverse();
  const label = (run) => (runs.length > 1 ? `run ${run.id}` : run.name);
  const total = (run) => stages.reduce((sum, name) => sum + stageSeconds(run, name, before), 0);
  const scale = secondsScale(Math.max(...runs.map(total)));
  const option = {
    ...base(theme),
    tooltip: tooltip(
      theme,
      (params) => [
        runName(shown[params[0].dataIndex]),
        ...params.map((one) => `${stages[one.seriesIndex]}: ${duration(one.value)}`),
        `all: ${duration(total(shown[params[0].dataIndex]))}`,
      ],
      "axis",
    ),
    yAxis: axis(theme, "", {
      type: "category",
      data: shown.map(label),
      splitLine: { show: false },
      axisLabel: { width: 130, overflow: "truncate" },
    }),
    xAxis: axis(theme, "", {
      type: "value",
      min: 0,
      max: scale.max,
      interval: scale.interval,
      axisLabel: { formatter: scale.write },
    }),
    series: stages.map((name, at) => ({
      type: "bar",
      stack: "all",
      name: String(at),
      barMaxWidth: 22,
      barCategoryGap: "24%",
      itemStyle: { color: theme.series[at % 8] },
      data: shown.map((run) => stageSeconds(run, name, before)),
    })),
  };
  const of = (name) => runs.reduce((all, run) => all + stageSeconds(run, name, before), 0);
  const sum = runs.reduce((all, run) => all + total(run), 0);
  const numbers = plainTable(
    "Seconds of each stage",
    [["Run"], ...stages.map((name) => [name, "number"]), ["All", "number"]],
    runs.map((run) => [
      said(runName(run)),
      ...stages.map((name) => duration(stageSeconds(run, name, before))),
      duration(total(run)),
    ]),
    { quiet: true, tall: runs.length > 15 },
  );
  return {
    option,
    numbers,
    height: 60 + (runs.length > 20 ? 16 : 24) * Math.max(runs.length, 3),
    words: `${runs.length} runs, ${duration(sum)} in all: ${stages.map((name) => `${name} ${duration(of(name))}`).join(", ")}`,
    legend: stages.map((name, at) => ({ name, colour: theme.series[at % 8], symbol: "bar" })),
  };
}

/** All runs together, stage by stage. */
function totalTable(runs, stages, before) {
  const rows = stages.map((name) => {
    const own = runs.flatMap((run) => run.stages.filter((stage) => stage.stage === name));
    const add = (key) => own.reduce((total, stage) => total + (stage[key] ?? 0), 0);
    const peak = Math.max(...own.map((stage) => stage.peak_memory ?? NaN).filter(Number.isFinite));
    const tokens = own.some((stage) => stage.tokens !== null) ? plain(add("tokens")) : "–";
    return [
      said(name),
      said(own[0].unit),
      plain(add("computed")),
      plain(add("reused")),
      duration(add("seconds")),
      tokens,
      `${bytes(peak)}${own.some((stage) => stage.peak_from === "process") ? ", whole process" : ""}`,
      said([...new Set(own.map((stage) => stage.device).filter(Boolean))].join(", ") || "–"),
    ];
  });
  const spent = runs.reduce((total, run) => total + seconds(run), 0);
  const line = (name, value) => [name, "", "", "", duration(value), "", "", ""];
  const all = [line("All", spent)];
  if (before) all.push(line("Reused items, when computed", before), line("All, with it", spent + before));
  const caption = runs.length > 1 ? `${runs.length} runs together` : "The stages";
  return plainTable(
    caption,
    [
      ["Stage"],
      ["Unit"],
      ["Computed", "number"],
      ["Reused", "number"],
      ["Seconds", "number"],
      ["Tokens", "number"],
      ["Peak memory", "number"],
      ["Device"],
    ],
    [...rows, ...all],
  );
}

function towerTable(run) {
  const towers = Object.entries(run.cost.towers ?? {}).filter(([, tower]) => tower);
  if (!towers.length) return [];
  const rows = towers.map(([name, tower]) => [
    said(name),
    large(tower.parameters),
    large(tower.flops),
    name === "image" ? "an image" : "a sentence",
  ]);
  return [
    make("h3", {}, "One tower against two"),
    plainTable(`Towers of run ${run.id}`, [["Tower"], ["Parameters", "number"], ["FLOPs", "number"], ["for"]], rows),
  ];
}

/** After how many judged images the prototypes have paid back, in both ways of counting. */
function payback(run) {
  const told = run.cost.payback;
  if (!told?.text_tower_per_image) return [];
  const say = ({ pays_back, images }) =>
    pays_back === null ? "not known" : pays_back ? `after ${plain(images)} images` : "never";
  const rows = [
    [
      "Text tower run for each image",
      duration(told.text_tower_per_image.saved?.seconds ?? NaN),
      say(told.text_tower_per_image),
    ],
    [
      "Text features computed once and stored",
      duration(told.text_features_kept.saved?.seconds ?? NaN),
      say(told.text_features_kept),
    ],
  ];
  const once = told.once?.seconds?.all;
  return [
    lead(
      `Prompts, synthetic images and their features cost ${Number.isFinite(once) ? duration(once) : "what is not known"} once. `,
      "Whether leaving the text tower out makes up for that depends on what it is compared with.",
    ),
    plainTable(
      `Payback of run ${run.id}`,
      [["Compared with"], ["Saved an image", "number"], ["Prototypes pay back", "number"]],
      rows,
    ),
  ];
}
