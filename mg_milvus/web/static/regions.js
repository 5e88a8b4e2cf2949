// Queries for regions: when regions are searched, the weights then, and the hint on the page.

import { t } from "./strings.js";

export const REGIONS = "regions";

export class Regions {
  /** about: the page's facts. hasImage: query -> whether the image itself is there, and not its codes alone. */
  constructor(about, hasImage) {
    Object.assign(this, { hasImage, there: REGIONS in about.bits, whole: about.weights });
    this.kept = { profile: null, weights: null }; // of the query for the whole image, while a box is drawn
  }

  /** Whether regions cannot be searched, because only the codes of the query image are known. */
  missed(query) {
    return this.there && Boolean(query.codes) && !this.hasImage(query);
  }

  /** The weights of a query, given its own or none: a crop searches the regions only. */
  weights(query, own) {
    const weights = own ?? (this.there && query.crop ? { [REGIONS]: 1 } : this.whole);
    if (!this.missed(query) || !(weights[REGIONS] > 0)) return weights;
    const possible = { ...weights, [REGIONS]: 0 };
    return Object.values(possible).some((weight) => weight > 0) ? possible : { ...this.whole, [REGIONS]: 0 };
  }

  /** Whether the query is a box that is looked for in the regions. */
  boxed(query) {
    return this.there && Boolean(query.crop);
  }

  /** A query with another box, or with none: the weights of the whole image are kept for when the box is gone. */
  withBox(query, crop) {
    if (!this.there || Boolean(crop) === Boolean(query.crop)) return { ...query, crop };
    if (!crop) return { ...query, crop, ...this.kept };
    this.kept = { profile: query.profile, weights: query.weights };
    return { ...query, crop, profile: null, weights: null };
  }

  /** Whether a query with these weights searches the regions. */
  searched(query, weights, hasImage = this.hasImage(query)) {
    return this.there && hasImage && (Boolean(query.crop) || weights[REGIONS] > 0);
  }

  /** A sentence for the page. */
  hint(query) {
    if (!this.there) return t("regions.none");
    if (this.missed(query)) return t("regions.missed");
    return t(query.crop ? "regions.crop" : "regions.whole");
  }
}
