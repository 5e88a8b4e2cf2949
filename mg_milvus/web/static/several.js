// Several query images at once: uploads that are searched together, and hits to be like or unlike.

import { Adding } from "./adding.js";
import * as api from "./api.js";
import { $, fileName, h, svg } from "./dom.js";
import { REGIONS } from "./regions.js";
import { t } from "./strings.js";

const MOST = 16; // images of a query, as the server takes them
const CHIP = 96; // pixels of a small image
const CONCURRENT = 2; // images that are sent at once

/** What a query with one image lacks. */
export const ALONE = { others: [], like: [], unlike: [] };

export const isSeveral = ({ others, like, unlike }) => others.length + like.length + unlike.length > 0;

const UP = "M7 10v10H4V10zm2 0l4-7c1.7 0 2.6 1.3 2.2 3L14.5 9.5H19c1.3 0 2.2 1.2 1.9 2.4l-1.6 6.6c-.2.9-1 1.5-1.9 1.5H9z";

export class Several {
  /**
   * about: the page's facts. queryImage: keeps uploads. current: () -> the query and the response that are shown.
   * search: called with the next query. problem: called with a sentence, or null.
   */
  constructor({ about, queryImage, current, search, problem }) {
    Object.assign(this, { about, queryImage, current, search, problem, names: new Map() });
    this.chips = h("ul", { id: "terms", class: "terms", role: "list", "aria-label": t("several.terms"), hidden: true });
    $("#problem").before(this.chips);
    this.dialog = h("dialog", { id: "several", "aria-labelledby": "several-title" });
    document.body.append(this.dialog);
    $("#grid").addEventListener("keydown", (event) => this.key(event));
  }

  /** Ask what several dropped images are for. */
  offer(files) {
    const close = () => this.dialog.close();
    const tooMany = files.length > MOST;
    const status = h("p", { role: "status" });
    const bar = h("progress", { max: files.length, value: 0, hidden: true, "aria-label": t("progress") });
    const together = h("button", { class: "button primary", disabled: tooMany, onclick: () => this.together(files, status, bar) },
      t("several.search"));
    const list = h("ul", { class: "terms", role: "list" }, ...files.slice(0, MOST).map((file) => h("li", {}, file.name)));
    this.dialog.replaceChildren(
      h("header", {}, h("h2", { id: "several-title" }, t("images", { count: files.length })),
        h("button", { class: "button small", onclick: close }, t("close"))),
      list,
      files.length > MOST ? h("p", { class: "hint" }, t("several.more", { count: files.length - MOST, most: MOST })) : "",
      h("div", { class: "buttons" }, together,
        this.about.can_upload ? h("button", { class: "button", onclick: () => this.add(files) }, t("several.add")) : ""),
      bar, status);
    this.dialog.onclose = () => this.aborter?.abort();
    this.dialog.showModal();
    (tooMany ? this.dialog.querySelector("header .button") : together).focus();
    this.draw(files.slice(0, MOST), [...list.children]);
  }

  /** Small images in the list, one after the other: originals may be large. */
  async draw(files, items) {
    for (const [place, file] of files.entries()) {
      if (!this.dialog.open) return;
      const address = await small(file);
      if (address) items[place].prepend(h("img", { src: address, alt: "" }));
    }
  }

  add(files) {
    this.dialog.close();
    const adding = new Adding($("#adding"), this.about);
    adding.show();
    adding.send(files);
  }

  /** Have every image encoded, then search with all: only small copies stay in memory. */
  async together(files, status, bar) {
    const mine = (this.aborter = new AbortController());
    bar.hidden = false;
    const codes = [];
    const waiting = [...files.entries()];
    const worker = async () => {
      for (let next = waiting.shift(); next; next = waiting.shift()) {
        const [place, file] = next;
        if (file.size > this.about.max_upload_bytes) {
          throw new Error(t("too_large", { name: file.name, size: file.size, most: this.about.max_upload_bytes }));
        }
        const { query } = await api.encoded(file, mine.signal).catch((error) => {
          throw error.name === "AbortError" ? error : new Error(t("named", { name: file.name, text: error.message }));
        });
        codes[place] = query.codes;
        this.queryImage.remember(query.codes, { blob: file, name: file.name, address: (await small(file)) ?? URL.createObjectURL(file), size: [query.width, query.height] });
        bar.value += 1;
        status.textContent = t("several.read", { done: bar.value, total: files.length });
      }
    };
    try {
      await Promise.all(Array.from({ length: CONCURRENT }, worker));
      this.aborter = null;
      this.dialog.close();
      const [first, ...others] = [...new Set(codes)];
      this.search({ ...this.current().query, ...ALONE, id: null, codes: first, others, text: null, crop: null });
    } catch (error) {
      waiting.length = 0;
      if (error.name !== "AbortError") status.textContent = error.message;
    }
  }

