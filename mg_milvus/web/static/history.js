// The queries of this session with small images, to come back to; and links for somebody else.

import * as api from "./api.js";
import { $, h } from "./dom.js";
import { t } from "./strings.js";

const KEY = "mgm-history";
const MOST = 24;

export class History {
  /** queryImage: knows uploads. go: called with the address ("?…") of a query. */
  constructor(queryImage, go) {
    Object.assign(this, { queryImage, go });
    this.list = h("ol", { class: "past", role: "list" });
    this.panel = h("details", { class: "panel", id: "history-panel", hidden: true },
      h("summary", {}, h("h2", {}, t("recent"))), this.list,
      h("button", { type: "button", class: "button small", onclick: () => this.keep([]) }, t("clear")));
    $(".sidebar").append(this.panel);
    this.show();
  }

  read() {
    try {
      return JSON.parse(sessionStorage.getItem(KEY)) ?? [];
    } catch {
      return [];
    }
  }

  /** Remember a query: its address, what it is called, and what its image is. */
  add(address, label, { id, codes, like }) {
    const past = this.read().filter((one) => one.address !== address);
    this.keep([{ address, label, id: id ?? (codes ? null : (like[0] ?? null)), codes: codes ?? null }, ...past].slice(0, MOST));
  }

  keep(past) {
    try {
      sessionStorage.setItem(KEY, JSON.stringify(past));
    } catch {
      return; // a full session
    }
    this.show();
  }

  show() {
    const past = this.read();
    this.panel.hidden = !past.length;
    this.list.replaceChildren(...past.map(({ address, label, id, codes }) => {
      const image = id ? api.thumbnail(id, 240) : codes ? this.queryImage.of(codes)?.address : null;
      return h("li", {}, h("a", { href: address, title: label, onclick: (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        this.go(address);
      } }, image ? h("img", { src: image, alt: label, loading: "lazy" }) : h("span", {}, label)));
    }));
  }
}

/**
 * The address of a query for somebody else: uploads are kept by the server for a week, with their regions and a small
 * copy. toAddress: query -> "?…".
 */
export async function shareable(query, queryImage, toAddress) {
  const kept = async (codes) => {
    const image = codes ? queryImage.of(codes) : null;
    if (!image?.blob) return codes;
    const made = await api.share(image.blob, image.name, query.crop);
    queryImage.remember(made.codes, { ...image, shared: true });
    return made.codes;
  };
  const codes = await kept(query.codes);
  const others = await Promise.all(query.others.map(kept));
  return new URL(toAddress({ ...query, codes, others }), location.href).href;
}
