// The page: one query at a time, its candidates, and their ranking.

import { Adding } from "./adding.js";
import { fromAddress, toAddress } from "./address.js";
import * as api from "./api.js";
import { AskedImage } from "./asked.js";
import { $, calmly, h, number } from "./dom.js";
import { Filters } from "./filters.js";
import { fuse } from "./fusion.js";
import { Grid } from "./grid.js";
import { listen } from "./picker.js";
import { REGIONS, Regions } from "./regions.js";
import { Weights } from "./weights.js";
import { Why } from "./why.js";

const DEPTHS = [50, 100, 300, 1000];
const REMEMBERED = 20; // answers kept for the back button

const about = JSON.parse($("#about").textContent);
const answers = new Map(); // address of what was asked -> answer
let query = fromAddress(location.search, about);
let answer = null; // of the query; null: images at random
let asking = location.search; // the address of what is shown
let waiting = null; // AbortController of the query on its way

const regions = new Regions(about, ({ id, codes }) => Boolean(id || asked.of(codes)?.blob));
const weights = new Weights($("#profiles"), $("#sliders"), about, regions, (chosen) => rerank(chosen));
const filters = new Filters($("#filters"), about, (chosen) => ask({ ...query, filters: chosen }));
const asked = new AskedImage((box) => askForPart(box));
const grid = new Grid($("#grid"), {
  link: (row) => toAddress(regions.withBox({ ...query, id: row.id, codes: null }, null)),
  ask: (row) => askWithRow(row, null),
  why: (entry) => why.show(entry, settings(), asked),
});
const why = new Why($("#why"), about, { ask: askWithRow, removed: forget });

/** How the candidates are ranked now. */
function settings() {
  const method = query.fusion ?? (about.fusion.method === "score" ? "score" : "rank");
  const bits = answer?.answer?.bits ?? about.bits;
  const chosen = weights.of(query);
  const compared = Object.fromEntries(Object.keys(bits).map((name) => [name, chosen[name] ?? 0]));
  return { bits, weights: compared, method, rrfK: about.fusion.rrf_k };
}

/** What the answer depends on: not the weights. */
const keyOf = (of) => JSON.stringify([of.id, of.codes, of.crop, of.depth, of.filters, regionsAsked(of)]);

const regionsAsked = (of) => regions.asked(of, weights.of(of));

const isAsking = ({ id, codes }) => Boolean(id || codes);

function askWithRow(row, crop) {
  ask(regions.withBox({ ...query, id: row.id, codes: null }, crop));
  if (scrollY > $("#results").offsetTop) scrollTo({ top: 0 });
}

function askWithImage(file) {
  if (file.size > about.max_upload_bytes) {
    tell(`${file.name} has ${number(file.size)} bytes, more than the ${number(about.max_upload_bytes)} that are taken: send a smaller one.`);
    return;
  }
  const image = { blob: file, name: file.name ?? "pasted image", address: URL.createObjectURL(file) };
  ask(regions.withBox({ ...query, id: null, codes: null }, null), { image });
}

function askForPart(crop) {
  const next = regions.withBox(query, crop);
  if (query.id) ask(next);
  else ask({ ...next, codes: null }, { image: asked.of(query.codes) });
}

/**
 * Ask, and when the answer is there make it the page's own; what is on the page stays until then.
 * again: the query is the page's own, whose weights may change on the way.
 */
async function ask(next, { image = null, push = true, top = null, again = false } = {}) {
  waiting?.abort();
  const mine = (waiting = new AbortController());
  const grids = $("#grid");
  grids.setAttribute("aria-busy", "true");
  try {
    const got = await fetchAnswer(next, image, mine.signal);
    if (mine !== waiting) return;
    if (image) {
      next.codes = got.answer.query.codes;
      asked.remember(next.codes, { ...image, size: [got.answer.query.width, got.answer.query.height] });
      keep(next, got);
    }
    if (!again) query = next;
    answer = got;
    if (push) history.replaceState({ top: scrollY }, "");
    if (push) history.pushState({}, "", toAddress(query));
    asking = location.search;
    tell(null);
    const inside = grids.contains(document.activeElement);
    show();
    if (inside && !grids.contains(document.activeElement)) $("#results").focus({ preventScroll: true });
    if (top !== null) requestAnimationFrame(() => scrollTo({ top }));
  } catch (error) {
    if (error.name === "AbortError" || mine !== waiting) return;
    tell(error.message);
    filters.write(query.filters);
    asked.drawer.show(query.crop);
    if (!answer) show();
  } finally {
    if (mine === waiting) {
      waiting = null;
      grids.removeAttribute("aria-busy");
    }
  }
}

