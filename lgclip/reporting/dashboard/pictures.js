/* What a run saw: the pairs it takes for one another, and what was drawn of each class. */

const FEW = 12;

function showConfusions(state) {
  const { page } = state;
  const section = byId("confusions");
  const body = make("div", {});
  const update = () => {
    const run = page.runs[state.focus];
    const names = page.class_lists[run.class_list] ?? [];
    if (!run.confusions.length) {
      body.replaceChildren(nothing("This run takes no class for another, or its pairs are not in this page."));
      return;
    }
    body.replaceChildren(
      lead(
        "The most confused pairs. Prototypes are generated from the names; the images between them are real.",
      ),
      make(
        "ol",
        { class: "pairs" },
        run.confusions.map((pair) => pairCard(page, run, pair, names)),
      ),
    );
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
  let wanted = "",
    most = FEW;
  const field = search("Find a class or a prompt", (text) => {
    wanted = text;
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
  const fields = make("div", { class: "fields" }, field);
  function update() {
    const run = page.runs[state.focus];
    const rows = classRows(page, run);
    const all = run.gallery.map((drawn, at) => ({
      drawn,
      name: page.class_lists[run.class_list]?.[at] ?? String(at),
      row: rows[at],
    }));
    const kept = all.filter((one) => one.drawn.length);
    const found = kept.filter((one) => holds([one.name, ...one.drawn.map((drawn) => drawn.prompt)].join(" "), wanted));
    fields.hidden = status.hidden = !kept.length;
    list.replaceChildren(
      ...(kept.length
        ? found.slice(0, most).map((one) => classCard(page, one))
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
    wanted = name;
    most = FEW;
    field.querySelector("input").value = name;
    update();
    section.scrollIntoView();
    field.querySelector("input").focus({ preventScroll: true });
  });
  update();
}

function classCard(page, { name, drawn, row }) {
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
  );
}
