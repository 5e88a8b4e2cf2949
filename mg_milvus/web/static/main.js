// The page: one query at a time, its candidates, and their ranking.

import { Adding } from "./adding.js";
import { fromAddress, toAddress } from "./address.js";
import * as api from "./api.js";
import { complete } from "./completion.js";
import { $, calmly, h } from "./dom.js";
import { Filters } from "./filters.js";
import { fuse } from "./fusion.js";
import { Grid } from "./grid.js";
import { History, shareable } from "./history.js";
import { Lightbox } from "./lightbox.js";
import { listen } from "./picker.js";
import { QueryImage } from "./query_image.js";
import { REGIONS, Regions } from "./regions.js";
import { Selection } from "./selection.js";
import { ALONE, isSeveral, Several } from "./several.js";
import { number, said, t } from "./strings.js";
import { Weights } from "./weights.js";
import { Why } from "./why.js";

const TEXT = "text"; // the ranking by words
const VERIFIED = 10; // results that are verified, the first ones
const DEPTHS = [50, 100, 300, 1000];
const DEEPER = [400, 1600, 6400]; // depths of the searches that follow when somebody scrolls to the end
const SAMPLE = 120; // images of a cluster that are shown without a query
const SKELETONS = 24; // empty cards until the first images are there
const REMEMBERED = 20; // results kept for the back button

const about = JSON.parse($("#about").textContent);
const results = new Map(); // key of a query -> its result
let query = fromAddress(location.search, about);
let result = null; // of the query: {response, row, milliseconds}, or {rows} of a random sample
let address = location.search; // of the query that is shown
let pending = null; // AbortController of the running request

