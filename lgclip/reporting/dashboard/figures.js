/* Figures: how they are written, and the few that the page computes itself. */

const MINUS = "\u2212";

const signed = (text, value) => (value > 0 ? `+${text}` : value < 0 ? `${MINUS}${text}` : text);

/** A share as per cent. */
function percent(share, digits = 1) {
  return Number.isFinite(share) ? `${(100 * share).toFixed(digits)}%` : "–";
}

/** A difference of shares in percentage points, with its sign. */
function points(difference, digits = 1) {
  if (!Number.isFinite(difference)) return "–";
  return signed(Math.abs(100 * difference).toFixed(digits), difference);
}

/** A pair of shares. */
function interval(pair, write = (share) => (100 * share).toFixed(1)) {
  return Array.isArray(pair) && pair.every(Number.isFinite) ? `${write(pair[0])} to ${write(pair[1])}` : "–";
}

/** A p value. */
function chance(p) {
  if (!Number.isFinite(p)) return "–";
  return p < 0.001 ? "< 0.001" : p.toFixed(3);
}

/** The same in a sentence: p = 0.012, p < 0.001. */
const chanceSaid = (p) => `p ${chance(p).replace(/^(?=\d)/, "= ")}`;

/** A number with three or so digits that count. */
function plain(value) {
  if (!Number.isFinite(value)) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e6)
    return String(value)
      .replace("-", MINUS)
      .replace(/\B(?=(\d{3})+$)/g, ",");
  return value.toPrecision(3).replace("-", MINUS).replace(/e\+?/, "e");
}

/** A large number by its thousands: 87.9 M. */
function large(value) {
  if (!Number.isFinite(value)) return "–";
  const step = [
    [1e12, "T"],
    [1e9, "G"],
    [1e6, "M"],
    [1e3, "k"],
  ].find(([size]) => Math.abs(value) >= size);
  return step ? `${plain(value / step[0])} ${step[1]}` : plain(value);
}

/** Seconds as the unit that reads best. */
function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 1e-3) return seconds === 0 ? "0 s" : `${plain(Math.round(seconds * 1e7) / 10)} µs`;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 90) return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
  return seconds < 5400 ? `${(seconds / 60).toFixed(seconds < 600 ? 1 : 0)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

const SECONDS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200];

/** An axis of seconds from 0 to `most`: its end, its step, and how a tick is written; every tick is a round value. */
function secondsScale(most) {
  const rough = Math.max(most, 1e-4) / 6;
  const digit = 10 ** Math.floor(Math.log10(rough));
  const decimal = [1, 2, 5, 10].map((one) => one * digit).find((one) => one >= rough * 0.999);
  const days = Math.ceil(rough / 86400) * 86400;
  const step = rough <= 0.5 ? decimal : (SECONDS.find((one) => one >= rough) ?? days);
  const [unit, size] = [
    ["h", 3600],
    ["min", 60],
    ["s", 1],
    ["ms", 1e-3],
    ["µs", 1e-6],
  ].find(([, one]) => step >= one * 0.999);
  const write = (value) => `${Number((value / size).toPrecision(6))} ${unit}`;
  return { max: step * Math.ceil(most / step || 1), interval: step, write };
}

/** An interval of a mean of shares, cut where no share can be. */
const cut = (pair) => (pair ? [Math.max(0, pair[0]), Math.min(1, pair[1])] : null);

function bytes(count) {
  if (!Number.isFinite(count)) return "–";
  return count < 1e9 ? `${Math.round(count / 1e6)} MB` : `${(count / 1e9).toFixed(2)} GB`;
}

const mean = (values) => values.reduce((total, value) => total + value, 0) / values.length;

/** Wilson's 95% interval of a share: `right` of `n`. */
function wilson(right, n) {
  if (!n) return null;
  const z = 1.959963984540054;
  const share = right / n;
  const scale = 1 + (z * z) / n;
  const centre = share + (z * z) / (2 * n);
  const half = z * Math.sqrt((share * (1 - share)) / n + (z * z) / (4 * n * n));
  return [Math.max(0, (centre - half) / scale), Math.min(1, (centre + half) / scale)];
}

/** McNemar's exact test: two-sided p of `only` against `other` images that one run alone has right. */
function exactMcNemar(only, other) {
  const n = only + other;
  const few = Math.min(only, other);
  let log = -n * Math.LN2,
    total = Math.exp(log);
  for (let k = 1; k <= few; k += 1) {
    log += Math.log((n - k + 1) / k);
    total += Math.exp(log);
  }
  return Math.min(1, 2 * total);
}

/** Agresti and Min's 95% interval of a difference of paired shares (Stat. Med. 24:729, 2005): half an image in each cell. */
function pairedInterval(only, other, n) {
  const b = only + 0.5;
  const c = other + 0.5;
  const all = n + 2;
  const middle = (b - c) / all;
  const half = (1.959963984540054 / all) * Math.sqrt(b + c - (b - c) ** 2 / all);
  return [middle - half, middle + half];
}

/** How two runs differ, image by image; null if their outcomes are not known or not of the same images. */
function paired(first, second) {
  if (!first.right || !second.right || !first.evaluation_key || first.evaluation_key !== second.evaluation_key) return null;
  const a = atob(first.right);
  const b = atob(second.right);
  let only = 0,
    other = 0;
  for (let at = 0; at < a.length; at += 1) {
    const one = a.charCodeAt(at);
    const two = b.charCodeAt(at);
    only += ones(one & ~two);
    other += ones(two & ~one);
  }
  return {
    only,
    other,
    difference: (only - other) / first.n,
    ci95: pairedInterval(only, other, first.n),
    p: exactMcNemar(only, other),
  };
}

function ones(byte) {
  let count = 0;
  for (let rest = byte & 255; rest; rest &= rest - 1) count += 1;
  return count;
}
