/* The page: its state, and who hears of a change. */

/** What is looked at: one run in focus, a pair side by side. Sections hear of "focus", "pair", "gallery" and "theme". */
function stateOf(page) {
  const runs = done(page);
  const first = best(runs).id;
  const hears = new Map();
  const second = partner(page, runs, page.runs[first]);
  const isRun = (id) => isPlace(page.runs.length)(id) && Boolean(page.runs[id].metrics);
  const areRuns = (ids) => Array.isArray(ids) && ids.length <= 2 && ids.every(isRun);
  const state = {
    page,
    focus: keepInLink("focus", first, isRun, () => state.focus),
    pair: keepInLink("pair", [first, second], (ids) => areRuns(ids) && ids.length === 2, () => state.pair),
    picked: keepInLink("picked", [], areRuns, () => state.picked),
    on: (event, hear) => hears.set(event, [...(hears.get(event) ?? []), hear]),
    tell: (event, value) => (hears.get(event) ?? []).forEach((hear) => hear(value)),
    setPair: (pair) => {
      state.pair = pair;
      state.picked = [...new Set(pair)];
      state.tell("pair");
    },
    pick: (id, on) => pickRun(state, id, on),
    look: (id, target) => {
      state.focus = id;
      state.tell("focus");
      byId(target).scrollIntoView();
      byId("focus").querySelector("select")?.focus({ preventScroll: true });
    },
  };
  return state;
}

/** What the best run is first seen beside: the reference, or the next best; one of the same images if there is one. */
function partner(page, runs, first) {
  const others = runs.filter((run) => run !== first);
  const alike = others.filter((run) => run.evaluation_key && run.evaluation_key === first.evaluation_key);
  const near = alike.length ? alike : others;
  if (!near.length) return first.id;
  return (near.find((run) => run.id === page.reference) ?? best(near)).id;
}

/** Ticks a run; of three the first one ticked goes. Two of them are the pair. */
function pickRun(state, id, on) {
  const rest = state.picked.filter((one) => one !== id);
  state.picked = on ? [...rest, id].slice(-2) : rest;
  if (state.picked.length === 2) state.pair = [...state.picked];
  state.tell("pair");
  document.querySelector(`#runs tr[data-run="${id}"] input`)?.focus();
}

function showFocus(state) {
  const { page } = state;
  const box = byId("focus");
  const runs = done(page);
  const update = () =>
    box.replaceChildren(
      runs.length > 1
        ? choice(
            "One run, from here on",
            runs.map((run) => [run.id, runName(run)]),
            state.focus,
            (id) => {
              state.focus = id;
              state.tell("focus");
              box.querySelector("select").focus();
            },
          )
        : make("p", { class: "over" }, "The run: ", said(page.runs[state.focus].name)),
    );
  state.on("focus", update);
  update();
}

function showProvenance(state) {
  const { page } = state;
  const body = make("div", {});
  const update = () => {
    const run = page.runs[state.focus];
    const keys = Object.keys(run.config).sort();
    const told = make(
      "dl",
      { class: "facts" },
      [["Folder", run.folder], ...run.provenance].map(([label, text]) =>
        make("div", {}, make("dt", {}, said(label)), make("dd", {}, said(text))),
      ),
    );
    body.replaceChildren(
      told,
      fold(
        `All ${keys.length} settings of run ${run.id}`,
        plainTable(
          `Settings of run ${run.id}`,
          [["Setting"], ["Value"]],
          keys.map((key) => [said(key, "code"), said(asText(run.config[key]))]),
          { quiet: true, tall: true },
        ),
      ),
    );
  };
  byId("provenance").append(body, ...settingsOfAll(page));
  state.on("focus", update);
  update();
}

/** Every setting that differs between any two runs, even those that a group's choice stands for. */
function settingsOfAll(page) {
  const runs = done(page);
  const keys = [...new Set(runs.flatMap((run) => Object.keys(run.config)))].sort();
  const differ = keys.filter((key) => new Set(runs.map((run) => keyOf(run.config[key]))).size > 1);
  if (!differ.length) return [];
  const rows = runs.map((run) => [String(run.id), ...differ.map((key) => said(asText(run.config[key])))]);
  return [
    fold(
      `All ${differ.length} settings that differ between the runs`,
      plainTable("Settings that differ", [["Run", "number"], ...differ.map((key) => [said(key, "code")])], rows, {
        quiet: true,
        tall: runs.length > 15,
      }),
    ),
  ];
}

/** Light, dark, or as the system has it; kept for the next time where the browser allows it. */
function showTheme(state) {
  const root = document.documentElement;
  const button = byId("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const now = () => root.dataset.theme ?? (dark.matches ? "dark" : "light");
  const apply = (theme) => {
    if (theme) root.dataset.theme = theme;
    button.textContent = now() === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to ${now() === "dark" ? "light" : "dark"} colors`);
    redrawCharts();
    state.tell("theme");
  };
  button.addEventListener("click", () => {
    const theme = now() === "dark" ? "light" : "dark";
    remember(theme);
    apply(theme);
  });
  dark.addEventListener("change", () => apply());
  apply(remember());
}

/** The theme that was chosen before; a page opened from a file may not be allowed to keep one. */
function remember(theme) {
  try {
    if (theme) localStorage.setItem("lgclip-theme", theme);
    const kept = localStorage.getItem("lgclip-theme");
    return kept === "dark" || kept === "light" ? kept : null;
  } catch {
    return null;
  }
}

/** Links to the sections; the one in view is marked. */
function showLinks() {
  const sections = [...document.querySelectorAll("main > section[id]:not(#summary, [hidden])")];
  const links = new Map(
    sections.map((section) => [
      section,
      make("a", { href: `#${section.id}` }, section.querySelector("h2").textContent),
    ]),
  );
  byId("nav").append(...[...links.values()].map((link) => make("li", {}, link)));
  const seen = new Set();
  const watch = new IntersectionObserver(
    (entries) => {
      entries.forEach((entry) => (entry.isIntersecting ? seen.add(entry.target) : seen.delete(entry.target)));
      const current = sections.find((section) => seen.has(section));
      links.forEach((link, section) =>
        section === current ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current"),
      );
    },
    { rootMargin: "-80px 0px -55% 0px" },
  );
  sections.forEach((section) => watch.observe(section));
}

/** On paper: light colours, everything open, charts as wide as the sheet. */
function showPrint(state) {
  const root = document.documentElement;
  let theme,
    closed = [];
  addEventListener("beforeprint", () => {
    theme = root.dataset.theme;
    root.dataset.theme = "light";
    redrawCharts();
    state.tell("theme");
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((one) => {
      one.open = true;
    });
    drawn.forEach((one) => one.resize({ width: 640 }));
  });
  addEventListener("afterprint", () => {
    closed.forEach((one) => {
      one.open = false;
    });
    if (theme) root.dataset.theme = theme;
    else delete root.dataset.theme;
    redrawCharts();
    state.tell("theme");
    drawn.forEach((one) => one.resize());
  });
}

const SHOWN = [
  showSummary,
  showRuns,
  showGrid,
  showCompare,
  showLearning,
  showCost,
  showFocus,
  showFigures,
  showClasses,
  showConfidence,
  showConfusions,
  showMap,
  showGallery,
  showProvenance,
  showTheme,
];

function start() {
  const state = stateOf(readData());
  SHOWN.forEach((show) => show(state));
  showLinks();
  followLinks();
  showPrint(state);
  byId("foot").append("One file that asks the network for nothing. Charts by Apache ECharts, Apache-2.0.");
}

start();
