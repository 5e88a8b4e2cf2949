// A box on an image: dragged with a mouse or pen, with a finger after the button, or moved with the arrow keys.

import { h } from "./dom.js";
import { t } from "./strings.js";

const LEAST = 12; // pixels on the screen: less is a click
const STEP = 0.03;

export class BoxDrawer {
  /**
   * frame: the element around the image, with position: relative.
   * size: () => [width, height] of the whole image in its own pixels, or null while unknown.
   * chosen: called with [x, y, width, height] in those pixels.
   * button: begins a box for those without a mouse, and then searches with it.
   */
  constructor(frame, size, chosen, button) {
    Object.assign(this, { frame, size, chosen, button, box: null, start: null });
    this.invitation = button.textContent;
    button.addEventListener("click", () => (frame.classList.contains("drawing") ? this.choose() : this.begin()));
    this.element = h("div", {
      class: "crop", role: "application", tabindex: "-1", hidden: true,
      "aria-label": t("crop.keys"),
      onkeydown: (event) => this.key(event),
    });
    frame.append(this.element);
    frame.addEventListener("pointerdown", (event) => this.down(event));
    frame.addEventListener("pointermove", (event) => this.move(event));
    frame.addEventListener("pointerup", (event) => this.up(event));
    frame.addEventListener("pointercancel", () => this.cancel());
    frame.addEventListener("dragstart", (event) => event.preventDefault());
  }

  /** Show a box of image pixels, or none. */
  show(pixels) {
    const size = this.size();
    this.accepted = pixels;
    this.box = pixels && size ? pixels.map((value, i) => value / size[i % 2]) : null;
    this.end();
    this.draw();
  }

  end() {
    this.frame.classList.remove("drawing");
    this.element.tabIndex = -1;
    this.button.textContent = this.invitation;
  }

  /** A box in the middle, to be moved with keys or drawn anew with a finger. */
  begin() {
    if (!this.size()) return;
    this.box ??= [0.25, 0.25, 0.5, 0.5];
    this.frame.classList.add("drawing");
    this.element.tabIndex = 0;
    this.button.textContent = t("crop.search_this");
    this.draw();
    this.element.focus();
  }

  at(event) {
    const { left, top, width, height } = this.frame.getBoundingClientRect();
    const inside = (value) => Math.min(1, Math.max(0, value));
    return [inside((event.clientX - left) / width), inside((event.clientY - top) / height)];
  }

  down(event) {
    const drawing = this.frame.classList.contains("drawing");
    if (event.button !== 0 || !this.size() || (event.pointerType === "touch" && !drawing)) return;
    this.start = this.at(event);
    this.frame.setPointerCapture(event.pointerId);
    event.preventDefault();
  }

  move(event) {
    if (!this.start) return;
    const end = this.at(event);
    this.box = [0, 1].map((i) => Math.min(this.start[i], end[i]));
    this.box.push(...[0, 1].map((i) => Math.abs(this.start[i] - end[i])));
    this.draw();
  }

  up(event) {
    if (!this.start) return;
    this.move(event);
    this.start = null;
    const { width, height } = this.frame.getBoundingClientRect();
    if (this.box[2] * width < LEAST || this.box[3] * height < LEAST) this.show(this.accepted ?? null);
    else this.choose();
  }

  cancel() {
    this.start = null;
    this.show(this.accepted ?? null);
  }

  key(event) {
    const arrow = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, -1], ArrowDown: [1, 1] }[event.key];
    if (event.key === "Enter") this.choose();
    else if (event.key === "Escape") this.cancel();
    else if (arrow && this.box) {
      const [axis, sign] = arrow;
      const place = event.shiftKey ? axis + 2 : axis;
      const least = event.shiftKey ? STEP : 0;
      const most = event.shiftKey ? 1 - this.box[axis] : 1 - this.box[axis + 2];
      this.box[place] = Math.min(most, Math.max(least, this.box[place] + sign * STEP));
      this.draw();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  choose() {
    const [width, height] = this.size();
    const x = Math.round(this.box[0] * width);
    const y = Math.round(this.box[1] * height);
    const right = Math.round((this.box[0] + this.box[2]) * width);
    const bottom = Math.round((this.box[1] + this.box[3]) * height);
    this.end();
    this.chosen([Math.min(x, width - 1), Math.min(y, height - 1), Math.max(1, right - x), Math.max(1, bottom - y)]);
  }

  draw() {
    this.element.hidden = !this.box;
    if (!this.box) return;
    ["left", "top", "width", "height"].forEach((side, i) => {
      this.element.style[side] = `${100 * this.box[i]}%`;
    });
  }
}
