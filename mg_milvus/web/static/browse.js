// All images, in an order of one's choice. Only those near the window are loaded, and those far away are forgotten.

import { toAddress } from "./address.js";
import { images } from "./api.js";
import { $, h } from "./dom.js";
import { Filters } from "./filters.js";
import { Grid } from "./grid.js";
import { Lightbox } from "./lightbox.js";
import { Listing, PAGE } from "./listing.js";
import { Selection } from "./selection.js";
import { month, t } from "./strings.js";

const FILTER = "where.";
const SKELETONS = 40;

const about = JSON.parse($("#about").textContent);
const OWN = new Set(["folder", "name", "date", "tag"]);
const ORDERS = [
  ["folder", t("by.folder")], ["name", t("by.name")], ["-date", t("by.newest")], ["date", t("by.oldest")],
  ["-size", t("by.largest")], ["size", t("by.smallest")], ["tag", t("by.tag")],
  ...about.fields.filter(({ name, type }) => type !== "json" && !OWN.has(name)).map(({ name }) => [name, name]),
];

let state = fromAddress();
let shown = 0; // number of the request whose answer is shown

const filters = new Filters($("#filters"), about, (chosen) => go({ ...state, filters: chosen }));
const searchAddress = (row) => `./?${new URLSearchParams({ id: row.id, ...(state.cluster && { cluster: state.cluster }) })}`;
const search = (row) => location.assign(searchAddress(row));
const grid = new Grid($("#grid"), {
  link: searchAddress, search, open: (place) => lightbox.show(grid, place), fields: about.show,
  adorn: (card, entry) => selection.adorn(card, entry),
});
const selection = new Selection({
  about, grid, search: (terms) => location.assign(toAddress({ ...terms, cluster: state.cluster, filters: {} })),
  removed: (rows) => {
    about.rows -= rows.length;
    show(state);
  },
  changed: () => show(state, scrollY),
});
const lightbox = new Lightbox($("#lightbox"), { search });

function fromAddress() {
  const params = new URLSearchParams(location.search);
  const filters = {};
  for (const [name, value] of params) if (name.startsWith(FILTER)) filters[name.slice(FILTER.length)] = value;
  const by = params.get("by");
  return { by: ORDERS.some(([name]) => name === by) ? by : "folder", cluster: params.get("cluster"), filters };
}

function listAddress({ by, cluster, filters }) {
  const params = new URLSearchParams({ by });
  if (cluster) params.set("cluster", cluster);
  for (const [name, value] of Object.entries(filters)) params.set(FILTER + name, value);
  return `?${params}`;
}

function showProblem(problem) {
  $("#problem").hidden = !problem;
  $("#problem").textContent = problem ?? "";
}

function go(next) {
  history.pushState({}, "", listAddress(next));
  show(next);
}

async function show(next, top = 0) {
  state = next;
  const mine = (shown += 1);
  $("#by").value = state.by;
  filters.write(state.filters);
  const active = Object.keys(state.filters).length;
  $("#filter-count").textContent = active;
  $("#filter-count").hidden = !active;
  $("#grid").setAttribute("aria-busy", "true");
  if (!grid.length) grid.wait(SKELETONS);
  const options = { order_by: state.by, cluster: state.cluster };
  let first = { total: 0, rows: [], sections: [] };
  let problem = null;
  try {
    options.filter = await filters.expression(state.filters);
    if (mine !== shown) return;
    if (about.rows) first = await images({ ...options, limit: PAGE, offset: 0 });
  } catch (error) {
    problem = error.message;
  }
  if (mine !== shown) return;
  showProblem(problem);
  $("#grid").removeAttribute("aria-busy");
  $("#heading").textContent = state.cluster ? t("images_of_cluster", { name: first.cluster ?? state.cluster }) : t("all_images");
  $("#status").textContent = first.total ? t("images", { count: first.total }) : about.rows ? t("no_match") : t("no_images_yet");
  const byMonth = state.by.endsWith("date") && !about.fields.some(({ name }) => name === "date");
  const sections = first.sections.map(({ name, first: start }) => ({ first: start, name: byMonth && name ? month(name) : name || t("none") }));
  $("#jump-label").hidden = sections.length < 2;
  $("#jump").replaceChildren(h("option", { value: "" }, "…"), ...sections.map(({ name }, i) => h("option", { value: i }, name)));
  $("#jump").onchange = ({ target }) => target.value && grid.jump(sections[target.value]);
  grid.show(new Listing(options, first, showProblem), about.bits, sections.length ? sections : undefined);
  if (top) grid.complete();
  scrollTo({ top, behavior: "instant" });
}

$("#by").append(...ORDERS.map(([name, label]) => h("option", { value: name }, label)));
$("#by").addEventListener("change", ({ target }) => go({ ...state, by: target.value }));
if (Object.keys(state.filters).length) $("#filter-panel").open = true;
addEventListener("popstate", () => show(fromAddress()));
show(state);
