// Questions for the regions of pictures: when they are asked, what the weights are then, and what the page says of it.

export const PARTS = "parts";

export class Regions {
  /** about: the page's facts. hasPicture: question -> whether the picture itself is there, and not its codes alone. */
  constructor(about, hasPicture) {
    Object.assign(this, { hasPicture, there: PARTS in about.bits, whole: about.weights });
    this.kept = { profile: null, weights: null }; // of the question for the whole picture, while a box is drawn
  }

  /** Whether they cannot be asked, because only the codes of the picture are there. */
  missed(question) {
    return this.there && Boolean(question.codes) && !this.hasPicture(question);
  }

  /** What a question weighs, given what it says of that, if anything: a box asks the regions alone. */
  weights(question, said) {
    const wanted = said ?? (this.there && question.crop ? { [PARTS]: 1 } : this.whole);
    if (!this.missed(question) || !(wanted[PARTS] > 0)) return wanted;
    const possible = { ...wanted, [PARTS]: 0 };
    return Object.values(possible).some((weight) => weight > 0) ? possible : { ...this.whole, [PARTS]: 0 };
  }

  /** A question with another box, or with none: the weights of the whole picture are kept for when the box is gone. */
  withBox(question, crop) {
    if (!this.there || Boolean(crop) === Boolean(question.crop)) return { ...question, crop };
    if (!crop) return { ...question, crop, ...this.kept };
    this.kept = { profile: question.profile, weights: question.weights };
    return { ...question, crop, profile: null, weights: null };
  }

  /** Whether a question of these weights asks them. */
  asked(question, weights, hasPicture = this.hasPicture(question)) {
    return this.there && hasPicture && (Boolean(question.crop) || weights[PARTS] > 0);
  }

  /** A sentence about them. */
  hint(question) {
    if (this.missed(question)) return "Regions are asked with the picture itself; here are only its codes, so parts is left out.";
    return question.crop
      ? "parts looks for what is in the box among the regions of every picture; the others see the whole picture."
      : "parts looks for the whole picture inside of others; drag a box on it to look for a detail.";
  }
}
