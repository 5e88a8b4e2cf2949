// What is known of an image beside its look: a list of names and values.

import { fileSize, h, number } from "./dom.js";

const OWN = new Set(["id", "path", "size", "mtime_ns", "width", "height", "content_hash", "distances", "ranked_by", "retrieved_by", "box", "verified", "verdict", "confidence", "chance", "lead"]);

const date = (nanoseconds) => new Date(nanoseconds / 1e6).toISOString().slice(0, 16).replace("T", " ");

/** A value of a field as text; tags with their probability. */
export function valueText(name, value) {
  if (Array.isArray(value)) return value.join(", ");
  if (typeof value !== "object") return String(value);
  if (name !== "tags") return JSON.stringify(value);
  return Object.entries(value).map(([tag, share]) => `${tag} ${Math.round(100 * share)} %`).join(", ");
}

/** Whether a field has a value. */
export const isKnown = (value) => value !== "" && value !== null && value !== undefined && !(typeof value === "object" && !Object.keys(value).length);

/** The facts of a row: its file, and the index's own fields. */
export function facts(row) {
  const own = Object.entries(row).filter(([name, value]) => !OWN.has(name) && isKnown(value));
  const pairs = [
    ["path", row.path],
    ["image", `${number(row.width)} × ${number(row.height)} px, ${fileSize(row.size)}, ${date(row.mtime_ns)} UTC`],
    ...own.map(([name, value]) => [name, valueText(name, value)]),
    ["id", row.id],
  ];
  return h("dl", { class: "details" }, ...pairs.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, h("bdi", {}, value))]));
}
