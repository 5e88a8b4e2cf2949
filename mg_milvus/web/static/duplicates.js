// Near-duplicates: groups side by side, as the report of /api/duplicates has them. Nothing can be deleted from here.
// What could go is ticked, and becomes a list, a script, or files moved to the folder of --allow-move.

import { thumbnail, watchDuplicates } from "./api.js";
import { $, fileName, fileSize, h, number } from "./dom.js";
import { Review } from "./review.js";

const GROUPS = 50; // shown at once; a button shows the next
const MEMBERS = 12; // of a group

const about = JSON.parse($("#about").textContent);

const review = new Review(about, () => {
  $("#groups").replaceChildren();
  showGroups(review.groups);
});

/** The box that says whether an image could go. */
function ticker(group, member) {
  if (member.file !== "here") return null;
  const box = h("input", { type: "checkbox", onchange: () => {
    review.tick(group, member, box.checked);
    box.checked = review.ticked.has(member.id);
    box.closest(".card").classList.toggle("goes", box.checked);
  } });
  box.checked = review.ticked.has(member.id);
  return h("label", { class: "tick" }, box, "Could go", h("span", { class: "unseen" }, `: ${fileName(member.path)}`));
}

function card(group, member) {
  const name = fileName(member.path);
  const bars = Object.entries(about.bits).filter(([granularity]) => granularity in member.distances);
  return h("li", { class: `card ${member.keep ? "kept" : member.removable ? "removable" : "fileless"}${review.ticked.has(member.id) ? " goes" : ""}`, data: { id: member.id } },
    h("a", { class: "tile", href: `./?id=${member.id}`, title: member.path },
      h("img", { src: thumbnail(member.id, 480), alt: name, loading: "lazy", decoding: "async" }),
      h("span", { class: "badge" }, member.mark)),
    h("div", { class: "about" },
      h("h3", { class: "name", title: member.path }, h("bdi", {}, name)),
      h("p", { class: "folder", title: member.path }, h("bdi", {}, member.path.slice(0, Math.max(0, member.path.lastIndexOf("/"))))),
      h("p", { class: "sizes" }, h("span", {}, `${member.width} × ${member.height}`), h("span", {}, fileSize(member.size))),
      ticker(group, member),
      member.verdict ? h("p", { class: "duplicate-of" }, member.verdict) : null,
      member.names.length ? h("p", { class: "duplicate-of" }, "the same file: ", h("bdi", {}, member.names.join(", "))) : null,
      member.parts.length ? h("p", { class: "duplicate-of" }, "one shot with: ", h("bdi", {}, member.parts.map(fileName).join(", "))) : null,
      member.keep ? null : h("ul", { class: "bars", role: "list" }, ...bars.map(([granularity, bits], place) => {
        const distance = member.distances[granularity];
        const near = `${(100 * (1 - distance / bits)).toFixed(1)}%`;
        return h("li", { class: `h${place % 6}`, title: `${granularity}: ${distance} of ${bits} bits differ from the image to keep` },
          h("span", { class: "label" }, granularity),
          h("span", { class: "track", "aria-hidden": "true" }, h("i", { style: { width: near } })),
          h("span", { class: "number" }, h("span", { class: "unseen" }, "distance "), String(distance)));
      }))));
}

function section(group, place) {
  const { members } = group;
  const freed = members.filter(({ removable }) => removable).reduce((sum, { size }) => sum + size, 0);
  const more = members.length - MEMBERS;
  return h("section", { class: "group", "aria-labelledby": `group-${place}` },
    h("header", {},
      h("h2", { id: `group-${place}` }, h("span", { class: "unseen" }, `Group ${place + 1}: `), `${number(members.length)} images`),
      h("p", {}, `up to ${group.diameter} bits apart on fine`),
      h("p", {}, `${fileSize(freed)} removable`),
      group.chained ? h("p", { class: "chained" }, "connected through intermediate images") : null),
    h("ol", { class: "hits", role: "list" }, ...members.slice(0, MEMBERS).map((member) => card(group, member))),
    more > 0 ? h("p", { class: "more" }, `and ${number(more)} more of this group, which mgm duplicates --json lists`) : null);
}

function showGroups(groups, first = 0) {
  const next = first + GROUPS;
  $("#groups").append(...groups.slice(first, next).map((group, i) => section(group, first + i)));
  if (groups.length <= next) return;
  const button = h("button", { class: "button", onclick: () => {
    button.remove();
    showGroups(groups, next);
  } }, `Show more of the ${number(groups.length)} groups`);
  $("#groups").append(button);
}

function show({ state, stage, done, total, report, error }) {
  const bar = $("#progress");
  if (state === "running") {
    if (total) bar.value = done / total;
    $("#summary").textContent = total ? `${stage}: ${number(done)} of ${number(total)}` : stage;
    return;
  }
  bar.hidden = true;
  $("#summary").replaceChildren(...(report?.summary ?? []).map((text) => h("p", {}, text)));
  $("#problem").hidden = !error;
  $("#problem").textContent = error ?? "";
  if (!report) return;
  review.load(report);
  showGroups(report.groups);
}

for (const control of [$("#distance"), $("#keep")]) control.addEventListener("change", () => control.form.requestSubmit());
watchDuplicates({ distance: $("#distance").value, keep: $("#keep").value }, show);
