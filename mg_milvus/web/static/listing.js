// All images of an order, loaded page by page; pages that were not used for long are forgotten.

import { images } from "./api.js";

export const PAGE = 200; // rows a request
const KEPT = 30; // pages in memory

/** All images of an order and a filter, loaded page by page: what a Grid shows. */
export class Listing {
  /** options: of api.images. first: its answer for the first page. problem: called with a message. */
  constructor(options, first, problem) {
    this.options = options;
    this.problem = problem;
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
      this.problem(error.message);
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
