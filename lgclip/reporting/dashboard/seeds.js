/* Means over seeds. */

/** Runs that differ in their seeds alone, as one figure. */
function seeds(page) {
  const groups = page.groups.filter((group) => group.runs.length > 1).sort((a, b) => b.mean - a.mean);
  if (!groups.length) return [];
  const domain = room(groups.flatMap((group) => [group.mean, ...(cut(group.ci95) ?? [])]));
  const named = (group) =>
    Object.entries(group.axes)
      .map(([key, value]) => `${key}=${asText(value)}`)
      .join(", ") || "all runs";
  const rows = groups.map((group) => [
    said(named(group)),
    String(group.runs.length),
    make("b", {}, percent(group.mean)),
    make(
      "div",
      { class: "forest" },
      whisker(cut(group.ci95)?.[0] ?? null, group.mean, cut(group.ci95)?.[1] ?? null, domain),
      make("span", {}, interval(cut(group.ci95))),
    ),
    Number.isFinite(group.std) ? (100 * group.std).toFixed(2) : "–",
    said(group.runs.join(", ")),
  ]);
  return [
    make("h3", {}, "Over seeds"),
    lead(
      "Runs that differ in their seeds alone. The interval is of the mean, by Student's t: what another seed may give.",
    ),
    plainTable(
      "Means over seeds",
      [
        ["Setting"],
        ["Seeds", "number"],
        ["Mean top-1", "number"],
        ["95% interval", "interval"],
        ["Std, points", "number"],
        ["Runs"],
      ],
      rows,
      { quiet: true, tall: rows.length > 15 },
    ),
  ];
}
