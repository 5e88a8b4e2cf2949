// Suggestions while typing: tags for the box of words, values for fields with many.

import { completions } from "./api.js";
import { calmly, h } from "./dom.js";
import { t } from "./strings.js";

const PAUSE = 200; // milliseconds without a key

/** Complete what is typed into an input; field: name of a field, or null for tags. */
export function complete(input, field) {
  const list = h("datalist", { id: `${input.id}-values` });
  input.setAttribute("list", list.id);
  input.after(list);
  let asked = null;
  const ask = calmly(PAUSE, async () => {
    const text = input.value.trim();
    if (text === asked || !input.isConnected) return;
    asked = text;
    try {
      const found = await completions(field, text);
      if (asked !== text) return;
      list.replaceChildren(...Object.entries(found).map(([value, count]) => h("option", { value, label: t("suggestion", { value, count }) })));
    } catch {
      list.replaceChildren(); // suggestions are no reason to disturb
    }
  });
  input.addEventListener("input", ask);
  input.addEventListener("focus", ask);
}
