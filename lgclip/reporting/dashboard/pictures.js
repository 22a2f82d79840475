/* What a run saw: the pairs it takes for one another, and what was drawn of each class. */

const FEW = 12;

function showConfusions(state) {
  const { page } = state;
  const section = byId("confusions");
  const body = make("div", {});
  const matrix = chart("Confusion matrix", (theme, width) =>
    matrixChart(theme, width, page, page.runs[state.focus]),
  );
  const update = () => {
    const run = page.runs[state.focus];
    const names = page.class_lists[run.class_list] ?? [];
    const pairs = run.confusions.length
      ? [
          lead("The most confused pairs. Prototypes are generated from the names; the images between them are real."),
          make(
            "ol",
            { class: "pairs" },
            run.confusions.map((pair) => pairCard(page, run, pair, names)),
          ),
        ]
      : [nothing("This run takes no class for another, or its pairs are not in this page.")];
    body.replaceChildren(...(run.matrix.length ? [matrix.figure] : []), ...pairs);
    matrix.update();
  };
  section.append(body);
  state.on("focus", update);
  update();
}

function pairCard(page, run, pair, names) {
  const [right, wrong] = [pair.true, pair.predicted].map((at) => names[at] ?? String(at));
  const of = run.classes[pair.true]?.n;
  const side = (label, keys, alt, kind) =>
    make(
      "div",
      { class: `side ${kind}` },
      make("p", { class: "over" }, ...label),
      keys.length ? strip(page, keys, alt) : make("p", { class: "muted small" }, "no image"),
    );
  return make(
    "li",
    { class: "card" },
    make("h3", {}, said(right), make("span", { class: "muted" }, " taken for "), said(wrong)),
    make(
      "p",
      { class: "muted" },
      `${plain(pair.count)}${of ? ` of ${plain(of)}` : ""} images${of ? `, ${percent(pair.count / of)}` : ""}`,
    ),
    make(
      "div",
      { class: "sides" },
      side(["Drawn as ", said(right)], pair.of_true, `Synthetic image of ${right}`, "drawn"),
      side(["Real, misclassified"], pair.images, `Real image of ${right}, taken for ${wrong}`, "real"),
      side(["Drawn as ", said(wrong)], pair.of_predicted, `Synthetic image of ${wrong}`, "drawn"),
    ),
  );
}

function showGallery(state) {
  const { page } = state;
  const section = byId("gallery");
  const list = make("div", { class: "shelf" });
  const status = make("p", { class: "muted small", "aria-live": "polite" });
  const view = linkedView("gallery", { text: "", errors: false });
  let most = FEW;
  const field = search(
    "Find a class or a prompt",
    (text) => {
      view.text = text;
      most = FEW;
      update();
    },
    view.text,
  );
  const errors = tick("Errors only", view.errors, (on) => {
    view.errors = on;
    most = FEW;
    update();
  });
  const more = make(
    "button",
    {
      type: "button",
      onclick: () => {
        most += 4 * FEW;
        update();
      },
    },
    "Show more",
  );
  const fields = make("div", { class: "fields" }, field, errors);
  function update() {
    const run = page.runs[state.focus];
    const rows = classRows(page, run);
    const all = run.gallery.map((drawn, at) => ({
      drawn,
      at,
      name: page.class_lists[run.class_list]?.[at] ?? String(at),
      row: rows[at],
    }));
    const kept = all.filter((one) => one.drawn.length);
    const found = kept
      .filter((one) => !view.errors || (one.row && one.row.right < one.row.n))
      .filter((one) => holds([one.name, ...one.drawn.map((drawn) => drawn.prompt)].join(" "), view.text));
    fields.hidden = status.hidden = !kept.length;
    list.replaceChildren(
      ...(kept.length
        ? found.slice(0, most).map((one) => classCard(page, run, one))
        : [nothing("No images of this run are in the page.")]),
    );
    more.hidden = found.length <= most;
    const rest = found.length < kept.length ? `, ${kept.length} in all` : "";
    status.textContent = `${Math.min(most, found.length)} of ${found.length} classes shown${rest}`;
  }
  section.append(
    lead("From a class name to its prompts, and from each prompt to its images."),
    fields,
    status,
    list,
    more,
  );
  state.on("focus", update);
  state.on("gallery", (name) => {
    view.text = name;
    view.errors = false;
    most = FEW;
    errors.querySelector("input").checked = false;
    field.querySelector("input").value = name;
    update();
    section.scrollIntoView();
    field.querySelector("input").focus({ preventScroll: true });
  });
  update();
}

function classCard(page, run, { name, drawn, row, at }) {
  const mistakes = run.confusions.filter((pair) => pair.true === at && pair.images.length);
  return make(
    "article",
    { class: "card" },
    make("h3", {}, said(name), row?.n ? make("span", { class: "muted" }, ` ${percent(row.accuracy)}`) : null),
    make(
      "ul",
      { class: "prompts" },
      drawn.map((one) =>
        make(
          "li",
          { class: one.images.length === 1 ? "baselines" : "" },
          make("p", {}, said(one.prompt, "prompt")),
          strip(page, one.images, `Synthetic image of ${name}`),
        ),
      ),
    ),
    mistakes.length
      ? [
          make("p", { class: "over" }, "Misclassified test images"),
          strip(
            page,
            mistakes.flatMap((pair) => pair.images),
            `Real image of ${name}, misclassified`,
          ),
        ]
      : null,
  );
}