const regions = new Regions(about, ({ id, codes }) => Boolean(id || queryImage.of(codes)?.blob || queryImage.of(codes)?.shared));
const weights = new Weights($("#profiles"), $("#sliders"), about, regions, (chosen) => rerank(chosen));
const filters = new Filters($("#filters"), about, (chosen) => search({ ...query, filters: chosen }));
const queryImage = new QueryImage((crop) => searchWithCrop(crop));
const grid = new Grid($("#grid"), {
  link: (row) => toAddress(regions.withBox({ ...query, ...ALONE, id: row.id, codes: null }, null)),
  search: (row) => searchWithRow(row, null),
  open: (place) => lightbox.show(grid, place),
  why: (entry) => explain(entry),
  end: () => searchDeeper(),
  fields: about.show,
  adorn: (card, entry) => {
    several.adorn(card, entry);
    selection.adorn(card, entry);
  },
});
const past = new History(queryImage, (address_) => search(fromAddress(address_.replace(/^\.\//, ""), about)));
const selection = new Selection({
  about, grid, search: (change) => search({ ...query, ...change }),
  removed: (rows) => forget(...rows), changed: () => results.clear(),
});
const several = new Several({
  about, queryImage, search: (next) => search(next), problem: showProblem,
  current: () => ({ query, response: result?.response }),
});
const lightbox = new Lightbox($("#lightbox"), { search: (row) => searchWithRow(row, null), why: (entry) => explain(entry) });
const why = new Why($("#why"), about, { search: searchWithRow, removed: forget });

function explain(entry) {
  why.show(entry, settings(), queryImage);
}

/** How the candidates are ranked now. */
function settings() {
  const wanted = query.fusion ?? about.fusion.method;
  const method = methods().includes(wanted) ? wanted : "rank";
  const bits = result?.response?.bits ?? about.bits;
  const chosen = weights.of(query);
  const compared = Object.fromEntries(Object.keys(bits).map((name) => [name, chosen[name] ?? 0]));
  if (TEXT in bits) compared[TEXT] = Object.values(compared).reduce((all, weight) => all + weight, 0) || 1;
  const lead = !query.profile && !query.weights && !regions.boxed(query);
  return { bits, weights: compared, method, rrfK: about.fusion.rrf_k, lead, several: isSeveral(query) };
}

/** How the candidates can be ranked: by chance only where it is known, and without regions. */
function methods() {
  const known = !result?.response || (result.response.candidates ?? result.response.hits)[0]?.chance;
  return known && !query.text && !(weights.of(query)[REGIONS] > 0) ? ["rank", "score", "chance"] : ["rank", "score"];
}

/** What the candidates depend on: not the weights, but where the server ranks. */
const keyOf = (of) => JSON.stringify([
  of.id, of.codes, of.text, of.cluster, of.crop, of.depth, of.filters, searchesRegions(of), of.others, of.like, of.unlike,
  ...(isSeveral(of) ? [of.weights, of.profile, of.fusion] : []),
]);

const searchesRegions = (of) => !isSeveral(of) && regions.searched(of, weights.of(of));

const isQuery = (of) => Boolean(of.id || of.codes || of.text || isSeveral(of));

function searchWithRow(row, crop) {
  search(regions.withBox({ ...query, ...ALONE, id: row.id, codes: null }, crop));
  if (scrollY > $("#results").offsetTop) scrollTo({ top: 0 });
}

function searchWithImage(file) {
  if (file.size > about.max_upload_bytes) {
    showProblem(t("too_large", { name: file.name, size: file.size, most: about.max_upload_bytes }));
    return;
  }
  const image = { blob: file, name: file.name ?? t("pasted"), address: URL.createObjectURL(file) };
  search(regions.withBox({ ...query, ...ALONE, id: null, codes: null }, null), { image });
}

function searchWithCrop(crop) {
  const next = regions.withBox(query, crop);
  if (query.id) search(next);
  else search({ ...next, codes: null }, { image: queryImage.of(query.codes) });
}

/**
 * Search, and show the result when it is there; the page stays as it is until then.
 * again: the query is that of the page, whose weights may change meanwhile.
 */
async function search(next, { image = null, push = true, top = null, again = false } = {}) {
  pending?.abort();
  const mine = (pending = new AbortController());
  const grids = $("#grid");
  grids.setAttribute("aria-busy", "true");
  if (!result) grid.wait(SKELETONS);
  try {
    const got = await fetchResult(next, image, mine.signal);
    if (mine !== pending) return;
    if (image) {
      next.codes = got.response.query.codes;
      queryImage.remember(next.codes, { ...image, size: [got.response.query.width, got.response.query.height] });
      keep(next, got);
    }
    if (!again) query = next;
    result = got;
    if (push) history.replaceState({ top: scrollY }, "");
    if (push) history.pushState({}, "", toAddress(query));
    address = location.search;
    showProblem(null);
    const inside = grids.contains(document.activeElement);
    show();
    if (push && isQuery(query)) past.add(toAddress(query), pastName(), query);
    if (inside && !grids.contains(document.activeElement)) $("#results").focus({ preventScroll: true });
    if (top !== null) requestAnimationFrame(() => scrollTo({ top }));
  } catch (error) {
    if (error.name === "AbortError" || mine !== pending) return;
    showProblem(error.message);
    filters.write(query.filters);
    queryImage.drawer.show(query.crop);
    if (!result) show();
  } finally {
    if (mine === pending) {
      pending = null;
      grids.removeAttribute("aria-busy");
    }
  }
}

async function fetchResult(next, image, signal) {
  if (!image) await queryImage.load(next.codes);
  if (!isQuery(next) && !image) return { rows: about.rows ? await someImages(next, await filters.expression(next.filters, signal), signal) : [] };
  const known = results.get(keyOf(next));
  if (known && !image) return known;
  if (isSeveral(next)) {
    const filter = await filters.expression(next.filters, signal);
    const got = await several.fetch(next, { filter, depth: next.depth ?? about.fusion.depth, fusion: next.fusion }, signal);
    keep(next, got);
    return got;
  }
  const got = await request(next, image, signal);
  if (!image) keep(next, got);
  return got;
}

/** A random sample; of a cluster its first images by id, which is a hash. */
async function someImages({ cluster }, filter, signal) {
  if (!cluster) return api.sample(filter, signal);
  return (await api.images({ order_by: "id", filter, cluster, limit: SAMPLE, offset: 0 }, signal)).rows.filter(Boolean);
}

async function request(next, image, signal) {
  const filter = await filters.expression(next.filters, signal);
  const started = performance.now();
  const kept = next.id ? null : queryImage.of(next.codes);
  const blob = image?.blob ?? (searchesRegions(next) ? kept?.blob : null) ?? null;
  const crop = next.id || blob ? next.crop : null; // codes are those of the crop
  const mode = regions.searched(next, weights.of(next), Boolean(blob || next.id || kept?.shared)) ? "contains" : null;
  const sent = { ...next, filter, blob, crop, regions: mode, fusion: "rank", depth: next.depth ?? about.fusion.depth };
  const [response, row] = await Promise.all([api.query(sent, signal), next.id ? api.row(next.id) : null]);
  return { response, row, milliseconds: performance.now() - started };
}

function keep(next, got) {
  results.set(keyOf(next), got);
  if (results.size > REMEMBERED) results.delete(results.keys().next().value);
}

/** Everything on the page that follows from query and result. */
function show() {
  writeWeights();
  filters.write(query.filters);
  const active = Object.keys(query.filters).length;
  $("#filter-count").textContent = active;
  $("#filter-count").hidden = !active;
  $("#fusion").value = settings().method;
  $("#depth").value = query.depth ?? about.fusion.depth;
  const uploaded = query.codes ? queryImage.of(query.codes) : null;
  const size = result?.row ? [result.row.width, result.row.height] : (uploaded?.size ?? [0, 0]);
  queryImage.show(query, result?.row ?? null, uploaded, size);
  if (isSeveral(query)) $("#crop-buttons").hidden = true;
  several.show(query);
  $("#share").hidden = $("#scores").hidden = !isQuery(query);
  $("#text").value = query.text ?? "";
  $("#in-cluster").hidden = !query.cluster;
  $("#in-cluster").textContent = t("cluster.only", { name: query.cluster });
  const asked = [query.text, query.id || query.codes ? $("#query-name").textContent : null].filter(Boolean).join(", ");
  document.title = asked ? `${asked} · ${about.title}` : `${about.title} · mg-milvus`;
  rank();
}

/** Rank the candidates that are here, with the weights as they are. */
function rank() {
  if (!result?.response) {
    $("#heading").textContent = about.rows ? t(query.cluster ? "cluster.some" : Object.keys(query.filters).length ? "matching_images" : "random_images") : t("no_images_yet");
    $("#status").textContent = about.rows
      ? t(result?.rows.length ? "look_at_one" : "no_match_of_filter")
      : t(about.can_upload || about.folders.length ? "add_by_button" : "add_by_command");
    grid.show((result?.rows ?? []).map((row) => ({ row })), about.bits);
    return;
  }
  if (isSeveral(query)) {
    const { hits, query: { terms } } = result.response;
    $("#heading").textContent = terms.length === 1 ? t("nearest") : t("nearest.several", { count: terms.length });
    $("#status").textContent = hits.length ? counted("images_in", hits) : t("no_results");
    grid.show(hits.map(({ rank, score, ranks, ...row }) => ({ row: { ...row, ranked_by: row.distances }, rank, score, ranks })), settings().bits);
    return;
  }
  const entries = ranked();
  $("#heading").textContent = !(query.id || query.codes) ? t("images_of", { text: query.text }) : t(query.crop && !regions.missed(query) ? "nearest.crop" : "nearest");
  const weightless = !Object.values(settings().weights).some((weight) => weight > 0);
  $("#status").textContent = weightless
    ? t("weightless")
    : entries.length ? counted("candidates_in", entries) : t("no_results");
  grid.show(entries, settings().bits);
  verifySoon();
}

/** The candidates in order; those of a deeper search follow the others, which keep their places. */
function ranked() {
  const entries = fuse(result.response.candidates, settings());
  const seen = new Set(entries.map(({ row }) => row.id));
  for (const candidates of result.deeper ?? []) {
    for (const entry of fuse(candidates, settings())) {
      if (seen.has(entry.row.id)) continue;
      seen.add(entry.row.id);
      entries.push({ ...entry, rank: entries.length + 1 });
    }
  }
  return entries;
}

/** Search for more candidates, when the last ones come near the window. */
async function searchDeeper() {
  const mine = result;
  if (pending || !mine?.response?.candidates || mine.complete) return;
  const [before, reached] = [ranked().length, mine.depth ?? mine.response.depth];
  const depth = DEEPER.find((more) => more > reached);
  if (!depth || before < reached || before >= about.rows - Boolean(query.id)) return; // fewer than asked for: these are all
  mine.complete = true; // for the time being
  try {
    const got = await request({ ...query, depth }, null, null);
    mine.deeper = [...(mine.deeper ?? []), got.response.candidates];
    mine.depth = depth;
    if (mine !== result) return;
    mine.complete = ranked().length === before;
    rank();
  } catch (error) {
    if (mine === result) showProblem(error.message);
  }
}

/** How many there are, how long that took, and the sentence on an answer without any related image. */
function counted(name, list) {
  const text = t(name, { count: list.length, milliseconds: Math.round(result.milliseconds) });
  return result.response.remark ? t("named", { name: text, text: said(result.response.remark) }) : text;
}

/** Ask what the query image is to the first results, by their pixels, of those that are not known yet. */
const verifySoon = calmly(300, async () => {
  const mine = result;
  const blob = query.id ? null : queryImage.of(query.codes)?.blob;
  if (!$("#verify").checked || pending || !mine?.response || isSeveral(query) || !(query.id || blob)) return;
  const first = fuse(mine.response.candidates, settings()).slice(0, VERIFIED).map(({ row }) => row);
  const rows = first.filter((row) => !row.verified);
  if (!rows.length) return;
  try {
    const found = await api.verify({ blob, id: query.id, crop: query.crop, ids: rows.map(({ id }) => id) });
    rows.forEach((row, place) => (row.verified = found[place]));
    if (mine === result) rank();
  } catch (error) {
    showProblem(error.message);
    $("#verify").checked = false;
  }
});

const remember = calmly(150, () => {
  history.replaceState(history.state, "", toAddress(query));
  address = location.search;
});

/** What a query is called among the recent ones. */
const pastName = () => [query.text, query.id || query.codes ? $("#query-name").textContent : null].filter(Boolean).join(", ") || $("#heading").textContent;

function writeWeights() {
  weights.write(query);
  $("#regions-hint").textContent = isSeveral(query) ? t("several.hint") : regions.hint(query);
  $("#regions-hint").hidden = !isQuery(query) || !(isSeveral(query) || regions.there || query.crop);
}

const searchAgain = calmly(150, () => search(query, { push: false, again: true }));

function rerank(chosen) {
  query = { ...query, ...chosen };
  writeWeights();
  remember();
  if (isSeveral(query) || (result?.response && searchesRegions(query) && !(REGIONS in result.response.bits))) searchAgain();
  else rank();
}

function forget(...rows) {
  results.clear();
  about.rows -= rows.length;
  const gone = new Set(rows.map(({ id }) => id));
  if ([query.id, ...query.like, ...query.unlike].some((id) => gone.has(id))) search(regions.withBox({ ...query, ...ALONE, id: null }, null));
  else search(query, { push: false });
}

function showProblem(problem) {
  $("#problem").hidden = !problem;
  $("#problem").textContent = problem ?? "";
}

function setUp() {
  api.connection.addEventListener("gone", ({ detail }) => showProblem(t("server.gone", { seconds: detail })));
  api.connection.addEventListener("back", () => showProblem(null));
  const depths = [...new Set([...DEPTHS, about.fusion.depth, query.depth ?? about.fusion.depth])].sort((a, b) => a - b);
  $("#depth").append(...depths.map((depth) => h("option", { value: depth }, number(depth))));
  $("#depth").addEventListener("change", ({ target }) => {
    const depth = Number(target.value);
    const next = { ...query, depth: depth === about.fusion.depth ? null : depth };
    search(next);
  });
  $("#fusion").addEventListener("change", ({ target }) => rerank({ fusion: target.value }));
  $("#verify").addEventListener("change", verifySoon);
  $("#random").addEventListener("click", () => search(regions.withBox({ ...query, ...ALONE, id: null, codes: null, text: null }, null)));
  $("#words").addEventListener("submit", (event) => {
    event.preventDefault();
    search({ ...query, ...ALONE, text: $("#text").value.trim() || null });
  });
  complete($("#text"), null);
  $("#text").addEventListener("search", ({ target }) => { // the cross that clears it
    if (!target.value && query.text) search({ ...query, text: null });
  });
  $("#home").addEventListener("click", (event) => {
    event.preventDefault();
    search(fromAddress("", about));
  });
  $("#in-cluster").addEventListener("click", () => search({ ...query, cluster: null }));
  $("#scores").addEventListener("click", ({ target }) => {
    grid.showScores(!grid.scored);
    target.setAttribute("aria-pressed", String(grid.scored));
  });
  $("#share").addEventListener("click", async ({ target }) => {
    try {
      const link = about.can_share ? await shareable(query, queryImage, toAddress) : location.href;
      await navigator.clipboard.writeText(link);
      target.textContent = t("share.copied");
    } catch (error) {
      if (!(error instanceof DOMException)) showProblem(error.message);
      target.textContent = t("share.by_hand");
    }
    setTimeout(() => (target.textContent = t("share")), 2000);
  });
  $("#add")?.addEventListener("click", () => new Adding($("#adding"), about).show());
  if (matchMedia("(max-width: 900px)").matches) $("#weights-panel").open = false;
  if (Object.keys(query.filters).length) $("#filter-panel").open = true;
  addEventListener("popstate", ({ state }) => {
    if (location.search === address) return; // the link to the results, within the page
    search(fromAddress(location.search, about), { push: false, top: state?.top ?? 0 });
  });
  history.scrollRestoration = "manual";
  listen((files) => (files.length > 1 ? several.offer(files) : searchWithImage(files[0])));
}

setUp();
writeWeights();
search(query, { push: false, top: history.state?.top ?? null });