  /** A query whose terms are these, or of one image where one is left. */
  next(change) {
    const { query, response } = this.current();
    let base = query;
    if (query.crop) {
      // Codes are those of the crop, or of the whole image where regions were searched; several have no crop.
      const codes = response.query.codes;
      if (query.id) this.queryImage.remember(codes, { name: $("#query-name").textContent, address: api.thumbnail(query.id, 480) });
      base = { ...query, id: null, codes, crop: null, ...(query.profile === REGIONS ? { profile: null } : {}) };
    }
    const next = { ...base, text: null, ...change(base) };
    if (!next.id && !next.codes) {
      if (next.others.length) [next.codes, ...next.others] = next.others;
      else if (next.like.length) [next.id, ...next.like] = next.like;
    }
    this.search(next);
  }

  refine(row, side) {
    this.names.set(row.id, fileName(row.path));
    const { query } = this.current();
    if (side === "unlike" && !query.id && !query.codes) {
      this.problem(t("several.first"));
      return;
    }
    if (query.like.length + query.unlike.length + query.others.length >= MOST - 1) {
      this.problem(t("several.most", { most: MOST }));
      return;
    }
    this.next((base) => ({ [side]: [...base[side], row.id] }));
  }

  /** Buttons of a card: more and less like this. */
  adorn(card, entry) {
    const { row } = entry;
    const name = fileName(row.path);
    const button = (side, text, key) =>
      h("button", { type: "button", class: `refine ${side === "like" ? "more" : "less"}`, title: t("lightbox.key", { label: text, key }), "aria-label": t("named", { name: text, text: name }), onclick: () => this.refine(row, side) },
        svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("path", { d: UP })));
    card.append(h("div", { class: "refiners" }, button("like", t("several.like"), "+"), entry.ranks ? button("unlike", t("several.unlike"), "-") : null));
  }

  key(event) {
    const side = { "+": "like", "-": "unlike" }[event.key];
    const card = event.target.closest?.(".card");
    if (!side || !card?.entry || event.ctrlKey || event.metaKey || event.altKey || !event.target.classList.contains("tile")) return;
    event.preventDefault();
    this.refine(card.entry.row, side);
  }

  /** The images of a query with several. */
  show(query) {
    this.chips.hidden = !isSeveral(query);
    if (this.chips.hidden) return;
    const uploaded = (codes) => this.queryImage.of(codes) ?? { name: t("not_shared") };
    const indexed = (id) => ({ name: this.names.get(id) ?? t("several.indexed"), address: api.thumbnail(id, 240) });
    const without = (list, one) => list.filter((other) => other !== one);
    const chips = [
      query.id ? this.chip(indexed(query.id), "+", () => ({ id: null })) : null,
      query.codes ? this.chip(uploaded(query.codes), "+", () => ({ codes: null })) : null,
      ...query.others.map((codes) => this.chip(uploaded(codes), "+", (base) => ({ others: without(base.others, codes) }))),
      ...query.like.map((id) => this.chip(indexed(id), "+", (base) => ({ like: without(base.like, id) }))),
      ...query.unlike.map((id) => this.chip(indexed(id), "−", (base) => ({ unlike: without(base.unlike, id) }))),
    ];
    this.chips.replaceChildren(...chips.filter(Boolean));
  }

  chip({ name, address }, sign, change) {
    const like = sign === "+";
    const text = t(like ? "several.wanted" : "several.unwanted", { name });
    return h("li", { class: like ? "wanted" : "unwanted", title: text },
      h("b", { "aria-hidden": "true" }, sign),
      address ? h("img", { src: address, alt: text }) : h("span", {}, name),
      h("button", { type: "button", "aria-label": t("several.take_back_named", { name }), title: t("several.take_back"), onclick: () => this.takeBack(change) }, "×"));
  }

  takeBack(change) {
    const { query } = this.current();
    const likes = [query.id, query.codes, ...query.others, ...query.like].filter(Boolean).length;
    const after = { ...query, ...change(query) };
    if (likes === 1 && ![after.id, after.codes, ...after.others, ...after.like].some(Boolean)) this.search({ ...query, ...ALONE, id: null, codes: null });
    else this.next(change);
    $("#results").focus({ preventScroll: true });
  }

  /** The response to a query with several; the server ranks. */
  async fetch(query, { filter, depth, fusion }, signal) {
    const started = performance.now();
    const { weights, profile } = query;
    const own = weights && Object.entries(weights).filter(([name, weight]) => name !== REGIONS && weight > 0);
    const response = await api.querySeveral({
      id: query.id, codes: [query.codes, ...query.others].filter(Boolean), like: query.like, unlike: query.unlike,
      profile: profile === REGIONS ? null : profile,
      weights: own?.map(([name, weight]) => `${name}=${weight}`).join(","), filter, cluster: query.cluster, depth, fusion, k: depth,
    }, signal);
    return { response, row: query.id ? await api.row(query.id) : null, milliseconds: performance.now() - started };
  }
}

/** A small copy of an image file as a data address; null for what the browser cannot show. */
async function small(file) {
  try {
    const bitmap = await createImageBitmap(file, { resizeHeight: CHIP, resizeQuality: "low" });
    const canvas = h("canvas", { width: bitmap.width, height: bitmap.height });
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    bitmap.close();
    return canvas.toDataURL("image/jpeg", 0.8);
  } catch {
    return null;
  }
}
