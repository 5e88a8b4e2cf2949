// Filters from the schema's fields: controls -> values -> a Milvus expression.

import { h } from "./dom.js";

const literal = (text) => `"${text.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replace(/[\r\n]+/g, " ")}"`;

/** The expression of one control's value. */
function condition(name, type, value, values) {
  if (name === "expression") return `(${value})`;
  if (type === "bool") return `${name} == ${value === "yes"}`;
  if (type === "string") return values.length ? `${name} == ${literal(value)}` : `${name} like ${literal(`%${value}%`)}`;
  const [least, most] = value.split("..");
  return [least && `${name} >= ${Number(least)}`, most && `${name} <= ${Number(most)}`].filter(Boolean).join(" and ");
}

export class Filters {
  /** `changed` is called with {name: text} whenever a control was changed. */
  constructor(form, about, changed) {
    this.fields = [
      ...about.fields.map((field) => ({ ...field, values: about.facets[field.name] ?? [] })),
      { name: "path", label: "path holds", type: "string", values: [] },
      { name: "width", label: "width in pixels", type: "int", values: [] },
      { name: "expression", label: "expression", type: "expression", values: [] },
    ];
    this.form = form;
    form.append(...this.fields.map((field) => this.control(field)));
    form.append(h("button", { type: "reset", class: "button small" }, "Clear"));
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("change", () => changed(this.read()));
    form.addEventListener("reset", () => setTimeout(() => changed(this.read())));
  }

  control({ name, label = name, type, values }) {
    const id = `filter-${name}`;
    if (type === "int" || type === "float") {
      const input = (end, hint) =>
        h("input", {
          type: "number", step: type === "int" ? 1 : "any", name: `${name}.${end}`, "aria-label": `${label}, ${end}`,
          placeholder: hint ?? end,
        });
      return h("div", { class: "field", role: "group", "aria-label": label },
        h("span", {}, label), h("span", { class: "range" }, input("least", values[0]), "–", input("most", values[1])));
    }
    const choice = (texts) =>
      h("select", { id, name }, h("option", { value: "" }, "any"), ...texts.map((text) => h("option", {}, text)));
    const control =
      type === "bool" ? choice(["yes", "no"])
      : values.length ? choice(values)
      : h("input", { id, name, type: "text", spellcheck: "false", placeholder: type === "expression" ? "width >= 800" : "" });
    return h("div", { class: "field" }, h("label", { for: id }, label), control);
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
      } else {
        set(this.form.elements[name], value);
      }
    }
  }

  /** The Milvus expression of {name: text}; empty when there is none. */
  expression(filters) {
    return this.fields
      .filter(({ name }) => filters[name])
      .map(({ name, type, values }) => condition(name, type, filters[name], values))
      .filter(Boolean)
      .join(" and ");
  }
}
