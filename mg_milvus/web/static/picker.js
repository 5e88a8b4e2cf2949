// An image from anywhere: dropped, pasted, chosen, photographed.

import { $ } from "./dom.js";

/** Calls `picked` with a File (or Blob) of any kind; the server says whether it is an image. */
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
    const [file] = event.dataTransfer?.files ?? [];
    if (!file || dialogOpen()) return;
    event.preventDefault();
    picked(file);
  });
  addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
    if (file && !dialogOpen()) picked(file);
  });
  for (const input of [$("#choose"), $("#photograph")]) {
    input.addEventListener("change", () => {
      const [file] = input.files;
      input.value = "";
      if (file) picked(file);
    });
  }
}
