// "Why this?": a hit beside the query, with distance, rank and contribution to the score of every granularity.

import { original, remove, thumbnail } from "./api.js";
import { BoxDrawer } from "./box.js";
import { fileName, h } from "./dom.js";
import { facts } from "./facts.js";
import { contributions } from "./fusion.js";
import { distanceText, region, words } from "./grid.js";
import { fixed, nodes, number, percent, rankText, t } from "./strings.js";

/** A share of random pairs, in words. */
const chanceText = (share) => (share >= 0.1 ? percent(share) : t("why.one_in", { number: Number((1 / share).toPrecision(2)) }));

const queryRegion = ({ crop, size }) => (crop && size ? region({ box: crop, width: size[0], height: size[1] }) : null);

export class Why {
  /**
   * about: the page's facts. search: called with a row and a crop or null. removed: called with a row that is no
   * longer indexed.
   */
  constructor(dialog, about, { search, removed }) {
    Object.assign(this, { dialog, about, search, removed });
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close();
    });
  }

  /** Explain an entry of `fuse`; settings are those it was ranked with. */
  show(entry, settings, queryImage) {
    const { row } = entry;
    const frame = h("div", { class: "frame" }, h("img", { src: thumbnail(row.id, 1600), alt: fileName(row.path) }));
    const crop = h("button", { class: "button" }, t("crop.search"));
    new BoxDrawer(frame, () => [row.width, row.height], (box) => this.leave(() => this.search(row, box)), crop);
    if (row.box) frame.append(region(row));
    const close = () => this.dialog.close();
    this.dialog.replaceChildren(
      h("header", {},
        h("h2", { id: "why-title" }, ...nodes("why.title", { name: h("bdi", {}, fileName(row.path)), rank: entry.rank })),
        h("button", { class: "button small", onclick: close, autofocus: true }, t("close"))),
      h("div", { class: "pair" },
        h("figure", {},
          queryImage.address ? h("div", { class: "frame" }, h("img", { src: queryImage.address, alt: t("why.query_image") }), queryRegion(queryImage)) : h("p", { class: "nothing" }, t("why.imageless")),
          h("figcaption", {}, t("why.query"))),
        h("figure", {}, frame, h("figcaption", {}, t("why.result"), h("span", { class: "roomy" }, t("why.drag"))))),
      row.verdict ? h("p", { class: "verdict" }, words(row)) : null,
      this.table(entry, settings),
      facts(row),
      h("div", { class: "buttons" },
        h("button", { class: "button primary", onclick: () => this.leave(() => this.search(row, null)) }, t("why.search")),
        crop,
        h("a", { class: "button", href: original(row.id), target: "_blank", rel: "noopener" }, t("why.open")),
        this.about.can_delete ? this.remover(row) : null),
    );
    this.dialog.showModal();
  }

  leave(action) {
    this.dialog.close();
    action();
  }

  /** Distances to the query image; of several to the nearest one, whose ranks alone do not make the score. */
  table(entry, settings) {
    const { bits, weights, method, rrfK } = settings;
    const scores = contributions(entry, settings);
    const rows = Object.keys(bits).map((name, place) => {
      const distance = entry.row.distances[name];
      const near = 1 - distance / bits[name];
      const leads = settings.lead && entry.row.lead === name;
      const weight = (weights[name] ?? 0) + (leads ? Object.values(weights).reduce((all, own) => all + own, 0) : 0);
      const chance = entry.row.chance?.[name];
      const formula = method === "chance" ? `${number(weight)} × -log10 ${chance?.toPrecision(2)}` : method === "score" ? `${number(weight)} × ${fixed(1 - entry.row.ranked_by[name] / bits[name], 3)}` : `${number(weight)} / (${rrfK} + ${rankText(entry.ranks[name])})`;
      return h("tr", { class: `h${place % 6}` },
        h("th", { scope: "row" }, name),
        h("td", {}, h("span", { class: "track", "aria-hidden": "true" }, h("i", { style: { width: `${100 * near}%` } })), percent(near)),
        h("td", {}, t("why.of", { distance: distanceText(entry.row, name), bits: bits[name] })),
        h("td", {}, chance === undefined ? "–" : chanceText(chance)),
        h("td", {}, `#${rankText(entry.ranks[name])}`),
        h("td", {}, weight && !settings.several ? h("span", { class: "formula" }, `${formula} = `) : null, weight && !settings.several ? fixed(scores[name], 4) : "–"));
    });
    const head = ["granularity", "matching", "differing", "by_chance", "rank", "contribution"];
    return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": t("why.table") }, h("table", { class: "shares" },
      h("thead", {}, h("tr", {}, ...head.map((name) => h("th", { scope: "col" }, t(`why.${name}`))))),
      h("tbody", {}, ...rows),
      h("tfoot", {}, h("tr", {}, h("th", { scope: "row" }, t("why.score")), h("td"), h("td"), h("td"), h("td"), h("td", {}, h("b", {}, fixed(entry.score, 4)))))));
  }

  remover(row) {
    const button = h("button", { class: "button danger", onclick: async () => {
      if (!button.dataset.sure) {
        button.dataset.sure = "yes";
        button.textContent = t("remove.sure");
        return;
      }
      try {
        await remove(row.id);
        this.leave(() => this.removed(row));
      } catch (error) {
        button.textContent = error.message;
      }
    } }, t("remove"));
    return button;
  }
}
