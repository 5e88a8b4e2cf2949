// What is known of an image beside its look: a list of names and values.

import { h } from "./dom.js";
import { fileSize, moment, percent, t } from "./strings.js";

const OWN = new Set(["id", "path", "size", "mtime_ns", "taken", "width", "height", "content_hash", "distances", "ranked_by", "retrieved_by", "box", "verified", "verdict", "confidence", "chance", "lead"]);

const NAMED = { tags: "facts.tags", user_tags: "facts.user_tags" }; // the page's own; other names are the user's

/** A value of a field as text; tags with their probability. */
export function valueText(name, value) {
  if (Array.isArray(value)) return value.join(", ");
  if (typeof value !== "object") return String(value);
  if (name !== "tags") return JSON.stringify(value);
  return Object.entries(value).map(([tag, share]) => `${tag} ${percent(share)}`).join(", ");
}

/** Whether a field has a value. */
export const isKnown = (value) => value !== "" && value !== null && value !== undefined && !(typeof value === "object" && !Object.keys(value).length);

/** The facts of a row: its file, and the index's own fields. */
export function facts(row) {
  const own = Object.entries(row).filter(([name, value]) => !OWN.has(name) && isKnown(value));
  const pairs = [
    [t("facts.path"), row.path],
    [t("facts.image"), t("facts.line", { size: t("pixels", row), bytes: fileSize(row.size) })],
    ...(row.taken === row.mtime_ns ? [] : [[t("facts.taken"), moment(row.taken)]]),
    [t("facts.file"), t("facts.changed", { date: moment(row.mtime_ns) })],
    ...own.map(([name, value]) => [NAMED[name] ? t(NAMED[name]) : name, valueText(name, value)]),
    [t("facts.id"), row.id],
  ];
  return h("dl", { class: "details" }, ...pairs.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, h("bdi", {}, value))]));
}
