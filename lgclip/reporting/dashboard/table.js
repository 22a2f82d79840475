/* Tables: a plain one, and one that is sorted by its heads. */

const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

/** Numbers by size, texts as people sort them, what is not known last, whichever way. */
function inOrder(a, b, down) {
  const lost = (value) => value === null || value === undefined || Number.isNaN(value);
  if (lost(a) || lost(b)) return lost(a) - lost(b);
  const way = typeof a === "number" && typeof b === "number" ? a - b : collator.compare(asText(a), asText(b));
  return down ? -way : way;
}

/** A table in a box that scrolls by itself and says so; the box can be reached by keyboard, the table exported. */
function boxed(table, caption, tall) {
  const box = make(
    "div",
    { class: tall ? "box tall" : "box", tabindex: 0, role: "region", "aria-label": caption },
    table,
  );
  const hint = make("span", { class: "muted small" });
  const update = () => {
    const sideways = box.scrollWidth > box.clientWidth + 1;
    const down = box.scrollHeight > box.clientHeight + 1;
    box.classList.toggle("cut", sideways);
    const more = [sideways ? "sideways for more columns" : "", down ? "down for more rows" : ""].filter(Boolean);
    hint.textContent = more.length ? `Scroll ${more.join(", ")}.` : "";
  };
  const watch = new ResizeObserver(update);
  watch.observe(box);
  watch.observe(table);
  return make("div", { class: "table" }, box, make("div", { class: "tools" }, hint, tableExports(table, caption)));
}

/**
 * A table of rows as they come.
 * heads: [text, kind]; rows: lists of nodes or texts, the first of which is the row's head.
 */
function plainTable(caption, heads, rows, { tall = false, quiet = false } = {}) {
  const cell = (content, at) => make(at ? "td" : "th", { class: heads[at][1], scope: at ? null : "row" }, content);
  const table = make(
    "table",
    {},
    make("caption", { class: quiet ? "quiet" : null }, caption),
    make(
      "thead",
      {},
      make(
        "tr",
        {},
        heads.map(([text, kind]) => make("th", { scope: "col", class: kind }, text)),
      ),
    ),
    make(
      "tbody",
      {},
      rows.map((row) => make("tr", {}, row.map(cell))),
    ),
  );
  return boxed(table, caption, tall);
}

/** A number with all of its digits, for exports; null where the text that is shown says it all. */
const exactValue = (value) => (typeof value === "number" && Number.isFinite(value) ? String(value) : null);

/**
 * A table that is sorted by any column, by mouse or keyboard.
 * columns: {key, label, tip, kind, down, value(row), cell(row)}; the column with `head: true` names the row.
 * The element's `show(rows)` shows some rows; `row(item)` gives the attributes of a row.
 */
function sortedTable({ caption, columns, rows, by, tall = false, row = () => ({}) }) {
  const order = { ...by };
  const body = make("tbody", {});
  const built = new Map();
  let shown = rows;
  const buttons = new Map(
    columns.map((column) => [
      column.key,
      make("button", { type: "button", onclick: () => sortBy(column) }, column.label),
    ]),
  );
  const heads = new Map(
    columns.map((column) => [
      column.key,
      make(
        "th",
        { scope: "col", class: `${column.kind ?? ""}${column.label.length < 16 ? " short" : ""}`, title: column.tip },
        column.value ? buttons.get(column.key) : column.label,
      ),
    ]),
  );

  function sortBy(column) {
    order.down = order.key === column.key ? !order.down : Boolean(column.down);
    order.key = column.key;
    update();
  }

  function rowOf(item) {
    if (!built.has(item)) {
      built.set(
        item,
        make(
          "tr",
          row(item),
          columns.map((column) =>
            make(
              column.head ? "th" : "td",
              {
                class: column.kind,
                scope: column.head ? "row" : null,
                "data-value": column.value ? exactValue(column.value(item)) : null,
              },
              column.cell(item),
            ),
          ),
        ),
      );
    }
    return built.get(item);
  }

  function update() {
    const column = columns.find((one) => one.key === order.key);
    const sorted = [...shown].sort((a, b) => inOrder(column.value(a), column.value(b), order.down));
    body.replaceChildren(...sorted.map(rowOf));
    for (const [key, head] of heads) {
      if (key === order.key) head.setAttribute("aria-sort", order.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
  }

  const table = make(
    "table",
    {},
    make("caption", {}, caption),
    make("thead", {}, make("tr", {}, [...heads.values()])),
    body,
  );
  const element = boxed(table, caption, tall);
  update();
  return {
    element,
    show: (some) => {
      shown = some;
      update();
    },
    renew: () => {
      built.clear();
      update();
    },
    order: () => ({ ...order }),
    sort: (key, down) => {
      Object.assign(order, { key, down });
      update();
    },
  };
}
