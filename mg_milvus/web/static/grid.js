// The results: cards in blocks. Only blocks near the window hold cards, so a long list costs no more than a short one.

import { original, thumbnail } from "./api.js";
import { fileName, h, nameParts, svg } from "./dom.js";
import { isKnown, valueText } from "./facts.js";
import { REGIONS } from "./regions.js";
import { fixed, number, percent, rankText, said, t } from "./strings.js";

const ROWS = 8; // rows of cards in a block
const GAP = 20; // between cards, in pixels
const HEIGHT = 260; // of a row, about
const FEW = 12; // blocks that are placed at once: thousands take a second
const MARGIN = "1200px 0px"; // how far from the window a block is filled
const CHUNK = 1000; // entries of a range that are loaded at once
const MOVED = 60; // cards that are animated at most

const PASSED = 80; // milliseconds after which a block is not just scrolled past

const calm = matchMedia("(prefers-reduced-motion: reduce)");

export class Grid {
  /**
   * link: row -> address of a search with it. search: called with a row to search with. open: called with the place of
   * an image to be looked at. why: called with an entry that is to be explained. end: called when the last images come
   * near the window. fields: names of the fields to show instead of the file's name. adorn: called with every new card
   * and its entry.
   */
  constructor(container, { link, search, open, why = null, end = () => {}, fields = [], adorn = () => {} }) {
    Object.assign(this, { container, bits: {}, link, search, open, why, end, fields, adorn });
    Object.assign(this, { entries: [], sections: [], cards: new Map(), blocks: [], planned: [], columns: 0, scored: false });
    this.observer = new IntersectionObserver((seen) => seen.forEach((one) => this.toggle(one)), { rootMargin: MARGIN });
    new ResizeObserver(() => this.resized()).observe(container);
    container.addEventListener("keydown", (event) => this.walk(event));
  }

  get length() {
    return this.entries.length;
  }

  /** The entry of a place; undefined where it could not be loaded. */
  async at(place) {
    if (!this.entries.slice(place, place + 1)[0]) await this.entries.load?.(place, place + 1);
    return this.entries.slice(place, place + 1)[0];
  }

  /** The entries of some places; without those that could not be loaded. */
  async range(first, end) {
    const found = [];
    for (let start = first; start < end; start += CHUNK) {
      await this.entries.load?.(start, Math.min(end, start + CHUNK));
      found.push(...this.entries.slice(start, Math.min(end, start + CHUNK)));
    }
    return found.filter(Boolean);
  }

  /**
   * Show entries ({row, and for hits rank, score, ranks}), in order. Cards that stay glide to their new place.
   * entries: an array, or what has length, slice(first, end), undefined where it is not loaded, and load(first, end).
   * bits: {granularity: code length}. sections: [{first, name}], where headings stand; the first one at 0.
   */
  show(entries, bits, sections = [{ first: 0 }]) {
    const before = this.places();
    this.bits = bits;
    this.entries = entries;
    this.sections = sections;
    this.place(before.size > 0 && !entries.slice(0, this.columns).some((entry) => this.cards.get(entry?.row.id)?.entry.row === entry?.row));
    this.glide(before);
  }

  /** Empty cards while the first images are on their way. */
  wait(count) {
    this.show({ length: count, slice: (first, end) => Array(Math.min(end, count) - first).fill(undefined) }, {});
  }

  /** First and end of each block, and the heading before it. The first block is what fits the window: it comes first. */
  plan() {
    const size = this.columns * ROWS;
    const lead = this.columns * Math.min(ROWS, Math.ceil(innerHeight / HEIGHT));
    const plan = [];
    this.sections.forEach(({ first, name }, i) => {
      const end = this.sections[i + 1]?.first ?? this.entries.length;
      for (let start = first, next; start < end; start = next) {
        next = Math.min(end, start + (start ? size : lead));
        plan.push({ first: start, end: next, name: start === first ? name : undefined });
      }
    });
    return plan;
  }