async function fetchAnswer(next, image, signal) {
  const filter = filters.expression(next.filters);
  if (!isAsking(next) && !image) return { rows: about.rows ? await api.sample(filter, signal) : [] };
  const known = answers.get(keyOf(next));
  if (known && !image) return known;
  const started = performance.now();
  const blob = image?.blob ?? (regionsAsked(next) && !next.id ? asked.of(next.codes).blob : null);
  const crop = next.id || blob ? next.crop : null; // codes are of what was asked for already
  const looked = regions.asked(next, weights.of(next), Boolean(blob)) ? "contains" : null;
  const sent = { ...next, filter, blob, crop, regions: looked, fusion: "rank", depth: next.depth ?? about.fusion.depth };
  const [told, row] = await Promise.all([api.query(sent, signal), next.id ? api.row(next.id) : null]);
  const got = { answer: told, row, milliseconds: performance.now() - started };
  if (!image) keep(next, got);
  return got;
}

function keep(next, got) {
  answers.set(keyOf(next), got);
  if (answers.size > REMEMBERED) answers.delete(answers.keys().next().value);
}

/** Everything on the page that follows from query and answer. */
function show() {
  writeWeights();
  filters.write(query.filters);
  const active = Object.keys(query.filters).length;
  $("#filter-count").textContent = active;
  $("#filter-count").hidden = !active;
  $("#fusion").value = settings().method;
  $("#depth").value = query.depth ?? about.fusion.depth;
  const uploaded = query.codes ? asked.of(query.codes) : null;
  const size = answer?.row ? [answer.row.width, answer.row.height] : (uploaded?.size ?? [0, 0]);
  asked.show(query, answer?.row ?? null, uploaded, size);
  $("#share").hidden = !isAsking(query);
  document.title = isAsking(query) ? `${$("#query-name").textContent} · ${about.collection}` : `${about.collection} · mg-milvus`;
  rank();
}

/** Rank the candidates that are here, with the weights as they are. */
function rank() {
  if (!answer?.answer) {
    $("#heading").textContent = about.rows ? "Images at random" : "There are no images yet";
    $("#status").textContent = about.rows
      ? (answer?.rows.length ? "Choose one to see what looks like it." : "None matches the filter.")
      : (about.can_upload || about.folders.length ? "Add some with the button above, or with mgm ingest." : "Add some with mgm ingest.");
    grid.show((answer?.rows ?? []).map((row) => ({ row })), about.bits);
    return;
  }
  const entries = fuse(answer.answer.candidates, settings());
  $("#heading").textContent = query.crop && !regions.missed(query) ? "Nearest to this part" : "Nearest images";
  const weightless = !Object.values(settings().weights).some((weight) => weight > 0);
  $("#status").textContent = weightless
    ? "Every weight is 0: give one of them more."
    : entries.length ? `${number(entries.length)} candidates, answered in ${Math.round(answer.milliseconds)} ms` : "Nothing was found.";
  grid.show(entries, settings().bits);
}

const remember = calmly(150, () => {
  history.replaceState(history.state, "", toAddress(query));
  asking = location.search;
});

function writeWeights() {
  weights.write(query);
  $("#regions-hint").textContent = regions.hint(query);
  $("#regions-hint").hidden = !regions.there || !isAsking(query);
}

const askRegionsToo = calmly(150, () => ask(query, { push: false, again: true }));

function rerank(chosen) {
  query = { ...query, ...chosen };
  writeWeights();
  remember();
  if (answer?.answer && regionsAsked(query) && !(REGIONS in answer.answer.bits)) askRegionsToo();
  else rank();
}

function forget(row) {
  answers.clear();
  about.rows -= 1;
  if (query.id === row.id) ask(regions.withBox({ ...query, id: null }, null));
  else ask(query, { push: false });
}

function tell(problem) {
  $("#problem").hidden = !problem;
  $("#problem").textContent = problem ?? "";
}

function setUp() {
  const depths = [...new Set([...DEPTHS, about.fusion.depth, query.depth ?? about.fusion.depth])].sort((a, b) => a - b);
  $("#depth").append(...depths.map((depth) => h("option", { value: depth }, number(depth))));
  $("#depth").addEventListener("change", ({ target }) => {
    const depth = Number(target.value);
    const next = { ...query, depth: depth === about.fusion.depth ? null : depth };
    ask(next);
  });
  $("#fusion").addEventListener("change", ({ target }) => rerank({ fusion: target.value }));
  $("#random").addEventListener("click", () => ask(regions.withBox({ ...query, id: null, codes: null }, null)));
  $("#home").addEventListener("click", (event) => {
    event.preventDefault();
    ask(fromAddress("", about));
  });
  $("#share").addEventListener("click", async ({ target }) => {
    try {
      await navigator.clipboard.writeText(location.href);
      target.textContent = "Copied";
    } catch {
      target.textContent = "Copy it from the address bar";
    }
    setTimeout(() => (target.textContent = "Copy link"), 2000);
  });
  $("#add")?.addEventListener("click", () => new Adding($("#adding"), about).show());
  if (matchMedia("(max-width: 900px)").matches) $("#weights-panel").open = false;
  if (Object.keys(query.filters).length) $("#filter-panel").open = true;
  addEventListener("popstate", ({ state }) => {
    if (location.search === asking) return; // the link to the results, within the page
    ask(fromAddress(location.search, about), { push: false, top: state?.top ?? 0 });
  });
  history.scrollRestoration = "manual";
  listen(askWithImage);
}

setUp();
writeWeights();
ask(query, { push: false, top: history.state?.top ?? null });
