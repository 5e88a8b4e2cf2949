// Filters from the schema's fields: controls -> values -> a Milvus expression.

import { spellings } from "./api.js";
import { complete } from "./completion.js";
import { calmly, h } from "./dom.js";
import { t } from "./strings.js";

const PAUSE = 300; // milliseconds without a key, after which a filter applies
const STEPS = 200; // of a slider
const FIXED = ["id", "path", "size", "mtime_ns", "taken", "width", "height", "content_hash", "tags"];
const TAGS = "user_tags"; // tags that people gave

const literal = (text) => `"${text.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replace(/[\r\n]+/g, " ")}"`;

/** Milvus compares letters by their case; so all ways in which a text is written in the index are asked for. */
async function contains(name, text, signal) {
  const written = await spellings(name, text, signal);
  const escaped = (one) => one.replace(/[\\%_]/g, "\\$&").replaceAll('"', '\\"');
  const patterns = (written.length ? written : [text]).map((one) => `${name} like "%${escaped(one)}%"`);
  return patterns.length > 1 ? `(${patterns.join(" or ")})` : patterns[0];
}

/** The name of the control for one end of a range. */
const endOf = (name, end) => t("filter.end", { name, end: t(`filter.${end}`) });

/** The expression of one control's value. */
function condition({ name, type, values }, value, signal) {
  if (name === "expression") return `(${value})`;
  if (type === "bool") return `${name} == ${value === "yes"}`;
  if (type === "string") return values.length ? `${name} == ${literal(value)}` : contains(name, value, signal);
  const [least, most] = value.split("..");
  return [least && `${name} >= ${Number(least)}`, most && `${name} <= ${Number(most)}`].filter(Boolean).join(" and ");
}

export class Filters {
  /** `changed` is called with {name: text} whenever a control was changed. */
  constructor(form, about, changed) {
    this.fields = [
      ...about.fields.map((field) => ({ ...field, label: field.name === TAGS ? t("filter.your_tags") : field.name, values: about.facets[field.name] ?? [] })),
      { name: "path", label: t("filter.path"), type: "string", values: [] },
      { name: "width", label: t("filter.width"), type: "int", values: [] },
      { name: "expression", label: t("filter.expression"), type: "expression", values: [] },
    ];
    this.form = form;
    form.append(...this.fields.map((field) => this.control(field)));
    form.append(h("button", { type: "reset", class: "button small" }, t("clear")));
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", calmly(PAUSE, () => changed(this.read())));
    form.addEventListener("reset", () => setTimeout(() => changed(this.read())));
  }

  control({ name, label = name, type, values }) {
    const id = `filter-${name}`;
    if (type === "int" || type === "float") {
      const input = (end, hint) =>
        h("input", {
          type: "number", step: type === "int" ? 1 : "any", name: `${name}.${end}`, "aria-label": endOf(label, end),
          placeholder: hint ?? t(`filter.${end}`),
        });
      return h("div", { class: "field", role: "group", "aria-label": label },
        h("span", {}, label), h("span", { class: "range" }, input("least", values[0]), "–", input("most", values[1])),
        values.length && values[0] < values[1] ? this.sliders(name, label, type, values) : "");
    }
    const choice = (texts) =>
      h("select", { id, name }, h("option", { value: "" }, t("filter.any")), ...texts.map(([value, text]) => h("option", { value }, text)));
    const control =
      type === "bool" ? choice(["yes", "no"].map((value) => [value, t(`filter.${value}`)]))
      : values.length ? choice(values.map((value) => [value, value]))
      : h("input", { id, name, type: "text", spellcheck: "false", autocomplete: "off", placeholder: type === "expression" ? "width >= 800" : "" });
    const field = h("div", { class: "field" }, h("label", { for: id }, label), control);
    if (type === "expression") {
      const columns = [...FIXED, ...this.fields.map((own) => own.name).filter((own) => !["path", "width", "expression"].includes(own))];
      control.setAttribute("aria-describedby", "filter-columns");
      field.append(h("p", { class: "hint columns", id: "filter-columns" }, t("filter.columns", { names: columns.join(", ") })));
    }
    if (type === "string" && !values.length && name !== "path") complete(control, name);
    return field;
  }

  /** Two sliders over the values that were seen; at their ends there is no limit. */
  sliders(name, label, type, [least, most]) {
    const step = type === "int" ? Math.max(1, Math.round((most - least) / STEPS)) : (most - least) / STEPS;
    const number = (end) => this.form.elements[`${name}.${end}`];
    const slider = (end, limit) => h("input", {
      type: "range", class: end, min: least, max: most, step, value: limit, "aria-label": endOf(label, end), data: { for: name, end },
      oninput: ({ target }) => {
        const [low, high] = box.children;
        if (Number(low.value) > Number(high.value)) target.value = target === low ? high.value : low.value;
        const value = Number(target.value);
        number(end).value = value === limit ? "" : String(Number(value.toPrecision(6)));
        this.fill(box, least, most);
      },
    });
    const box = h("span", { class: "dual" });
    box.append(slider("least", least), slider("most", most));
    this.fill(box, least, most);
    return box;
  }

  fill(box, least, most) {
    const share = (input) => `${(100 * (input.value - least)) / (most - least)}%`;
    box.style.setProperty("--from", share(box.children[0]));
    box.style.setProperty("--to", share(box.children[1]));
  }

  read() {
    const data = new FormData(this.form);
    const filters = {};
    for (const { name, type } of this.fields) {
      const numeric = type === "int" || type === "float";
      const value = numeric ? `${data.get(`${name}.least`)}..${data.get(`${name}.most`)}` : data.get(name).trim();
      if (value && value !== "..") filters[name] = value;
    }
    return filters;
  }

  /** Show {name: text} in the controls, but for the one that is being typed into. */
  write(filters) {
    const set = (control, value) => {
      if (control !== document.activeElement) control.value = value;
    };
    for (const { name, type } of this.fields) {
      const value = filters[name] ?? "";
      if (type === "int" || type === "float") {
        const [least = "", most = ""] = value.split("..");
        set(this.form.elements[`${name}.least`], least);
        set(this.form.elements[`${name}.most`], most);
        const box = this.form.querySelector(`[data-for="${name}"]`)?.parentElement;
        if (!box) continue;
        const [low, high] = box.children;
        if (low !== document.activeElement) low.value = least || low.min;
        if (high !== document.activeElement) high.value = most || high.max;
        this.fill(box, Number(low.min), Number(low.max));
      } else {
        set(this.form.elements[name], value);
      }
    }
  }

  /** The Milvus expression of {name: text}; empty when there is none. */
  async expression(filters, signal) {
    const used = this.fields.filter(({ name }) => filters[name]);
    const conditions = await Promise.all(used.map((field) => condition(field, filters[field.name], signal)));
    return conditions.filter(Boolean).join(" and ");
  }
}
