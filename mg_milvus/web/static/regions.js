// Queries for the regions of images: when they are asked, what the weights are then, and what the page says of it.

export const REGIONS = "regions";

export class Regions {
  /** about: the page's facts. hasImage: query -> whether the image itself is there, and not its codes alone. */
  constructor(about, hasImage) {
    Object.assign(this, { hasImage, there: REGIONS in about.bits, whole: about.weights });
    this.kept = { profile: null, weights: null }; // of the query for the whole image, while a box is drawn
  }

  /** Whether they cannot be asked, because only the codes of the image are there. */
  missed(query) {
    return this.there && Boolean(query.codes) && !this.hasImage(query);
  }

  /** What a query weighs, given what it says of that, if anything: a box asks the regions alone. */
  weights(query, said) {
    const wanted = said ?? (this.there && query.crop ? { [REGIONS]: 1 } : this.whole);
    if (!this.missed(query) || !(wanted[REGIONS] > 0)) return wanted;
    const possible = { ...wanted, [REGIONS]: 0 };
    return Object.values(possible).some((weight) => weight > 0) ? possible : { ...this.whole, [REGIONS]: 0 };
  }

  /** A query with another box, or with none: the weights of the whole image are kept for when the box is gone. */
  withBox(query, crop) {
    if (!this.there || Boolean(crop) === Boolean(query.crop)) return { ...query, crop };
    if (!crop) return { ...query, crop, ...this.kept };
    this.kept = { profile: query.profile, weights: query.weights };
    return { ...query, crop, profile: null, weights: null };
  }

  /** Whether a query of these weights asks them. */
  asked(query, weights, hasImage = this.hasImage(query)) {
    return this.there && hasImage && (Boolean(query.crop) || weights[REGIONS] > 0);
  }

  /** A sentence about them. */
  hint(query) {
    if (this.missed(query)) return "Regions are asked with the image itself; here are only its codes, so they are left out.";
    return query.crop
      ? "regions looks for what is in the box inside of every image; the others see the whole image."
      : "regions looks for the whole image inside of others; drag a box on it to look for a detail.";
  }
}
