// One image, large: zoom, pan, the next and the previous one, and what is known of it.

import { original, thumbnail } from "./api.js";
import { fileName, h, nameParts, svg } from "./dom.js";
import { facts } from "./facts.js";
import { words } from "./grid.js";
import { t } from "./strings.js";

const MOST = 12; // times the size that fits the window
const LARGEST = 3; // times its own size that a small image is shown at
const STEP = 1.4; // of the keys and buttons
const SWIPE = 60; // pixels
const SMALL = 480, LARGE = 1600; // sides of thumbnails

const icon = (...paths) => svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, ...paths.map((d) => svg("path", { d })));

export class Lightbox {
  /**
   * dialog: a <dialog>. search: called with a row to search with. why: called with an entry that is to be explained;
   * null where nothing can be explained.
   */
  constructor(dialog, { search, why = null }) {
    Object.assign(this, { dialog, search, why, fingers: new Map() });
    this.image = h("img", { draggable: "false" });
    this.stage = h("div", { class: "stage" }, this.image);
    this.about = h("aside", { class: "about-image", id: "about-image", tabindex: -1, "aria-label": t("lightbox.about"), hidden: true });
    this.name = h("h2", { id: "lightbox-title", "aria-live": "polite" });
    this.place = h("p", { class: "position" });
    this.verdict = h("p", { class: "verdict" });
    const button = (label, key, drawing, action, more = {}) => h("button", { type: "button", title: t("lightbox.key", { label, key }), "aria-label": label, onclick: action, ...more }, drawing);
    this.previous = button(t("lightbox.previous"), "←", icon("M15 5l-7 7 7 7"), () => this.move(-1), { class: "step previous" });
    this.next = button(t("lightbox.next"), "→", icon("M9 5l7 7-7 7"), () => this.move(1), { class: "step next" });
    this.facts = button(t("lightbox.facts"), "I", icon("M12 11v6M12 7.5v.5M12 3a9 9 0 100 18 9 9 0 000-18z"), () => this.showFacts(this.about.hidden), { "aria-expanded": "false", "aria-controls": "about-image" });
    this.open = h("a", { class: "button", target: "_blank", rel: "noopener" }, t("lightbox.original"));
    this.reason = why && h("button", { class: "button", type: "button", onclick: () => this.leave(() => this.why(this.entry)) }, t("card.why"));
    dialog.replaceChildren(
      h("header", {},
        h("div", { class: "titles" }, this.name, this.place, this.verdict),
        h("div", { class: "icons" },
          button(t("lightbox.smaller"), "-", icon("M6 12h12"), () => this.zoom(1 / STEP)),
          button(t("lightbox.larger"), "+", icon("M6 12h12M12 6v12"), () => this.zoom(STEP)),
          this.facts,
          button(t("close"), "Esc", icon("M6 6l12 12M18 6L6 18"), () => dialog.close(), { autofocus: true }))),
      this.stage, this.about, this.previous, this.next,
      h("footer", {},
        h("button", { class: "button primary", type: "button", title: t("card.search"), onclick: () => this.leave(() => this.search(this.entry.row)) }, t("lightbox.search")),
        this.open, this.reason));
    dialog.addEventListener("keydown", (event) => this.press(event));
    dialog.addEventListener("close", () => {
      this.image.removeAttribute("src");
      if (!this.left) this.list.focus(this.at);
      this.left = false;
    });
    this.stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), event);
    }, { passive: false });
    this.stage.addEventListener("dblclick", (event) => (this.scale > 1 ? this.fit() : this.zoom(3, event)));
    for (const type of ["pointerdown", "pointermove", "pointerup", "pointercancel"]) {
      this.stage.addEventListener(type, (event) => this.touch(event));
    }
  }

  /** Show the image of a place in a list: what has length, at(place) and focus(place), as a grid. */
  async show(list, place) {
    this.list = list;
    this.dialog.showModal();
    await this.go(place);
  }

  async go(place) {
    this.at = place;
    this.previous.disabled = place === 0;
    this.next.disabled = place + 1 >= this.list.length;
    const entry = await this.list.at(place);
    if (place !== this.at || !this.dialog.open) return;
    if (!entry) {
      this.name.textContent = t("lightbox.gone");
      return;
    }
    this.entry = entry;
    const { row } = entry;
    const name = fileName(row.path);
    this.name.replaceChildren(...nameParts(name));
    this.name.title = row.path;
    this.place.textContent = t("of", { place: place + 1, total: this.list.length });
    this.verdict.textContent = words(row);
    this.image.alt = name;
    this.open.href = original(row.id);
    if (this.reason) this.reason.hidden = !entry.ranks;
    this.about.replaceChildren(facts(row));
    this.fit();
    this.load(row);
    const next = await this.list.at(Math.min(place + 1, this.list.length - 1));
    if (next) new Image().src = thumbnail(next.row.id, LARGE);
  }

  /** The thumbnail that is on the card, at once, then the large one. The file itself comes with the zoom. */
  async load({ id, width, height }) {
    this.whole = false;
    this.stage.classList.remove("unreadable");
    Object.assign(this.image.style, { maxWidth: `${LARGEST * width}px`, maxHeight: `${LARGEST * height}px` });
    this.image.src = thumbnail(id, SMALL);
    const large = await decoded(thumbnail(id, LARGE));
    if (this.entry.row.id !== id) return;
    if (large) this.image.src = large;
    else this.stage.classList.add("unreadable");
  }

  async loadWhole() {
    const { id, width, height } = this.entry.row;
    const shown = Math.max(this.image.offsetWidth, this.image.offsetHeight) * this.scale * devicePixelRatio;
    if (this.whole || shown <= LARGE || Math.max(width, height) <= LARGE) return;
    this.whole = true;
    const file = await decoded(original(id)); // null for formats that browsers do not show
    if (file && this.entry.row.id === id) this.image.src = file;
  }

  fit() {
    this.scale = 1;
    this.x = this.y = 0;
    this.draw();
  }

  /** Zoom by a factor around a place of the window; around the middle without one. */
  zoom(factor, { clientX, clientY } = {}) {
    const scale = Math.min(MOST, Math.max(1, this.scale * factor));
    const frame = this.stage.getBoundingClientRect();
    const [x, y] = [(clientX ?? frame.x + frame.width / 2) - frame.x - frame.width / 2, (clientY ?? frame.y + frame.height / 2) - frame.y - frame.height / 2];
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.draw();
    this.loadWhole();
  }

  pan(x, y) {
    this.x += x;
    this.y += y;
    this.draw();
  }

  /** Draw the image where it is, but never away from the window. */
  draw() {
    const most = (image, stage) => Math.max(0, (image * this.scale - stage) / 2);
    const [x, y] = [most(this.image.offsetWidth, this.stage.offsetWidth), most(this.image.offsetHeight, this.stage.offsetHeight)];
    this.x = Math.min(x, Math.max(-x, this.x));
    this.y = Math.min(y, Math.max(-y, this.y));
    this.image.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.scale})`;
    this.stage.classList.toggle("zoomed", this.scale > 1);
  }

  /** Drag a zoomed image, pinch with two fingers, swipe to the next one. */
  touch(event) {
    const { type, pointerId, clientX: x, clientY: y } = event;
    const before = this.fingers.get(pointerId);
    if (type === "pointerdown") {
      if (event.button) return;
      this.stage.setPointerCapture(pointerId);
      this.fingers.set(pointerId, { x, y, from: x });
      this.pinched = this.fingers.size > 1;
      return;
    }
    if (!before) return;
    if (type === "pointermove") {
      const other = [...this.fingers].find(([id]) => id !== pointerId)?.[1];
      this.fingers.set(pointerId, { ...before, x, y });
      if (other) {
        const apart = (one) => Math.max(1, Math.hypot(one.x - other.x, one.y - other.y));
        this.zoom(apart({ x, y }) / apart(before), { clientX: (x + other.x) / 2, clientY: (y + other.y) / 2 });
      } else if (this.scale > 1) this.pan(x - before.x, y - before.y);
      return;
    }
    this.fingers.delete(pointerId);
    const across = x - before.from;
    if (type === "pointerup" && this.scale === 1 && !this.pinched && Math.abs(across) > SWIPE) this.move(across < 0 ? 1 : -1);
  }

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const aside = 80;
    const pans = { ArrowLeft: [aside, 0], ArrowRight: [-aside, 0], ArrowUp: [0, aside], ArrowDown: [0, -aside] };
    const inFacts = this.about.contains(event.target);
    const actions = {
      ArrowLeft: () => this.move(-1), ArrowRight: () => this.move(1), "+": () => this.zoom(STEP), "=": () => this.zoom(STEP),
      "-": () => this.zoom(1 / STEP), 0: () => this.fit(), i: () => this.showFacts(this.about.hidden),
      s: () => this.leave(() => this.search(this.entry.row)), Home: () => this.go(0), End: () => this.go(this.list.length - 1),
    };
    const action = event.shiftKey && pans[event.key] ? () => this.pan(...pans[event.key])
      : inFacts && ["Home", "End"].includes(event.key) ? null : actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  move(step) {
    const place = this.at + step;
    if (place >= 0 && place < this.list.length) this.go(place);
  }

  showFacts(shown) {
    this.about.hidden = !shown;
    this.facts.setAttribute("aria-expanded", String(shown));
    this.dialog.classList.toggle("with-facts", shown);
    this.draw();
  }

  /** Close, and do something else; the focus does not go back to the grid. */
  leave(action) {
    this.left = true;
    this.dialog.close();
    action();
  }
}

/** An address once its image can be shown; null when it cannot. */
async function decoded(address) {
  const image = new Image();
  image.src = address;
  try {
    await image.decode();
    return address;
  } catch {
    return null;
  }
}
