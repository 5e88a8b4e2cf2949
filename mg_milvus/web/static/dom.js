// Small helpers over the DOM.

export const $ = (selector, root = document) => root.querySelector(selector);

/** An element: attributes, `on…` listeners, `class`, `data` and `style` (set through the CSSOM, which the CSP allows). */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else if (name === "data") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** An SVG element. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** The last part of a path, for people; a path that is not UTF-8 comes as a percent-encoded URI. */
export function fileName(path) {
  const name = path.split("/").pop() || path;
  if (!path.startsWith("file://")) return name;
  try {
    return decodeURIComponent(name);
  } catch {
    return name;
  }
}

const TAIL = 9; // letters of a long name that are always shown at its end, with the suffix
const SHORT = 18; // letters that fit without being shortened

/** A file's name in two parts: where there is too little room the first is shortened, so that the end can be read. */
export function nameParts(name) {
  const letters = [...name];
  if (letters.length <= SHORT) return [h("bdi", { class: "head" }, name)];
  return [h("bdi", { class: "head" }, letters.slice(0, -TAIL).join("")), h("bdi", { class: "tail" }, letters.slice(-TAIL).join(""))];
}

/** Calls a function at most once in so many milliseconds, with the last arguments. */
export function calmly(milliseconds, action) {
  let timer = null;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...given), milliseconds);
  };
}
