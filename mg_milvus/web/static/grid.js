// The results: cards in blocks. Only blocks near the window hold cards, so a long list costs no more than a short one.

import { thumbnail } from "./api.js";
import { fileName, h, rankText, svg } from "./dom.js";
import { REGIONS } from "./regions.js";

const ROWS = 8; // rows of cards in a block
const GAP = 20; // between cards, in pixels
const MARGIN = "1200px 0px"; // how far from the window a block is filled
const MOVED = 60; // cards that are animated at most

const calm = matchMedia("(prefers-reduced-motion: reduce)");

export class Grid {
  /**
   * link: row -> address. search: called with a row that was clicked. why: called with an entry that is to be explained.
   * adorn: called with every new card and its entry.
   */
  constructor(container, { link, search, why, adorn = () => {} }) {
    Object.assign(this, { container, bits: {}, link, search, why, adorn, entries: [], cards: new Map(), blocks: [], columns: 0 });
    this.observer = new IntersectionObserver((seen) => seen.forEach((one) => this.toggle(one)), { rootMargin: MARGIN });
    new ResizeObserver(() => this.resized()).observe(container);
    container.addEventListener("keydown", (event) => this.walk(event));
  }

  /**
   * Show entries ({row, and for hits rank, score, ranks}), in order. Cards that stay glide to their new place.
   * bits: {granularity: code length}.
   */
  show(entries, bits) {
    const before = this.places();
    this.bits = bits;
    this.entries = entries;
    this.place();
    this.glide(before);
  }

  place() {
    this.columns = this.countColumns();
    const size = this.columns * ROWS;
    const count = Math.ceil(this.entries.length / size);
    while (this.blocks.length > count) {
      const block = this.blocks.pop();
      this.observer.unobserve(block);
      block.remove();
    }
    while (this.blocks.length < count) {
      const block = h("ol", { class: "hits", start: this.blocks.length * size + 1, role: "list" });
      block.dataset.place = this.blocks.length;
      this.blocks.push(block);
      this.container.append(block);
    }
    if (count) this.fill(this.blocks[0]);
    this.height = (this.blocks[0]?.firstElementChild?.offsetHeight ?? 240) + GAP;
    this.blocks.forEach((block, place) => {
      block.start = place * size + 1;
      if (place === 0 || block.childElementCount) this.fill(block);
      else this.empty(block);
      this.observer.observe(block);
    });
    const kept = new Set(this.entries.map(({ row }) => row.id));
    for (const id of this.cards.keys()) if (!kept.has(id)) this.cards.delete(id);
  }

  fill(block) {
    const size = this.columns * ROWS;
    const first = block.dataset.place * size;
    block.style.minHeight = "";
    const cards = this.entries.slice(first, first + size).map((entry) => this.card(entry));
    const current = block.children;
    if (current.length === cards.length && cards.every((card, i) => current[i] === card)) return;
    const focused = document.activeElement;
    block.replaceChildren(...cards);
    if (focused !== document.activeElement && block.contains(focused)) focused.focus({ preventScroll: true });
  }

  empty(block) {
    const size = this.columns * ROWS;
    const rows = Math.ceil(Math.min(size, this.entries.length - block.dataset.place * size) / this.columns);
    block.style.minHeight = `${rows * this.height - GAP}px`;
    for (const child of block.children) this.cards.delete(child.dataset.id);
    block.replaceChildren();
  }

  toggle({ target, isIntersecting }) {
    if (isIntersecting) this.fill(target);
    else if (target.childElementCount && target !== this.blocks[0] && !target.contains(document.activeElement)) this.empty(target);
  }

  countColumns() {
    const probe = h("ol", { class: "hits" });
    this.container.append(probe);
    const columns = getComputedStyle(probe).gridTemplateColumns.split(" ").length;
    probe.remove();
    return Math.max(1, columns);
  }

  resized() {
    if (this.entries.length && this.countColumns() !== this.columns) this.place();
  }

  card(entry) {
    const { row } = entry;
    let card = this.cards.get(row.id);
    if (card?.entry.row !== row) {
      // A new card, or the same image as a result of another query.
      card = this.made(entry);
      this.cards.set(row.id, card);
    }
    card.entry = entry;
    if (entry.ranks) this.update(card, entry);
    else card.tile.href = this.link(row);
    return card;
  }