  /** anew: the images are others. Then those outside the window are left for after this frame. */
  place(anew = false) {
    this.columns = this.countColumns();
    this.planned = this.plan();
    const count = scrollY < innerHeight ? Math.min(FEW, this.planned.length) : this.planned.length;
    while (this.blocks.length > count) {
      const block = this.blocks.pop();
      this.observer.unobserve(block);
      block.heading?.remove();
      block.remove();
    }
    this.blocks.forEach((block, i) => this.assign(block, this.planned[i]));
    this.append(count);
    if (this.blocks.length) this.fill(this.blocks[0]);
    this.height = (this.blocks[0]?.firstElementChild?.offsetHeight ?? 240) + GAP;
    const later = anew ? this.blocks.filter((block, i) => i && block.childElementCount && !inWindow(block)) : [];
    for (const block of later) this.empty(block);
    // so that they are noticed again where they are near the window already
    for (const block of [...later, ...this.blocks.slice(-1)]) this.observer.unobserve(block);
    this.blocks.forEach((block, i) => {
      if (i === 0 || block.childElementCount) this.fill(block);
      else this.empty(block);
      this.observer.observe(block);
    });
    for (const [id, card] of this.cards) if (!card.isConnected) this.cards.delete(id);
    if (count < this.planned.length) requestAnimationFrame(() => setTimeout(() => this.complete()));
  }

  /** Place the blocks that were left for after the first images. */
  complete() {
    const placed = this.blocks.length;
    if (placed === this.planned.length) return;
    this.append(this.planned.length);
    for (const block of this.blocks.slice(placed)) this.observer.observe(block);
  }

  /** Empty blocks at the end, up to so many. */
  append(count) {
    const added = document.createDocumentFragment();
    for (const range of this.planned.slice(this.blocks.length, count)) {
      const block = h("ol", { class: "hits", role: "list" });
      added.append(block);
      this.assign(block, range);
      this.empty(block);
      this.blocks.push(block);
    }
    this.container.append(added);
  }

  /** Give a block its places and its heading. */
  assign(block, range) {
    block.range = range;
    block.start = range.first + 1;
    block.heading?.remove();
    block.heading = range.name === undefined ? null : h("h3", { class: "section" }, h("bdi", {}, range.name));
    if (block.heading) block.before(block.heading);
  }

  fill(block) {
    const { first, end } = block.range;
    block.style.minHeight = "";
    const entries = this.entries.slice(first, end);
    const cards = Array.from(entries, (entry, i) => (entry ? this.card(entry, first + i) : skeleton()));
    const current = block.children;
    if (!(current.length === cards.length && cards.every((card, i) => current[i] === card))) {
      const focused = document.activeElement;
      block.replaceChildren(...cards);
      if (focused !== document.activeElement && block.contains(focused)) focused.focus({ preventScroll: true });
    }
    if (cards.some(({ entry }) => !entry)) this.load(block);
  }

  /** Fill a block once its entries are there, if it is still shown then. */
  async load(block) {
    const { entries, range } = { entries: this.entries, range: block.range };
    if (!entries.load) return;
    await new Promise((resolve) => setTimeout(resolve, PASSED)); // what is scrolled past is not loaded
    if (range !== block.range || !block.childElementCount || !(await entries.load(range.first, range.end))) return;
    if (entries === this.entries && range === block.range && block.childElementCount) this.fill(block);
  }

  empty(block) {
    const { first, end } = block.range;
    block.style.minHeight = `${Math.ceil((end - first) / this.columns) * this.height - GAP}px`;
    for (const child of block.children) this.cards.delete(child.dataset.id);
    block.replaceChildren();
  }

  toggle({ target, isIntersecting }) {
    if (isIntersecting) this.fill(target);
    else if (target.childElementCount && target !== this.blocks[0] && !target.contains(document.activeElement)) this.empty(target);
    if (isIntersecting && target.range === this.planned.at(-1)) this.end();
  }

  /** Show the card of a place, and put the focus on its image. */
  focus(place) {
    this.complete();
    const block = this.blocks.find(({ range }) => place < range.end);
    if (!block) return;
    this.fill(block);
    const tile = block.children[place - block.range.first]?.tile;
    tile?.focus({ preventScroll: true });
    tile?.scrollIntoView({ block: "nearest" });
  }

