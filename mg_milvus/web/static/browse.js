// All images, in an order of one's choice. Only those near the window are loaded, and those far away are forgotten.

import { images } from "./api.js";
import { $, h, number } from "./dom.js";
import { Filters } from "./filters.js";
import { Grid } from "./grid.js";
import { Lightbox } from "./lightbox.js";

const FILTER = "where.";
const PAGE = 200; // rows a request
const KEPT = 30; // pages in memory
const SKELETONS = 40;

const about = JSON.parse($("#about").textContent);
const OWN = new Set(["folder", "name", "date", "tag"]);
const ORDERS = [
  ["folder", "folder"], ["name", "name"], ["-date", "date, newest first"], ["date", "date, oldest first"],
  ["-size", "size, largest first"], ["size", "size, smallest first"], ["tag", "tag"],
  ...about.fields.filter(({ name, type }) => type !== "json" && !OWN.has(name)).map(({ name }) => [name, name]),
];

/** All images of an order and a filter, loaded page by page: what a Grid shows. */
class Listing {
  constructor(options, first) {
    this.options = options;
    this.length = first.total;
    this.pages = new Map([[0, entries(first.rows)]]);
    this.loading = new Map();
  }

  slice(first, end) {
    return Array.from({ length: Math.max(0, Math.min(end, this.length) - first) }, (_, i) => this.at(first + i));
  }

  at(place) {
    return this.pages.get(Math.floor(place / PAGE))?.[place % PAGE];
  }

  /** Load what is missing of some places; whether anything was. */
  async load(first, end) {
    const pages = [];
    for (let page = Math.floor(first / PAGE); page * PAGE < Math.min(end, this.length); page += 1) {
      if (!this.pages.has(page)) pages.push(page);
    }
    try {
      await Promise.all(pages.map((page) => this.loadPage(page)));
    } catch (error) {
      showProblem(error.message);
      return false;
    }
    return pages.length > 0;
  }

  loadPage(page) {
    if (!this.loading.has(page)) {
      const loaded = images({ ...this.options, limit: PAGE, offset: page * PAGE }).then(({ rows }) => {
        this.pages.set(page, entries(rows));
        if (this.pages.size > KEPT) this.pages.delete(this.pages.keys().next().value);
      }).finally(() => this.loading.delete(page));
      this.loading.set(page, loaded);
    }
    return this.loading.get(page);
  }
}

const entries = (rows) => rows.map((row) => (row ? { row } : undefined));

let state = fromAddress();
let shown = 0; // number of the request whose answer is shown

const filters = new Filters($("#filters"), about, (chosen) => go({ ...state, filters: chosen }));
const searchAddress = (row) => `./?id=${row.id}`;
const search = (row) => location.assign(searchAddress(row));
const grid = new Grid($("#grid"), { link: searchAddress, search, open: (place) => lightbox.show(grid, place), fields: about.show });
const lightbox = new Lightbox($("#lightbox"), { search });

function fromAddress() {
  const params = new URLSearchParams(location.search);
  const filters = {};
  for (const [name, value] of params) if (name.startsWith(FILTER)) filters[name.slice(FILTER.length)] = value;
  const by = params.get("by");
  return { by: ORDERS.some(([name]) => name === by) ? by : "folder", cluster: params.get("cluster"), filters };
}

function toAddress({ by, cluster, filters }) {
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
  history.pushState({}, "", toAddress(next));
  show(next);
}

async function show(next) {
  state = next;
  const mine = (shown += 1);
  $("#by").value = state.by;
  filters.write(state.filters);
  const active = Object.keys(state.filters).length;
  $("#filter-count").textContent = active;
  $("#filter-count").hidden = !active;
  $("#grid").setAttribute("aria-busy", "true");
  if (!grid.length) grid.wait(SKELETONS);
  const options = { order_by: state.by, filter: filters.expression(state.filters), cluster: state.cluster };
  let first = { total: 0, rows: [], sections: [] };
  let problem = null;
  try {
    if (about.rows) first = await images({ ...options, limit: PAGE, offset: 0 });
  } catch (error) {
    problem = error.message;
  }
  if (mine !== shown) return;
  showProblem(problem);
  $("#grid").removeAttribute("aria-busy");
  $("#heading").textContent = first.cluster ?? "All images";
  $("#status").textContent = first.total ? `${number(first.total)} ${first.total === 1 ? "image" : "images"}` : about.rows ? "No image matches." : "There are no images yet.";
  $("#jump-label").hidden = first.sections.length < 2;
  $("#jump").replaceChildren(h("option", { value: "" }, "…"), ...first.sections.map(({ name }, i) => h("option", { value: i }, name || "none")));
  $("#jump").onchange = ({ target }) => target.value && grid.jump(first.sections[target.value]);
  scrollTo({ top: 0, behavior: "instant" });
  grid.show(new Listing(options, first), about.bits, first.sections.length ? first.sections : undefined);
}

$("#by").append(...ORDERS.map(([name, label]) => h("option", { value: name }, label)));
$("#by").addEventListener("change", ({ target }) => go({ ...state, by: target.value }));
if (Object.keys(state.filters).length) $("#filter-panel").open = true;
addEventListener("popstate", () => show(fromAddress()));
show(state);
