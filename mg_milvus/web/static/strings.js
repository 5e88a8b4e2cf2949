// The page's words, numbers and dates, in the language of the page. The words are those of strings.json.

import { $ } from "./dom.js";

const words = JSON.parse($("#strings").textContent);
const language = document.documentElement.lang;
const plurals = new Intl.PluralRules(language);
const format = new Intl.NumberFormat(language);
const ONE_YEAR = 31_536_000; // seconds

/** The text of a name; one that depends on the number `count` has several. */
function template(name, values) {
  const text = words[name];
  return typeof text === "string" ? text : (text[plurals.select(values.count)] ?? text.other);
}

const written = (value) => (typeof value === "number" ? number(value) : value);

/** A string by its name, with values for its {placeholders}; numbers are written as the language does. */
export const t = (name, values = {}) => template(name, values).replace(/\{(\w+)\}/g, (_, key) => written(values[key]));

/** The same as nodes for an element: values may be elements. */
export const nodes = (name, values) =>
  template(name, values).split(/\{(\w+)\}/).map((part, i) => (i % 2 ? written(values[part]) : part)).filter((part) => part !== "");

/** What the server says in fixed words, such as a verdict; of several parts with ";" each. Other texts stay as they are. */
export const said = (text) => text.split("; ").map((part) => (`said.${part}` in words ? t(`said.${part}`) : part)).join("; ");

export const number = (value) => format.format(value);

/** A rank: whole, or with the half that a shared one may have. */
export const rankText = (rank) => number(Math.round(rank * 10) / 10);

/** A number with so many digits after the point. */
export const fixed = (value, digits) =>
  value.toLocaleString(language, { minimumFractionDigits: digits, maximumFractionDigits: digits });

/** A share from 0 to 1 in percent. */
export const percent = (share, digits = 0) =>
  share.toLocaleString(language, { style: "percent", minimumFractionDigits: digits, maximumFractionDigits: digits });

/** A number of bytes, in units of 1000. */
export function fileSize(bytes) {
  const [unit, value, digits] = bytes < 1000 ? ["byte", bytes, 0] : bytes < 1e6 ? ["kilobyte", bytes / 1000, 1] : ["megabyte", bytes / 1e6, 1];
  const unitDisplay = unit === "byte" ? "long" : "short";
  return value.toLocaleString(language, { style: "unit", unit, unitDisplay, minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** A time in nanoseconds since the epoch, in UTC, which is also how a time without a zone is kept. */
export const moment = (nanoseconds) =>
  new Date(nanoseconds / 1e6).toLocaleString(language, { dateStyle: "medium", timeStyle: "short", hourCycle: "h23", timeZone: "UTC" });

export const day = (nanoseconds) => new Date(nanoseconds / 1e6).toLocaleDateString(language, { dateStyle: "medium", timeZone: "UTC" });

/** A month such as 2024-05. */
export const month = (text) => new Date(`${text}-01T00:00Z`).toLocaleDateString(language, { year: "numeric", month: "long", timeZone: "UTC" });

$("#language")?.addEventListener("change", ({ target }) => {
  document.cookie = `mgm_language=${target.value}; path=${new URL("./", location.href).pathname}; max-age=${ONE_YEAR}; samesite=lax`;
  location.reload();
});