  /** Scroll to the heading of a section. */
  jump(section) {
    this.complete();
    this.blocks.find(({ range }) => range.first === section.first)?.heading?.scrollIntoView({ behavior: "instant" });
  }

  countColumns() {
    const probe = h("ol", { class: "hits probe" });
    this.container.append(probe);
    const columns = getComputedStyle(probe).gridTemplateColumns.split(" ").length;
    probe.remove();
    return Math.max(1, columns);
  }

  resized() {
    if (this.entries.length && this.countColumns() !== this.columns) this.place();
  }

  card(entry, place) {
    const { row } = entry;
    let card = this.cards.get(row.id);
    if (card?.entry.row !== row) {
      // A new card, or the same image as a result of another query.
      card = this.made(entry);
      this.cards.set(row.id, card);
    }
    card.entry = entry;
    card.place = place;
    card.like.href = this.link(row);
    if (entry.ranks) this.update(card, entry);
    return card;
  }

  made(entry) {
    const { row } = entry;
    const name = fileName(row.path);
    const card = h("li", { class: "card", data: { id: row.id } });
    const image = h("img", {
      src: thumbnail(row.id, 480), alt: name, loading: "lazy", decoding: "async", width: row.width, height: row.height,
      onerror: () => image.replaceWith(missing(name)),
    });
    card.tile = h("a", {
      class: "tile", href: original(row.id), title: row.path,
      onclick: (event) => unlessElsewhere(event, () => this.open(card.place)),
    }, image, row.box ? region(row) : null);
    card.like = h("a", {
      class: "seek", title: t("card.search"), "aria-label": t("card.search_named", { name }),
      onclick: (event) => unlessElsewhere(event, () => this.search(row)),
    }, svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" },
      svg("circle", { cx: 10.5, cy: 10.5, r: 6 }), svg("path", { d: "M15 15l5.5 5.5" })));
    const picture = h("div", { class: "picture" }, card.tile, card.like);
    const about = h("div", { class: "about" });
    card.append(picture, about);
    this.adorn(card, entry);
    const title = this.title(row, name);
    if (!entry.ranks) {
      about.append(h("div", { class: "line" }, title));
      return card;
    }
    card.rank = h("span", { class: "rank" });
    card.tile.append(card.rank);
    card.verdict = h("p", { class: "verdict" });
    card.score = h("span", { class: "score", title: t("card.score") });
    about.append(
      h("div", { class: "line" }, title, card.score),
      card.verdict,
      h("button", { class: "why", onclick: () => this.why(card.entry) },
        t("card.why"), h("span", { class: "unseen" }, ` ${name}`)),
    );
    return card;
  }

  /** The fields that were chosen, where the row has any of them, else the name of its file. */
  title(row, name) {
    const values = this.fields.filter((field) => isKnown(row[field]));
    if (!values.length) return h("h3", { title: row.path }, ...nameParts(name));
    return h("h3", { class: "values", title: row.path },
      ...values.map((field) => h("span", { title: field }, valueText(field, row[field]))));
  }

  /** Show bars, distances and ranks on every card, or not. */
  showScores(scored) {
    this.scored = scored;
    this.container.classList.toggle("scores", scored);
    if (scored) for (const card of this.cards.values()) if (card.entry.ranks) this.update(card, card.entry);
  }

  bars(card, { row }) {
    card.ranks = new Map();
    const bars = Object.keys(this.bits).map((granularity, place) => this.bar(card, row, granularity, place));
    card.verdict.after(h("ul", { class: "bars", role: "list" }, ...bars));
  }

  bar(card, row, granularity, place) {
    const distance = row.distances[granularity];
    const length = this.bits[granularity];
    const rank = h("em");
    card.ranks.set(granularity, rank);
    const near = 100 * (1 - distance / length);
    return h("li", { class: `h${place % 6}`, title: granularity === "text" ? t("card.text", { share: percent(near / 100) }) : t("card.differ", { name: granularity, distance: distanceText(row, granularity), bits: length }) },
      h("span", { class: "label" }, granularity),
      h("span", { class: "track", "aria-hidden": "true" }, h("i", { style: { width: `${near.toFixed(1)}%` } })),
      h("span", { class: "number" }, h("span", { class: "unseen" }, `${t("card.distance")} `), distanceText(row, granularity), rank),
    );
  }

  update(card, { row, rank, score, ranks }) {
    card.rank.replaceChildren(h("span", { class: "unseen" }, `${t("card.rank")} `), number(rank));
    card.score.textContent = fixed(score, 4);
    this.verify(card, row);
    if (!this.scored) return; // nobody sees them: half of a card's elements
    if (!card.ranks) this.bars(card, card.entry);
    for (const [granularity, element] of card.ranks) element.textContent = `#${rankText(ranks[granularity])}`;
  }

  /** What the query image is to a card's image by their pixels, and where, once that is known. */
  verify(card, row) {
    const verdict = words(row);
    if (card.verdict.textContent === verdict) return;
    card.verdict.textContent = verdict;
    if (!row.verified?.box) return;
    card.tile.querySelector(".region")?.remove();
    card.tile.append(region({ ...row, box: row.verified.box }));
  }

  /** Where the cards in the window are. */
  places() {
    const places = new Map();
    if (calm.matches) return places;
    for (const [id, card] of this.cards) {
      if (!card.isConnected) continue;
      const place = card.getBoundingClientRect();
      if (place.bottom > 0 && place.top < innerHeight) places.set(id, place);
    }
    return places;
  }

  glide(before) {
    if (!before.size) return;
    let moved = 0;
    for (const [id, card] of this.cards) {
      if (!card.isConnected || moved >= MOVED) continue;
      const now = card.getBoundingClientRect();
      if (now.bottom < 0 || now.top > innerHeight) continue;
      const was = before.get(id);
      if (was && was.x === now.x && was.y === now.y) continue;
      const from = was ? { transform: `translate(${was.x - now.x}px, ${was.y - now.y}px)` } : { opacity: 0 };
      card.animate([from, was ? { transform: "none" } : { opacity: 1 }], { duration: 260, easing: "cubic-bezier(.2,.7,.2,1)" });
      moved += 1;
    }
  }

  /** Arrow keys walk from image to image; S searches with one. */
  walk(event) {
    const { place, entry } = event.target.closest(".card") ?? {};
    if (!event.target.classList.contains("tile") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "s" || event.key === "S") {
      this.search(entry.row);
      return;
    }
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns }[event.key];
    if (!step || place + step < 0 || place + step >= this.entries.length) return;
    event.preventDefault();
    this.focus(place + step);
  }
}

