// Sliders and profiles: the weight of each granularity.

import { h } from "./dom.js";
import { REGIONS } from "./regions.js";
import { number, t } from "./strings.js";

const AUTO = "auto"; // the default weights, and what stands out first

const chosenAuto = (query) => !query.profile && !query.weights && !query.crop;

const same = (a, b) => Object.keys(b).every((name) => (a[name] ?? 0) === b[name]); // where b has any

export class Weights {
  /**
   * regions: knows what a query with a box weighs. changed: called with {profile, weights}: one of the two is null,
   * or both when they are the query's own.
   */
  constructor(profiles, sliders, about, regions, changed) {
    this.about = about;
    this.regions = regions;
    this.sliders = new Map();
    this.buttons = new Map();
    for (const profile of [AUTO, ...Object.keys(about.profiles)]) this.addProfile(profiles, profile, changed);
    const most = Math.max(5, ...Object.values(about.weights), ...Object.values(about.profiles).flatMap(Object.values));
    Object.keys(about.bits).forEach((name, place) => {
      const value = h("output", { for: `weight-${name}` });
      const slider = h("input", {
        type: "range", id: `weight-${name}`, min: 0, max: Math.ceil(most), step: 0.1,
        oninput: () => this.moved(name, changed),
      });
      sliders.append(
        h("div", { class: `slider h${place % 6}` },
          h("label", { for: `weight-${name}` }, name, h("small", {}, t("bits", { count: about.bits[name] }))), slider, value),
      );
      this.sliders.set(name, [slider, value]);
    });
  }

  addProfile(container, profile, changed) {
    const button = h("button", {
      type: "button",
      class: "segment",
      "aria-pressed": "false",
      onclick: () => changed({ profile: profile === AUTO ? null : profile, weights: null }),
    }, profile);
    this.buttons.set(profile, button);
    container.append(button);
  }

  moved(name, changed) {
    // Sliders have steps; the weights that nobody moved stay as they are.
    const weights = { ...this.shown, [name]: Number(this.sliders.get(name)[0].value) };
    const profile = Object.keys(this.about.profiles).find((known) => same(this.about.profiles[known], weights));
    changed(profile ? { profile, weights: null } : { profile: null, weights });
  }

  /** The weights of a query. */
  of(query) {
    const { profile, weights } = query;
    return this.regions.weights(query, profile ? this.about.profiles[profile] : weights);
  }

  /** Show them. */
  write(query) {
    const weights = this.of(query);
    this.shown = Object.fromEntries([...this.sliders.keys()].map((name) => [name, weights[name] ?? 0]));
    for (const [name, [slider, value]] of this.sliders) {
      slider.disabled = name === REGIONS && this.regions.missed(query);
      slider.value = weights[name] ?? 0;
      slider.style.setProperty("--filled", `${(100 * slider.value) / slider.max}%`);
      value.textContent = number(Number((weights[name] ?? 0).toFixed(2)));
    }
    for (const [profile, button] of this.buttons) {
      const own = profile === AUTO ? this.about.weights : this.about.profiles[profile];
      const chosen = profile === AUTO ? !query.profile && !query.weights : !chosenAuto(query);
      button.setAttribute("aria-pressed", String(chosen && same(weights, own) && same(own, weights)));
    }
  }
}
