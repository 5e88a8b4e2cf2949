// Calls of the API. An error response becomes an Error with the server's message.

import { said, t } from "./strings.js";

const KINDS = [
  [/^(the image that was sent|the bytes given|image \d)/, "problem.image"],
  [/^the file of image/, "problem.file"],
  [/^(a )?filter\b/, "problem.filter"],
];

/** Why something failed: what kind of problem it is in the page's language, before the exact reason in English. */
function reason(error) {
  const kind = document.documentElement.lang !== "en" && KINDS.find(([pattern]) => pattern.test(error));
  return kind ? t("named", { name: t(kind[1]), text: error }) : said(error);
}

async function parse(response) {
  if (response.ok) return response.json();
  let message = t("server.status", { status: response.status });
  try {
    message = reason((await response.json()).error ?? message);
  } catch {
    // not JSON: a proxy's page, or nothing
  }
  const wait = response.status === 503 ? Number(response.headers.get("retry-after")) : 0;
  throw Object.assign(new Error(message), { wait });
}

const PAUSES = [1, 2, 4, 8]; // seconds before a request that only reads is tried again

/** Requests that only read are tried again while the server is gone; `gone` events say so, with the seconds to wait. */
export const connection = new EventTarget();

async function call(path, init = {}) {
  for (let tries = 0; ; tries += 1) {
    let response;
    try {
      response = await fetch(path, init);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      if (init.method || tries === PAUSES.length) throw new Error(t("server.lost"));
      connection.dispatchEvent(new CustomEvent("gone", { detail: PAUSES[tries] }));
      await new Promise((resolve) => setTimeout(resolve, 1000 * PAUSES[tries]));
      if (init.signal?.aborted) throw new DOMException("", "AbortError");
      continue;
    }
    if (tries) connection.dispatchEvent(new CustomEvent("back"));
    return parse(response);
  }
}

const withQuery = (path, values) => {
  const params = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    if (Array.isArray(value)) for (const one of value) params.append(name, one);
    else if (value !== null && value !== undefined && value !== "") params.set(name, value);
  }
  return `${path}?${params}`;
};

/** Query with an image (a Blob), an id, codes or words; the response holds all candidates. */
export function query({ blob, id, codes, text, crop, regions, filter, cluster, depth, fusion }, signal) {
  const options = { text, cluster, crop: crop?.join(","), regions, filter, depth, fusion, k: 1, candidates: true };
  if (!blob) return call(withQuery("api/query", { id, codes, ...options }), { signal });
  const headers = { "content-type": "application/octet-stream" };
  return call(withQuery("api/query", options), { method: "POST", body: blob, headers, signal });
}

/** Query with several images: ids and codes. */
export const querySeveral = (options, signal) => call(withQuery("api/query", options), { signal });

/** What an image (a Blob) is searched with: {query: {codes, width, height}}. A busy server says when to retry. */
export const encoded = (blob, signal) =>
  retried(() => call(withQuery("api/query", { k: 1 }), { method: "POST", body: blob, headers: BYTES, signal }));

/** What an image (a Blob), or that of an id, is to indexed ones, by their pixels: [{id, verdict, box}]. */
export function verify({ blob, id, crop, ids }, signal) {
  const options = { ids: ids.join(","), crop: crop?.join(",") };
  if (!blob) return call(withQuery("api/verify", { id, ...options }), { signal });
  const headers = { "content-type": "application/octet-stream" };
  return call(withQuery("api/verify", options), { method: "POST", body: blob, headers, signal });
}

export const sample = (filter, signal) => call(withQuery("api/sample", { count: 120, filter }), { signal });

/** Tags, or values of a field, that complete what is typed: {text: number of images}. */
export const completions = (field, text) =>
  field === null ? call(withQuery("api/tags", { prefix: text })) : call(withQuery("api/values", { field, text }));
/** How a text is written in the values of a field, whatever the case: [text]. */
export const spellings = (field, text, signal) => call(withQuery("api/spellings", { field, text }), { signal });

/** One page of all images in order: {total, rows, sections}; a row that is gone is null, sections come with offset 0. */
export const images = (options, signal) => call(withQuery("api/images", options), { signal });

/** All clusters of the first level, or one by its number or name, with its parts and those around it. */
export const clusters = (within) => call(withQuery("api/clusters", { within }));

export const nameCluster = (key, name) =>
  call(`api/clusters/${encodeURIComponent(key)}`, { method: "PUT", body: JSON.stringify({ name }), headers: { "content-type": "application/json" } });

/** Keep an image for a link: {codes}. */
export const share = (blob, name, crop) =>
  call(withQuery("api/shares", { name, crop: crop?.join(",") }), { method: "POST", body: blob, headers: BYTES });

export const shared = (codes) => call(`api/shares/${codes}`);

export const row = (id) => call(`api/images/${id}`);

export const remove = (id) => call(`api/images/${id}`, { method: "DELETE" });

const post = (path, body) =>
  call(path, { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" } });

/** Prepare a list of images as txt, csv, json or zip: {name, images, bytes, missing}. */
export const prepareList = (ids, form) => post("api/lists", { ids, form });

export const list = (name) => `api/lists/${name}`;

export const tagImages = (ids, change) => post("api/images/tag", { ids, ...change });

export const removeImages = (ids) => post("api/images/delete", { ids });

export const moveCopies = (report, ids) => post("api/duplicates/move", { report, ids });

export const undoMove = () => post("api/duplicates/undo", {});

export const canUndo = () => call("api/duplicates/moved");

export const ignorePair = (ids) => post("api/duplicates/ignore", { ids });

export const thumbnail = (id, side) => `api/images/${id}/thumbnail?side=${side}`;

export const original = (id) => `api/images/${id}/original`;

const BYTES = { "content-type": "application/octet-stream" };
const UPLOAD_TRIES = 20;

/** Upload an image. A busy server says after how many seconds to retry. */
export const upload = (file) =>
  retried(() => call(withQuery("api/uploads", { name: file.name }), { method: "POST", body: file, headers: BYTES }));

async function retried(attempt) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await attempt();
    } catch (error) {
      if (!error.wait || tries === UPLOAD_TRIES) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1000 * error.wait));
    }
  }
}

export const ingest = (what) => post("api/ingest", what);

export const stopIngest = () => call("api/ingest", { method: "DELETE" });

/** Calls `show` with the state of the ingest until it ends. */
export const watchIngest = (show) => watch("api/ingest/events", show);

/** Calls `show` with the state of a search for near-duplicates; the last one has the report. */
export const watchDuplicates = (options, show) => watch(withQuery("api/duplicates/events", options), show);

function watch(path, show) {
  const source = new EventSource(path);
  source.onmessage = ({ data }) => {
    const job = JSON.parse(data);
    if (job.state !== "running") source.close();
    show(job);
  };
  source.onerror = () => {
    // The browser reconnects a broken stream, but not a refused one.
    if (source.readyState !== EventSource.CLOSED) return;
    show({ state: "failed", stage: "", done: 0, total: 0, failed: 0, error: t("server.busy") });
  };
}
