// Near-duplicates, reviewed: pair by pair, side by side, with a divider or as a difference; what could go is ticked.

import * as api from "./api.js";
import { $, fileName, fileSize, h, number } from "./dom.js";

const VIEWS = { side: "Side by side", swipe: "Swipe", difference: "Difference" };

export class Review {
  /** about: the page's facts. redraw: called after ticks, or the groups, have changed. */
  constructor(about, redraw) {
    Object.assign(this, { about, redraw, ticked: new Set(), groups: [], pairs: [], place: 0, view: "side" });
    this.dialog = h("dialog", { id: "review", class: "review", "aria-labelledby": "review-title", onkeydown: (event) => this.key(event), onclose: () => redraw() });
    this.summary = h("p", { role: "status" });
    this.said = h("p", { role: "status", class: "hint" });
    const button = (text, onclick, style = "small") => h("button", { type: "button", class: `button ${style}`, onclick }, text);
    this.move = about.move_folder ? button("Move them", () => this.moveAway()) : null;
    this.undo = about.move_folder ? button("Put the last back", () => this.putBack()) : null;
    if (this.undo) this.undo.hidden = true;
    this.bar = h("div", { id: "ticks", class: "selection", role: "region", "aria-label": "Images that could go" },
      this.summary,
      h("div", { class: "buttons" },
        this.start = button("Review", () => this.open(), "small primary"),
        this.listing = button("List", () => this.save("duplicates.txt", this.paths().map((path) => [...bytes(path), 10]))),
        this.scripting = button("Script", () => this.save("duplicates.sh", script(this.paths()))),
        this.move, this.undo),
      this.said);
    document.body.append(this.dialog, this.bar);
    document.body.classList.add("with-selection");
    this.look();
  }

  /** Take over a report: what is removable is ticked. */
  load(report) {
    this.name = report.name;
    this.groups = report.groups;
    this.ticked = new Set(report.groups.flatMap(({ members }) => members.filter(({ removable }) => removable).map(({ id }) => id)));
    this.pair();
    this.show();
  }

  pair() {
    this.pairs = this.groups.flatMap((group) => {
      const kept = group.members.filter(({ keep }) => keep);
      return group.members.filter(({ keep }) => !keep).map((member) => ({
        group, left: kept.find(({ path }) => path === member.duplicate_of) ?? kept[0] ?? group.members.find((other) => other !== member), right: member,
      }));
    });
    this.place = Math.min(this.place, Math.max(0, this.pairs.length - 1));
  }

  /** Whether a member may be ticked: its file is there, and another one of its group stays. */
  mayGo(group, member) {
    return member.file === "here" && group.members.some((other) => other !== member && other.file === "here" && !this.ticked.has(other.id));
  }

  tick(group, member, on) {
    this.said.textContent = "";
    if (!on) this.ticked.delete(member.id);
    else if (this.mayGo(group, member)) this.ticked.add(member.id);
    else this.said.textContent = "One image of a group stays.";
    this.show();
    return this.ticked.has(member.id) === on;
  }

  members() {
    return this.groups.flatMap(({ members }) => members.filter(({ id }) => this.ticked.has(id)));
  }

  paths() {
    return [...new Set(this.members().flatMap(({ path, names, parts }) => [path, ...names, ...parts]))];
  }

  show() {
    const members = this.members();
    const size = members.reduce((sum, member) => sum + member.size, 0);
    this.summary.textContent = `${number(members.length)} could go (${fileSize(size)})`;
    this.start.disabled = !this.pairs.length;
    for (const control of [this.listing, this.scripting, this.move]) if (control) control.disabled = !members.length;
    if (this.move) this.move.title = `Move them to ${this.about.move_folder}; nothing is deleted`;
  }

  open() {
    this.dialog.showModal();
    this.draw();
  }