/** A click that does not ask for another tab or window. */
function unlessElsewhere(event, action) {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  action();
}

function inWindow(block) {
  const { top, bottom } = block.getBoundingClientRect();
  return top < innerHeight && bottom > 0;
}

const skeleton = () => h("li", { class: "card skeleton", "aria-hidden": "true" }, h("div", { class: "tile" }), h("div", { class: "about" }, h("i")));

const UNSURE = new Set(["same kind", "loosely similar"]);

/** The verdict on a hit, by its pixels where they were compared, with the confidence where that is all it says. */
export function words({ verified, verdict, confidence }) {
  if (verified?.verdict) return said(verified.verdict);
  return UNSURE.has(verdict) ? t("card.unsure", { verdict: said(verdict), share: percent(confidence) }) : said(verdict ?? "");
}

/** A distance in bits. Of an image none of whose regions is among the nearest, only the least it can be is known. */
export function distanceText(row, granularity) {
  const distance = Math.round(row.distances[granularity]);
  return granularity === REGIONS && !row.box ? t("card.at_least", { distance }) : number(distance);
}

/** The matched region, drawn over an image that is shown whole: the SVG is fitted exactly as the image is. */
export function region(row) {
  const [x, y, width, height] = row.box;
  return svg("svg", { class: "region", viewBox: `0 0 ${row.width} ${row.height}`, "aria-hidden": "true" },
    svg("rect", { x, y, width, height, rx: Math.min(width, height) / 20 }));
}

function missing(name) {
  return h("span", { class: "missing", role: "img", "aria-label": t("named", { name, text: t("card.unreadable") }) },
    svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" },
      svg("path", { d: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M3 3l18 18" })),
    h("span", {}, t("card.unreadable")));
}
