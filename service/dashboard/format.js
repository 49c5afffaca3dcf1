// Numbers, moments and spans as people read them. Times of the service are nanoseconds; a double holds them to within
// a microsecond, which is more than a screen shows. All moments are UTC.

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const UNITS = [["d", 86400e3], ["h", 3600e3], ["min", 60e3], ["s", 1e3], ["ms", 1]];

/** Milliseconds of nanoseconds. */
export const ms = (ns) => Math.round(ns / 1e6);

/** 12,345, and 1.2M where it would be long. */
export const count = (value) => (value < 1e5 ? WHOLE.format(value) : SHORT.format(value));

/** A value of a channel in about four digits. */
export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e6 || size < 1e-3)) return value.toExponential(2);
  const digits = size >= 1000 ? 0 : size >= 100 ? 1 : size >= 1 ? 2 : 3;
  return Number(value.toFixed(digits)).toLocaleString("en", { maximumFractionDigits: 3 });
}

/** A value among others that are so far apart: with as many decimals as tell them from one another. */
export function within(value, width) {
  if (!Number.isFinite(value)) return "–";
  const digits = width > 0 ? Math.min(Math.max(1 - Math.floor(Math.log10(width)), 0), 8) : 2;
  const text = value.toFixed(digits);
  return Number(text) === 0 ? "0" : Number(text).toLocaleString("en", { maximumFractionDigits: digits });
}

/** Surprise. */
export const bits = (value) => (value === null || !Number.isFinite(value) ? "–" : `${value.toFixed(1)} bits`);

/** 2013-02-01 04:00, with seconds only where they are not 0. */
export function moment(milliseconds) {
  const text = new Date(milliseconds).toISOString();
  return `${text.slice(0, 10)} ${text.slice(11, text.slice(17, 19) === "00" ? 16 : 19)}`;
}

/** 04:00:12 of a moment of today, else its day as well. */
export function clock(milliseconds, now = Date.now()) {
  const text = new Date(milliseconds).toISOString();
  return text.slice(0, 10) === new Date(now).toISOString().slice(0, 10) ? text.slice(11, 19) : moment(milliseconds);
}

/** 3 d, 1.5 h, 40 s. */
export function span(milliseconds) {
  if (!Number.isFinite(milliseconds)) return "∞";
  const [name, size] = UNITS.find(([, one]) => milliseconds >= one) ?? UNITS.at(-1);
  const many = milliseconds / size;
  return `${many >= 10 || Number.isInteger(many) ? Math.round(many) : many.toFixed(1)} ${name}`;
}

/** Bytes in KiB or MiB. */
export const bytes = (value) => (value < 2 ** 20 ? `${(value / 1024).toFixed(0)} KiB` : `${(value / 2 ** 20).toFixed(1)} MiB`);