  made(entry) {
    const { row } = entry;
    const name = fileName(row.path);
    const ratio = row.width / row.height;
    const fills = !row.box && ratio >= 1 && ratio <= 16 / 9;
    const card = h("li", { class: "card", data: { id: row.id } });
    const image = h("img", {
      src: thumbnail(row.id, 480), alt: name, loading: "lazy", decoding: "async", width: row.width, height: row.height,
      onerror: () => image.replaceWith(missing(name)),
    });
    card.tile = h("a", {
      class: `tile${fills ? " fill" : ""}`,
      title: `Search with ${row.path}`,
      onclick: (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        this.search(row);
      },
    }, image, row.box ? region(row) : null);
    card.append(card.tile);
    this.adorn(card, entry);
    if (!entry.ranks) {
      card.append(h("div", { class: "about" }, h("div", { class: "line" }, heading(row, name))));
      return card;
    }
    card.rank = h("span", { class: "rank" });
    card.tile.append(card.rank);
    card.verdict = h("p", { class: "verdict" });
    card.score = h("span", { class: "score", title: "fused score; comparable within one query" });
    card.ranks = new Map();
    const bars = Object.keys(this.bits).map((granularity, place) => this.bar(card, row, granularity, place));
    card.append(
      h("div", { class: "about" },
        h("div", { class: "line" }, heading(row, name), card.score),
        card.verdict,
        h("ul", { class: "bars", role: "list" }, ...bars),
        h("button", { class: "why", onclick: () => this.why(card.entry) },
          "Why this?", h("span", { class: "unseen" }, ` ${name}`)),
      ),
    );
    return card;
  }

  bar(card, row, granularity, place) {
    const distance = row.distances[granularity];
    const length = this.bits[granularity];
    const rank = h("em");
    card.ranks.set(granularity, rank);
    const near = 100 * (1 - distance / length);
    return h("li", { class: `h${place % 6}`, title: granularity === "text" ? `text: ${near.toFixed(0)} % probable` : `${granularity}: ${distanceText(row, granularity)} of ${length} bits differ` },
      h("span", { class: "label" }, granularity),
      h("span", { class: "track", "aria-hidden": "true" }, h("i", { style: { width: `${near.toFixed(1)}%` } })),
      h("span", { class: "number" }, h("span", { class: "unseen" }, "distance "), distanceText(row, granularity), rank),
    );
  }

  update(card, { row, rank, score, ranks }) {
    card.tile.href = this.link(row);
    card.rank.replaceChildren(h("span", { class: "unseen" }, "rank "), String(rank));
    card.score.textContent = score.toFixed(4);
    this.verify(card, row);
    for (const [granularity, element] of card.ranks) element.textContent = `#${rankText(ranks[granularity])}`;
  }

  /** What the query image is to a card's image by their pixels, and where, once that is known. */
  verify(card, row) {
    const verdict = row.verified?.verdict ?? words(row);
    if (card.verdict.textContent === verdict) return;
    card.verdict.textContent = verdict;
    if (!row.verified?.box) return;
    card.tile.querySelector(".region")?.remove();
    card.tile.classList.remove("fill");
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

  /** Arrow keys walk from image to image. */
  walk(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns }[event.key];
    if (!step || !event.target.classList.contains("tile")) return;
    const place = this.entries.findIndex(({ row }) => row.id === event.target.closest(".card").dataset.id) + step;
    if (place < 0 || place >= this.entries.length) return;
    event.preventDefault();
    this.fill(this.blocks[Math.floor(place / (this.columns * ROWS))]);
    this.cards.get(this.entries[place].row.id).tile.focus();
  }
}

const UNSURE = new Set(["same kind", "loosely similar"]);

/** The verdict on a hit, with the confidence where that is all it says. */
export const words = ({ verdict, confidence }) =>
  UNSURE.has(verdict) ? `${verdict}, ${Math.round(100 * confidence)} %` : (verdict ?? "");

const heading = (row, name) => h("h3", { title: row.path }, h("bdi", {}, name));

/** A distance in bits. Of an image none of whose regions is among the nearest, only the least it can be is known. */
export const distanceText = (row, granularity) =>
  `${granularity === REGIONS && !row.box ? "at least " : ""}${Math.round(row.distances[granularity])}`;

/** The matched region, drawn over an image that is shown whole: the SVG is fitted exactly as the image is. */
export function region(row) {
  const [x, y, width, height] = row.box;
  return svg("svg", { class: "region", viewBox: `0 0 ${row.width} ${row.height}`, "aria-hidden": "true" },
    svg("rect", { x, y, width, height, rx: Math.min(width, height) / 20 }));
}

function missing(name) {
  return h("span", { class: "missing", role: "img", "aria-label": `${name}: cannot be read` },
    svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" },
      svg("path", { d: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M3 3l18 18" })),
    h("span", {}, "cannot be read"));
}
