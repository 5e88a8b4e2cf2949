// The collection as clusters: tiles of typical images that open into smaller clusters, and those into near-duplicates.

import { clusters, images, nameCluster, thumbnail } from "./api.js";
import { $, fileName, h } from "./dom.js";
import { Grid } from "./grid.js";
import { Lightbox } from "./lightbox.js";
import { Listing, PAGE } from "./listing.js";
import { t } from "./strings.js";

const SKELETONS = 12;

const about = JSON.parse($("#about").textContent);
let shown = 0; // number of the request whose answer is shown
let here = null; // the cluster that is shown; null for all

const searchAddress = (row) => `./?${new URLSearchParams({ id: row.id, ...(here && { cluster: here.key }) })}`;
const search = (row) => location.assign(searchAddress(row));
const grid = new Grid($("#grid"), { link: searchAddress, search, open: (place) => lightbox.show(grid, place), fields: about.show });
const lightbox = new Lightbox($("#lightbox"), { search });

const within = () => new URLSearchParams(location.search).get("in");
const addressOf = (key) => (key ? `?${new URLSearchParams({ in: key })}` : "overview");

function link(key, attributes, ...children) {
  return h("a", { href: addressOf(key), ...attributes, onclick: (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    history.pushState({}, "", addressOf(key));
    show();
  } }, ...children);
}

/** Its name or label, else its number. */
const titleOf = ({ name, label, key }) => name || label || t("overview.cluster", { key });

function tile(cluster) {
  const near = cluster.granularity === "fine" && cluster.key.includes(".");
  const title = near ? t("overview.near") : titleOf(cluster);
  return h("li", { class: "cluster", data: { key: cluster.key } },
    link(cluster.key, {},
      h("span", { class: "mosaic" }, ...cluster.typical.map((one) => {
        const image = h("img", { src: thumbnail(one.id, 480), alt: "", title: fileName(one.path), loading: "lazy", decoding: "async", onerror: () => image.replaceWith(h("span")) });
        return image;
      })),
      h("span", { class: "line" }, h("b", {}, h("bdi", {}, title)), h("span", {}, t("images", { count: cluster.size })))));
}

function showProblem(problem) {
  $("#problem").hidden = !problem;
  $("#problem").textContent = problem ?? "";
}

async function show() {
  const mine = (shown += 1);
  const key = within();
  $("#clusters").setAttribute("aria-busy", "true");
  if (key !== (here?.key ?? null)) for (const id of ["#naming", "#search-in", "#browse-in"]) $(id).hidden = true; // they act on what is left
  const inside = $("#clusters").contains(document.activeElement);
  if (!$("#clusters").childElementCount && !key) {
    $("#clusters").append(...Array.from({ length: SKELETONS }, () => h("li", { class: "cluster skeleton", "aria-hidden": "true" }, h("span", { class: "mosaic" }), h("span", { class: "line" }))));
    $("#status").textContent = about.rows ? t("overview.comparing") : "";
  }
  let found = { parts: [], path: [], rows: 0 };
  let first = null;
  const options = { order_by: "path", cluster: key };
  try {
    if (about.rows) [found, first] = await Promise.all([clusters(key), key ? images({ ...options, limit: PAGE, offset: 0 }) : null]);
    showProblem(null);
  } catch (error) {
    if (mine !== shown) return;
    showProblem(error.message);
  }
  if (mine !== shown) return;
  $("#clusters").removeAttribute("aria-busy");
  here = found.key ? found : null;
  const isGroup = here?.granularity === "fine" && here.key.includes(".");
  document.title = [here && titleOf(here), t("overview"), about.title].filter(Boolean).join(" · ");
  $("#heading").textContent = isGroup ? t("near_duplicates") : here ? titleOf(here) : t("overview");
  $("#status").textContent = here
    ? (here.name ? t("images", { count: here.size }) : t("overview.numbered", { images: t("images", { count: here.size }), key: here.key }))
    : found.parts.length ? t("overview.status", { images: t("images", { count: found.rows }), clusters: t("overview.clusters", { count: found.parts.length }) })
    : about.rows ? "" : t("no_images_yet");
  $("#trail").replaceChildren(...(here ? [link("", {}, t("overview")), ...found.path.map((one) => link(one.key, {}, titleOf(one)))] : []));
  $("#naming").hidden = !here || isGroup || !about.can_delete;
  $("#name").value = here?.name ?? "";
  for (const [button, address] of [["#search-in", "./"], ["#browse-in", "browse"]]) {
    $(button).hidden = !here;
    $(button).href = `${address}?${new URLSearchParams({ cluster: here?.key ?? "" })}`;
  }
  $("#clusters").replaceChildren(...found.parts.map(tile));
  $("#images-heading").hidden = !here;
  grid.show(first ? new Listing(options, first, showProblem) : [], about.bits);
  scrollTo({ top: 0, behavior: "instant" });
  if (inside) ($("#clusters a") ?? $("#results")).focus({ preventScroll: true });
}

$("#naming").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await nameCluster(here.key, $("#name").value.trim());
    await show();
  } catch (error) {
    showProblem(error.message);
  }
});
addEventListener("popstate", show);
show();
