// Near-duplicates: groups side by side, as the report of /api/duplicates has them. Nothing can be deleted from here.
// What could go is ticked, and becomes a list, a script, or files moved to the folder of --allow-move.

import { thumbnail, watchDuplicates } from "./api.js";
import { $, fileName, h } from "./dom.js";
import { Review } from "./review.js";
import { fileSize, fixed, nodes, number, percent, said, t } from "./strings.js";

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
  return h("label", { class: "tick" }, box, t("near.could_go"), h("span", { class: "unseen" }, ` ${fileName(member.path)}`));
}

function card(group, member) {
  const name = fileName(member.path);
  const bars = Object.entries(about.bits).filter(([granularity]) => granularity in member.distances);
  return h("li", { class: `card ${member.keep ? "kept" : member.removable ? "removable" : "fileless"}${review.ticked.has(member.id) ? " goes" : ""}`, data: { id: member.id } },
    h("a", { class: "tile", href: `./?id=${member.id}`, title: member.path },
      h("img", { src: thumbnail(member.id, 480), alt: name, loading: "lazy", decoding: "async" }),
      h("span", { class: "badge" }, said(member.mark))),
    h("div", { class: "about" },
      h("h3", { class: "name", title: member.path }, h("bdi", {}, name)),
      h("p", { class: "folder", title: member.path }, h("bdi", {}, member.path.slice(0, Math.max(0, member.path.lastIndexOf("/"))))),
      h("p", { class: "sizes" }, h("span", {}, t("pixels", member)), h("span", {}, fileSize(member.size))),
      ticker(group, member),
      member.verdict ? h("p", { class: "duplicate-of" }, said(member.verdict)) : null,
      member.names.length ? h("p", { class: "duplicate-of" }, ...nodes("near.same_file", { names: h("bdi", {}, member.names.join(", ")) })) : null,
      member.parts.length ? h("p", { class: "duplicate-of" }, ...nodes("near.one_shot", { names: h("bdi", {}, member.parts.map(fileName).join(", ")) })) : null,
      member.keep ? null : h("ul", { class: "bars", role: "list" }, ...bars.map(([granularity, bits], place) => {
        const distance = member.distances[granularity];
        const near = `${(100 * (1 - distance / bits)).toFixed(1)}%`;
        return h("li", { class: `h${place % 6}`, title: t("near.differ", { name: granularity, distance, bits }) },
          h("span", { class: "label" }, granularity),
          h("span", { class: "track", "aria-hidden": "true" }, h("i", { style: { width: near } })),
          h("span", { class: "number" }, h("span", { class: "unseen" }, `${t("card.distance")} `), number(distance)));
      }))));
}

function section(group, place) {
  const { members } = group;
  const freed = members.filter(({ removable }) => removable).reduce((sum, { size }) => sum + size, 0);
  const more = members.length - MEMBERS;
  return h("section", { class: "group", "aria-labelledby": `group-${place}` },
    h("header", {},
      h("h2", { id: `group-${place}` }, h("span", { class: "unseen" }, `${t("near.group", { place: place + 1 })} `), t("images", { count: members.length })),
      h("p", {}, t("near.diameter", { count: group.diameter })),
      h("p", {}, t("near.freed", { size: fileSize(freed) })),
      group.chained ? h("p", { class: "chained" }, t("near.chained")) : null),
    h("ol", { class: "hits", role: "list" }, ...members.slice(0, MEMBERS).map((member) => card(group, member))),
    more > 0 ? h("p", { class: "more" }, t("near.members", { count: more })) : null);
}

function showGroups(groups, first = 0) {
  const next = first + GROUPS;
  $("#groups").append(...groups.slice(first, next).map((group, i) => section(group, first + i)));
  if (groups.length <= next) return;
  const button = h("button", { class: "button", onclick: () => {
    button.remove();
    showGroups(groups, next);
  } }, t("near.groups", { count: groups.length }));
  $("#groups").append(button);
}

/** Lines on a report: what was found, what was looked at, and what can be by chance. */
function summary(report) {
  const { rows, groups, distance, limits, verdicts, expected_false: expected } = report;
  const members = groups.flatMap((group) => group.members);
  const gone = members.filter(({ removable }) => removable);
  const looked = Object.entries(verdicts).filter(([, count]) => count);
  const pairs = looked.reduce((sum, [, count]) => sum + count, 0);
  const counted = (name) => (report[name] ? t(`near.${name}`, { count: report[name] }) : null);
  const found = groups.length
    ? t("near.found", {
      count: groups.length, images: t("images", { count: members.length }), rows, removable: gone.length,
      size: fileSize(gone.reduce((sum, { size }) => sum + size, 0)),
    })
    : t("near.none", { images: t("images", { count: rows }) });
  const byCodes = () => {
    if (distance === null) return [t("near.too_far", { share: percent(report.precision ?? 0, 1) })];
    const others = Object.entries(limits).filter(([name, limit]) => limit < about.bits[name]);
    const small = (value) => (value < 0.01 ? t("near.little") : value >= 10 ? number(Math.round(value)) : fixed(value, 2));
    return [
      [t("near.limit", { distance, bits: about.bits.fine }), ...others.map(([name, limit]) => t("near.limit_more", { limit, bits: about.bits[name], name }))].join(", "),
      [t("near.unseen", { near: report.near_pairs, pairs: report.unseen_pairs }), expected === null ? t("near.unknown") : t("near.expected", { number: small(expected) })].join("; "),
    ];
  };
  return [
    found,
    ...(report.compared ? [
      pairs ? t("near.looked", { count: pairs, verdicts: looked.map(([verdict, count]) => t("near.verdict", { number: count, verdict: said(verdict) })).join(", ") }) : null,
      counted("ignored"),
      ...(report.unseen_pairs ? byCodes() : []),
    ] : [t("near.nothing_new")]),
    ...["missing", "away", "changed"].map(counted),
  ].filter(Boolean);
}

function show({ state, stage, done, total, report, error }) {
  const bar = $("#progress");
  if (state === "running") {
    if (total) bar.value = done / total;
    $("#summary").textContent = total ? t("step", { stage: said(stage), done, total }) : said(stage);
    return;
  }
  bar.hidden = true;
  $("#summary").replaceChildren(...(report ? summary(report) : []).map((text) => h("p", {}, text)));
  $("#problem").hidden = !error;
  $("#problem").textContent = said(error ?? "");
  if (!report) return;
  review.load(report);
  showGroups(report.groups);
}

for (const control of [$("#distance"), $("#keep")]) control.addEventListener("change", () => control.form.requestSubmit());
watchDuplicates({ distance: $("#distance").value, keep: $("#keep").value }, show);
