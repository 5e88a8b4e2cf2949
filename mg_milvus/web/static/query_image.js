// The query image: shown, kept while the page is open, and a small copy of it kept for the session.

import { shared, thumbnail } from "./api.js";
import { BoxDrawer } from "./box.js";
import { $, fileName, nameParts } from "./dom.js";
import { t } from "./strings.js";

const COPY_SIDE = 400;
const SESSION = "mgm-image:";
const SHARED = "share."; // codes that stand for an image that the server keeps for a week

export class QueryImage {
  /** setCrop: called with a box in the image's own pixels, or null for the whole image. */
  constructor(setCrop) {
    this.images = new Map(); // codes -> {blob, name, address}
    this.size = null;
    this.image = $("#query");
    this.drawer = new BoxDrawer($("#frame"), () => this.size, setCrop, $("#draw-crop"));
    $("#whole").addEventListener("click", () => setCrop(null));
  }

  /** Remember an uploaded image by the codes in the response; a crop has codes of its own. */
  remember(codes, image) {
    this.images.set(codes, image);
    copy(image.address).then(
      (small) => sessionStorage.setItem(SESSION + codes, JSON.stringify({ name: image.name, address: small })),
    ).catch(() => {}); // private mode, a full session, or a format that browsers do not show: then there is no copy
  }

  /** Get what the server keeps of a shared image. */
  async load(codes) {
    if (!codes?.startsWith(SHARED) || this.images.has(codes)) return;
    const { name, thumbnail: address, width, height, regions } = await shared(codes);
    this.images.set(codes, { name: name || t("shared_image"), address, size: [width, height], shared: regions });
  }

  /** {blob, name, address} of codes; blob only while the page lives; undefined when the image was never here. */
  of(codes) {
    if (this.images.has(codes)) return this.images.get(codes);
    try {
      return JSON.parse(sessionStorage.getItem(SESSION + codes)) ?? undefined;
    } catch {
      return undefined;
    }
  }

  /** Show the query image: an indexed row, an image as `of` returns it, or none. */
  show(query, row, image, size) {
    const isQuery = Boolean(query.id || query.codes);
    $("#drop").hidden = isQuery;
    $("#query-image").hidden = !isQuery;
    if (!isQuery) {
      this.size = null;
      $("#crop-buttons").hidden = true;
      return;
    }
    const address = row ? thumbnail(row.id, 1600) : image?.address;
    const name = row ? fileName(row.path) : (image?.name ?? t("not_shared"));
    this.address = address ?? null;
    this.crop = query.crop;
    this.image.hidden = !address;
    $("#frame").classList.toggle("unknown", !address);
    if (address && this.image.getAttribute("src") !== address) this.image.src = address;
    this.image.alt = t("query.image_named", { name });
    this.size = size[0] ? size : null;
    if (this.size) $("#frame").style.setProperty("--ratio", size[0] / size[1]);
    $("#query-name").replaceChildren(...(row || image?.name ? nameParts(name) : [name]));
    $("#query-name").title = row?.path ?? name;
    const facts = [];
    if (this.size) facts.push(t("pixels", { width: size[0], height: size[1] }));
    if (query.crop) facts.push(t("crop.of", { width: query.crop[2], height: query.crop[3] }));
    if (!address) facts.push(t("codes_only"));
    $("#query-size").textContent = facts.join(" · ");
    const canCrop = this.size && (row || image?.blob);
    $("#crop-buttons").hidden = !canCrop;
    $("#whole").hidden = !query.crop;
    this.drawer.show(query.crop);
  }
}

/** A small copy of an image, as a data address. */
async function copy(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  const scale = Math.min(1, COPY_SIDE / Math.max(image.naturalWidth, image.naturalHeight));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, image.naturalWidth * scale);
  canvas.height = Math.max(1, image.naturalHeight * scale);
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.8);
}