  draw() {
    if (!this.pairs.length) {
      this.dialog.close();
      return;
    }
    const pair = this.pairs[this.place];
    const { group, left, right } = pair;
    const button = (text, onclick, options = {}) => h("button", { type: "button", class: "button", onclick, ...options }, text);
    const views = Object.entries(VIEWS).map(([view, text]) => h("button", {
      type: "button", class: "segment", "aria-pressed": String(view === this.view), onclick: () => this.choose(view),
    }, text));
    this.note = h("p", { role: "status", class: "hint" });
    const focused = this.dialog.contains(document.activeElement) ? document.activeElement.dataset.action : null;
    this.dialog.replaceChildren(
      h("header", {},
        h("h2", { id: "review-title" }, `Pair ${number(this.place + 1)} of ${number(this.pairs.length)}: ${right.verdict || "near"}`),
        h("div", { class: "segments", role: "group", "aria-label": "View (v)" }, ...views),
        button("Close", () => this.dialog.close(), { class: "button small" })),
      this.stage(pair),
      h("div", { class: "sides" }, this.facts(left, "Left"), this.facts(right, "Right")),
      h("div", { class: "buttons verdicts" },
        button("1 · Left stays", () => this.decide(group, right, left), { data: { action: "left" } }),
        button("2 · Right stays", () => this.decide(group, left, right), { data: { action: "right" } }),
        button("Space · Not a duplicate", () => this.notDuplicates(), { data: { action: "not" } }),
        button("← Back", () => this.step(-1), { disabled: this.place === 0, data: { action: "back" } }),
        button("Next →", () => this.step(1), { disabled: this.place === this.pairs.length - 1, data: { action: "next" } })),
      this.note);
    (this.dialog.querySelector(`[data-action=${focused ?? "left"}]:enabled`) ?? this.dialog.querySelector("[data-action=left]")).focus();
  }

  image(member, style) {
    return h("img", { src: api.thumbnail(member.id, 1600), alt: fileName(member.path), class: style });
  }

  stage({ left, right }) {
    if (this.view === "side") return h("div", { class: "stage side" }, this.image(left), this.image(right));
    const over = this.image(right, "over");
    const stage = h("div", { class: `stage ${this.view}` }, this.image(left), over);
    if (this.view === "difference") return stage;
    const divide = ({ target }) => stage.style.setProperty("--divider", `${target.value}%`);
    stage.style.setProperty("--divider", "50%");
    stage.append(h("i", { class: "divider", "aria-hidden": "true" }),
      h("input", { type: "range", class: "swipe", min: 0, max: 100, value: 50, step: 1, "aria-label": "Divider: left of it the left image, right of it the right one", oninput: divide }));
    return stage;
  }

  facts(member, side) {
    const goes = this.ticked.has(member.id);
    const folder = member.path.slice(0, Math.max(0, member.path.lastIndexOf("/")));
    return h("div", { class: goes ? "goes" : "stays" },
      h("b", {}, `${side}: ${member.file !== "here" ? member.mark : goes ? "could go" : "stays"}`),
      h("p", {}, h("bdi", {}, fileName(member.path))),
      h("p", { class: "hint" }, h("bdi", {}, folder)),
      h("p", {}, `${number(member.width)} × ${number(member.height)}, ${fileSize(member.size)}, ${new Date(member.mtime_ns / 1e6).toISOString().slice(0, 10)}`));
  }

  choose(view) {
    this.view = view;
    this.draw();
  }

  decide(group, goes, stays) {
    this.ticked.delete(stays.id);
    if (this.tick(group, goes, true) && this.place < this.pairs.length - 1) this.place += 1;
    this.draw();
    this.note.textContent = this.said.textContent || (this.place === this.pairs.length - 1 ? "That was the last pair." : "");
  }

  step(by) {
    this.place = Math.min(this.pairs.length - 1, Math.max(0, this.place + by));
    this.draw();
  }

