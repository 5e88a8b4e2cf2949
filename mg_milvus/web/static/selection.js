// Images that are selected, by the check mark, shift, a long press or the keyboard, and what is done with them.

import * as api from "./api.js";
import { ALONE } from "./several.js";
import { $, fileName, h, svg } from "./dom.js";
import { fileSize, t } from "./strings.js";

const PRESS = 500; // milliseconds of a long press
const MOST = 20_000; // images that are selected at once, as the server takes them
const TOGETHER = 16; // images that are searched with at once

export class Selection {
  /**
   * about: the page's facts. grid: shows the images. search: called with what differs from the query. removed: called
   * with rows that are no longer indexed. changed: called after fields of rows have changed.
   */
  constructor({ about, grid, search, removed, changed }) {
    Object.assign(this, { about, grid, search, removed, changed, rows: new Map(), anchor: null });
    this.count = h("p", { role: "status" });
    this.said = h("p", { role: "status", class: "hint" });
    const button = (text, onclick, title = null) => h("button", { type: "button", class: "button small", title, onclick }, text);
    this.with = button(t("selection.with"), () => this.searchWith());
    this.bar = h("div", { id: "selection", class: "selection", role: "region", "aria-label": t("selection"), hidden: true },
      this.count,
      h("div", { class: "buttons" },
        this.with,
        button(t("selection.copy"), () => this.copy()),
        button(t("selection.paths"), () => this.download("txt"), t("selection.paths_title")),
        button(t("selection.csv"), () => this.download("csv"), t("selection.csv_title")),
        button(t("selection.json"), () => this.download("json"), t("selection.json_title")),
        button(t("selection.files"), () => this.download("zip"), t("selection.files_title")),
        about.can_delete ? button(t("selection.tag"), () => this.tag()) : null,
        about.can_delete ? button(t("selection.remove"), () => this.remove(), t("selection.remove_title")) : null,
        button(t("clear"), () => this.clear(), t("selection.escape"))),
      this.said);
    this.dialog = h("dialog", { id: "selected", "aria-labelledby": "selected-title" });
    document.body.append(this.bar, this.dialog);
    const cards = $("#grid");
    cards.addEventListener("click", (event) => this.click(event), true);
    cards.addEventListener("keydown", (event) => this.key(event), true);
    cards.addEventListener("pointerdown", (event) => this.press(event));
    for (const end of ["pointerup", "pointercancel", "pointermove"]) cards.addEventListener(end, (event) => this.release(event));
    cards.addEventListener("contextmenu", (event) => this.pressed && event.preventDefault());
    addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.rows.size && !$("dialog[open]")) this.clear();
    });
  }

  /** The check mark of a card. */
  adorn(card, { row }) {
    card.check = h("button", { type: "button", class: "check", role: "checkbox", "aria-label": t("selection.select", { name: fileName(row.path) }), title: t("selection.key") },
      svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("path", { d: "M5 12.5l4.5 4.5L19 7.5" })));
    card.append(card.check);
    this.mark(card, row.id);
  }

  mark(card, id) {
    const selected = this.rows.has(id);
    card.classList.toggle("selected", selected);
    card.check.setAttribute("aria-checked", String(selected));
  }

  show() {
    const { size } = this.rows;
    for (const card of document.querySelectorAll("#grid .card")) if (card.check) this.mark(card, card.dataset.id);
    $("#grid").classList.toggle("selecting", size > 0);
    this.bar.hidden = !size;
    document.body.classList.toggle("with-selection", size > 0);
    this.count.textContent = t("selection.count", { count: size });
    this.with.disabled = size > TOGETHER;
    this.said.textContent = "";
  }

  clear() {
    const inside = this.bar.contains(document.activeElement);
    this.rows.clear();
    this.anchor = null;
    this.show();
    if (inside) $("#results").focus({ preventScroll: true });
  }

  toggle({ place, entry: { row } }) {
    if (!this.rows.delete(row.id)) this.rows.set(row.id, row);
    this.anchor = { id: row.id, place };
    this.show();
  }

  /** Select all from the image that was selected last to the one of this card. */
  async extend(card) {
    const from = await this.anchorPlace();
    if (from === null) this.toggle(card);
    else await this.add(Math.min(from, card.place), Math.max(from, card.place) + 1);
  }

  /** Where the image is that was selected last; null where it is no longer listed. */
  async anchorPlace() {
    if (!this.anchor) return null;
    const { id, place } = this.anchor;
    return this.grid.cards.get(id)?.place ?? ((await this.grid.at(place))?.row.id === id ? place : null);
  }

  async add(first, end) {
    const found = await this.grid.range(first, Math.min(end, first + MOST));
    for (const { row } of found) if (this.rows.size < MOST) this.rows.set(row.id, row);
    this.show();
    if (this.rows.size === MOST) this.said.textContent = t("selection.full");
  }

  click(event) {
    const card = event.target.closest(".card");
    if (!card?.entry) return;
    const onCheck = event.target.closest(".check");
    const onTile = event.target.closest(".tile");
    if (this.pressed) this.pressed = false; // the click at the end of a long press
    else if ((onCheck || onTile) && event.shiftKey) this.extend(card);
    else if (onCheck || (onTile && this.rows.size && event.pointerType === "touch")) this.toggle(card);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  press(event) {
    const card = event.target.closest(".card");
    this.pressed = false;
    if (event.pointerType !== "touch" || !card?.entry || !event.target.closest(".tile")) return;
    this.from = [event.clientX, event.clientY];
    this.timer = setTimeout(() => {
      this.pressed = true;
      this.toggle(card);
    }, PRESS);
  }

  release({ type, clientX, clientY }) {
    if (type === "pointermove" && (!this.from || Math.hypot(clientX - this.from[0], clientY - this.from[1]) < 10)) return;
    clearTimeout(this.timer);
  }

  key(event) {
    const card = event.target.closest(".card");
    if (!card?.entry || !event.target.classList.contains("tile")) return;
    if (event.key === "x" && !event.ctrlKey && !event.metaKey) this.toggle(card);
    else if (event.key === "a" && (event.ctrlKey || event.metaKey)) this.add(0, this.grid.length);
    else if (event.shiftKey && event.key.startsWith("Arrow")) {
      if (!this.rows.has(card.dataset.id)) this.toggle(card);
      setTimeout(() => { // the grid has moved the focus by then
        const next = document.activeElement.closest(".card");
        if (next?.entry && next !== card) this.extend(next);
      });
      return;
    } else return;
    event.preventDefault();
  }

  searchWith() {
    const ids = [...this.rows.keys()];
    this.clear();
    this.search({ ...ALONE, id: ids[0], codes: null, text: null, crop: null, like: ids.slice(1) });
  }

  async copy() {
    const paths = [...this.rows.values()].map(({ path }) => path);
    try {
      await navigator.clipboard.writeText(paths.join("\n"));
      this.said.textContent = t("selection.copied", { count: paths.length });
    } catch {
      this.said.textContent = t("selection.cannot_copy");
    }
  }

  async download(form) {
    try {
      const { name, images, bytes, missing_count: missing } = await api.prepareList([...this.rows.keys()], form);
      const link = h("a", { href: api.list(name), download: "" });
      document.body.append(link);
      link.click();
      link.remove();
      const count = t("images", { count: images });
      const listed = bytes ? t("selection.listed", { images: count, size: fileSize(bytes) }) : count;
      this.said.textContent = missing ? t("selection.missing", { listed, count: missing }) : listed;
    } catch (error) {
      this.said.textContent = error.message;
    }
  }

  /** A dialog with a question, fields and buttons; an action's error is said in it. */
  ask(title, content, actions) {
    const problem = h("p", { class: "problem", role: "alert", hidden: true });
    const buttons = actions.map(([text, style, action]) => h("button", { type: "button", class: `button ${style}`, onclick: async () => {
      try {
        await action();
        this.dialog.close();
      } catch (error) {
        problem.hidden = false;
        problem.textContent = error.message;
      }
    } }, text));
    this.dialog.replaceChildren(
      h("header", {}, h("h2", { id: "selected-title" }, title), h("button", { class: "button small", onclick: () => this.dialog.close() }, t("close"))),
      content, problem, h("div", { class: "buttons" }, ...buttons));
    this.dialog.showModal();
    return buttons;
  }

  tag() {
    const ids = [...this.rows.keys()];
    const input = h("input", { id: "tag-name", type: "text", maxlength: 100, autocomplete: "off" });
    const act = (side, done) => async () => {
      const { changed } = await api.tagImages(ids, { [side]: [input.value] });
      this.said.textContent = t(done, { count: changed, tag: input.value.trim() });
      this.changed();
    };
    const [add] = this.ask(t("tag.title", { count: ids.length }),
      h("p", { class: "labelled" }, h("label", { for: "tag-name" }, t("tag.label")), input),
      [[t("tag.add"), "primary", act("add", "tag.added")], [t("tag.remove"), "", act("remove", "tag.removed")]]);
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") add.click();
    });
    input.focus();
  }

  remove() {
    const rows = [...this.rows.values()];
    const [, cancel] = this.ask(t("remove.title", { count: rows.length }), h("p", {}, t("remove.note")), [
      [t("remove"), "danger", async () => {
        await api.removeImages(rows.map(({ id }) => id));
        this.clear();
        this.removed(rows);
      }],
      [t("cancel"), "", () => {}],
    ]);
    cancel.focus();
  }
}
