/* The head of the page: what was run, what was best, and what made the difference. */

const done = (page) => page.runs.filter((run) => run.metrics);
const top1 = (run) => run.metrics?.top1 ?? null;
const best = (runs) => runs.reduce((first, run) => (top1(run) > top1(first) ? run : first));

/** What a run is called in a sentence: its number and what tells it apart. */
function runName(run) {
  return `${run.id}: ${run.name}`;
}

const seconds = (run) => run.stages.reduce((total, stage) => total + stage.seconds, 0);

function showSummary(state) {
  const { page } = state;
  const runs = done(page);
  const lost = page.runs.length - runs.length;
  const names = [...new Set(runs.map((run) => run.dataset))];
  const sets = setsOf(page);
  // One scale for all cards, so that their intervals can be compared by eye.
  const domain = room(runs.flatMap((run) => [...(run.metrics.top1_ci95 ?? []), top1(run)]));
  const made = page.created.replace("T", " ").replace(/[+Z].*$/, " UTC");
  byId("summary").append(
    make("h1", { id: "title" }, said(page.title)),
    lead(
      `${plain(runs.length)} run${runs.length === 1 ? "" : "s"} on `,
      said(names.join(", ")),
      lost ? `; ${lost} more failed` : "",
      `. Created ${made} by lgclip `,
      said(page.version),
      ".",
    ),
    make(
      "div",
      { class: "cards" },
      sets.map((set) => bestCard(state, set, domain)),
      sets.map((set) => effectCard(page, set, sets.length > 1)),
      spentCard(runs),
    ),
    page.notes.length
      ? make(
          "aside",
          { class: "note", "aria-label": "Notes" },
          make(
            "ul",
            {},
            page.notes.map((note) => make("li", {}, said(note))),
          ),
        )
      : "",
  );
}

/** How far apart the means of each setting's values lie, on one data set; of one method but for the method itself. */
function effectCard(page, set, several) {
  const { method } = best(set.runs);
  const alike = set.runs.filter((run) => run.method === method);
  const effects = page.axes
    .map((axis) => effect(page, axis, axis.key === "method" ? set.runs : alike))
    .filter(Boolean)
    .sort((a, b) => b.reach - a.reach);
  if (!effects.length || effects.every((one) => one.reach === 0)) return null;
  const first = effects[0];
  const name = (end) => shorten(asText(end.value), 24);
  return make(
    "article",
    { class: "card" },
    make("h2", { class: "over" }, "What moves top-1", several ? [" on ", said(set.name)] : null),
    effects
      .slice(0, 6)
      .map((one) => shareLine(one.axis.key, one.reach / first.reach, `${(100 * one.reach).toFixed(1)} points`)),
    make(
      "p",
      { class: "muted small" },
      "From the worst to the best value of each setting, over runs alike in all else",
      alike.length < set.runs.length ? [", of the method ", said(method)] : "",
      ". ",
      said(first.axis.key),
      " ",
      said(name(first.low)),
      `: ${percent(first.low.mean)}, `,
      said(name(first.high)),
      `: ${percent(first.high.mean)}.`,
    ),
  );
}

/** Means of top-1 by the values of a setting, over runs that are alike in all else; null where no such runs are. */
function effect(page, axis, runs) {
  if (axis.key === "dataset") return null; // the runs are of one data set
  const others = page.axes.filter((one) => one.key !== axis.key);
  const blocks = Map.groupBy(runs, (run) => keyOf([run.evaluation_key, ...others.map((one) => run.axes[one.key])]));
  const told = (block) => new Set(block.map((run) => keyOf(run.axes[axis.key])));
  const values = axis.values.filter((value) => runs.some((run) => keyOf(run.axes[axis.key]) === keyOf(value)));
  const alike = [...blocks.values()].filter((block) => told(block).size === values.length).flat();
  if (values.length < 2 || !alike.length) return null;
  const means = values
    .map((value) => ({
      value,
      mean: mean(alike.filter((run) => keyOf(run.axes[axis.key]) === keyOf(value)).map(top1)),
    }))
    .sort((a, b) => a.mean - b.mean);
  const [low, high] = [means[0], means[means.length - 1]];
  return { axis, low, high, reach: high.mean - low.mean };
}

/** Where the time went. */
function spentCard(runs) {
  const stages = runs.flatMap((run) => run.stages);
  const names = [...new Set(stages.map((stage) => stage.stage))];
  if (!names.length) return null;
  const sums = names.map((name) => [
    name,
    stages.filter((stage) => stage.stage === name).reduce((total, stage) => total + stage.seconds, 0),
  ]);
  const most = Math.max(...sums.map(([, spent]) => spent)) || 1;
  const all = sums.reduce((total, [, spent]) => total + spent, 0);
  return make(
    "article",
    { class: "card" },
    make("h2", { class: "over" }, `Spent: ${duration(all)}`),
    sums.map(([name, spent]) => shareLine(name, spent / most, duration(spent))),
    make(
      "p",
      { class: "muted small" },
      "Things that were in the store already cost nothing again. ",
      make("a", { href: "#cost" }, "All costs"),
    ),
  );
}

function bestCard(state, { name: set, runs }, domain) {
  const run = best(runs);
  const { metrics } = run;
  const near = runs.filter(
    (other) => other !== run && other.metrics.top1_ci95?.[1] >= (metrics.top1_ci95?.[0] ?? 1),
  ).length;
  const rivals = Object.entries(run.baselines).map(([name, figures]) => {
    const test = run.paired[name];
    const told = test ? `${points(metrics.top1 - figures.top1)} points for this run, ${chanceSaid(test.p)}` : "";
    return make(
      "div",
      { class: "rival" },
      make("dt", {}, said(name)),
      make("dd", {}, make("b", {}, percent(figures.top1)), " ", make("span", { class: "muted" }, told)),
    );
  });
  const only = runs.length === 1;
  return make(
    "article",
    { class: "card" },
    make(
      "h2",
      { class: "over" },
      only ? "" : "Best of ",
      only ? said(set) : `${runs.length} runs on `,
      only ? null : said(set),
    ),
    make("p", { class: "big" }, percent(metrics.top1), make("small", {}, "top-1")),
    metrics.top1_ci95 ? whisker(metrics.top1_ci95[0], metrics.top1, metrics.top1_ci95[1], domain, "wide") : null,
    metrics.top1_ci95
      ? make(
          "p",
          { class: "ends muted small", "aria-hidden": "true" },
          make("span", {}, percent(domain[0], 0)),
          make("span", {}, percent(domain[1], 0)),
        )
      : null,
    make(
      "p",
      { class: "muted" },
      metrics.top1_ci95
        ? `95% interval ${interval(metrics.top1_ci95)} over ${plain(run.n)} images`
        : `${plain(run.n)} images`,
    ),
    make(
      "p",
      {},
      make("button", { type: "button", class: "link", onclick: () => state.look(run.id, "focus") }, runName(run)),
    ),
    rivals.length ? make("dl", { class: "rivals" }, rivals) : null,
    near
      ? make(
          "p",
          { class: "muted small" },
          `${near} other run${near === 1 ? " has an interval that reaches" : "s have intervals that reach"} this one's. `,
          "The highest of many is also the luckiest: see the paired tests.",
        )
      : null,
  );
}
