// Near-duplicates, reviewed: pair by pair, side by side, with a divider or as a difference; what could go is ticked.

import * as api from "./api.js";
import { $, fileName, h } from "./dom.js";
import { day, fileSize, said, t } from "./strings.js";

const VIEWS = ["side", "swipe", "difference"];

export class Review {
  /** about: the page's facts. redraw: called after ticks, or the groups, have changed. */
  constructor(about, redraw) {
    Object.assign(this, { about, redraw, ticked: new Set(), groups: [], pairs: [], place: 0, view: "side" });
    this.dialog = h("dialog", { id: "review", class: "review", "aria-labelledby": "review-title", onkeydown: (event) => this.key(event), onclose: () => redraw() });
    this.summary = h("p", { role: "status" });
    this.said = h("p", { role: "status", class: "hint" });
    const button = (text, onclick, style = "small") => h("button", { type: "button", class: `button ${style}`, onclick }, text);
    this.move = about.move_folder ? button(t("review.move"), () => this.moveAway()) : null;
    this.undo = about.move_folder ? button(t("review.undo"), () => this.putBack()) : null;
    if (this.undo) this.undo.hidden = true;
    this.bar = h("div", { id: "ticks", class: "selection", role: "region", "aria-label": t("review.ticks") },
      this.summary,
      h("div", { class: "buttons" },
        this.start = button(t("review.start"), () => this.open(), "small primary"),
        this.listing = button(t("review.list"), () => this.save("duplicates.txt", this.paths().map((path) => [...bytes(path), 10]))),
        this.scripting = button(t("review.script"), () => this.save("duplicates.sh", script(this.paths()))),
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
    else this.said.textContent = t("review.stays");
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
    this.summary.textContent = t("review.summary", { count: members.length, size: fileSize(size) });
    this.start.disabled = !this.pairs.length;
    for (const control of [this.listing, this.scripting, this.move]) if (control) control.disabled = !members.length;
    if (this.move) this.move.title = t("review.move_title", { folder: this.about.move_folder });
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
    const views = VIEWS.map((view) => h("button", {
      type: "button", class: "segment", "aria-pressed": String(view === this.view), onclick: () => this.choose(view),
    }, t(`review.${view}`)));
    this.note = h("p", { role: "status", class: "hint" });
    const focused = this.dialog.contains(document.activeElement) ? document.activeElement.dataset.action : null;
    this.dialog.replaceChildren(
      h("header", {},
        h("h2", { id: "review-title" }, t("review.pair", { place: this.place + 1, total: this.pairs.length, verdict: right.verdict ? said(right.verdict) : t("review.near") })),
        h("div", { class: "segments", role: "group", "aria-label": t("review.view") }, ...views),
        button(t("close"), () => this.dialog.close(), { class: "button small" })),
      this.stage(pair),
      h("div", { class: "sides" }, this.facts(left, t("review.left")), this.facts(right, t("review.right"))),
      h("div", { class: "buttons verdicts" },
        button(t("review.left_stays"), () => this.decide(group, right, left), { data: { action: "left" } }),
        button(t("review.right_stays"), () => this.decide(group, left, right), { data: { action: "right" } }),
        button(t("review.not"), () => this.notDuplicates(), { data: { action: "not" } }),
        button(t("review.back"), () => this.step(-1), { disabled: this.place === 0, data: { action: "back" } }),
        button(t("review.next"), () => this.step(1), { disabled: this.place === this.pairs.length - 1, data: { action: "next" } })),
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
      h("input", { type: "range", class: "swipe", min: 0, max: 100, value: 50, step: 1, "aria-label": t("review.divider"), oninput: divide }));
    return stage;
  }

  facts(member, side) {
    const goes = this.ticked.has(member.id);
    const folder = member.path.slice(0, Math.max(0, member.path.lastIndexOf("/")));
    return h("div", { class: goes ? "goes" : "stays" },
      h("b", {}, t("named", { name: side, text: member.file !== "here" ? said(member.mark) : t(goes ? "review.goes" : "review.remains") })),
      h("p", {}, h("bdi", {}, fileName(member.path))),
      h("p", { class: "hint" }, h("bdi", {}, folder)),
      h("p", {}, t("review.facts", { size: t("pixels", member), bytes: fileSize(member.size), date: day(member.mtime_ns) })));
  }

  choose(view) {
    this.view = view;
    this.draw();
  }

  decide(group, goes, stays) {
    this.ticked.delete(stays.id);
    if (this.tick(group, goes, true) && this.place < this.pairs.length - 1) this.place += 1;
    this.draw();
    this.note.textContent = this.said.textContent || (this.place === this.pairs.length - 1 ? t("review.last") : "");
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
    this.note.textContent = t(this.about.can_ignore ? "review.remembered" : "review.left_out");
    this.said.textContent = this.note.textContent;
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.pairs.length) return;
    const { group, left, right } = this.pairs[this.place];
    const onRange = event.target.type === "range";
        if (event.key === "1") this.decide(group, right, left);
    else if (event.key === "2") this.decide(group, left, right);
    else if (event.key === " " && !onRange) this.notDuplicates();
    else if (event.key === "v") this.choose(VIEWS[(VIEWS.indexOf(this.view) + 1) % VIEWS.length]);
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
      const moved = t("review.moved", { count: files.length, folder: this.about.move_folder });
      this.said.textContent = failures.length ? t("review.moved_but", { moved, ...failures[0] }) : moved;
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
      this.said.textContent = t(failures.length ? "review.put_back_but" : "review.put_back", { count: files.length, ...failures[0] });
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
