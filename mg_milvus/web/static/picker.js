// Images from anywhere: dropped, pasted, chosen, photographed.

import { $ } from "./dom.js";

/** Calls `picked` with Files (or Blobs) of any kind; the server says whether they are images. */
export function listen(picked) {
  const veil = $("#veil");
  let depth = 0;
  const carriesFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const dialogOpen = () => $("dialog[open]") !== null;

  addEventListener("dragenter", (event) => {
    if (!carriesFile(event) || dialogOpen()) return;
    depth += 1;
    veil.hidden = false;
  });
  addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    if (!depth) veil.hidden = true;
  });
  addEventListener("dragover", (event) => {
    if (carriesFile(event)) event.preventDefault();
  });
  addEventListener("drop", (event) => {
    depth = 0;
    veil.hidden = true;
    const files = [...(event.dataTransfer?.files ?? [])];
    if (!files.length || dialogOpen()) return;
    event.preventDefault();
    picked(files);
  });
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])].filter((one) => one.type.startsWith("image/"));
    if (files.length && !dialogOpen()) picked(files);
  });
  for (const input of [$("#choose"), $("#photograph")]) {
    input.addEventListener("change", () => {
      const files = [...input.files];
      input.value = "";
      if (files.length) picked(files);
    });
  }
}
