/* The state of the page as a link: filters and selections stand behind the section's name, as in #runs?focus=5. */

const LINK_PARTS = new Map();
let savedHash = location.hash;

/** The values of the link that the page was opened with, by name; what cannot be read counts as not there. */
const LINKED = linkedValues();

function linkedValues() {
  const values = new Map();
  const query = location.hash.split("?")[1] ?? "";
  for (const [name, text] of new URLSearchParams(query)) {
    try {
      values.set(name, JSON.parse(text));
    } catch {
      // A link that was cut on its way opens the page as it is without this part.
    }
  }
  return values;
}

/**
 * Keeps a value in the link: returns the link's value if it fits, and the usual one otherwise.
 * read() gives the present value; fits(value) tells whether a value of a link can be used.
 */
function keepInLink(name, usual, fits, read) {
  LINK_PARTS.set(name, { usual: keyOf(usual), read });
  const linked = LINKED.get(name);
  return LINKED.has(name) && fits(linked) ? linked : usual;
}

/** Writes what differs from the usual into the address, without an entry in the history. */
function saveLink() {
  const query = new URLSearchParams();
  for (const [name, { usual, read }] of LINK_PARTS) {
    const text = keyOf(read());
    if (text !== usual) query.set(name, text);
  }
  const section = location.hash.split("?")[0] || "#";
  const hash = query.size ? `${section}?${query}` : section;
  if (hash !== (location.hash || "#")) history.replaceState(null, "", hash);
  savedHash = location.hash;
}

/** Saves after every change, and opens another link that is put into the address. */
function followLinks() {
  // A click on a section's name replaces the whole hash: the state is put behind it again.
  const later = () => setTimeout(saveLink, 0);
  // Sections fill in what only they know, such as the first diagnostic: of what no link names, that is the usual.
  for (const [name, part] of LINK_PARTS) if (!LINKED.has(name)) part.usual = keyOf(part.read());
  for (const event of ["input", "change", "click"]) document.addEventListener(event, later);
  addEventListener("hashchange", () => {
    // The state may have been put behind a section's name before this event comes.
    if (location.hash.includes("?") && location.hash !== savedHash) location.reload();
    else later();
  });
  const section = location.hash.slice(1).split("?")[0];
  if (location.hash.includes("?") && section) document.getElementById(section)?.scrollIntoView();
}

const isText = (value) => typeof value === "string";
const isFlag = (value) => typeof value === "boolean";
const isPlace = (count) => (value) => Number.isInteger(value) && value >= 0 && value < count;
