/* Exports: tables as CSV, Markdown and LaTeX, charts as SVG and PNG. All are made in the page; nothing is sent. */

const NUMBER = /^(?:[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:inf|nan))$/;
/** What a spreadsheet takes for a formula, as in lgclip/reporting/csv_cells.py. */
const FORMULA = /^'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]|^'*[ \xa0]+[=+\-@\uff1d\uff0b\uff0d\uff20]/;

/** A cell of a CSV file: never a formula, and quoted where it holds what ends a cell. */
function csvCell(text) {
  const safe = !NUMBER.test(text) && FORMULA.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

const csvTable = ({ heads, rows }) => [heads, ...rows].map((row) => `${row.map(csvCell).join(",")}\n`).join("");

/** All that Markdown could read as markup is escaped, also HTML. */
const markdownCell = (text) => text.replace(/\s+/g, " ").replace(/[\\`*_[\]<>|&#~]/g, "\\$&");

function markdownTable({ heads, rows, numeric }) {
  const line = (cells) => `| ${cells.map(markdownCell).join(" | ")} |\n`;
  const rule = `| ${numeric.map((is) => (is ? "---:" : "---")).join(" | ")} |\n`;
  return line(heads) + rule + rows.map(line).join("");
}

const LATEX = {
  "\\": "\\textbackslash{}",
  "{": "\\{",
  "}": "\\}",
  $: "\\$",
  "&": "\\&",
  "#": "\\#",
  _: "\\_",
  "%": "\\%",
  "~": "\\textasciitilde{}",
  "^": "\\textasciicircum{}",
  "<": "\\textless{}",
  ">": "\\textgreater{}",
  "|": "\\textbar{}",
};

const latexCell = (text) =>
  text
    .replace(/\s+/g, " ")
    .replace(/[\\{}$&#_%~^<>|]/g, (letter) => LATEX[letter])
    .replaceAll(MINUS, "$-$")
    .replaceAll("–", "--");

/** A tabular of the package booktabs. */
function latexTable({ heads, rows, numeric }) {
  const line = (cells) => `${cells.map(latexCell).join(" & ")} \\\\\n`;
  const columns = numeric.map((is) => (is ? "r" : "l")).join("");
  const body = rows.map(line).join("");
  return `\\begin{tabular}{${columns}}\n\\toprule\n${line(heads)}\\midrule\n${body}\\bottomrule\n\\end{tabular}\n`;
}

/** The texts of a table as it is shown, in its order; a cell may hold a plainer value for files. */
function tableTexts(table, exact) {
  const shown = (cell) => (cell.querySelector("input") ? "" : cell.textContent.trim());
  const plainText = (cell) => (cell.dataset.value ?? shown(cell)).replaceAll(MINUS, "-").replace(/^–$/, "");
  const heads = [...table.querySelectorAll("thead tr > *")];
  // A column without a name holds a picture of another one, and a column of boxes nothing to read.
  const places = heads.map((_, at) => at).filter((at) => !heads[at].matches(".pick") && (at === 0 || shown(heads[at])));
  const rows = [...table.querySelectorAll("tbody tr")].map((row) =>
    places.map((at) => row.children[at]).map((cell) => (cell ? (exact ? plainText : shown)(cell) : "")),
  );
  return {
    heads: places.map((at) => shown(heads[at])),
    numeric: places.map((at) => heads[at].matches(".number")),
    rows,
  };
}

const TABLE_FORMATS = [
  ["CSV", "csv", "text/csv", (table) => csvTable(tableTexts(table, true))],
  ["Markdown", "md", "text/markdown", (table) => markdownTable(tableTexts(table, false))],
  ["LaTeX", "tex", "text/x-tex", (table) => latexTable(tableTexts(table, false))],
];

function tableExports(table, caption) {
  return exportMenu(
    `Export: ${caption}`,
    TABLE_FORMATS.map(([label, ending, type, write]) => [
      label,
      () => download(new Blob([write(table)], { type: `${type};charset=utf-8` }), `${fileName(caption)}.${ending}`),
    ]),
  );
}

/** A menu of buttons that opens. */
function exportMenu(name, actions) {
  return make(
    "details",
    { class: "export" },
    make("summary", { "aria-label": name }, "Export"),
    make(
      "span",
      {},
      actions.map(([label, act]) => make("button", { type: "button", onclick: act }, label)),
    ),
  );
}

/** A name that every file system allows. */
const fileName = (text) =>
  text
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, "-")
    .replace(/^-+|-+$/g, "")
    .slice(0, 60) || "table";

function download(blob, name) {
  const address = URL.createObjectURL(blob);
  const link = make("a", { href: address, download: name, hidden: true });
  document.body.append(link);
  link.click();
  link.remove();
  // The browser has its own reference by then.
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

function chartExports(title, drawing) {
  const svg = () => new Blob([drawing().text], { type: "image/svg+xml" });
  return exportMenu(`Export: ${title}`, [
    ["SVG", () => download(svg(), `${fileName(title)}.svg`)],
    ["PNG", () => downloadImage(drawing(), `${fileName(title)}.png`)],
  ]);
}

/** A chart as one SVG of its own: title, legend and the drawing, on the page's background. */
function standalone(title, key, canvas) {
  const theme = colours();
  const font = getComputedStyle(document.body).fontFamily;
  const inner = canvas.querySelector("svg").cloneNode(true);
  const width = canvas.clientWidth;
  const marks = [...key.querySelectorAll(".key")];
  const top = 34 + 20 * marks.length;
  const height = top + canvas.clientHeight;
  inner.setAttribute("y", String(top));
  const text = (x, y, size, content) =>
    draw("text", { x, y, "font-size": size, "font-family": font, fill: theme.ink }, content);
  const lines = marks.flatMap((mark, at) => {
    const symbol = mark.querySelector("svg").cloneNode(true);
    for (const [name, value] of Object.entries({ x: 8, y: 32 + 20 * at, width: 28, height: 12 }))
      symbol.setAttribute(name, String(value));
    return [symbol, text(44, 42 + 20 * at, 12, mark.textContent)];
  });
  const whole = draw(
    "svg",
    { width, height, viewBox: `0 0 ${width} ${height}` },
    draw("rect", { width, height, fill: theme.panel }),
    text(8, 20, 14, title),
    lines,
    inner,
  );
  return { text: new XMLSerializer().serializeToString(whole), width, height };
}

/** The same as pixels, at twice the size. */
async function downloadImage({ text, width, height }, name) {
  const image = new Image(2 * width, 2 * height);
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  const canvas = make("canvas", { width: 2 * width, height: 2 * height });
  canvas.getContext("2d").drawImage(image, 0, 0, 2 * width, 2 * height);
  canvas.toBlob((blob) => download(blob, name), "image/png");
}
