/* The blocks of the table of runs, and what filters them. */

const isOrder = (value) => isText(value?.key) && isFlag(value?.down);

/** The runs of each data set, since a table sorted over several would rank what cannot be compared. */
function runBlocks(page) {
  const sets = setsOf(page);
  if (sets.length < 2) return [{ name: "All runs", runs: page.runs }];
  const lost = page.runs.filter((run) => !run.metrics);
  const blocks = sets.map(({ name, runs }) => ({ name: `Runs on ${name}`, runs }));
  return lost.length ? [...blocks, { name: "Failed runs", runs: lost }] : blocks;
}

const filterAxes = (page) => page.axes.filter((axis) => axis.values.length > 1 && axis.values.length <= 40).slice(0, 8);

/** The filters, as the page's link has them. */
function linkedFilters(page) {
  const filters = {};
  const fits = (value) => isText(value?.text) && isText(value?.status) && Array.isArray(value?.axes);
  const usual = { text: "", status: ANY, axes: [] };
  const linked = keepInLink("filter", usual, fits, () => ({
    text: filters.text,
    status: filters.status,
    axes: [...filters.axes].filter(([, value]) => value !== ANY),
  }));
  const known = new Set(filterAxes(page).map((axis) => axis.key));
  const axes = linked.axes.filter((entry) => Array.isArray(entry) && known.has(entry[0]));
  return Object.assign(filters, { text: linked.text, status: linked.status, axes: new Map(axes) });
}

function runFilters(page, filters, apply) {
  const axes = filterAxes(page);
  return make(
    "search",
    { class: "fields", "aria-label": "Filter the runs" },
    search(
      "Find",
      (text) => {
        filters.text = text;
        apply();
      },
      filters.text,
    ),
    axes.map((axis) =>
      choice(
        shorten(axis.key, 40),
        [[ANY, "all"], ...axis.values.map((value) => [value, asText(value)])],
        filters.axes.get(axis.key) ?? ANY,
        (value) => {
          filters.axes.set(axis.key, value);
          apply();
        },
      ),
    ),
    page.runs.some((run) => !run.metrics)
      ? choice(
          "Status",
          [
            [ANY, "all"],
            ["finished", "finished"],
            ["failed", "failed"],
          ],
          filters.status,
          (value) => {
            filters.status = value;
            apply();
          },
        )
      : null,
  );
}

const ANY = "\u0000any"; // no value of a config

function passes(run, { text, axes, status = ANY }) {
  const words = [run.id, run.name, run.folder, run.method, run.dataset, run.error].map(asText).join(" ");
  return (
    (status === ANY || run.status === status) &&
    holds(words, text) &&
    [...axes].every(([key, value]) => value === ANY || keyOf(run.axes[key]) === keyOf(value))
  );
}