  async notDuplicates() {
    const { group, left, right } = this.pairs[this.place];
    if (this.about.can_ignore) {
      try {
        await api.ignorePair([left.id, right.id]);
      } catch (error) {
        this.note.textContent = error.message;
        return;
      }
    }
    this.ticked.delete(right.id);
    group.members = group.members.filter((member) => member !== right);
    this.groups = this.groups.filter(({ members }) => members.length > 1);
    this.pair();
    this.show();
    this.draw();
    this.note.textContent = this.about.can_ignore ? "Remembered: they are no duplicates." : "Left out now; to remember it, start mgm serve with --ignore FILE.";
    this.said.textContent = this.note.textContent;
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.pairs.length) return;
    const { group, left, right } = this.pairs[this.place];
    const onRange = event.target.type === "range";
    const views = Object.keys(VIEWS);
    if (event.key === "1") this.decide(group, right, left);
    else if (event.key === "2") this.decide(group, left, right);
    else if (event.key === " " && !onRange) this.notDuplicates();
    else if (event.key === "v") this.choose(views[(views.indexOf(this.view) + 1) % views.length]);
    else if (event.key === "ArrowLeft" && !onRange) this.step(-1);
    else if (event.key === "ArrowRight" && !onRange) this.step(1);
    else return;
    event.preventDefault();
  }

  save(name, parts) {
    const address = URL.createObjectURL(new Blob(parts.map((part) => new Uint8Array(part))));
    const link = h("a", { href: address, download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  }

  async moveAway() {
    this.move.disabled = true;
    try {
      const { files, failures } = await api.moveCopies(this.name, this.members().map(({ id }) => id));
      const stayed = new Set(failures.map(({ path }) => path));
      for (const group of this.groups) group.members = group.members.filter((member) => !this.ticked.has(member.id) || stayed.has(member.path));
      this.groups = this.groups.filter(({ members }) => members.length > 1);
      this.ticked = new Set([...this.ticked].filter((id) => this.groups.some(({ members }) => members.some((member) => member.id === id))));
      this.pair();
      this.redraw();
      this.said.textContent = `${number(files.length)} files moved to ${this.about.move_folder}${failures.length ? `; ${failures[0].path} stays: ${failures[0].reason}` : ""}`;
    } catch (error) {
      this.said.textContent = error.message;
    }
    const said = this.said.textContent;
    this.show();
    this.said.textContent = said;
    this.look();
  }

  async putBack() {
    try {
      const { files, failures } = await api.undoMove();
      this.said.textContent = `${number(files.length)} files put back${failures.length ? `; ${failures[0].path} is not: ${failures[0].reason}` : ". Search again to see them."}`;
    } catch (error) {
      this.said.textContent = error.message;
    }
    this.look();
  }

  async look() {
    if (this.undo) this.undo.hidden = !(await api.canUndo().catch(() => ({ undo: false }))).undo;
  }
}

/** The bytes of a path; one that is not UTF-8 comes as a percent-encoded URI. */
function bytes(path) {
  if (!path.startsWith("file://")) return [...new TextEncoder().encode(path)];
  return path.slice(7).match(/%[0-9A-Fa-f]{2}|[^%]/g).map((one) => (one.length === 3 ? parseInt(one.slice(1), 16) : one.charCodeAt(0)));
}

/** A script for sh that moves files to the folder that it is called with. */
function script(paths) {
  const text = (line) => [...new TextEncoder().encode(`${line}\n`)];
  const quoted = (path) => [39, ...bytes(path).flatMap((byte) => (byte === 39 ? [39, 92, 39, 39] : [byte])), 39];
  return [
    text("#!/bin/sh"),
    text("# Moves files that have copies elsewhere into a folder: sh duplicates.sh FOLDER. Nothing is overwritten or deleted."),
    text("set -eu"),
    text('to=${1:?name a folder: sh duplicates.sh FOLDER}'),
    text('move() { mkdir -p -- "$to$(dirname -- "$1")"; mv -n -- "$1" "$to$1"; }'),
    ...paths.map((path) => [...text("move ").slice(0, -1), ...quoted(path), 10]),
  ];
}
